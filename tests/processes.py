"""Processes that tests watch and kill, alone or as ranks.

They are forked from one server that has imported torch already: an interpreter of its own for each would spend several
seconds of work on imports.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

COMMAND = "from mvar.cli import main; main(sys.argv[1:])"
# What the server holds ready for the processes that are forked from it.
IMPORTED = [
    "mvar.cli",
    "mvar.bench.training",
    "mvar.evaluation.runner",
    "mvar.sampling.protocol",
    "mvar.data.tokens.writer",
    "mvar.training.run.curves",
    "mvar.training.generator.task",
    "mvar.training.tokenizer.task",
    "torch._dynamo.aot_compile",
    "torch.distributed.fsdp",
]


class Processes:
    """Processes that run the same code, each in an environment of its own."""

    def __init__(
        self, code: str, arguments: Sequence[object], scratch: Path, environments: Sequence[dict[str, str]] = ({},)
    ) -> None:
        """Start a process for each environment, which is set beside that of the tests.

        The code finds `sys` with its arguments there; files in `scratch` take the output.
        """
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(IMPORTED)
        self.processes: list[BaseProcess] = []
        self._files: list[tuple[Path, Path]] = []
        words = [str(argument) for argument in arguments]
        for rank, environment in enumerate(environments):
            files = (scratch / f"{rank}.stdout", scratch / f"{rank}.stderr")
            whole = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            request = (code, words, [str(file) for file in files], whole)
            process = server.Process(target=runpy.run_path, args=(__file__, {"REQUEST": request}, "forked"))
            process.start()
            self.processes.append(process)
            self._files.append(files)

    def output(self) -> str:
        """What the first has written to stdout."""
        return self._files[0][0].read_text(encoding="utf-8")

    def errors(self) -> str:
        """What all have written to stderr."""
        return "".join(errors.read_text(encoding="utf-8") for _, errors in self._files if errors.is_file())

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Until it holds, while all processes are running."""
        end = time.monotonic() + seconds
        while not condition():
            assert all(process.is_alive() for process in self.processes), self.errors()
            assert time.monotonic() < end
            time.sleep(0.01)

    def wait(self, seconds: float = 300) -> list[int]:
        """Until all have ended; returns their codes, the number of a signal below zero."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes if process.exitcode is not None]
        if len(codes) < len(self.processes):
            self.kill()  # else pytest would wait for them at its end
            raise AssertionError(f"did not end within {seconds:g} s: {self.errors()}")
        return codes

    def finish(self) -> None:
        """Until all have ended, which they must do well."""
        assert not any(self.wait()), self.errors()

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        process = self.processes[rank].pid
        assert process is not None
        os.kill(process, number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


class Ranks(Processes):
    """So many ranks, with the variables that torchrun gives to each, and the store where they meet."""

    def __init__(self, ranks: int, code: str, arguments: Sequence[object], scratch: Path) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
        }
        own = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
        environments = [{name: str(value) for name, value in each.items()} for each in own]
        super().__init__(code, arguments, scratch, environments)


def _run(code: str, arguments: list[str], files: list[str], environment: dict[str, str]) -> None:
    """As in an interpreter of its own, whose output goes to files."""
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
    sys.argv = ["-c", *arguments]
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    exec(code, {"__name__": "__main__", "sys": sys})


if __name__ == "forked":
    _run(*globals()["REQUEST"])

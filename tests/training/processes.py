"""Training runs in processes of their own, which tests watch and kill.

They are forked from one server that has imported torch already: an interpreter of its own for each would spend several
seconds of work on imports.
"""

import json
import multiprocessing
import os
import runpy
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

WORKER = Path(__file__).with_name("worker.py")
# What a server holds ready for the runs that are forked from it.
IMPORTED = ["mvar.training.curves", "mvar.training.generator", "mvar.training.tokenizer", "torch._dynamo"]


class Runs:
    """The ranks of a launch, or one process alone."""

    def __init__(self, jobs: Sequence[dict[str, Any]], path: Path, environments: Sequence[dict[str, str]]) -> None:
        """Start a process for each environment.

        Args:
            jobs: for worker.py.
            path: file to write them into; what the processes write to stderr goes to files beside it.
            environments: what is set beside the environment of the tests.
        """
        path.write_text(json.dumps(jobs))
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(IMPORTED)
        self.processes: list[BaseProcess] = []
        self._errors = [path.with_name(f"{path.stem}-{i}.stderr") for i in range(len(environments))]
        for file, environment in zip(self._errors, environments, strict=True):
            whole = {**os.environ, **environment}
            request = {"REQUEST": (str(path), str(file), whole)}
            process = server.Process(target=runpy.run_path, args=(str(WORKER), request, "forked"))
            process.start()
            self.processes.append(process)

    def errors(self) -> str:
        """What they have written to stderr."""
        return "".join(file.read_text() for file in self._errors if file.is_file())

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Until it holds, while all processes are running."""
        end = time.monotonic() + seconds
        while not condition():
            assert all(process.is_alive() for process in self.processes), self.errors()
            assert time.monotonic() < end
            time.sleep(0.01)

    def wait(self, seconds: float = 120) -> str:
        """Until all have ended; returns what they wrote to stderr."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(end - time.monotonic())
            assert process.exitcode is not None, self.errors()
        return self.errors()

    def finish(self) -> None:
        """Until all have ended, which they must do well."""
        errors = self.wait(300)
        assert not any(process.exitcode for process in self.processes), errors

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def alone(jobs: Sequence[dict[str, Any]], path: Path) -> Runs:
    """A process by itself."""
    return Runs(jobs, path, [{"OMP_NUM_THREADS": "1"}])


class Ranks(Runs):
    """So many ranks, with the variables that torchrun gives to each, and the store where they meet."""

    def __init__(self, ranks: int, jobs: Sequence[dict[str, Any]], path: Path) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "OMP_NUM_THREADS": 1,
        }
        own = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
        super().__init__(jobs, path, [{name: str(value) for name, value in each.items()} for each in own])

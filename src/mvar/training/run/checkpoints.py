"""Checkpoints that survive crashes: torch.distributed.checkpoint into safetensors, written in the background.

    checkpoints/0001000/manifest.json        step, small values, size and SHA-256 of every file
    checkpoints/0001000/shard-*.safetensors  each rank's shard of every tensor

A checkpoint is written under a hidden name, flushed, and renamed once complete. Any number of ranks can read it.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mvar.checkpoint.placement import first_line
from mvar.files import file_sha256
from mvar.training.parallel import Ranks, is_silence

FOLDER, MANIFEST, PARTIAL = "checkpoints", "manifest.json", ".partial"
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.ERROR)  # torch's two records a tensor go nowhere


class Found(NamedTuple):
    """A complete checkpoint on disk."""

    path: Path
    step: int
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the one with the best score. Every rank calls each method."""

    def __init__(self, run: Path, ranks: Ranks, keep: int) -> None:
        self.folder, self.ranks, self.keep = run / FOLDER, ranks, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if ranks.main:
            for left in self.folder.glob(f".*{PARTIAL}"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        # Its own group: the background's messages must not mix with training's.
        self._group = None if ranks.kind is None else dist.new_group(backend="gloo", timeout=ranks.patience)

    def save(self, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Copy the tensors and write them in the background, once the checkpoint before is written.

        The lowest "score" in the notes is the best. Raises OSError if the one before could not be written.
        """
        self.wait()
        partial = self.folder / f".{step:07d}{PARTIAL}"
        if self.ranks.main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.ranks.gather(None)  # the folder exists for all
        _expect_to_be_alone()
        written = dcp.async_save(
            _without_scalars(tensors),
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=self._group,
            no_dist=self.ranks.kind is None,
        )
        self._pending = self._pool.submit(self._commit, written, partial, step, dict(notes))

    def wait(self) -> None:
        """Wait until nothing is being written; raise what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def poll(self) -> None:
        """Raise what went wrong in the background, without waiting."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Wait for the background, whatever went wrong there."""
        self._pool.shutdown()

    def _commit(self, written: Any, partial: Path, step: int, notes: dict[str, Any]) -> None:
        try:
            written.result()
            if not self.ranks.main:
                return
            files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
            manifest = {"step": step, "ranks": self.ranks.size, "notes": notes, "files": files}
            with open(partial / MANIFEST, "w", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            final = self.folder / f"{step:07d}"
            shutil.rmtree(final, ignore_errors=True)  # damaged
            os.replace(partial, final)
            self._prune()
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            shutil.rmtree(partial, ignore_errors=True)
            failures = getattr(error, "failures", None)  # of each rank
            cause = next(iter(failures.values()))[0] if failures else error
            if isinstance(cause, RuntimeError) and is_silence(cause):
                raise cause from error
            raise OSError(
                f"checkpoint of step {step} could not be written to {str(self.folder)!r} ({first_line(cause)}); "
                "the ones before it are complete: fix this and go on with --resume"
            ) from error

    def _prune(self) -> None:
        found = complete(self.folder.parent)
        scored = [one for one in found if one.notes.get("score") is not None]
        best = min(scored, key=lambda one: one.notes["score"], default=None)
        for old in found[self.keep :]:
            if old is not best:
                shutil.rmtree(old.path, ignore_errors=True)


def exist(run: Path) -> bool:
    """Whether the run has checkpoints, damaged or not."""
    return bool(_candidates(run))


def complete(run: Path) -> list[Found]:
    """The complete checkpoints of a run, the last first; their contents are not checked."""
    return [_read_manifest(path) for path in _candidates(run) if (path / MANIFEST).is_file()]


def latest(run: Path) -> Found:
    """The last undamaged checkpoint, with a warning for each damaged one after it; ValueError if there is none."""
    reasons: list[str] = []
    for path in _candidates(run):
        problem = _problem(path)
        if problem is None:
            found = _read_manifest(path)
            for reason in reasons:
                warnings.warn(f"{reason}; going back to step {found.step}", stacklevel=2)
            return found
        reasons.append(f"checkpoint {str(path)!r} is damaged ({problem})")
    raise ValueError("; ".join(reasons) + ", and there is no complete one before: start a new run")


def read(found: Found, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors in place (of sharded ones this rank's shard); ValueError where one is missing or misshapen."""
    sizes = stored(found)
    for name, tensor in tensors.items():
        if sizes.get(name) != (tuple(tensor.shape) or (1,)):
            raise ValueError(f"{found.path}: {name} is {sizes.get(name)}, the run needs {tuple(tensor.shape)}")
    _expect_to_be_alone()
    reader = HuggingFaceStorageReader(str(found.path))
    dcp.load(_without_scalars(tensors), storage_reader=reader, no_dist=ranks.kind is None)


def stored(found: Found) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors."""
    metadata = HuggingFaceStorageReader(str(found.path)).read_metadata()
    tensors = metadata.state_dict_metadata.items()
    return {name: tuple(value.size) for name, value in tensors if isinstance(value, TensorStorageMetadata)}


def _without_scalars(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same tensors, scalars as views of one element."""
    return {name: tensor.detach().view(1) if tensor.dim() == 0 else tensor for name, tensor in tensors.items()}


def _expect_to_be_alone() -> None:
    """Silence torch's warning that one process saves or loads by itself, which may come from another thread."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


def _candidates(run: Path) -> list[Path]:
    """Checkpoint folders, the last first."""
    folders = [path for path in (run / FOLDER).glob("*") if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name), reverse=True)


def _read_manifest(path: Path) -> Found:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return Found(path, manifest["step"], manifest["notes"])


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        changed = [name for name, digest in files.items() if _digest(path / name) != digest]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{changed[0]} has changed" if changed else None


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

"""What the parts of a run of minutes take, measured before its first step.

Nothing of it stays: no weight changes, and the images of a folder (not of a stream) come again.
"""

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist

from mvar.training.config import RunConfig
from mvar.training.course import LEAST_IMAGES, TimedCourse
from mvar.training.loop import backward, clip
from mvar.training.parallel import Ranks
from mvar.training.task import Task

CHECKPOINT_BUNDLES = 5  # a checkpoint's weights, average and two moments, and the bundle beside it


def rehearse(task: Task, config: RunConfig, ranks: Ranks) -> None:
    """Settle the course of a run of minutes and print it; do nothing for a run of steps.

    Every rank calls it, before the run folder is begun. Raises ValueError if too little time is left.
    """
    course = task.course
    if not isinstance(course, TimedCourse) or course.share == 1:
        return
    model, held_out = task.networks["model"], task.val_images
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.dtype == "float16")
    steps = itertools.count(course.done)  # each has its own images, so that none are remembered from the one before

    def step() -> None:
        task.optimizer.zero_grad(set_to_none=True)
        backward(task, ranks, scaler, config.accumulate, next(steps))
        clip(task.networks, math.inf)  # reads the gradients, which a GPU may still be computing

    def seconds(work: Callable[[], object]) -> float:
        """The slowest rank's time for the better of two passes, as the first allocates memory and compiles."""
        took = []
        for _ in range(2):
            begun = course.clock()
            work()
            took.append(course.clock() - begun)
        return float(ranks.total(torch.tensor(min(took), dtype=torch.float64), dist.ReduceOp.MAX))

    if ranks.main:
        print("measuring what steps, validations and checkpoints take", file=sys.stderr, flush=True)
    starts = [min(phase * course.planned / course.minutes, 1.0) for phase in task.phases()]
    with _restored(task), tempfile.TemporaryDirectory(prefix="mvar-") as scratch:
        for start, end in pairwise([*starts, 1.0]):
            if end > max(start, course.share):  # a stage that is not over yet
                with course.at((max(start, course.share) + end) / 2):
                    took = seconds(step)
                course.stages.append((start, took))
                ranks.on_main(course.check)
        task.optimizer.zero_grad(set_to_none=True)
        model.eval()
        few = min(LEAST_IMAGES * ranks.size, len(held_out))
        task.val_images = held_out.at_most(few)
        image = seconds(task.validate) / few
        preview = seconds(lambda: task.preview(Path(scratch, "preview.png")))
        bundle = seconds(lambda: task.save_bundle(Path(scratch, "bundle"), 0))
        model.train()
    course.start(image, preview, CHECKPOINT_BUNDLES * bundle)
    ranks.on_main(course.check)
    task.val_images = held_out.at_most(course.val_images or len(held_out))
    course.val_images = len(task.val_images)
    if ranks.main:
        print(course.described(), file=sys.stderr, flush=True)


@contextmanager
def _restored(task: Task) -> Iterator[None]:
    """Restore at the end what a pass without an update changes all the same: counts and spectral norms."""
    live = [*task.state().values(), *(buffer for module in task.networks.values() for buffer in module.buffers())]
    kept = [tensor.detach().clone() for tensor in live]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(live, kept, strict=True):
                tensor.copy_(before)

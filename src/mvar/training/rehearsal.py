"""What the parts of a run of minutes take, measured before its first step, so that its course is known from the start.

Each part runs as in training, and nothing of it stays: no weight changes, no file is left, and the images of a folder
come again. (Of a stream, the first few images are seen by the measurement alone.)
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

    if ranks.main:
        print("measuring what steps, validations and checkpoints take", file=sys.stderr, flush=True)
    starts = [min(phase * course.planned / course.minutes, 1.0) for phase in task.phases()]
    with _restored(task), tempfile.TemporaryDirectory(prefix="mvar-") as scratch:
        for start, end in pairwise([*starts, 1.0]):
            if end > max(start, course.share):  # a stage that is not over yet
                with course.at((max(start, course.share) + end) / 2):
                    took = _seconds(course, step)
                course.stages.append((start, took))
                ranks.on_main(course.check)
        task.optimizer.zero_grad(set_to_none=True)
        model.eval()
        few = min(LEAST_IMAGES * ranks.size, len(held_out))
        task.val_images = held_out.at_most(few)
        image = _seconds(course, task.validate) / few
        preview = _seconds(course, lambda: task.preview(Path(scratch, "preview.png")))
        bundle = _seconds(course, lambda: task.save_bundle(Path(scratch, "bundle"), 0))
        model.train()
    measured = [image, preview, CHECKPOINT_BUNDLES * bundle, *(took for _, took in course.stages)]
    seconds = torch.tensor(measured, dtype=torch.float64)
    ranks.broadcast(seconds)
    image, preview, checkpoint, *took_each = seconds.tolist()
    course.stages = [(start, took) for (start, _), took in zip(course.stages, took_each, strict=True)]
    course.start(image, preview, checkpoint)
    ranks.on_main(course.check)
    task.val_images = held_out.at_most(course.val_images or len(held_out))
    course.val_images = len(task.val_images)
    if ranks.main:
        print(course.described(), file=sys.stderr, flush=True)


def _seconds(course: TimedCourse, work: Callable[[], object]) -> float:
    """The time that something takes the second time, as the first allocates memory and compiles; or the first, if
    there is no time for a second.
    """
    best = math.inf
    for _ in range(2):
        begun = course.clock()
        work()
        best = min(best, course.clock() - begun)
        if course.left < course.least_steps * best:
            break
    return best


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

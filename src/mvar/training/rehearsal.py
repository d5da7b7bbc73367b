"""What the parts of a run take, measured before it begins: so a run of minutes is laid before its first step.

Each is done as in the run, and nothing of it stays: no weights change, no file is left, and the images of a folder come
again. (Those of a stream do not: the first few are seen by the measurement alone.)
"""

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from mvar.training.config import RunConfig
from mvar.training.course import LEAST_IMAGES, Costs, TimedCourse
from mvar.training.loop import Task, backward, clip
from mvar.training.parallel import Ranks
from mvar.training.stopping import exit_on_sigterm

PASSES = 2  # of which the quicker one counts: the first allocates memory and compiles
CHECKPOINT_BUNDLES = 4  # weights, average and two moments, beside a bundle's weights


def rehearse(task: Task, config: RunConfig, ranks: Ranks) -> None:
    """Lay the course of a task that is to last some minutes and say so; any other task is left alone.

    Every rank calls it, before the run folder is begun.

    Raises:
        ValueError: too little time is left.
    """
    course = task.course
    if not isinstance(course, TimedCourse) or course.share == 1:
        return
    stages = course.stages(task.phases())
    model, held_out = task.networks["model"], task.val_images
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.dtype == "float16")

    numbers = itertools.count(course.done)  # each has images of its own: none must be remembered from the one before

    def step() -> None:
        task.optimizer.zero_grad(set_to_none=True)
        backward(task, ranks, scaler, config.accumulate, next(numbers))
        clip(task.networks, math.inf)  # reads the gradients, which a GPU may still be computing

    if ranks.main:
        print("measuring what steps, validations and checkpoints take", file=sys.stderr, flush=True)
    out = Path(config.out).absolute()
    place = next(path for path in (out, *out.parents) if path.is_dir())  # on the disk that the run will write to
    scratch_folder = tempfile.TemporaryDirectory(dir=place, prefix=".rehearsal-")
    with exit_on_sigterm(), _without_traces(task), scratch_folder as scratch:
        seconds = []
        for start, end in stages:
            with course.at((max(start, course.share) + end) / 2):
                took = _seconds(course, step)
            ranks.on_main(partial(course.check_step, took))
            seconds.append(took)
        task.optimizer.zero_grad(set_to_none=True)
        model.eval()
        few = min(LEAST_IMAGES * ranks.size, len(held_out))
        task.val_images = held_out.at_most(few)
        seconds.append(_seconds(course, task.validate) / few)
        seconds.append(_seconds(course, lambda: task.preview(Path(scratch, "preview.png"))))
        bundle = _seconds(course, lambda: task.save_bundle(Path(scratch, "bundle"), 0))
        seconds.append((1 + CHECKPOINT_BUNDLES) * bundle)
        model.train()
    shared = torch.tensor(seconds, dtype=torch.float64)
    ranks.share(shared)
    *steps, image, preview, checkpoint = shared.tolist()
    costs = [(start, took) for (start, _), took in zip(stages, steps, strict=True)]
    course.start(Costs(stages=costs, image=image, preview=preview, checkpoint=checkpoint))
    ranks.on_main(course.check)
    task.val_images = held_out.at_most(course.val_images or len(held_out))
    course.val_images = len(task.val_images)
    if ranks.main:
        print(course.described(), file=sys.stderr, flush=True)


def _seconds(course: TimedCourse, work: Callable[[], object]) -> float:
    """The time that something takes the second time; the first, where there is no time for a second."""
    best = math.inf
    for _ in range(PASSES):
        begun = course.clock()
        work()
        best = min(best, course.clock() - begun)
        if course.left < course.least_steps * best:
            break
    return best


@contextmanager
def _without_traces(task: Task) -> Iterator[None]:
    """Put back what a pass without an update changes all the same: counts, and spectral norms."""
    live = [*task.state().values(), *(buffer for module in task.networks.values() for buffer in module.buffers())]
    kept = [tensor.detach().clone() for tensor in live]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(live, kept, strict=True):
                tensor.copy_(before)

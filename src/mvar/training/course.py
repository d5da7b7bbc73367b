"""How long a run is and how far it has come: a given number of steps, or as many as fit into its minutes.

With minutes, learning rate, weight decay and phases are functions of the share of the run that is done; a step advances
it by what remains over the number of steps that remain. This number is changed when the run would not end on time.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch

from mvar.training.config import RunConfig
from mvar.training.parallel import Ranks
from mvar.training.run.checkpoints import Found

Event = Literal["validation", "checkpoint"]
VALIDATION_SHARE = 0.01  # of the minutes, for the losses of one validation
EVENTS_SHARE: dict[Event, float] = {"validation": 0.1, "checkpoint": 0.05}  # of the minutes, for all of them
LEAST_EVENTS: dict[Event, int] = {"validation": 1, "checkpoint": 2}
MOST_EVENTS = 10  # and a checkpoint every few minutes in a long run
CHECKPOINT_SECONDS = 300.0
RESERVE_SHARE, RESERVE_SECONDS, MOST_RESERVE = 0.01, 4.0, 60.0  # of the minutes, kept for the end
LEAST_STEPS = 20  # of a run that is worth starting
MARGIN = 1.2  # of the minutes that an error recommends, as a machine is not always equally fast
LEAST_IMAGES = 64  # of a validation
TOLERANCE = 0.05  # relative error of the number of remaining steps below which it is left alone
TOLD = 0.1  # relative change of the number of steps that is reported
MEMORY = 1 / 20  # of the minutes: the time over which the speed is averaged
FINE = 10_000  # steps of an imagined run


class Course:
    """A run of a given number of steps."""

    def __init__(self, config: RunConfig, planned: float | None = None) -> None:
        """`planned` is the number of steps that the run was begun with, to which its phases refer."""
        self.steps = config.steps or 0  # of the whole run
        self.planned = planned or self.steps
        self.spacing: dict[Event, int | None] = {  # steps from one event to the next
            "validation": config.validate_every,
            "checkpoint": config.checkpoint_every,
        }

    def place(self, step: int) -> tuple[float, float]:
        """The next update's number, from 0, and the number of steps: arguments of learning rate and weight decay."""
        return step, self.steps

    def phase(self, step: int) -> tuple[float, float]:
        """The same for a run's phases, which do not come back when a resumed run is given more steps or minutes."""
        return step, self.planned

    def is_due(self, event: Event, done: int) -> bool:
        """Whether this event follows after `done` updates; after the last one all do."""
        return done == self.steps or done % (self.spacing[event] or 1) == 0

    def lay(self, ranks: Ranks) -> str | None:
        """Settle the number of steps before an update; every rank calls it. Returns what to tell the user."""

    def advance(self) -> None:
        """Count one update."""

    def timing(self, event: Event) -> AbstractContextManager[None]:
        """A context around an event, which measures it."""
        return nullcontext()

    def notes(self) -> dict[str, Any]:
        """What a checkpoint must remember."""
        return {}


class TimedCourse(Course):
    """A run of a given number of minutes."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self, config: RunConfig, minutes: float, planned: float, began: float, found: Found | None = None
    ) -> None:
        """Start at `began`, by `clock`, or resume from a checkpoint; `planned` are the minutes it was begun with."""
        super().__init__(config, planned)
        before = {} if found is None else found.notes["course"]
        self.batch_size = config.batch_size
        self.minutes, self.seconds = minutes, 60 * minutes  # over all processes of the run
        self.end = began + self.seconds - before.get("spent", 0.0)
        self.done = self.steps = 0 if found is None else found.step
        self.least_steps = 1 if self.done else LEAST_STEPS
        # The share of the run that is done.
        self.share = min(before.get("share", 0.0) * before.get("minutes", minutes) / minutes, 1.0)
        self.val_images: int | None = config.val_images or before.get("val_images")  # None until it is known
        # (share of the run from which a step takes this long, seconds), from the current stage on.
        self.stages: list[tuple[float, float]] = []
        self.costs: dict[Event, float] = {}  # seconds
        self._slowness = 1.0  # time of a step relative to what was measured at the start
        self._stepped = 0  # updates of this process
        self._mark = began
        self._told = 0  # the number of steps that the user knows of
        ends = time.localtime(time.time() + self.left)
        self.ends = time.strftime("%H:%M" if self.left < 12 * 3600 else "%a %H:%M", ends)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - self.clock()

    def place(self, step: int) -> tuple[float, float]:
        pace = (self.steps - self.done) / (1 - self.share)  # steps of a whole run at the current speed
        return self.share * pace, pace

    def phase(self, step: int) -> tuple[float, float]:
        place, pace = self.place(step)
        return place, pace * self.planned / self.minutes

    @contextmanager
    def at(self, share: float) -> Iterator[None]:
        """As if this share of the run were done, within the context."""
        kept = self.share, self.steps
        self.share, self.steps = share, self.done + FINE
        try:
            yield
        finally:
            self.share, self.steps = kept

    def start(self, image: float, preview: float, checkpoint: float) -> None:
        """Settle the number of steps by the seconds that a validation image, a preview and a checkpoint take."""
        if self.val_images is None:
            self.val_images = max(int(VALIDATION_SHARE * self.seconds / max(image, 1e-9)), LEAST_IMAGES)
        self.costs = {"validation": self.val_images * image + preview, "checkpoint": checkpoint}
        free = [event for event, steps in self.spacing.items() if steps is None]
        for _ in range(2):  # the number of steps, then with their events
            self.steps = self._told = self.done + max(self._fitting(), 1)
            for event in free:  # where one takes long, there are fewer
                fitting = int(EVENTS_SHARE[event] * self.seconds / max(self.costs[event], 1e-9))
                often = int(self.seconds / CHECKPOINT_SECONDS) if event == "checkpoint" else 0
                times = min(max(fitting, LEAST_EVENTS[event]), max(MOST_EVENTS, often))
                self.spacing[event] = math.ceil(self.place(self.done)[1] / times)
        self._mark = self.clock()

    def check(self) -> None:
        """Raise ValueError if too few steps fit, by what has been measured so far."""
        if (fitting := self._fitting()) >= self.least_steps:
            return
        gone, step, last = self.seconds - self.left, self._step_seconds(), sum(self.costs.values())
        needed = gone + RESERVE_SECONDS + last + self.costs.get("checkpoint", 0.0) + self.least_steps * step
        least = MARGIN * needed / 60
        shown = math.ceil(10 * least) / 10 if least < 10 else math.ceil(least)
        raise ValueError(
            f"minutes = {self.minutes:g}: {gone:.0f} s have passed before the first step; a step takes {step:.2g} s "
            f"and the end {last:.0f} s, so {max(fitting, 0)} steps fit; give at least {shown:g}"
        )

    def lay(self, ranks: Ranks) -> str | None:
        rest = self.steps - self.done
        fitting = max(self._fitting(), 1)
        if rest - fitting > TOLERANCE * rest or fitting - rest > max(TOLERANCE * rest, 1):
            rest = fitting
        agreed = torch.tensor(rest)
        ranks.broadcast(agreed)  # the ranks' clocks differ
        self.steps, self._mark = self.done + int(agreed), self.clock()
        if abs(self.steps - self._told) <= TOLD * self._told:
            return None
        change = "take longer" if self.steps < self._told else "take less time"
        self._told = self.steps
        return (
            f"step {self.done}: steps and validations {change} than expected, so about {self.steps:,} steps fit, "
            f"{self._step_seconds():.2g} s each; ends at {self.ends} as before"
        )

    def advance(self) -> None:
        took = self.clock() - self._mark
        usual = next(seconds for start, seconds in reversed(self.stages) if start <= self.share)
        # The first steps count alike, beside what was measured before them; then the past fades.
        fading = 1 - math.exp(-usual * self._slowness / (MEMORY * self.seconds))
        self._slowness += (took / max(usual, 1e-9) - self._slowness) * max(fading, 1 / (self._stepped + 2))
        self.share += (1 - self.share) / (self.steps - self.done)
        self.done += 1
        self._stepped += 1
        if self.done == self.steps:
            self.share = 1.0

    @contextmanager
    def timing(self, event: Event) -> Iterator[None]:
        begun = self.clock()
        yield
        self.costs[event] = (self.clock() - begun + self.costs[event]) / 2  # a single slow one says little

    def notes(self) -> dict[str, Any]:
        spent = self.seconds - self.left
        return {"minutes": self.minutes, "share": self.share, "spent": spent, "val_images": self.val_images}

    def described(self) -> str:
        """The course in one line."""
        left, more = ("", "") if self.done == 0 else (f" with {self.left / 60:.1f} left", " more")
        steps = f"{self.steps - self.done:,}{more} steps of {self.batch_size} images"
        return (
            f"minutes = {self.minutes:g}{left}: about {steps}, {self._step_seconds():.2g} s a step; validation on "
            f"{self.val_images:,} images every {self.spacing['validation']:,} steps, a checkpoint every "
            f"{self.spacing['checkpoint']:,}; ends at {self.ends}"
        )

    def _fitting(self) -> int:
        """The number of steps for which there is time."""
        reserve = RESERVE_SECONDS + min(RESERVE_SHARE * self.seconds, MOST_RESERVE)
        ends = max(self.steps - 1, self.done)  # before the last step, after which all events come
        times = {event: ends // steps - self.done // steps + 1 if steps else 1 for event, steps in self.spacing.items()}
        events = sum(seconds * times[event] for event, seconds in self.costs.items())
        return int((self.left - reserve - events) / self._step_seconds())

    def _step_seconds(self) -> float:
        """The mean over the steps to come."""
        starts = [max(start, self.share) for start, _ in self.stages]
        lengths = [max(end - start, 0.0) for start, end in pairwise([*starts, 1.0])]
        total = sum(length * seconds for length, (_, seconds) in zip(lengths, self.stages, strict=True))
        return max(self._slowness * total / sum(lengths), 1e-9)


def open_course(config: RunConfig, planned: float, began: float, found: Found | None) -> Course:
    """The course of a run, from its beginning or from a checkpoint; see `TimedCourse`."""
    if config.minutes is None:
        return Course(config, planned)
    return TimedCourse(config, config.minutes, planned, began, found)

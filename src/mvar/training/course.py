"""How far a run is and how long it goes on: over a number of steps that is given, or as many as fit into its minutes.

With minutes, a run is measured in shares: learning rate, weight decay and phases are functions of the share that is
done, and a step advances it by what remains over the steps that remain. That number is laid by the speed so far, and
laid again when it would not end on time: then the shares of the steps to come change, and nothing of what was done.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NoReturn

import torch

from mvar.training.config import RunConfig
from mvar.training.parallel import Ranks
from mvar.training.run.checkpoints import Found

Event = Literal["validation", "checkpoint", "curves"]
REGULAR: tuple[Event, ...] = ("validation", "checkpoint")
VALIDATION_SHARE = 0.01  # of the minutes, for the losses of one validation
EVENTS_SHARE = {"validation": 0.1, "checkpoint": 0.05}  # for all of them: where they take longer, there are fewer
LEAST_EVENTS = {"validation": 1, "checkpoint": 2}
MOST_EVENTS = 10  # and a checkpoint every few minutes in a long run
CHECKPOINT_SECONDS = 300.0
RESERVE_SHARE, RESERVE_SECONDS, MOST_RESERVE = 0.01, 4.0, 60.0  # of the minutes, to end with
LEAST_STEPS = 20  # of a run that is worth its start
MARGIN = 1.2  # of the minutes that are said to be enough, as a machine is not always as fast
LEAST_IMAGES = 64  # of a validation
TOLERANCE = 0.05  # error of the steps that remain up to which they are left as they are
TOLD = 0.1  # change of all steps from which on it is said
SILENCE = 30.0  # seconds between two such lines, at least
MEMORY = 1 / 20  # of the minutes: the time over which the speed is averaged
STALL = 10.0  # a step that takes so many times what is usual says nothing about the others, unless two follow
FINE = 10_000  # steps of an imagined run
SLIGHT = 1e-6  # error of a share


class Course:
    """A run of so many steps."""

    def __init__(self, config: RunConfig, planned: float | None = None) -> None:
        """Args:
        config: of the run.
        planned: the steps that it was begun for, of which its phases are shares; the config's by default.
        """
        self.config = config
        self.steps = config.steps or 0  # of the whole run
        self.planned = planned or self.steps

    def place(self, step: int) -> tuple[float, float]:
        """Where the next update stands, from 0, and among how many: what learning rate and weight decay depend on."""
        return step, self.steps

    def phase(self, step: int) -> tuple[float, float]:
        """The same for a run's phases, which do not come back where a run is given more steps or minutes."""
        return step, self.planned

    def is_due(self, event: Event, done: int) -> bool:
        """Whether this follows on so many updates; the last one has everything."""
        return done == self.steps or done % self._every(event) == 0

    def _every(self, event: Event) -> int:
        """Steps from one to the next."""
        return (self.config.validate_every if event == "validation" else self.config.checkpoint_every) or 1

    def lay(self, ranks: Ranks) -> str | None:
        """Settle the number of steps before an update; every rank calls it. Returns what is to be said about it."""

    def advance(self) -> None:
        """One update more is done."""

    def timing(self, event: Event) -> AbstractContextManager[None]:
        """A context around a validation, a checkpoint or the drawing of curves."""
        return nullcontext()

    def notes(self) -> dict[str, Any]:
        """What a checkpoint must remember."""
        return {}

    def ends(self) -> str | None:
        """The time of day at which it ends, where that is known."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that the parts of a run take.

    Attributes:
        stages: from which share of the run on a step takes so long, from the first that is not over yet.
        image: of a validation.
        preview: with every validation.
        checkpoint: with its bundle.
    """

    stages: list[tuple[float, float]]
    image: float
    preview: float
    checkpoint: float


class TimedCourse(Course):
    """A run of so many minutes.

    Attributes:
        share: of the run that is done, 0 to 1.
        val_images: of a validation; None until it is known.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self, config: RunConfig, minutes: float, planned: float, began: float, found: Found | None = None
    ) -> None:
        """Args:
        config: of the run.
        minutes: that it lasts, over all its processes.
        planned: those that it was begun for.
        began: when this process began, by `clock`.
        found: the checkpoint that it goes on from.
        """
        super().__init__(config, planned)
        before = {} if found is None else found.notes["course"]
        self.minutes, self.seconds = minutes, 60 * minutes
        self.end = began + self.seconds - before.get("spent", 0.0)
        self.done = self.steps = 0 if found is None else found.step
        self.share = min(before.get("share", 0.0) * before.get("minutes", minutes) / minutes, 1.0)
        self.val_images: int | None = config.val_images or before.get("val_images")
        self._stages: list[tuple[float, float]] = []
        self.costs: dict[Event, float] = {}  # seconds that an event takes
        self._before: dict[str, float] = before.get("costs", {})  # the same, as an earlier process found it
        # How often the events come in the whole run for which no number of steps is given, and where they came last.
        every = {"validation": config.validate_every, "checkpoint": config.checkpoint_every}
        self.times: dict[Event, int] = {event: 1 for event in REGULAR if every[event] is None}
        self._last = dict.fromkeys(REGULAR, self.share)
        self.slowness, self._stalled = 1.0, False  # what a step takes over what was measured at the start
        self._stepped = 0  # updates of this process
        self._mark = self._told_at = began
        self._told = 0
        self._ends = time.time() + self.left

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - self.clock()

    def place(self, step: int) -> tuple[float, float]:
        pace = (self.steps - self.done) / (1 - self.share)  # steps of a run that is as fast as this one from here on
        return self.share * pace, pace

    def phase(self, step: int) -> tuple[float, float]:
        place, pace = self.place(step)
        return place, pace * self.planned / self.minutes

    @contextmanager
    def at(self, share: float) -> Iterator[None]:
        """As if this share of the run were done, for as long as the context lasts."""
        kept = self.share, self.steps
        self.share, self.steps = share, self.done + FINE
        try:
            yield
        finally:
            self.share, self.steps = kept

    def stages(self, phases: list[float]) -> list[tuple[float, float]]:
        """Start and end of each stage that is not over yet, as shares of the run.

        Args:
            phases: where each begins, as a share of the minutes that the run was begun for.
        """
        edges = [min(phase * self.planned / self.minutes, 1.0) for phase in phases]
        return [(start, end) for start, end in pairwise([*edges, 1.0]) if end > max(start, self.share)]

    def start(self, costs: Costs) -> None:
        """Lay the run for the first time in this process."""
        self._stages = costs.stages
        if self.val_images is None:
            most = int(VALIDATION_SHARE * self.seconds / max(costs.image, 1e-9))
            self.val_images = max(most, LEAST_IMAGES)
        self.costs = {"validation": self.val_images * costs.image + costs.preview, "checkpoint": costs.checkpoint}
        self.costs |= {event: max(seconds, self._before.get(event, 0.0)) for event, seconds in self.costs.items()}
        self.costs["curves"] = 0.0
        self._count()
        self.steps = self.done + max(self._fitting(), 1)
        self._mark = self._told_at = self.clock()
        self._told = self.steps

    def _count(self) -> None:
        """Settle how often the events come, by what they take."""
        for event in self.times:
            fitting = int(EVENTS_SHARE[event] * self.seconds / max(self.costs[event], 1e-9))
            often = int(self.seconds / CHECKPOINT_SECONDS) if event == "checkpoint" else 0
            self.times[event] = min(max(fitting, LEAST_EVENTS[event]), max(MOST_EVENTS, often))

    def check(self) -> None:
        """Refuse a run whose minutes are as good as over.

        Raises:
            ValueError: one line with what takes how long, and the least number of minutes.
        """
        if (fitting := self._fitting()) < self.least_steps:
            self._refuse(self._step_seconds(), sum(self.costs.values()), fitting)

    @property
    def least_steps(self) -> int:
        """Without which a run is not worth its start, or does not go on."""
        return LEAST_STEPS if self.done == 0 else 1

    def check_step(self, seconds: float) -> None:
        """Refuse a run as soon as a step's time is known, where too few would fit even if nothing else took any.

        Raises:
            ValueError: one line, see `check`.
        """
        if self.left < self.least_steps * seconds:
            self._refuse(seconds, 0.0, int(self.left / seconds))

    def _refuse(self, step: float, last: float, fitting: int) -> NoReturn:
        gone, checkpoint = self.seconds - self.left, self.costs.get("checkpoint", 0.0)
        least = MARGIN * (gone + RESERVE_SECONDS + last + checkpoint + self.least_steps * step) / 60
        shown = math.ceil(10 * least) / 10 if least < 10 else math.ceil(least)
        raise ValueError(
            f"minutes = {self.minutes:g}: {gone:.0f} s have passed before the first step; a step takes {step:.2g} s "
            f"and the end {last:.0f} s, so {max(fitting, 0)} steps fit; give at least {shown:g}"
        )

    def is_due(self, event: Event, done: int) -> bool:
        if event not in self.times:
            return super().is_due(event, done)
        apart = 1 / self.times[event]
        due = (self.share - self._last[event] > apart - SLIGHT and 1 - self.share > apart / 2) or done == self.steps
        if due:
            self._last[event] = self.share
        return due

    def lay(self, ranks: Ranks) -> str | None:
        rest = self.steps - self.done
        if ranks.main:
            self._count()
            fitting = max(self._fitting(), 1)
            late, early = rest - fitting > TOLERANCE * rest, fitting - rest > max(TOLERANCE * rest, 1)
            rest = fitting if late or early else rest
        shared = torch.tensor([rest, *self.times.values()])
        ranks.share(shared)  # the ranks' clocks differ
        rest, *times = shared.tolist()
        self.times = dict(zip(self.times, times, strict=True))
        self.steps, self._mark = self.done + rest, self.clock()
        lately = self._mark - self._told_at < max(MEMORY * self.seconds, SILENCE)
        if lately or abs(self.steps - self._told) <= TOLD * self._told:
            return None
        change = "take longer" if self.steps < self._told else "take less time"
        self._told, self._told_at = self.steps, self._mark
        return (
            f"step {self.done}: steps and validations {change} than expected, so about {self.steps:,} steps fit, "
            f"{self._step_seconds():.2g} s each; ends at {self.ends()} as before"
        )

    def advance(self) -> None:
        took = self.clock() - self._mark
        usual = next(seconds for start, seconds in reversed(self._stages) if start <= self.share)
        ratio = took / max(usual, 1e-9)
        self._stalled = ratio > STALL * self.slowness and not self._stalled
        if not self._stalled:
            # The first steps count alike, beside what was measured before them; then the past fades.
            fading = 1 - math.exp(-usual * self.slowness / (MEMORY * self.seconds))
            self.slowness += (ratio - self.slowness) * max(fading, 1 / (self._stepped + 2))
        self.share += (1 - self.share) / (self.steps - self.done)
        self.done += 1
        self._stepped += 1
        if self.done == self.steps:
            self.share = 1.0

    @contextmanager
    def timing(self, event: Event) -> Iterator[None]:
        begun = self.clock()
        yield
        took, before = self.clock() - begun, self.costs[event]
        # Curves are drawn now and then, and at the end; of the others a single slow one says little.
        self.costs[event] = max(took, before) if event == "curves" else (took + before) / 2

    def notes(self) -> dict[str, Any]:
        spent = self.seconds - self.left
        costs = {event: self.costs[event] for event in REGULAR}
        facts = {"minutes": self.minutes, "share": self.share, "spent": spent, "val_images": self.val_images}
        return {**facts, "costs": costs}

    def ends(self) -> str | None:
        return time.strftime("%H:%M" if self.left < 12 * 3600 else "%a %H:%M", time.localtime(self._ends))

    def described(self) -> str:
        """What was laid, in one line."""
        left, more = ("", "") if self.done == 0 else (f" with {self.left / 60:.1f} left", " more")
        steps = f"{self.steps - self.done:,}{more} steps of {self.config.batch_size} images"
        every = {event: max(self._between(event), 1) for event in REGULAR}
        return (
            f"minutes = {self.minutes:g}{left}: about {steps}, {self._step_seconds():.2g} s a step; validation on "
            f"{self.val_images:,} images every {every['validation']:,} steps, a checkpoint every "
            f"{every['checkpoint']:,}; ends at {self.ends()}"
        )

    def _between(self, event: Event) -> int:
        """Steps from one event to the next."""
        if event not in self.times:
            return self._every(event)
        return round((self.steps - self.done) / (1 - self.share) / self.times[event])

    def _fitting(self) -> int:
        """Steps for which there is time."""
        reserve = RESERVE_SECONDS + min(RESERVE_SHARE * self.seconds, MOST_RESERVE)
        between = sum(self.costs[event] * (self._to_come(event) - 1) for event in REGULAR)
        return int((self.left - reserve - between - sum(self.costs.values())) / self._step_seconds())

    def _to_come(self, event: Event) -> int:
        """How often an event comes until the end, which has each."""
        if event in self.times:
            return max(math.ceil((1 - self._last[event]) * self.times[event] - 0.5), 1)
        return max(math.ceil((self.steps - self.done) / self._every(event)), 1)

    def _step_seconds(self) -> float:
        """The mean of the steps to come."""
        starts = [max(start, self.share) for start, _ in self._stages]
        lengths = [max(end - start, 0.0) for start, end in pairwise([*starts, 1.0])]
        total = sum(length * seconds for length, (_, seconds) in zip(lengths, self._stages, strict=True))
        return max(self.slowness * total / sum(lengths), 1e-9)


def open_course(config: RunConfig, planned: float, began: float, found: Found | None) -> Course:
    """The course of a run, from its beginning or from a checkpoint; see `TimedCourse`."""
    if config.minutes is None:
        return Course(config, planned)
    return TimedCourse(config, config.minutes, planned, began, found)

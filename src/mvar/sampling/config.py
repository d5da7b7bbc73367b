"""How images are sampled; standard library only, so that `--help` stays quick."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mvar.validation import is_integer, number_problems, raise_problems

GuidanceSchedule = Literal["linear", "constant"]
EditMode = Literal["reencode", "own"]
EDIT_MODE: EditMode = "reencode"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What shapes a sample, besides its label, seed and index.

    All numbers may be lists with a value for each scale, coarse to fine.

    Attributes:
        guidance: strength g of classifier-free guidance; 0 switches it off. A list is taken as it is.
        guidance_schedule: a single g grows from 0 at the first scale to g at the last ("linear"), or holds at each.
        top_k: sample from the k most likely codes only; 0 switches it off, 1 is greedy.
        top_p: sample from the most likely codes that hold this much probability; 1 switches it off.
        temperature: divides the guided logits before the filters.
        smooth: mix code vectors instead of choosing one; for looks, never for metrics.
    """

    guidance: float | list[float] = 1.5
    guidance_schedule: GuidanceSchedule = "linear"
    top_k: int | list[int] = 900
    top_p: float | list[float] = 0.96
    temperature: float | list[float] = 1.0
    smooth: bool = False

    def __post_init__(self) -> None:
        for name in PER_SCALE:
            if isinstance(value := getattr(self, name), tuple):
                object.__setattr__(self, name, list(value))

    def guidance_weights(self, scales: int) -> tuple[float, ...]:
        """The weight t of each of K scales: logits are (1 + t) cond - t uncond."""
        if isinstance(self.guidance, list):
            return tuple(self.guidance)
        if self.guidance_schedule == "constant":
            return (self.guidance,) * scales
        return tuple(self.guidance * scale_ratio(k, scales) for k in range(scales))

    def filters(self, scales: int) -> tuple[tuple[float, int, float], ...]:
        """(temperature, top_k, top_p) of each of K scales."""
        values = (getattr(self, name) for name in ("temperature", "top_k", "top_p"))
        by_scale = (value if isinstance(value, list) else [value] * scales for value in values)
        return tuple(zip(*by_scale, strict=True))

    def problems(self, scales: int | None = None) -> list[str]:
        """What is wrong with these settings, a line each; empty when they are sound.

        Args:
            scales: K of the model, to check the lengths of lists; None where it is not known yet.
        """
        found = []
        for name in PER_SCALE:
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            if isinstance(value, list) and scales is not None and len(value) != scales:
                found.append(f"{name} has {len(value)} values: give one number, or one for each of the {scales} scales")
            if name not in _FLOATS:
                found += number_problems({name: value})
                continue
            is_sound, fix = _FLOATS[name]
            for number in values:
                if not isinstance(number, float) and not is_integer(number):
                    found.append(f"{name} = {number!r}: must be a number")
                elif not is_sound(number):
                    found.append(f"{name} = {number}: {fix}")
        if self.guidance_schedule not in get_args(GuidanceSchedule):
            found.append(f"guidance_schedule = {self.guidance_schedule!r}: choose linear or constant")
        if not isinstance(self.smooth, bool):
            found.append(f"smooth = {self.smooth!r}: must be true or false")
        return found

    def validate(self, scales: int | None = None) -> None:
        """Raise ValueError with every problem, a line each; see `problems`."""
        raise_problems(self.problems(scales))


def scale_ratio(k: int, scales: int) -> float:
    """How far scale k of K is along the schedule: 0 at the first to 1 at the last; 1 where there is one scale."""
    return k / (scales - 1) if scales > 1 else 1.0


PER_SCALE = ("guidance", "top_k", "top_p", "temperature")
MOST = sys.float_info.max
# Range (with comparisons that a NaN, an infinity or an integer beyond all floats fails too), and how to fix the rest.
_FLOATS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "guidance": (lambda g: 0 <= g <= MOST, "must be 0 (no guidance) or more"),
    "top_p": (lambda p: 0 < p <= 1, "must lie in (0, 1]; 1 keeps all codes"),
    "temperature": (lambda t: 0 < t <= MOST, "must be above 0; for greedy sampling set top_k = 1"),
}

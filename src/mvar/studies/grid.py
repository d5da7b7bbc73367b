"""What a sweep tries: the settings of a guidance and filter sweep; without torch, so that `--help` stays quick."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from mvar.sampling.config import PER_SCALE, UNFILTERED, SamplingSettings, scale_ratio
from mvar.settings import MANY, Positive, Real, Share, Whole, raise_problems, settings

TRIED = PER_SCALE  # what a trial sets


@settings
class Grid:
    """The settings to try, and the bounds that the chosen one must meet.

    Attributes:
        guidance: strengths at the last map, to which guidance grows from 0 at the first.
        unguided: numbers of finest maps to draw without guidance, which saves half of their work.
        temperature: of the first map, from which it falls along a parabola to that of the last.
        last_temperature: of the last map.
        top_k: tried at the best setting without filters.
        top_p: tried at the best setting without filters.
        least_accuracy: smallest fraction of samples that the judge must assign to their class.
        spread_band: range of the spread ratio; None for any.
    """

    guidance: Annotated[list[float], Real(0)] = field(default_factory=lambda: [0.0, 1.5, 3.0])
    unguided: Annotated[list[int], Whole(0, 63)] = field(default_factory=lambda: [0])
    temperature: Annotated[list[float], Real(0, open="(")] = field(default_factory=lambda: [1.0, 1.2])
    last_temperature: Positive = 1.0
    top_k: Annotated[list[int], Whole(0, MANY)] = field(default_factory=lambda: [900, 300])
    top_p: Annotated[list[float], Real(0, 1, open="(")] = field(default_factory=lambda: [0.98, 0.9])
    least_accuracy: Share = 0.0
    spread_band: tuple[float, float] | None = None

    def unfiltered(self, scales: int) -> list[dict[str, Any]]:
        """The settings without filters, for a model with this number of scales."""
        return [
            {
                "guidance": _guidance(strength, without, scales),
                "temperature": self._temperatures(first, scales),
                **UNFILTERED,
            }
            for first in self.temperature
            for strength in self.guidance
            for without in (self.unguided if strength else [0])
        ]

    def filtered(self, setting: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A setting with each of the filters."""
        same = {name: setting[name] for name in TRIED}
        return [same | {"top_k": k} for k in self.top_k] + [same | {"top_p": p} for p in self.top_p]

    def check(self, scales: int) -> None:
        """Raise ValueError, a line for each problem, where a model with this number of scales has no such settings."""
        some = ("guidance", "unguided", "temperature")
        raise_problems(f"{name} = []: give at least one" for name in some if not getattr(self, name))
        most = max(scales - 2, 0)  # the first map never has guidance, and one map must keep it
        raise_problems(f"unguided = {n}: give 0 to {most}" for n in self.unguided if n > most)

    def _temperatures(self, first: float, scales: int) -> list[float]:
        last = self.last_temperature
        return [round(last + (first - last) * (1 - scale_ratio(k, scales)) ** 2, 4) for k in range(scales)]


def _guidance(strength: float, without: int, scales: int) -> float | list[float]:
    if not without:
        return strength
    weights = SamplingSettings(guidance=strength).guidance_weights(scales)
    return [round(weight, 4) for weight in weights[: scales - without]] + [0.0] * without

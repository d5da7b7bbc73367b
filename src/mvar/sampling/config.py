"""How images are sampled; without torch, so that `--help` stays quick."""

from typing import Annotated, Literal

from mvar.settings import MANY, Real, Switch, Whole, raise_problems, settings

GuidanceSchedule = Literal["linear", "constant"]
EditMode = Literal["reencode", "own"]
TopK = Annotated[int | list[int], Whole(0, MANY)]
EDIT_MODE: EditMode = "reencode"


@settings
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

    guidance: Annotated[float | list[float], Real(0, text="must be 0 (no guidance) or more")] = 1.5
    guidance_schedule: GuidanceSchedule = "linear"
    top_k: TopK = 900
    top_p: Annotated[float | list[float], Real(0, 1, open="(", text="must lie in (0, 1]; 1 keeps all codes")] = 0.96
    temperature: Annotated[
        float | list[float], Real(0, open="(", text="must be above 0; for greedy sampling set top_k = 1")
    ] = 1.0
    smooth: Switch = False

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

    def check(self, scales: int) -> None:
        """Raise ValueError where a list has not one value for each of K scales, a line for each list."""
        values = ((name, getattr(self, name)) for name in PER_SCALE)
        raise_problems(
            f"{name} has {len(value)} values: give one number, or one for each of the {scales} scales"
            for name, value in values
            if isinstance(value, list) and len(value) != scales
        )


def scale_ratio(k: int, scales: int) -> float:
    """How far scale k of K is along the schedule: 0 at the first to 1 at the last; 1 where there is one scale."""
    return k / (scales - 1) if scales > 1 else 1.0


PER_SCALE = ("guidance", "top_k", "top_p", "temperature")

"""How images are sampled: every sampling option, once. Without torch, so that `--help` stays quick."""

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from mvar.settings import MANY, Real, Switch, Whole, given, raise_problems, settings

GuidanceSchedule = Literal["linear", "constant"]
EditMode = Literal["reencode", "own"]
TopK = Annotated[int | list[int], Whole(0, MANY)]
EDIT_MODE: EditMode = "reencode"


@settings
class SamplingSettings:
    """What decides a sample besides its label, seed and index.

    Numbers may be lists with a value for each scale, coarse to fine.

    Attributes:
        guidance: strength g of classifier-free guidance; 0 switches it off. A list is used as it is.
        guidance_schedule: one g grows from 0 at the first scale to g at the last ("linear"), or holds ("constant").
        top_k: sample from the k most likely codes only; 0 switches it off, 1 is greedy.
        top_p: sample from the most likely codes that hold this much probability; 1 switches it off.
        temperature: divides the guided logits before the filters.
        smooth: mix code vectors instead of choosing one; for looks, never for metrics.
    """

    guidance: Annotated[float | list[float], Real(0, 1000, text="must be 0 (no guidance) to 1000")] = 1.5
    guidance_schedule: GuidanceSchedule = "linear"
    top_k: TopK = 900
    top_p: Annotated[float | list[float], Real(0, 1, open="(", text="must lie in (0, 1]; 1 keeps all codes")] = 0.96
    temperature: Annotated[
        float | list[float], Real(1e-3, 1e3, text="must be 0.001 to 1000; for greedy sampling set top_k = 1")
    ] = 1.0
    smooth: Switch = False

    def changed(self, **settings: Any) -> "SamplingSettings":
        """These settings with others in place of some; None keeps what is here.

        Raises:
            TypeError: a name that no setting has.
            ValueError: a line for each value that is out of range.
        """
        known = [field.name for field in fields(self)]
        for name in settings:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                raise TypeError(
                    f"{name}: no such sampling setting; {'close' if close else 'known'}: {', '.join(close or known)}"
                )
        return replace(self, **given(settings))

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
        """Raise ValueError for lists that do not have one value for each of K scales, a line for each."""
        raise_problems(
            f"{name} has {len(value)} values: give one number, or one for each of the {scales} scales"
            for name, value in self.per_scale().items()
            if len(value) != scales
        )

    def per_scale(self) -> dict[str, list[Any]]:
        """The settings that are lists, by name."""
        return {name: value for name in PER_SCALE if isinstance(value := getattr(self, name), list)}


def scale_ratio(k: int, scales: int) -> float:
    """How far scale k of K is along the schedule, from 0 at the first to 1 at the last; 1 for a single scale."""
    return k / (scales - 1) if scales > 1 else 1.0


PER_SCALE = ("guidance", "temperature", "top_k", "top_p")  # settings that may be lists
UNFILTERED: dict[str, Any] = {"top_k": 0, "top_p": 1.0}  # the settings that switch the filters off

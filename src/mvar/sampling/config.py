"""How images are sampled; standard library only, so that `--help` stays quick."""

from dataclasses import dataclass

from mvar.validation import raise_problems


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What shapes a sample, besides its label, seed and index.

    Attributes:
        guidance: g of classifier-free guidance, growing from 0 at the first scale to g at the last; 0 switches it off.
        top_k: sample from the k most likely codes only; 0 switches it off, 1 is greedy.
        top_p: sample from the most likely codes that hold this much probability; 1 switches it off.
        temperature: divides the guided logits before the filters.
        smooth: mix code vectors instead of choosing one; for looks, never for metrics.
    """

    guidance: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    temperature: float = 1.0
    smooth: bool = False

    def problems(self) -> list[str]:
        """What is wrong with these settings, a line each; empty when they are sound."""
        found = []
        for name in ("guidance", "top_k", "top_p", "temperature"):
            value = getattr(self, name)
            number = int if name == "top_k" else (int, float)
            if isinstance(value, bool) or not isinstance(value, number):
                found.append(f"{name} = {value!r}: must be {'an integer' if name == 'top_k' else 'a number'}")
            elif not _IN_RANGE[name](value):
                found.append(f"{name} = {value}: {_FIX[name]}")
        if not isinstance(self.smooth, bool):
            found.append(f"smooth = {self.smooth!r}: must be true or false")
        return found

    def validate(self) -> None:
        """Raise ValueError with every problem, a line each."""
        raise_problems(self.problems())


# Comparisons that a NaN or an infinity fails too.
_IN_RANGE = {
    "guidance": lambda g: 0 <= g < float("inf"),
    "top_k": lambda k: k >= 0,
    "top_p": lambda p: 0 < p <= 1,
    "temperature": lambda t: 0 < t < float("inf"),
}
_FIX = {
    "guidance": "must be 0 (no guidance) or more",
    "top_k": "must be 0 (all codes) or more",
    "top_p": "must lie in (0, 1]; 1 keeps all codes",
    "temperature": "must be above 0; for greedy sampling set top_k = 1",
}

"""What a training run prints: a bar on a terminal, a line for each validation when piped."""

import sys
import time

from torch import Tensor
from tqdm import tqdm

from mvar.training.task import Metrics

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, ends at ENDS, {rate_fmt}{postfix}]"


class Progress:
    """How far a run is and how fast."""

    def __init__(self, done: int, steps: int, ends: str | None, visible: bool) -> None:
        """`ends` is the time of day at which the run ends, if that is settled."""
        self.steps, self.images, self.start, self.visible = steps, 0, time.perf_counter(), visible
        shape = None if ends is None else BAR.replace("ENDS", ends)
        hidden = not (visible and sys.stderr.isatty())
        self.bar = tqdm(initial=done, total=steps, unit="step", bar_format=shape, disable=hidden)

    @property
    def rate(self) -> float:
        """Images per second over all ranks since this start, validation included."""
        return self.images / max(time.perf_counter() - self.start, 1e-9)

    def advance(self, images: int, loss: Tensor, steps: int) -> None:
        """Count one step, of `steps` in the whole run as of now."""
        self.images += images
        self.steps = steps
        self.bar.total = steps
        self.bar.update()
        if self.bar.n % 10 == 0 and not self.bar.disable:
            self.bar.set_postfix_str(f"loss {float(loss):.4f}, {self.rate:.0f} images/s")

    def report(self, done: int, metrics: Metrics) -> None:
        """Print a validation."""
        text = ", ".join(f"{name} {_number(value)}" for name, value in metrics.items())
        self.say(f"step {done}/{self.steps}, {self.rate:.0f} images/s: {text}")

    def say(self, line: str) -> None:
        """Print a line."""
        if self.visible:
            self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self.bar.close()


def _number(value: float | list[float]) -> str:
    return " ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.4g}"

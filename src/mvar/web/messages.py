"""The messages between the service and the processes that hold the models. Without torch."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from mvar.sampling.config import EDIT_MODE, EditMode

Array = np.ndarray
FEW_MAPS = 3  # that a classification uses by default, as all of them take long where there are many classes
Maps = list[Array]  # token maps of one image, int64 (P_k,) each


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about a loaded model.

    Attributes:
        name: that requests give.
        classes: names in order of their index.
        size: height and width of its images, in pixels.
        shapes: (h, w) of its token maps, coarse to fine.
        defaults: values of `SamplingSettings`.
        parameters: of tokenizer and generator.
        created: seconds since 1970 when its files were written.
        facts: of its bundle, as `mvar info` prints them.
    """

    name: str
    classes: list[str]
    size: tuple[int, int]
    shapes: list[tuple[int, int]]
    defaults: dict[str, Any]
    parameters: int
    created: int
    facts: dict[str, str]

    @property
    def tokens(self) -> int:
        """Of an image, over all its maps."""
        return sum(h * w for h, w in self.shapes)

    @property
    def few_maps(self) -> int:
        """How many maps a classification uses by default."""
        return min(FEW_MAPS, len(self.shapes))


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Draw one image.

    Attributes:
        label: class index; None for no class.
        seed, index: of its noise; images of one request have indices 0, 1, ...
        settings: values of `SamplingSettings` in place of the model's.
        partials: scales, from 0, after which the unfinished image is sent too.
    """

    label: int | None
    seed: int
    index: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    partials: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Editing(Drawing):
    """Repaint a part of an image.

    Attributes:
        image: of the model's aspect, any size and mode.
        hole: bool, of the image's size, true where to repaint.
        mode: what kept cells hold.
        paste: put the original pixels back outside the hole, in the image's own size.
    """

    image: Image.Image
    hole: Array
    mode: EditMode = EDIT_MODE
    paste: bool = False


@dataclass(frozen=True, kw_only=True)
class Varying(Drawing):
    """Keep the first maps of an image and draw the finer ones again.

    Attributes:
        source: the image, or its token maps.
        from_scale: how many maps are kept.
    """

    source: Image.Image | Maps
    from_scale: int


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Score an image, given a class (None for no class)."""

    image: Image.Image
    label: int | None


@dataclass(frozen=True, kw_only=True)
class Classifying:
    """Classify an image by Bayes' rule on its first token maps; None for all maps."""

    image: Image.Image
    scales: int | None = None


@dataclass(frozen=True, kw_only=True)
class Examining:
    """Examine what the generator's blocks do with an image, given a class (None for no class)."""

    image: Image.Image
    label: int | None


Request = Drawing | Scoring | Classifying | Examining


@dataclass(frozen=True)
class Partial:
    """An unfinished image.

    Attributes:
        scale: the last one drawn, from 0.
        pixels: uint8 (H, W, 3).
    """

    scale: int
    pixels: Array


@dataclass(frozen=True)
class Drawn:
    """A finished image.

    Attributes:
        image: in the model's size; pasted edits in the original's.
        maps: its tokens; None for smooth samples.
        new_tokens: how many of these were drawn, not kept.
    """

    image: Image.Image
    maps: Maps | None
    new_tokens: int


@dataclass(frozen=True)
class Scored:
    """A likelihood.

    Attributes:
        log_prob: log p(tokens | class) in nats.
        bits: -log2 p of every token, coarse to fine.
    """

    log_prob: float
    bits: Array


@dataclass(frozen=True)
class Classified:
    """The log-probability of every class, in nats."""

    log_posterior: Array


@dataclass(frozen=True)
class Seen:
    """What one block does, by scale; None for what it lacks.

    Attributes:
        width: how widely attention looks at each scale, from 0 (at one key) to 1 (at all alike).
        own: the share of its scores inside the own scale, where it sees other scales too.
        left: the share of Mamba's state after scale k that is left after scale k + 1, one number less.
    """

    width: list[float] | None
    own: list[float] | None
    left: list[float] | None


@dataclass(frozen=True)
class Examined:
    """What each block does, in order."""

    blocks: list[Seen]


Answer = Drawn | Scored | Classified | Examined


# --- errors ---


class Refused(ValueError):
    """The request is wrong; one line says why."""


class Busy(RuntimeError):
    """The queue is full; `seconds` says when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {seconds} s")
        self.seconds = seconds


class Late(TimeoutError):
    """The request took longer than its deadline."""


class Broken(RuntimeError):
    """The model's process is not up, or ended while it worked on the request; it may be back soon."""


class Failed(Broken):
    """The model failed on the request, and would fail again."""

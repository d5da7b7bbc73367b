"""The generator's hyperparameters and presets; without torch, so that `--help` stays quick."""

from collections.abc import Iterator
from dataclasses import field, fields
from typing import Annotated, Any, Literal, NamedTuple

from mvar.scales import SIDES_256, SIDES_512, LatentChannels, ScaleSchedule, Sides, VocabSize, side_problems
from mvar.settings import PartialShare, Real, Switch, TrueOrFalse, Whole, raise_problems, settings

Attention = Literal["intra", "recent", "global", "none"]
Order = Literal["attention-first", "mamba-first", "parallel"]
Scan = Literal["raster", "snake", "bidirectional"]

HEAD_DIM = 64  # of attention, and of Mamba-2
MOST_BLOCKS = 200


class Mixer(NamedTuple):
    """What mixes tokens in one block, before its MLP."""

    attention: Attention
    mamba: bool

    @property
    def branches(self) -> int:
        """Residual branches of the block: its mixers and the MLP."""
        return (self.attention != "none") + self.mamba + 1


@settings
class GeneratorConfig:
    """A scale-wise autoregressive transformer: M-VAR, the VAR baseline, and every mixture of their blocks.

    Attributes:
        depth: number of blocks; the fields below that are 0 or None follow from it.
        width: C; 0 means 64 * depth.
        heads: attention heads; 0 means width / 64.
        attention: inside each scale ("intra"), also over the scale before it ("recent") or over all scales so far
            ("global"), or "none"; one value for all blocks or a list with one per block.
        mamba: whether a block has a Mamba-2 across scales; one value or a list with one per block.
        order: which mixer of a block that has both comes first; "parallel" feeds both the same tokens.
        scan: how Mamba-2 reads the tokens of a scale: row by row ("raster"), every other row backwards ("snake"), or as
            the mean of row by row forwards and backwards ("bidirectional").
        shared_adaln: one AdaLN projection for all blocks plus an offset for each.
        qk_norm: unit-length queries and keys with a learned temperature for each head.
        mlp_ratio: hidden width of the MLP over C.
        state_size: N, Mamba-2's state for each channel.
        stochastic_depth: drop rate of the last block's branches (linear from 0); None means 0.1 * depth / 24.
        class_dropout: share of training labels replaced by the null class.
        num_classes: classes without the null class; 0 for an unconditional model.
        vocab_size: V of the tokenizer.
        latent_channels: Z of the tokenizer.
        sides: token maps from coarse to fine, as in the tokenizer.
    """

    depth: Annotated[int, Whole(1, MOST_BLOCKS)] = 16
    width: Annotated[int, Whole(0, 65_536)] = 0
    heads: Annotated[int, Whole(0, 65_536)] = 0
    attention: Attention | list[Attention] = "intra"
    mamba: Annotated[bool | list[bool], TrueOrFalse()] = True
    order: Order = "attention-first"
    scan: Scan = "raster"
    shared_adaln: Switch = False
    qk_norm: Switch = True
    mlp_ratio: Annotated[int, Whole(1, 64)] = 4
    state_size: Annotated[int, Whole(1, 4096)] = 64
    stochastic_depth: Annotated[float | None, Real(0, 1, open=")")] = None
    class_dropout: PartialShare = 0.1
    num_classes: Annotated[int, Whole(0, 1_000_000)] = 1000
    vocab_size: VocabSize = 4096
    latent_channels: LatentChannels = 32
    sides: Sides = field(default_factory=lambda: list(SIDES_256))

    def __post_init__(self) -> None:
        if self.width == 0:
            object.__setattr__(self, "width", HEAD_DIM * self.depth)
        if self.heads == 0:
            object.__setattr__(self, "heads", max(self.width // HEAD_DIM, 1))
        if self.stochastic_depth is None:
            object.__setattr__(self, "stochastic_depth", 0.1 * self.depth / 24)
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.width % self.heads:
            yield f"heads = {self.heads}: must divide the width {self.width}"
        lists = {name: value for name in ("attention", "mamba") if isinstance(value := getattr(self, name), list)}
        wrong = {name: len(value) for name, value in lists.items() if len(value) != self.depth}
        for name, length in wrong.items():
            yield f"{name} has {length} entries: give one value, or one per block ({self.depth})"
        if not wrong and self.shared_adaln and len({mixer.branches for mixer in self.mixers}) > 1:
            yield "shared_adaln = True: needs blocks with equal numbers of mixers; set it to False"
        any_mamba = any(self.mamba) if isinstance(self.mamba, list) else self.mamba
        if any_mamba and (2 * self.width) % HEAD_DIM:
            yield f"width = {self.width}: Mamba-2 needs a multiple of {HEAD_DIM // 2}"
        yield from side_problems(self.sides)

    def written(self) -> dict[str, Any]:
        """The fields as a user would write them: without values that follow from depth and width."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        bare = GeneratorConfig(depth=self.depth, width=self.width)
        values["width"] = 0 if self.width == HEAD_DIM * self.depth else self.width
        values["heads"] = 0 if self.heads == bare.heads else self.heads
        values["stochastic_depth"] = None if self.stochastic_depth == bare.stochastic_depth else self.stochastic_depth
        return values

    @property
    def schedule(self) -> ScaleSchedule:
        """The token maps."""
        return ScaleSchedule(self.sides)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """One mixer per block."""
        attention = self.attention if isinstance(self.attention, list) else [self.attention] * self.depth
        mamba = self.mamba if isinstance(self.mamba, list) else [self.mamba] * self.depth
        return tuple(Mixer(a, m) for a, m in zip(attention, mamba, strict=True))

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Stochastic depth's drop rate of each block, 0 at the first to `stochastic_depth` at the last."""
        last = self.stochastic_depth or 0.0
        return tuple(last * i / max(self.depth - 1, 1) for i in range(self.depth))


_512: dict[str, Any] = {"sides": list(SIDES_512)}
_VAR: dict[str, Any] = {"attention": "global", "mamba": False}
_TINY: dict[str, Any] = {"depth": 4, "shared_adaln": True, "num_classes": 10, "vocab_size": 1024, "latent_channels": 16}
_QUICK: dict[str, Any] = {**_TINY, "width": 128, "sides": [1, 2, 3, 5, 8]}

PRESETS: dict[str, GeneratorConfig] = {
    **{f"d{depth}": GeneratorConfig(depth=depth) for depth in (12, 16, 20, 24, 30, 32)},
    **{f"d{depth}-512": GeneratorConfig(depth=depth, **_512) for depth in (12, 16, 20, 24, 30, 32)},
    **{f"var-d{depth}": GeneratorConfig(depth=depth, **_VAR) for depth in (12, 16, 20, 24, 30)},
    "var-d36-s": GeneratorConfig(depth=36, shared_adaln=True, **_VAR, **_512),
    "m-var-w": GeneratorConfig(depth=16, width=768, heads=12),
    "m-var-d": GeneratorConfig(depth=12, width=1024, heads=16),
    "m-var-half": GeneratorConfig(depth=16, mamba=[True, False] * 8),
    "recent-d16": GeneratorConfig(depth=16, attention="recent", mamba=False),
    "tiny32": GeneratorConfig(width=192, sides=[1, 2, 3, 4, 6, 8], **_TINY),
    "tiny64": GeneratorConfig(width=192, sides=[1, 2, 3, 4, 6, 8], **_TINY),
    "quick32": GeneratorConfig(**_QUICK),
    "quick32-var": GeneratorConfig(**_QUICK, **_VAR),
}

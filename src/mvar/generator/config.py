"""The generator's hyperparameters and presets; standard library only, so that `--help` stays quick."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from mvar.scales import SIDES_256, SIDES_512, ScaleSchedule, Side
from mvar.validation import number_problems, outside, raise_problems

Attention = Literal["intra", "global", "none"]

HEAD_DIM = 64  # of attention, and of Mamba-2


class Mixer(NamedTuple):
    """What mixes tokens in one block, before its MLP."""

    attention: Attention
    mamba: bool

    @property
    def branches(self) -> int:
        """Residual branches of the block: its mixers and the MLP."""
        return (self.attention != "none") + self.mamba + 1


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A scale-wise autoregressive transformer: M-VAR, the VAR baseline, and what lies between.

    Attributes:
        depth: number of blocks; the dial that the zeros below derive from.
        width: C; 0 derives 64 * depth.
        heads: attention heads; 0 derives width / 64.
        attention: inside each scale ("intra"), over all scales so far ("global"), or "none";
            one value for all blocks or a list with one a block.
        mamba: whether a block has a Mamba-2 across scales; one value or a list with one a block.
        shared_adaln: one AdaLN projection for all blocks plus an offset for each.
        qk_norm: unit-length queries and keys with a learned temperature for each head.
        mlp_ratio: hidden width of the MLP over C.
        state_size: N, Mamba-2's state for each channel.
        stochastic_depth: drop rate of the last block's branches (linear from 0); None derives 0.1 * depth / 24.
        class_dropout: share of training labels replaced by the null class.
        num_classes: classes without the null class; 0 for an unconditional model.
        vocab_size: V of the tokenizer.
        latent_channels: Z of the tokenizer.
        sides: token maps from coarse to fine, as in the tokenizer.
    """

    depth: int = 16
    width: int = 0
    heads: int = 0
    attention: Attention | list[Attention] = "intra"
    mamba: bool | list[bool] = True
    shared_adaln: bool = False
    qk_norm: bool = True
    mlp_ratio: int = 4
    state_size: int = 64
    stochastic_depth: float | None = None
    class_dropout: float = 0.1
    num_classes: int = 1000
    vocab_size: int = 4096
    latent_channels: int = 32
    sides: list[Side] = field(default_factory=lambda: list(SIDES_256))

    def __post_init__(self) -> None:
        if number_problems({"depth": self.depth, "width": self.width}):
            return  # nothing derives from these; problems() names them
        if self.width == 0:
            object.__setattr__(self, "width", HEAD_DIM * self.depth)
        if self.heads == 0:
            object.__setattr__(self, "heads", max(self.width // HEAD_DIM, 1))
        if self.stochastic_depth is None:
            object.__setattr__(self, "stochastic_depth", 0.1 * self.depth / 24)

    def written(self) -> dict[str, Any]:
        """The fields as a user would write them: values that depth and width decide are left to be derived."""
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
        """One mixer a block."""
        attention = self.attention if isinstance(self.attention, list) else [self.attention] * self.depth
        mamba = self.mamba if isinstance(self.mamba, list) else [self.mamba] * self.depth
        return tuple(Mixer(a, m) for a, m in zip(attention, mamba, strict=True))

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Stochastic depth's drop rate of each block, 0 at the first to `stochastic_depth` at the last."""
        last = self.stochastic_depth or 0.0
        return tuple(last * i / max(self.depth - 1, 1) for i in range(self.depth))

    def problems(self, section: str = "generator") -> list[str]:
        """What is wrong with this config, a line each; empty when it is sound.

        Args:
            section: what the fields are called after.
        """
        found = number_problems(vars(self), f"{section}.")
        shares = ("stochastic_depth", "class_dropout")
        found += outside(self, shares, lambda share: 0 <= share < 1, "must lie in [0, 1)", f"{section}.")
        sound = {name for name, value in vars(self).items() if not number_problems({name: value})}  # to go on with
        if {"width", "heads"} <= sound and self.heads and self.width % self.heads:
            found.append(f"{section}.heads = {self.heads}: must divide the width {self.width}")
        for name, choices in (("attention", get_args(Attention)), ("mamba", (True, False))):
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            if isinstance(value, list) and "depth" in sound and len(values) != self.depth:
                found.append(
                    f"{section}.{name} has {len(values)} entries: give one value, or one a block ({self.depth})"
                )
            if bad := [v for v in values if v not in choices]:
                found.append(f"{section}.{name} = {bad[0]!r}: choose from {', '.join(map(str, choices))}")
        if not found and self.shared_adaln and len({mixer.branches for mixer in self.mixers}) > 1:
            found.append(f"{section}.shared_adaln = True: needs blocks with equal numbers of mixers; set it to False")
        any_mamba = self.mamba if isinstance(self.mamba, bool) else any(self.mamba)
        if any_mamba and "width" in sound and (2 * self.width) % HEAD_DIM:
            found.append(f"{section}.width = {self.width}: Mamba-2 needs a multiple of {HEAD_DIM // 2}")
        if "sides" in sound:
            try:
                ScaleSchedule(self.sides)
            except ValueError as error:
                found.append(f"{section}.sides = {self.sides}: {error}")
        return found

    def validate(self) -> None:
        """Raise ValueError with every problem, a line each."""
        raise_problems(self.problems())


def _preset(depth: int, **changes: object) -> GeneratorConfig:
    return GeneratorConfig(depth=depth, **changes)  # type: ignore[arg-type]


_512 = {"sides": list(SIDES_512)}
_VAR = {"attention": "global", "mamba": False}
_TINY32 = {"num_classes": 10, "vocab_size": 1024, "latent_channels": 16, "sides": [1, 2, 3, 4, 6, 8]}

PRESETS: dict[str, GeneratorConfig] = {
    **{f"d{depth}": _preset(depth) for depth in (12, 16, 20, 24, 30, 32)},
    **{f"d{depth}-512": _preset(depth, **_512) for depth in (12, 16, 20, 24, 30, 32)},
    **{f"var-d{depth}": _preset(depth, **_VAR) for depth in (12, 16, 20, 24, 30)},
    "var-d36-s": _preset(36, **_VAR, **_512, shared_adaln=True),
    "m-var-w": _preset(16, width=768, heads=12),
    "m-var-d": _preset(12, width=1024, heads=16),
    "tiny32": _preset(4, width=192, shared_adaln=True, **_TINY32),
    "tiny64": _preset(4, width=192, shared_adaln=True, **_TINY32),
    "quick32": _preset(4, width=128, shared_adaln=True, **{**_TINY32, "sides": [1, 2, 3, 5, 8]}),
}

"""What the blocks of a generator do with one image, in a form that can be shown."""

from collections.abc import Callable, Sequence

from torch import Tensor

from mvar.analysis.captures import capturing, score_widths
from mvar.analysis.meter import WIDE, Meter, keeps, looks
from mvar.generator.network import Generator
from mvar.sampling.likelihood import token_log_probs
from mvar.tokenizer.network import Tokenizer

Found = dict[str, list[float] | None]


def examine(tokenizer: Tokenizer, generator: Generator, maps: Sequence[Tensor], labels_1: Tensor) -> list[Found]:
    """Run one image's token maps, (1, P_k) each, through the generator and say what each block did.

    Returns:
        For each block, with None for what it lacks: "width", how widely attention looks at each scale (see
        `score_widths`); "own", the share of its scores inside the query's own scale, where it sees others too; "left",
        the share of Mamba's state after scale k that is left after scale k + 1, K - 1 numbers.
    """
    areas = generator.schedule.areas
    meters = [Meter(block, areas) for block in generator.each_block()]
    widths: dict[int, list[float]] = {}
    takers: dict[str, Callable[[Tensor], None]] = {}
    for i, meter in enumerate(meters):
        takers |= meter.takers(f"blocks.{i}")
        if meter.block.attention is not None:
            name = f"blocks.{i}.attention.qkv"
            takers[name] = _both(_keeping(widths, i, meter), takers.get(name))
    with capturing(generator, takers):
        token_log_probs(tokenizer, generator, maps, labels_1)
    return [_view(meter, widths.get(i)) for i, meter in enumerate(meters)]


def _keeping(widths: dict[int, list[float]], i: int, meter: Meter) -> Callable[[Tensor], None]:
    def take(qkv_BLX: Tensor) -> None:
        assert meter.block.attention is not None
        widths[i] = score_widths(meter.block.attention, qkv_BLX, meter.areas)

    return take


def _both(one: Callable[[Tensor], None], other: Callable[[Tensor], None] | None) -> Callable[[Tensor], None]:
    def take(output: Tensor) -> None:
        one(output)
        if other is not None:
            other(output)

    return take


def _view(meter: Meter, width: list[float] | None) -> Found:
    left = None
    if meter.block.mamba is not None:
        left = [row[0] for row in keeps(meter.left_KK / meter.images)]
    own = looks(meter.scores, meter.areas)["intra_by_scale"] if meter.reach in WIDE else None
    return {"width": width, "own": own, "left": left}

"""Unfinished images, immutable: to stop between scales, to fork them, or to draw those of several calls together.

Shapes: B images, R rows of the generator's batch (B, or 2B with the unconditional branch), Z latent channels, P tokens
of a scale, H W the finest sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mvar.generator.state import GeneratorState, Modulation
from mvar.machine import send


@dataclass(frozen=True)
class Canvas:
    """Unfinished images: all that their next maps depend on besides seed and settings.

    Immutable: to take a snapshot, keep the canvas; to go back to it, use it again.

    Attributes:
        index: each image's own number.
        modulation: of B conditional rows, then as many unconditional ones where guidance still needs them.
        state: of the same rows, after the first `scales` maps.
        f_hat_BZHW: the latent of these maps.
        tokens: these maps, (B, P_k) each; none for smooth samples.
        finite: on a GPU whether each drawn scale's logits were finite, checked at the end.
    """

    index: tuple[int, ...]
    modulation: Modulation
    state: GeneratorState
    f_hat_BZHW: Tensor
    tokens: tuple[Tensor, ...] = ()
    finite: dict[int, Tensor] = field(default_factory=dict)

    @property
    def scales(self) -> int:
        """How many maps are drawn."""
        return self.state.scales

    @property
    def guided(self) -> bool:
        """Whether there are unconditional rows."""
        return len(self.modulation.class_embedding_BC) > len(self.index)

    def fork(self, index: Sequence[int]) -> "Canvas":
        """Each image several times in a row, as continuations of the same maps.

        Args:
            index: the numbers of all continuations, equally many per image; distinct numbers continue differently.

        Raises:
            ValueError: not equally many numbers per image.
        """
        B = len(self.index)
        if not index or len(index) % B:
            raise ValueError(f"index has {len(index)} numbers for {B} images: give the same number for each")
        rows = torch.arange(B).repeat_interleave(len(index) // B)
        return replace(self.select(rows), index=tuple(index))

    def select(self, rows: Tensor) -> "Canvas":
        """The images at these positions, in that order."""
        device = self.f_hat_BZHW.device
        rows = torch.arange(len(self.index))[rows.cpu()]  # masks too
        index = tuple(self.index[i] for i in rows.tolist())
        rows = send(rows, device)
        both = torch.cat((rows, rows + len(self.index))) if self.guided else rows
        return Canvas(
            index,
            self.modulation.select(both),
            self.state.select(both),
            self.f_hat_BZHW[rows],
            tuple(tokens_BP[rows] for tokens_BP in self.tokens),
            self.finite,
        )

    def unguided(self) -> "Canvas":
        """Without the unconditional rows."""
        rows = torch.arange(len(self.index), device=self.f_hat_BZHW.device)
        return replace(self, modulation=self.modulation.select(rows), state=self.state.select(rows))


class Rows(NamedTuple):
    """The rows of several canvases as one batch: conditional rows of all, then unconditional ones.

    Attributes:
        modulation, state: of all these rows.
        conditional: where each canvas has its conditional rows.
        unconditional: where it has its unconditional ones; an empty slice where it has none.
    """

    modulation: Modulation
    state: GeneratorState
    conditional: list[slice]
    unconditional: list[slice]

    @classmethod
    def of(cls, canvases: Sequence[Canvas]) -> "Rows":
        """The rows of these canvases, without a copy if there is only one."""
        counts = [len(canvas.index) for canvas in canvases]
        conditional = _slices(counts, 0)
        unconditional = _slices([n * canvas.guided for n, canvas in zip(counts, canvases, strict=True)], sum(counts))
        if len(canvases) == 1:
            return cls(canvases[0].modulation, canvases[0].state, conditional, unconditional)

        def joined(*parts_RX: Any) -> Any:
            if parts_RX[0] is None:  # the state of a mixer that blocks lack
                return None
            first = [part_RX[:n] for part_RX, n in zip(parts_RX, counts, strict=True)]
            return torch.cat([*first, *(part_RX[n:] for part_RX, n in zip(parts_RX, counts, strict=True))])

        modulations = [canvas.modulation for canvas in canvases]
        modulation = Modulation(
            tuple(map(joined, *(m.blocks for m in modulations))),
            joined(*(m.head_B2C for m in modulations)),
            joined(*(m.class_embedding_BC for m in modulations)),
        )
        states = [canvas.state for canvas in canvases]
        blocks = tree_map(joined, states[0].blocks, *(state.blocks for state in states[1:]))
        return cls(modulation, replace(states[0], blocks=blocks), conditional, unconditional)

    def split(self, state: GeneratorState) -> list[GeneratorState]:
        """The state of all rows, by canvas."""
        if len(self.conditional) == 1:
            return [state]
        rows = torch.arange(len(self.modulation.class_embedding_BC), device=self.modulation.class_embedding_BC.device)
        return [
            state.select(torch.cat((rows[some], rows[others])))
            for some, others in zip(self.conditional, self.unconditional, strict=True)
        ]


def _slices(counts: Sequence[int], start: int) -> list[slice]:
    """One after another, from `start`."""
    slices = []
    for count in counts:
        slices.append(slice(start, start + count))
        start += count
    return slices

"""The generator: predicts the token map of each scale from the scales before it and a class.

Shapes: B batch, K scales, L tokens of all scales, l tokens of this call, N = B l, C width, V codes, Z latent channels,
R AdaLN vectors of a block, U random numbers of an image in training.
Source: M-VAR (Ren et al. 2024), section 3; VAR (Tian et al. 2024), section 3.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mvar.generator.block import Block
from mvar.generator.config import GeneratorConfig
from mvar.generator.state import BlockState, GeneratorState, Modulation
from mvar.nn.linear import Linear
from mvar.ops.cross_entropy import linear_cross_entropy
from mvar.ops.norms import adaln
from mvar.ops.numerics import at_least_float32, bfloat16_products, without_autocast


class Generator(nn.Module):
    """M-VAR, the VAR baseline and every mixture of their blocks.

    Weights are zero until `mvar.generator.init.initialise` or a checkpoint fills them. Tokens stay in float32; the
    projections follow their weights' dtype, or autocast's.

    Attributes:
        activation_checkpointing: keep only each block's input and recompute the rest in the backward pass.
        differentiated: how a block is called with a gradient, for example through torch.compile.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config, self.schedule, self.activation_checkpointing = config, config.schedule, False
        self.differentiated: Callable[..., tuple[Tensor, BlockState]] = called
        C, L = config.width, self.schedule.length
        self.class_embed = _embedding(config.num_classes + 1, C)
        self.start_pos = nn.Parameter(torch.zeros(1, self.schedule.areas[0], C))
        self.pos_embed = nn.Parameter(torch.zeros(1, L, C))
        self.level_embed = _embedding(len(self.schedule), C)
        self.word_embed = Linear(config.latent_channels, C)
        if config.shared_adaln:
            self.shared_adaln = Linear(C, 3 * config.mixers[0].branches * C)
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in config.mixers)
        self.head_adaln = Linear(C, 2 * C)
        self.head = Linear(C, config.vocab_size)

    def forward(self, labels_B: Tensor, inputs_BlZ: Tensor, noise_BU: Tensor | None = None) -> Tensor:
        """Teacher-forced logits of every token, (B, L, V) in float32, from the tokenizer's `generator_inputs`."""
        everything = range(len(self.schedule))
        modulation = self.modulation(labels_B, noise_BU)
        x_BLC = self.embed(inputs_BlZ, modulation, everything)
        return self.step(x_BLC, modulation, None, everything)[0]

    def token_losses(
        self,
        labels_B: Tensor,
        inputs_BlZ: Tensor,
        tokens_Bl: Tensor,
        noise_BU: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Results (B, l) of `linear_cross_entropy` for teacher-forced tokens: all token maps, or only the first few."""
        if tokens_Bl.shape[1] not in self.schedule.offsets[1:]:
            raise ValueError(f"tokens: {tokens_Bl.shape[1]} an image; whole maps have {self.schedule.offsets[1:]}")
        scales = range(self.schedule.offsets.index(tokens_Bl.shape[1]))
        modulation = self.modulation(labels_B, noise_BU)
        x_BlC, _ = self._hidden(self.embed(inputs_BlZ, modulation, scales), modulation, None, scales)
        scale_BC, shift_BC = modulation.head_B2C.unbind(1)
        x_NC = adaln(x_BlC, scale_BC, shift_BC).flatten(0, 1)
        nll_N, correct_N = linear_cross_entropy(x_NC, self.head.weight, self.head.bias, tokens_Bl.flatten(), smoothing)
        return nll_N.view_as(tokens_Bl), correct_N.view_as(tokens_Bl)

    def modulation(self, labels_B: Tensor, noise_BU: Tensor | None = None) -> Modulation:
        """The AdaLN vectors of these labels, for all scales; `num_classes` is the null class.

        All randomness of training is here: labels are dropped, and gates of dropped branches become zero (stochastic
        depth). `noise_BU` has `noise_size` numbers in [0, 1) per image; None takes torch's global generator.
        """
        if not self.training:
            return self._modulation(labels_B)
        if noise_BU is None:
            noise_BU = torch.rand(len(labels_B), self.noise_size, device=labels_B.device)
        dropped_B = noise_BU[:, 0] < self.config.class_dropout
        modulation = self._modulation(labels_B.masked_fill(dropped_B, self.config.num_classes))
        noise = noise_BU[:, 1:].split([mixer.branches for mixer in self.config.mixers], dim=1)
        dropped = map(_drop_branches, modulation.blocks, noise, self.config.drop_rates)
        return replace(modulation, blocks=tuple(dropped))

    @property
    def noise_size(self) -> int:
        """Random numbers per image in training: one for its label, one for each branch of each block."""
        return 1 + sum(mixer.branches for mixer in self.config.mixers)

    def embed(self, inputs_BlZ: Tensor | None, modulation: Modulation, scales: range) -> Tensor:
        """The blocks' input for consecutive scales, (B, l, C), at least float32.

        `inputs_BlZ` is, for each of the scales but scale 0, f_hat of the scales before it; None if there is none.
        """
        words = [scale for scale in scales if scale > 0]
        expected = sum(self.schedule.areas[k] for k in words)
        received = 0 if inputs_BlZ is None else inputs_BlZ.shape[1]
        if received != expected:
            raise ValueError(f"inputs have {received} tokens, scales {words} take {expected}")
        parts = []
        if 0 in scales:
            parts.append(at_least_float32(modulation.class_embedding_BC)[:, None] + at_least_float32(self.start_pos))
        if inputs_BlZ is not None and words:
            parts.append(at_least_float32(self.word_embed(inputs_BlZ)))
        place_lC = at_least_float32(self.pos_embed[0, self.schedule.span(scales)])
        level_KC = at_least_float32(self.level_embed.weight)
        level_lC = torch.cat([level_KC[k].expand(self.schedule.areas[k], -1) for k in scales])
        return torch.cat(parts, dim=1) + (place_lC + level_lC)

    def initial_state(self, batch: int) -> GeneratorState:
        """The state before the first scale."""
        return GeneratorState(tuple(block.initial_state(batch) for block in self.each_block()))

    def step(
        self,
        x_BlC: Tensor,
        modulation: Modulation,
        state: GeneratorState | None,
        scales: range,
        head_rows: int | None = None,
    ) -> tuple[Tensor, GeneratorState]:
        """Run the blocks over consecutive scales, on what `embed` gives for them.

        Args:
            state: after the scales before these; None, like `initial_state`, at the start.
            head_rows: compute logits of the first `head_rows` images only; None for all.

        Returns:
            Logits (rows, l, V) in float32 and the state after these scales.
        """
        x_BlC, state = self._hidden(x_BlC, modulation, state, scales)
        scale_BC, shift_BC = modulation.head_B2C[:head_rows].unbind(1)
        x_BlC = adaln(x_BlC[:head_rows], scale_BC, shift_BC)
        rounded = self.word_embed.weight.dtype == torch.bfloat16 and not torch.is_grad_enabled()
        with without_autocast(x_BlC), bfloat16_products(rounded):
            return at_least_float32(self.head(x_BlC)), state

    def _hidden(
        self, x_BlC: Tensor, modulation: Modulation, state: GeneratorState | None, scales: range
    ) -> tuple[Tensor, GeneratorState]:
        if state is None:
            state = GeneratorState(tuple(BlockState() for _ in self.blocks))
        if scales.step != 1 or not state.scales == scales.start < scales.stop <= len(self.schedule):
            raise ValueError(f"scales = {scales}: must be consecutive and start at {state.scales}, after the state's")
        areas = self.schedule.areas[scales.start : scales.stop]
        snake_l = None
        if self.config.scan == "snake":
            # All else in a block treats tokens of a scale alike, so that they are put in Mamba's order once for all.
            snake_l = _snake(self.schedule.shapes[scales.start : scales.stop], x_BlC.device)
            x_BlC = x_BlC.index_select(1, snake_l)
        run = self.differentiated if torch.is_grad_enabled() else called
        if self.activation_checkpointing and torch.is_grad_enabled():
            run = partial(_checkpointed, run)
        after = []
        for block, modulation_BRC, before in zip(self.each_block(), modulation.blocks, state.blocks, strict=True):
            x_BlC, block_state = run(block, x_BlC, modulation_BRC, before, areas)
            after.append(block_state)
        if snake_l is not None:
            x_BlC = x_BlC.index_select(1, snake_l)
        return x_BlC, GeneratorState(tuple(after), scales.stop)

    def each_block(self) -> list[Block]:
        """The blocks, first to last."""
        return list(self.blocks)  # type: ignore[arg-type]  # a ModuleList does not know what it holds

    def _modulation(self, labels_B: Tensor) -> Modulation:
        class_BC = self.class_embed(labels_B)
        active_BC = F.silu(at_least_float32(class_BC))
        shared_BRC = None
        with without_autocast(class_BC):  # few rows: casting the weights would take longer than the products
            if self.config.shared_adaln:
                shared_BRC = at_least_float32(self.shared_adaln(active_BC)).unflatten(-1, (-1, self.config.width))
            head_B2C = at_least_float32(self.head_adaln(active_BC)).unflatten(-1, (2, -1))
            blocks = tuple(block.modulation(active_BC, shared_BRC) for block in self.each_block())
        return Modulation(blocks, head_B2C, class_BC)


def called(block: Block, *arguments: Any) -> tuple[Tensor, BlockState]:
    """The block's own call."""
    return block(*arguments)


def _checkpointed(run: Callable[..., tuple[Tensor, BlockState]], *arguments: Any) -> tuple[Tensor, BlockState]:
    # A block draws no random numbers (`modulation` does), so none need to be repeated.
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)


def _snake(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """The places of token maps' tokens with every odd row reversed, which is its own inverse."""
    places, start = [], 0
    for h, w in shapes:
        place_hw = torch.arange(start, start + h * w, device=device).view(h, w)
        place_hw[1::2] = place_hw[1::2].flip(1)
        places.append(place_hw.flatten())
        start += h * w
    return torch.cat(places)


def _drop_branches(modulation_BRC: Tensor, noise_Bn: Tensor, rate: float) -> Tensor:
    """Stochastic depth: gates of dropped branches become 0, the others are scaled to keep the mean."""
    if rate == 0:
        return modulation_BRC
    kept_Bn = (noise_Bn >= rate) / (1 - rate)
    others_Bm = torch.ones_like(kept_Bn).repeat(1, 2)
    return modulation_BRC * torch.cat((kept_Bn, others_Bm), dim=1)[..., None].to(modulation_BRC.dtype)


def _embedding(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding(rows, width, _weight=torch.zeros(rows, width))

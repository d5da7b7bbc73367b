"""The models that the benchmark of sampling compares, each ready to draw a batch of images.

Shapes: B images, L tokens of a call, T tokens so far, C width.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mvar.bench.measuring import SEED
from mvar.bench.parts import Ledger, Work, WorkCounter
from mvar.checkpoint import hub
from mvar.checkpoint.bundle import read_bundle
from mvar.checkpoint.placement import Dtype, to_device
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.generator.state import GeneratorState, Modulation
from mvar.model import Model, load
from mvar.nn.mamba2 import Mamba2
from mvar.sampling.config import UNFILTERED
from mvar.sampling.cost import no_noise, peak_bytes
from mvar.sampling.engine import Sampler
from mvar.tokenizer.config import PRESETS as TOKENIZERS
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer


@dataclass(frozen=True)
class Subject:
    """Which model is measured."""

    name: str  # of a generator preset, which gets random weights, or of a model as `mvar.load` takes it
    dtype: Dtype  # of its weights
    depth: int | None = None  # of a preset: so many of its blocks, in place of all

    def model(self) -> Model:
        """The model on the CPU."""
        return self._random() if self.name in PRESETS else load(self.name, "cpu", self.dtype)

    @cache  # noqa: B019  # takes seconds and is needed more than once
    def work(self, batch: int, guidance: float) -> list[Work]:
        """The matrix products and convolutions with weights of one batch, counted on torch's meta device."""
        case = Case(Model(*self._on_meta()).sampler(SEED, guidance=guidance, **UNFILTERED))  # filters need numbers
        case.sampler.noise = no_noise
        ledger = Ledger()
        with ledger.watching(case.sampler), WorkCounter(ledger) as counter:
            case.draw(batch, ledger)
        return counter.work

    def weight_bytes(self, tokenizer: bool = True) -> int:
        """Memory that the weights take, those of the tokenizer included or not."""
        networks = self._on_meta()[0 if tokenizer else 1 :]
        return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())

    def image_bytes(self) -> int:
        """About the memory per image beside the weights."""
        return peak_bytes(*self.configs())

    def configs(self) -> tuple[TokenizerConfig, GeneratorConfig]:
        """Of both networks; a generator preset has the first tokenizer preset that fits, best the one of its name."""
        if self.name not in PRESETS:
            bundle = read_bundle(hub.find(self.name))
            if bundle.generator is None:
                raise ValueError(f"model = {self.name!r}: is a tokenizer without a generator")
            return bundle.tokenizer.config, bundle.generator.config
        generator = PRESETS[self.name]
        if self.depth is not None:
            generator = replace(generator, depth=self.depth)
        fits = {name: config for name, config in TOKENIZERS.items() if _form(config) == _form(generator)}
        return fits.get(self.name, next(iter(fits.values()))), generator

    def _on_meta(self) -> tuple[Tokenizer, Generator]:
        tokenizer, generator = self.configs()
        with torch.device("meta"):
            networks = Tokenizer(tokenizer), Generator(generator)
        to_device(*networks, torch.device("meta"), self.dtype)
        return networks

    def _random(self) -> Model:
        """A model of random weights, which never take the memory of another dtype."""
        networks = self._on_meta()
        for network in networks:
            network.to_empty(device="cpu")
        rng = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in networks[0].parameters():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=rng))
        initialise(networks[1], SEED)
        to_device(*networks, "cpu", self.dtype)
        return Model(*networks, classes=[str(i) for i in range(networks[1].config.num_classes)])


def _form(config: TokenizerConfig | GeneratorConfig) -> tuple[Any, ...]:
    return config.vocab_size, config.latent_channels, config.schedule


@dataclass(frozen=True)
class Case:
    """A model that draws, a context to draw in, and whether to its pixels or only to its last token map."""

    sampler: Sampler
    way: Callable[[], AbstractContextManager[None]] = nullcontext
    decodes: bool = True

    def draw(self, batch: int, ledger: Ledger) -> float:
        """Seconds to draw this many images of classes 0, 1, ...; notifies the ledger."""
        classes = max(self.sampler.generator.config.num_classes, 1)
        start = time.perf_counter()
        with self.way():
            ledger.enter("adaln")
            canvas = self.sampler.start(torch.arange(batch) % classes, range(batch))
            ledger.leave()
            for k in range(self.sampler.scales):
                ledger.at(k)
                canvas = self.sampler.draw(canvas)
            ledger.at(None)
            if self.decodes:
                ledger.enter("decoder")
                self.sampler.tokenizer.decode_latent(canvas.f_hat_BZHW)
                ledger.leave()
        return time.perf_counter() - start


# --- the official way: at every scale, Mamba runs over the whole prefix and AdaLN's vectors are computed again ---


class Prefix(NamedTuple):
    """The state of a Mamba that re-runs: all of its inputs so far, and how many are of each scale."""

    seen_BTC: Tensor
    areas: tuple[int, ...] = ()


class RerunningMamba(nn.Module):
    """A Mamba-2 without a carried state."""

    def __init__(self, mamba: Mamba2) -> None:
        super().__init__()
        self.mamba = mamba

    def initial_state(self, batch: int) -> Prefix:
        """Nothing seen."""
        projection = self.mamba.in_proj
        return Prefix(torch.zeros(batch, 0, projection.in_features, dtype=projection.weight.dtype))

    def forward(self, x_BLC: Tensor, areas: tuple[int, ...], prefix: Prefix) -> tuple[Tensor, Prefix]:
        """(B, L, C) and all before -> (B, L, C) and all with it."""
        prefix = Prefix(torch.cat((prefix.seen_BTC, x_BLC), dim=1), (*prefix.areas, *areas))
        return self.mamba(*prefix)[0][:, -x_BLC.shape[1] :], prefix


@contextmanager
def rerunning(generator: Generator) -> Iterator[None]:
    """Within it, every Mamba-2 of a generator runs over the whole prefix, and every step computes AdaLN's vectors."""
    blocks, step, modulation = generator.each_block(), generator.step, generator.modulation
    labels: list[Tensor] = []

    def recording(labels_B: Tensor) -> Modulation:
        labels.append(labels_B)
        return modulation(labels_B)

    def recomputing(x_BlC: Tensor, _: Modulation, *rest: Any, **options: Any) -> tuple[Tensor, GeneratorState]:
        return step(x_BlC, modulation(labels[-1][: len(x_BlC)]), *rest, **options)

    mambas = [block.mamba for block in blocks]
    for block in blocks:
        if block.mamba is not None:
            block.mamba = RerunningMamba(block.mamba)  # type: ignore[assignment]
    vars(generator).update(step=recomputing, modulation=recording)
    try:
        yield
    finally:
        del vars(generator)["step"], vars(generator)["modulation"]
        for block, mamba in zip(blocks, mambas, strict=True):
            block.mamba = mamba

"""Training a generator on the token maps of images.

Shapes: B images, K scales, L tokens, V codes, Z latent channels; P tokens of a scale.
Source: VAR (Tian et al. 2024), section 3.2: cross-entropy of every token, averaged uniformly.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.checkpoint.bundle import Bundle, write_bundle
from mvar.checkpoint.placement import find_device, find_dtype
from mvar.data.order import batch_indices
from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.model import Model, from_bundle
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.sampling.export import save_image
from mvar.sampling.sheet import class_sheet
from mvar.tokenizer.config import TokenizerConfig
from mvar.training.config import GeneratorTraining
from mvar.training.loop import Metrics, fit
from mvar.training.optim import build_optimizer
from mvar.training.run_folder import RunFolder, provenance
from mvar.training.token_data import TokenData

VIEWED_AT_ONCE = 64  # images of a pass without gradients
PREVIEW_CLASSES = 16
UNDECAYED = ("pos_embed", "level_embed.weight", "start_pos", "log_scale", "adaln_offset", "A_log", "dt_bias", "mamba.D")


def train(config: GeneratorTraining) -> Model:
    """Train a generator and return it with its tokenizer; the run folder `config.out` is a loadable bundle.

    Raises:
        ValueError: bad settings, data, tokenizer or folders, before any training; a line for each problem.
        FloatingPointError: the loss or a gradient is not finite.
    """
    config.validate()
    find_device(config.device)
    with RunFolder(config) as folder:
        data = TokenData.open(config)
        folder.begin(data.train, data.val, data.fingerprint)
        task = GeneratorTask(config, data.ready(config.val_images))
        fit(task, config, folder)
    return from_bundle(task.bundle(), config.device, "float32")


class GeneratorTask:
    """The generator as the loop sees it (see `mvar.training.loop.Task`)."""

    def __init__(self, config: GeneratorTraining, data: TokenData) -> None:
        self.config, self.data, self.classes = config, data, data.train.classes
        self.device = data.quantizer.codebook.device
        self.model = Generator(fitted(config.model, data.tokenizer_config, len(self.classes)))
        initialise(self.model, config.seed)
        self.model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, config, decays)
        self.dtype = find_dtype(config.dtype, self.device)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        train = self.data.train
        indices_B, epochs_B = batch_indices(len(train), self.config.batch_size, self.config.seed, step)
        tokens, labels_B = self._maps(*train.batch(indices_B, epochs_B))
        logits_BLV = self._logits(tokens, labels_B)
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), torch.cat(tokens, 1).flatten(), label_smoothing=smoothing)
        return loss, {"accuracy": _correct(logits_BLV.detach(), tokens).mean()}

    def _maps(self, tokens_BL: Tensor, labels_B: Tensor) -> tuple[list[Tensor], Tensor]:
        """A source's batch as token maps, one (B, P_k) a scale, and labels, on the generator's device."""
        maps = tokens_BL.to(self.device).split(self.model.schedule.areas, dim=1)
        return list(maps), labels_B.to(self.device)

    def _logits(self, tokens: list[Tensor], labels_B: Tensor) -> Tensor:
        inputs_BlZ = self.data.quantizer.generator_inputs(tokens)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return self.model(labels_B, inputs_BlZ)

    def after_update(self, step: int) -> None:
        pass

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Cross-entropy and accuracy over the validation images, in all and for each scale, without class dropout."""
        L = self.model.schedule.length
        loss_L = torch.zeros(L, dtype=torch.float64)  # on the CPU, as Apple's GPUs have no float64
        correct_L = torch.zeros_like(loss_L)
        for tokens, labels_B in self._val_batches():
            logits_BLV = self._logits(tokens, labels_B)
            nll_BL = F.cross_entropy(logits_BLV.transpose(1, 2), torch.cat(tokens, 1), reduction="none")
            loss_L += nll_BL.sum(0).cpu()
            correct_L += _correct(logits_BLV, tokens).sum(0).cpu()
        n, schedule = len(self.data.val), self.model.schedule
        by_scale = [schedule.slice(k) for k in range(len(schedule))]
        return {
            "val_loss": float(loss_L.mean()) / n,
            "val_bits_per_token": float(loss_L.mean()) / n / math.log(2),
            "val_accuracy": float(correct_L.mean()) / n,
            "val_loss_scales": [float(loss_L[s].mean()) / n for s in by_scale],
            "val_accuracy_scales": [float(correct_L[s].mean()) / n for s in by_scale],
        }

    def _val_batches(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        for indices_B in torch.arange(len(self.data.val)).split(VIEWED_AT_ONCE):
            yield self._maps(*self.data.val.batch(indices_B))

    def preview(self, path: Path) -> None:
        """Samples of each class, with the same noise every time."""
        names = self.classes[:PREVIEW_CLASSES] or ["samples"]
        n = self.config.preview_per_class
        ids = range(len(names)) if self.classes else [self.model.config.num_classes]
        labels_B = torch.tensor([i for i in ids for _ in range(n)])
        sampler = Sampler(self.data.tokenizer(), self.model, self.config.seed, SamplingSettings())
        images = sampler.sample(labels_B, range(len(labels_B))).images
        rows = [(name, images[r * n : (r + 1) * n]) for r, name in enumerate(names)]
        save_image(class_sheet(rows), path)

    def bundle(self) -> Bundle:
        """Tokenizer and generator, and how the generator was trained."""
        origin = {**provenance(self.config), "data": self.data.name, "tokenizer": Path(self.config.tokenizer).name}
        return Bundle(tokenizer=self.data.tokenizer(), generator=self.model, classes=self.classes, provenance=origin)

    def save_bundle(self, folder: Path) -> None:
        write_bundle(folder, self.bundle())

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


def fitted(model: GeneratorConfig, tokenizer: TokenizerConfig, classes: int) -> GeneratorConfig:
    """The generator's config with what the tokenizer and the data decide."""
    return replace(
        model,
        num_classes=classes,
        vocab_size=tokenizer.vocab_size,
        latent_channels=tokenizer.latent_channels,
        sides=tokenizer.sides,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to vectors, biases, places, levels, temperatures and Mamba's A, dt and D."""
    return parameter.dim() > 1 and not name.endswith(UNDECAYED)


def _correct(logits_BLV: Tensor, tokens: list[Tensor]) -> Tensor:
    """1 where the likeliest code is the right one, (B, L)."""
    return (logits_BLV.argmax(dim=-1) == torch.cat(tokens, 1)).float()

"""Training a generator on the token maps of images, by a frozen tokenizer.

Shapes: B images, K scales, L tokens, V codes, Z latent channels; P tokens of a scale.
Source: VAR (Tian et al. 2024), section 3.2: cross-entropy of every token, averaged uniformly.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.checkpoint.bundle import Bundle, write_bundle
from mvar.checkpoint.placement import find_device, find_dtype
from mvar.data.loader import Source
from mvar.data.progress import track
from mvar.data.source import PixelSource
from mvar.data.splits import open_loader, open_splits
from mvar.data.stream import Stream
from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.model import Model, from_bundle, load
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.sampling.export import save_image
from mvar.sampling.sheet import class_sheet
from mvar.tokenizer.network import Tokenizer
from mvar.training.config import GeneratorTraining
from mvar.training.loop import Metrics, fit
from mvar.training.optim import build_optimizer
from mvar.training.run_folder import RunFolder, fingerprint, provenance

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
    try:
        tokenizer = load(config.tokenizer, config.device, "float32").tokenizer
    except ValueError as error:
        reason = str(error).removeprefix(f"model = {config.tokenizer!r}: ")
        raise ValueError(f"tokenizer = {config.tokenizer!r}: {reason}") from error
    with RunFolder(config) as folder:
        train_images, val_images = open_splits(
            config.data,
            tokenizer.config.image_shape,
            val_data=config.val_data,
            resize_factor=config.resize_factor,
            seed=config.seed,
            on_bad_image=config.on_bad_image,
        )
        folder.begin(train_images, val_images, fingerprint(tokenizer))
        task = GeneratorTask(config, tokenizer, train_images, val_images.spread(config.val_images))
        with closing(task.loader):
            fit(task, config, folder)
    return from_bundle(task.bundle(), config.device, "float32")


class TokenSource:
    """Token maps of images that look the same in every epoch: all encoded once, rows are tokens (B, L)."""

    def __init__(self, images: PixelSource, tokenizer: Tokenizer, label: str) -> None:
        self.labels, self.classes, self.name = images.labels, images.classes, images.name
        batches = torch.arange(len(images)).split(VIEWED_AT_ONCE)
        encoded = [
            torch.cat(encode(images.batch(indices_B)[0], tokenizer), dim=1).int()
            for indices_B in track(batches, len(batches), label)
        ]
        self.tokens_NL = torch.cat(encoded)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens int32 (B, L) and labels (B,)."""
        indices_B = torch.as_tensor(indices_B)
        return self.tokens_NL[indices_B.to(self.tokens_NL.device)], self.labels[indices_B]


def encode(pixels_B3HW: Tensor, tokenizer: Tokenizer) -> list[Tensor]:
    """Token maps of uint8 pixels, one (B, P_k) a scale."""
    return tokenizer.encode(pixels_B3HW.to(tokenizer.quantizer.codebook.device) / 255)


class GeneratorTask:
    """The generator as the loop sees it (see `mvar.training.loop.Task`)."""

    def __init__(
        self,
        config: GeneratorTraining,
        tokenizer: Tokenizer,
        train_images: PixelSource | Stream,
        val_images: PixelSource,
    ) -> None:
        self.config, self.tokenizer, self.classes = config, tokenizer, train_images.classes
        self.device = tokenizer.quantizer.codebook.device
        train: Source | Stream = train_images
        self.val: Source = val_images
        if config.resize_factor == 1:
            self.val = TokenSource(val_images, tokenizer, "encoding validation images")
            if isinstance(train_images, PixelSource):
                train = TokenSource(train_images, tokenizer, "encoding training images")
        self.loader = open_loader(train, config.batch_size, config.seed, workers=config.workers)
        self.model = Generator(fitted(config.model, tokenizer, len(self.classes)))
        initialise(self.model, config.seed)
        self.model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, config, decays)
        self.dtype = find_dtype(config.dtype, self.device)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows, labels_B, _ = self.loader.batch(step)
        tokens = self._maps(rows)
        logits_BLV = self._logits(tokens, labels_B.to(self.device))
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), torch.cat(tokens, 1).flatten(), label_smoothing=smoothing)
        return loss, {"accuracy": _correct(logits_BLV.detach(), tokens).mean()}

    def _maps(self, rows: Tensor) -> list[Tensor]:
        """Token maps, one (B, P_k) a scale, of what a source gives: tokens (B, L), else pixels."""
        if rows.dim() == 2:
            return list(rows.long().split(self.model.schedule.areas, dim=1))
        return encode(rows, self.tokenizer)

    def _logits(self, tokens: list[Tensor], labels_B: Tensor) -> Tensor:
        inputs_BlZ = self.tokenizer.generator_inputs(tokens)
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
        n, schedule = len(self.val), self.model.schedule
        by_scale = [schedule.slice(k) for k in range(len(schedule))]
        return {
            "val_loss": float(loss_L.mean()) / n,
            "val_bits_per_token": float(loss_L.mean()) / n / math.log(2),
            "val_accuracy": float(correct_L.mean()) / n,
            "val_loss_scales": [float(loss_L[s].mean()) / n for s in by_scale],
            "val_accuracy_scales": [float(correct_L[s].mean()) / n for s in by_scale],
        }

    def _val_batches(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        for indices_B in torch.arange(len(self.val)).split(VIEWED_AT_ONCE):
            rows, labels_B = self.val.batch(indices_B)
            yield self._maps(rows), labels_B.to(self.device)

    def preview(self, path: Path) -> None:
        """Samples of each class, with the same noise every time."""
        names = self.classes[:PREVIEW_CLASSES] or ["samples"]
        n = self.config.preview_per_class
        ids = range(len(names)) if self.classes else [self.model.config.num_classes]
        labels_B = torch.tensor([i for i in ids for _ in range(n)])
        sampler = Sampler(self.tokenizer, self.model, self.config.seed, SamplingSettings())
        images = sampler.sample(labels_B, range(len(labels_B))).images
        rows = [(name, images[r * n : (r + 1) * n]) for r, name in enumerate(names)]
        save_image(class_sheet(rows), path)

    def bundle(self) -> Bundle:
        """Tokenizer and generator, and how the generator was trained."""
        origin = {**provenance(self.config), "tokenizer": Path(self.config.tokenizer).name}
        return Bundle(tokenizer=self.tokenizer, generator=self.model, classes=self.classes, provenance=origin)

    def save_bundle(self, folder: Path) -> None:
        write_bundle(folder, self.bundle())

    def state(self) -> dict[str, Any]:
        return self.loader.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.loader.load_state(state)


def fitted(model: GeneratorConfig, tokenizer: Tokenizer, classes: int) -> GeneratorConfig:
    """The generator's config with what the tokenizer and the data decide."""
    made_for = tokenizer.config
    return replace(
        model,
        num_classes=classes,
        vocab_size=made_for.vocab_size,
        latent_channels=made_for.latent_channels,
        sides=made_for.sides,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to vectors, biases, places, levels, temperatures and Mamba's A, dt and D."""
    return parameter.dim() > 1 and not name.endswith(UNDECAYED)


def _correct(logits_BLV: Tensor, tokens: list[Tensor]) -> Tensor:
    """1 where the likeliest code is the right one, (B, L)."""
    return (logits_BLV.argmax(dim=-1) == torch.cat(tokens, 1)).float()

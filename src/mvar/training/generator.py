"""Training a generator on the token maps of images, by a frozen tokenizer.

Shapes: B images, K scales, L tokens, l tokens of the scales in use, Z latent channels, U random numbers an image;
P tokens of a scale.
Source: VAR (Tian et al. 2024), section 3.2: cross-entropy of every token, averaged uniformly.
"""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mvar.checkpoint.bundle import Bundle, write_bundle
from mvar.data.order import batch_indices, crop_noise
from mvar.data.progress import track
from mvar.data.source import PixelSource
from mvar.data.splits import open_splits
from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.model import Model, from_bundle, load
from mvar.ops.noise import uniform
from mvar.ops.ssd import ssd
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.sampling.export import save_image
from mvar.sampling.sheet import class_sheet
from mvar.tokenizer.network import Tokenizer
from mvar.training.average import WeightAverage
from mvar.training.config import GeneratorTraining
from mvar.training.fine_tuning import Start, freeze, load_start, take_weights
from mvar.training.generator_loss import GeneratorLoss, scales_in_use
from mvar.training.loop import Callback, fit
from mvar.training.optim import autocast, build_optimizer, reduced
from mvar.training.parallel import Ranks, fill, gathered, joined, replicated, shard
from mvar.training.run_folder import Metrics, RunFolder, fingerprint, provenance

VIEWED_AT_ONCE = 64  # images of a pass without gradients
PREVIEW_CLASSES = 16
DROPS = 2**32  # stream of the noise that drops classes and branches; crops use the epoch's number
UNDECAYED = ("pos_embed", "level_embed.weight", "start_pos", "log_scale", "adaln_offset", "A_log", "dt_bias", "mamba.D")


def train(config: GeneratorTraining, callbacks: Sequence[Callback] = ()) -> Model | None:
    """Train a generator; the run folder `config.out` is a loadable bundle.

    Args:
        config: the run.
        callbacks: called with the updates done and each record of metrics; one that returns True stops the run.

    Returns:
        The model; None on all ranks but the main one.

    Raises:
        ValueError: bad settings, data, tokenizer or folders, before any training; a line for each problem.
        FloatingPointError, Stopped, ConnectionError, OSError: see `fit`.
    """
    config.validate()
    with joined(config.parallel, config.device, config.rank_timeout) as ranks:
        if config.compile:
            check_compiler(ranks.device)
        try:
            tokenizer = load(config.tokenizer, ranks.device, "float32").tokenizer
        except ValueError as error:
            reason = str(error).removeprefix(f"model = {config.tokenizer!r}: ")
            raise ValueError(f"tokenizer = {config.tokenizer!r}: {reason}") from error
        start = None
        if config.init_from is not None and not config.resume:
            start = load_start(config.init_from, config.model, tokenizer)
        with RunFolder(config, ranks) as folder:
            train_images, val_images = open_splits(
                config.data,
                tokenizer.config.image_shape,
                resize_factor=config.resize_factor,
                on_bad_image=config.on_bad_image,
            )
            folder.begin(train_images, val_images, fingerprint(tokenizer))
            task = GeneratorTask(config, ranks, tokenizer, train_images, val_images.spread(config.val_images), start)
            fit(task, config, folder, ranks, callbacks)
            task.average.take()
        bundle = task.bundle()
        return None if bundle is None else from_bundle(bundle, ranks.device, "float32")


class TokenSource:
    """Token maps of images: all encoded once where every epoch shows the same pixels, else batch by batch."""

    def __init__(self, images: PixelSource, tokenizer: Tokenizer, label: str) -> None:
        self.images, self.tokenizer = images, tokenizer
        self.device = tokenizer.quantizer.codebook.device
        self.areas = tokenizer.config.schedule.areas
        self.tokens_NL: Tensor | None = None
        if images.resize_factor == 1:
            batches = torch.arange(len(images)).split(VIEWED_AT_ONCE)
            encoded = [self._encode(indices_B, None).int() for indices_B in track(batches, len(batches), label)]
            self.tokens_NL = torch.cat(encoded)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices_B: Tensor, crop_noise_B2: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Token maps, one (B, P_k) a scale, and labels (B,)."""
        if self.tokens_NL is None:
            tokens_BL = self._encode(indices_B, crop_noise_B2)
        else:
            tokens_BL = self.tokens_NL[indices_B.to(self.device)].long()
        return list(tokens_BL.split(self.areas, dim=1)), self.images.labels[indices_B].to(self.device)

    def _encode(self, indices_B: Tensor, crop_noise_B2: Tensor | None) -> Tensor:
        pixels_B3HW = self.images.batch(indices_B, crop_noise_B2)[0].to(self.device) / 255
        return torch.cat(self.tokenizer.encode(pixels_B3HW), dim=1)


class GeneratorTask:
    """The generator as the loop sees it (see `mvar.training.loop.Task`)."""

    def __init__(
        self,
        config: GeneratorTraining,
        ranks: Ranks,
        tokenizer: Tokenizer,
        train_images: PixelSource,
        val_images: PixelSource,
        start: Start | None = None,
    ) -> None:
        """Args:
        config: of the run.
        ranks: this process among the others.
        tokenizer: frozen.
        train_images, val_images: what to learn from, and what to be judged by.
        start: the weights to begin with; None draws them.
        """
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.tokenizer, self.classes = tokenizer, train_images.classes
        with torch.device("meta" if ranks.kind == "fsdp" and start is None else self.device):
            self.model = Generator(fitted(config.model, tokenizer, len(self.classes)))
        new_classes = []
        if start is not None:
            initialise(self.model, config.seed)
            new_classes = take_weights(self.model, start, self.classes)
        freeze(self.model, config.freeze, new_classes)
        self.model.activation_checkpointing = config.activation_checkpointing
        if config.compile:
            compile_blocks(self.model)
        losses = GeneratorLoss(self.model, config.label_smoothing)
        self.autocast = autocast(config.dtype, self.device)
        if ranks.kind == "fsdp":
            shard(losses, self.model, reduced(config.dtype, self.device))
        if start is None:
            self.model.to_empty(device=self.device)
            initialise(self.model, config.seed, fill)
        self.losses = replicated(losses, ranks) if ranks.kind == "ddp" else losses
        self.networks: dict[str, nn.Module] = {"model": self.model}
        self.called = [self.losses]
        self.model.train()
        self.optimizer = build_optimizer(self.model, config, decays)
        self.average = WeightAverage(self.model, config.ema)
        self.train_tokens = TokenSource(train_images, tokenizer, "encoding training images")
        self.val_tokens = TokenSource(val_images, tokenizer, "encoding validation images")

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, seed = self.config, self.config.seed
        indices_B, epochs_B = batch_indices(len(self.train_tokens), config.batch_size, seed, step)
        noise_B2 = None if config.resize_factor == 1 else crop_noise(seed, epochs_B, indices_B)
        tokens, labels_B = self.train_tokens.batch(indices_B, noise_B2)
        count, share_l = scales_in_use(
            step, config.steps, config.progressive, config.progressive_from, self.model.schedule
        )
        positions_B = range(step * config.batch_size, (step + 1) * config.batch_size)
        noise_BU = uniform(seed, positions_B, DROPS, (self.model.noise_size,)).to(self.device)
        nll_Bl, correct_Bl = self._token_losses(tokens[:count], labels_B, noise_BU)
        loss = (nll_Bl.mean(0) * share_l.to(self.device)).sum()
        return loss, {"accuracy": correct_Bl.float().mean()}

    def _token_losses(
        self, tokens: list[Tensor], labels_B: Tensor, noise_BU: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `GeneratorLoss`."""
        inputs_BlZ = self.tokenizer.generator_inputs(tokens)
        with self.autocast():
            return self.losses(labels_B, inputs_BlZ, torch.cat(tokens, 1), noise_BU)

    def after_update(self, step: int) -> None:
        pass

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Cross-entropy and accuracy over the validation images, in all and for each scale, without class dropout."""
        L = self.model.schedule.length
        loss_L = torch.zeros(L, dtype=torch.float64)  # on the CPU, as Apple's GPUs have no float64
        correct_L = torch.zeros_like(loss_L)
        n, schedule = len(self.val_tokens), self.model.schedule
        for indices_B, real_B in self.ranks.batches(n, VIEWED_AT_ONCE):
            tokens, labels_B = self.val_tokens.batch(indices_B)
            nll_BL, correct_BL = self._token_losses(tokens, labels_B)
            loss_L += nll_BL.cpu()[real_B].double().sum(0)
            correct_L += correct_BL.cpu()[real_B].double().sum(0)
        loss_L, correct_L = self.ranks.total(loss_L) / n, self.ranks.total(correct_L) / n
        by_scale = [schedule.slice(k) for k in range(len(schedule))]
        return {
            "val_loss": float(loss_L.mean()),
            "val_bits_per_token": float(loss_L.mean()) / math.log(2),
            "val_accuracy": float(correct_L.mean()),
            "val_loss_scales": [float(loss_L[s].mean()) for s in by_scale],
            "val_accuracy_scales": [float(correct_L[s].mean()) for s in by_scale],
        }

    def preview(self, path: Path) -> None:
        """Samples of each class, with the same noise every time."""
        model = self._whole_model()
        if model is None:
            return
        names = self.classes[:PREVIEW_CLASSES] or ["samples"]
        n = self.config.preview_per_class
        ids = range(len(names)) if self.classes else [self.model.config.num_classes]
        labels_B = torch.tensor([i for i in ids for _ in range(n)])
        sampler = Sampler(self.tokenizer, model, self.config.seed, SamplingSettings())
        images = sampler.sample(labels_B, range(len(labels_B))).images
        rows = [(name, images[r * n : (r + 1) * n]) for r, name in enumerate(names)]
        save_image(class_sheet(rows), path)

    def bundle(self) -> Bundle | None:
        """Tokenizer and generator, and how the generator was trained; None on all ranks but the main one."""
        model = self._whole_model()
        if model is None:
            return None
        origin = {**provenance(self.config), "tokenizer": Path(self.config.tokenizer).name}
        if self.config.init_from is not None:
            origin["fine_tuned_from"] = Path(self.config.init_from).name
        return Bundle(tokenizer=self.tokenizer, generator=model, classes=self.classes, provenance=origin)

    def save_bundle(self, folder: Path) -> None:
        bundle = self.bundle()
        if bundle is not None:
            write_bundle(folder, bundle)

    def _whole_model(self) -> Generator | None:
        """The model as one rank can use it; every rank must ask, only the main one gets it."""
        if self.ranks.kind != "fsdp":
            return self.model if self.ranks.main else None
        state = gathered(self.model.state_dict())
        if not self.ranks.main:
            return None
        with torch.device("meta"):
            model = Generator(self.model.config)
        model.load_state_dict(state, assign=True)
        return model.to(self.device).eval()

    def batch_names(self, step: int) -> list[str]:
        return []

    def state(self) -> dict[str, Tensor]:
        return {}


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


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile would find no C++ compiler, which it needs on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in names if name):
        raise ValueError("compile = True: finds no C++ compiler here; install g++, or leave compile out")


def compile_blocks(generator: Generator) -> None:
    """Run each block through torch.compile, all but Mamba's scan, whose gradient is written by hand."""
    scan = torch.compiler.disable(ssd)
    for block in generator.each_block():
        if block.mamba is not None:
            block.mamba.scan = scan
        block.compile()

"""Training a tokenizer on images: pixel losses, the quantiser's loss, and a codebook that stays alive.

Shapes: B images, H W pixels, K scales, V codes.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar.checkpoint.bundle import Bundle, write_bundle
from mvar.checkpoint.placement import find_device, find_dtype
from mvar.data.source import PixelSource
from mvar.data.splits import open_loader, open_splits
from mvar.data.stream import Stream
from mvar.model import Model, from_bundle
from mvar.sampling.engine import to_images
from mvar.sampling.export import save_image
from mvar.sampling.sheet import strip
from mvar.tokenizer.network import Tokenizer
from mvar.tokenizer.quantizer import Quantized
from mvar.training.codebook import count_tokens, revive, start_from_data, usage
from mvar.training.config import TokenizerTraining
from mvar.training.loop import Metrics, fit
from mvar.training.optim import build_optimizer
from mvar.training.run_folder import RunFolder, provenance

VIEWED_AT_ONCE = 64  # images of a pass without gradients
START_IMAGES = 1024  # whose latents fill the codebook
PREVIEW_IMAGES = 8


def train(config: TokenizerTraining) -> Model:
    """Train a tokenizer and return it; the run folder `config.out` is a loadable bundle.

    Raises:
        ValueError: bad settings, data or folders, before any training; a line for each problem.
        FloatingPointError: the loss or a gradient is not finite.
    """
    config.validate()
    device = find_device(config.device)
    with RunFolder(config) as folder:
        train_images, val_images = open_splits(
            config.data,
            config.model.image_shape,
            val_data=config.val_data,
            resize_factor=config.resize_factor,
            seed=config.seed,
            on_bad_image=config.on_bad_image,
        )
        folder.begin(train_images, val_images)
        task = TokenizerTask(config, device, train_images, val_images.spread(config.val_images))
        if not config.resume:
            task.start_codebook()
        with closing(task.loader):
            fit(task, config, folder)
    return from_bundle(task.bundle(), config.device, "float32")


class TokenizerTask:
    """The tokenizer as the loop sees it (see `mvar.training.loop.Task`)."""

    def __init__(
        self,
        config: TokenizerTraining,
        device: torch.device,
        train_images: PixelSource | Stream,
        val_images: PixelSource,
    ) -> None:
        self.config, self.device, self.train_images, self.val_images = config, device, train_images, val_images
        self.loader = open_loader(train_images, config.batch_size, config.seed, workers=config.workers)
        torch.manual_seed(config.seed)
        self.model = Tokenizer(config.model).to(self.device)
        self.optimizer = build_optimizer(self.model, config, _decays)
        self.counts_KV = self._no_counts()
        self.dtype = find_dtype(config.dtype, device)

    def start_codebook(self) -> None:
        """Fill the codebook from the untrained encoder's latents."""
        with torch.no_grad():
            latents = [
                self.model.latent(pixels_B3HW.to(self.device) / 255)
                for pixels_B3HW in self.train_images.first(START_IMAGES, VIEWED_AT_ONCE)
            ]
        start_from_data(self.model.quantizer, torch.cat(latents), torch.Generator().manual_seed(self.config.seed))

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        target_B3HW = self.loader.batch(step).rows.to(self.device) / 255
        loss, parts, quantized = self._losses(target_B3HW)
        self.residuals = quantized.residuals
        self.counts_KV += count_tokens(quantized.tokens, self.config.model.vocab_size)
        return loss, parts

    def _losses(self, target_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor], Quantized]:
        """The loss, its parts and the mean PSNR to log, and the quantiser's results."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            output_B3HW, quantized = self.model(target_B3HW)
        error_B3HW = output_B3HW.float() - (2 * target_B3HW - 1)
        l1, l2 = error_B3HW.abs().mean(), error_B3HW.square().mean()
        loss = self.config.l1 * l1 + self.config.l2 * l2 + quantized.loss
        restored_B3HW = (output_B3HW.detach().float().clamp(-1, 1) + 1) / 2
        mse_B = (restored_B3HW - target_B3HW).square().mean((1, 2, 3))
        psnr = -10 * mse_B.clamp(min=1e-10).log10().mean()
        return loss, {"l1": l1.detach(), "l2": l2.detach(), "vq": quantized.loss.detach(), "psnr": psnr}, quantized

    def after_update(self, step: int) -> None:
        config, done = self.config, step + 1
        if done % config.revive_every:
            return
        if done <= config.revive_until * config.steps:
            rng = torch.Generator().manual_seed(config.seed + done)
            moved = revive(self.model.quantizer, self.counts_KV, self.residuals, config.dead_below, rng)
            forget(self.optimizer, self.model.quantizer.codebook, moved)
        self.counts_KV = self._no_counts()

    @torch.no_grad()
    def validate(self) -> Metrics:
        sums: dict[str, float] = {}
        counts_KV, n = self._no_counts(), len(self.val_images)
        for pixels_B3HW in self._val_batches():
            loss, parts, quantized = self._losses(pixels_B3HW)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(pixels_B3HW) / n
            counts_KV += count_tokens(quantized.tokens, self.config.model.vocab_size)
        used, perplexity = usage(counts_KV)
        return {**{f"val_{name}": value for name, value in sums.items()}, "used": used, "perplexity": perplexity}

    def _val_batches(self) -> Iterator[Tensor]:
        for indices_B in torch.arange(len(self.val_images)).split(VIEWED_AT_ONCE):
            yield self.val_images.batch(indices_B)[0].to(self.device) / 255

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """Original, then what the first 1, 2, ... K scales give, for a few validation images."""
        n = len(self.val_images)
        chosen_B = torch.arange(0, n, max(n // PREVIEW_IMAGES, 1))[:PREVIEW_IMAGES]
        pixels_B3HW = self.val_images.batch(chosen_B)[0].to(self.device) / 255
        sums = self.model.quantizer.partial_sums(self.model.encode(pixels_B3HW))
        columns = [to_images(pixels_B3HW), *(to_images(self.model.decode_latent(f_hat)) for f_hat in sums)]
        names = ["original", *(f"{h}x{w}" for h, w in self.model.config.schedule.shapes)]
        save_image(strip(list(zip(*columns, strict=True)), names), path)

    def bundle(self) -> Bundle:
        """The tokenizer and how it was trained."""
        return Bundle(tokenizer=self.model, classes=self.train_images.classes, provenance=provenance(self.config))

    def save_bundle(self, folder: Path) -> None:
        write_bundle(folder, self.bundle())

    def state(self) -> dict[str, Any]:
        return {"counts": self.counts_KV, **self.loader.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.counts_KV = state["counts"].to(self.device)
        self.loader.load_state(state)

    def _no_counts(self) -> Tensor:
        shape = len(self.config.model.schedule), self.config.model.vocab_size
        return torch.zeros(shape, dtype=torch.long, device=self.device)


def forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Clear Adam's moments of rows that were moved: their past belongs to another place."""
    for name in ("exp_avg", "exp_avg_sq"):
        if name in optimizer.state[parameter]:
            optimizer.state[parameter][name][rows] = 0


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and name != "quantizer.codebook"

"""Training a tokenizer on images: image losses, the quantiser's loss, and a codebook that stays alive.

Shapes: B images, H W pixels, K scales, V codes; U random numbers per image.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mvar.checkpoint.bundle import Bundle, is_bundle
from mvar.data.shards.stream import Stream
from mvar.data.source import PixelSource
from mvar.features.base import FeatureNetwork
from mvar.features.networks import find_network
from mvar.machine import send
from mvar.model import Model, from_bundle
from mvar.ops.noise import uniform
from mvar.sampling.engine import to_images
from mvar.sampling.export import save_image
from mvar.sampling.sheet import strip
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer
from mvar.training.config import MOST_TIMED_IMAGES, TokenizerTraining
from mvar.training.course import Course, TimedCourse, open_course
from mvar.training.generator.fine_tuning import load_named
from mvar.training.loop import Callback, fit
from mvar.training.optim import WeightAverage, build_optimizer
from mvar.training.parallel import Ranks, process_group, replicated
from mvar.training.rehearsal import rehearse
from mvar.training.run.folder import RunFolder
from mvar.training.task import VIEWED_AT_ONCE, Metrics, Task, check_memory_for, open_images
from mvar.training.tokenizer.adversarial import AUGMENT_NUMBERS, PatchDiscriminator
from mvar.training.tokenizer.codebook import count_tokens, revive, start_from_data, usage
from mvar.training.tokenizer.image_loss import ImageLoss

START_IMAGES = 1024  # whose latents fill the codebook
PREVIEW_IMAGES = 8
PIXEL_BYTES = 20  # that the backward pass keeps at least per pixel and channel of a block at full resolution
JOINING = 0.05  # fraction of the run over which the adversarial loss grows to its full weight
TRAINING_STREAM = 1  # of the random numbers that belong to an image's place in the order of training


def train(config: TokenizerTraining, callbacks: Sequence[Callback] = (), began: float | None = None) -> Model:
    """Train a tokenizer and return it; the run folder `config.out` is a loadable bundle.

    Args:
        config: the run.
        callbacks: called with the steps done and each record of metrics; one that returns True stops the run.
        began: when the run's minutes began, by time.monotonic(); by default now.

    Raises ValueError for bad settings, data or folders, before any training, and what `fit` raises.
    """
    began = TimedCourse.clock() if began is None else began
    with process_group(config.parallel, config.device, config.rank_timeout) as ranks:
        network = find_network(config.perceptual_network).to(ranks.device) if config.perceptual else None
        start = None
        if config.init_from is not None:
            # A resumed run has its own weights by now; those it started from may be gone.
            source = config.out if config.resume and is_bundle(Path(config.out)) else config.init_from
            start = load_named("init_from", source).tokenizer
            config = replace(config, model=start.config)
        with torch.device("meta"):
            discriminators = [PatchDiscriminator(config.discriminator_channels)] if config.adversarial else []
            networks = [Tokenizer(config.model), *discriminators]
        check_memory_for(networks, config, activation_bytes(config.model), ranks)
        with RunFolder(config, ranks) as folder:
            train_images, val_images = open_images(config, config.model.image_shape)
            planned = folder.check(train_images, val_images)
            held_out = val_images.at_most(config.val_images or MOST_TIMED_IMAGES)
            course = open_course(config, planned, began, folder.checkpoint)
            task = TokenizerTask(config, ranks, network, train_images, held_out, course)
            if folder.checkpoint is None:
                task.start(start)
            rehearse(task, config, ranks)
            folder.begin()
            with closing(task.loader):
                fit(task, config, folder, ranks, callbacks)
            task.average.take()
        return from_bundle(task.bundle(course.steps), ranks.device, "float32")


def activation_bytes(model: TokenizerConfig) -> int:
    """What the backward pass needs per image at least: that of the decoder's finest level."""
    height, width = model.image_shape
    return PIXEL_BYTES * height * width * model.channels * model.multipliers[0] * (model.res_blocks + 1)


class TokenizerTask(Task):
    """The tokenizer as the loop trains it."""

    config: TokenizerTraining

    def __init__(
        self,
        config: TokenizerTraining,
        ranks: Ranks,
        network: FeatureNetwork | None,
        train_images: PixelSource | Stream,
        val_images: PixelSource,
        course: Course,
    ) -> None:
        """`network` is that of the perceptual loss."""
        super().__init__(config, ranks, train_images, val_images, course)
        self.train_images = train_images
        torch.manual_seed(config.seed)
        self.model = Tokenizer(config.model).to(self.device)
        if config.model.phi_ratio == 0:
            self.model.quantizer.phi.requires_grad_(False)  # unused, which DDP does not accept
        if config.decoder_only:
            for part in (self.model.encoder, self.model.quant_conv, self.model.quantizer):
                part.requires_grad_(False)
        self.networks = {"model": self.model}
        self.optimizer = build_optimizer(self.model, config, _decays)
        discriminator = discriminator_replica = None
        if config.adversarial:
            discriminator = PatchDiscriminator(config.discriminator_channels).to(self.device)
            self.networks["discriminator"] = discriminator
            group = {"params": list(discriminator.parameters()), "decay": False, "lr_share": config.discriminator_lr}
            self.optimizer.add_param_group({**group, "weight_decay": 0.0})
            discriminator_replica = replicated(discriminator, ranks)
        self.replica = replicated(self.model, ranks)
        self.called = [self.replica] if discriminator_replica is None else [self.replica, discriminator_replica]
        self.image_loss = ImageLoss(config, network, discriminator, discriminator_replica, ranks)
        self.average = WeightAverage(self.model, config.ema)
        scales, codes = len(config.model.schedule), config.model.vocab_size
        self.counts_KV = torch.zeros(scales, codes, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def start(self, tokenizer: Tokenizer | None) -> None:
        """Set the first weights: those of a trained tokenizer, or random ones with a codebook of first latents."""
        if tokenizer is not None:
            self.model.load_state_dict(tokenizer.state_dict())
        elif self.config.start_from_data:
            latents = [
                self.model.latent(send(pixels_B3HW, self.device) / 255)
                for pixels_B3HW in self.train_images.first(START_IMAGES, VIEWED_AT_ONCE)
            ]
            start_from_data(self.model.quantizer, torch.cat(latents), torch.Generator().manual_seed(self.config.seed))
            self.ranks.broadcast(self.model.quantizer.codebook.data)  # machines may round latents differently
        self.average = WeightAverage(self.model, self.config.ema)

    def phases(self) -> list[float]:
        return [0.0, self.config.adversarial_start] if self.config.adversarial else [0.0]

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        rows, _, positions_B = self.loader.batch(step, part)
        target_B3HW = send(rows, self.device) / 255
        noise_BU = uniform(config.seed, positions_B.tolist(), TRAINING_STREAM, (2 + AUGMENT_NUMBERS,))
        noise_BU = send(noise_BU, self.device)

        kept_B = self._scales_kept(noise_BU[:, :2])
        with self.autocast():
            output_B3HW, quantized = self.replica(target_B3HW, kept_B)
        # A random discriminator would do harm, so its weight grows slowly.
        place, length = self.course.phase(step)
        ramp = (place / length - config.adversarial_start) / JOINING
        if ramp >= 0 and config.adversarial:
            last_layer, weight = self.model.decoder.conv_out.weight, config.adversarial * min(ramp, 1)
            loss, terms = self.image_loss.adversarial(output_B3HW, target_B3HW, weight, last_layer, noise_BU[:, 2:])
        else:
            loss, terms = self.image_loss.reconstruction(output_B3HW, target_B3HW)
        self.residuals, self.kept_B = quantized.residuals, kept_B
        self.counts_KV += self.ranks.total(count_tokens(quantized.tokens, config.model.vocab_size, kept_B))
        terms |= {"vq": quantized.loss, "psnr": _psnr(output_B3HW, target_B3HW)}
        return loss + quantized.loss, {name: value.detach() for name, value in terms.items()}

    def _scales_kept(self, noise_B2: Tensor) -> Tensor | None:
        """Quantiser dropout: with chance `scale_dropout`, only the first 1 to K - 1 scales, equally likely."""
        K = len(self.config.model.schedule)
        if not self.config.scale_dropout or K == 1 or self.config.decoder_only:
            return None
        fewer_B = 1 + (noise_B2[:, 1] * (K - 1)).long()
        return torch.where(noise_B2[:, 0] < self.config.scale_dropout, fewer_B, K)

    def after_update(self, step: int) -> None:
        """Revive dead codes from time to time."""
        config, done = self.config, step + 1
        if done % config.revive_every:
            return
        place, length = self.course.phase(step)
        if place + 1 <= config.revive_until * length and not config.decoder_only:
            rng = torch.Generator().manual_seed(config.seed + done)
            residuals = [self.ranks.all_rows(residual) for residual in self.residuals]  # the same on every rank
            if self.kept_B is not None:  # without those of dropped scales
                kept_B = self.ranks.all_rows(self.kept_B)
                residuals = [residual[k < kept_B] for k, residual in enumerate(residuals)]
            moved = revive(self.model.quantizer, self.counts_KV, residuals, config.dead_below, rng)
            moments = self.optimizer.state[self.model.quantizer.codebook]
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name][moved] = 0
            self.average.restart("quantizer.codebook", moved)
        self.counts_KV.zero_()

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Losses without the discriminator; for each scale the usage of codes and the energy left in the residual."""
        n, vocab_size = len(self.val_images), self.config.model.vocab_size
        sums: dict[str, Tensor] = {}
        counts_KV = torch.zeros_like(self.counts_KV)
        for indices_B, real_B in self.ranks.batches(n, VIEWED_AT_ONCE):
            # A rank without images of its own computes one of weight 0, so that all have the same metrics to sum.
            weight = int(real_B.sum()) / n
            pixels_B3HW = self.val_images.batch(indices_B[: max(int(real_B.sum()), 1)])[0].to(self.device) / 255
            with self.autocast():
                output_B3HW, quantized = self.model(pixels_B3HW)
            loss, terms = self.image_loss.reconstruction(output_B3HW, pixels_B3HW)
            terms |= {"loss": loss + quantized.loss, "vq": quantized.loss, "psnr": _psnr(output_B3HW, pixels_B3HW)}
            terms |= {"errors": quantized.errors}
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.double().cpu() * weight
            counts_KV += count_tokens(quantized.tokens, vocab_size) * (weight > 0)
        means = {name: self.ranks.total(value).tolist() for name, value in sums.items()}
        used, perplexity = usage(self.ranks.total(counts_KV))
        energy, *errors = means.pop("errors")
        per_scale = {"used": used, "perplexity": perplexity, "residual_energy": [error / energy for error in errors]}
        return {**{f"val_{name}": value for name, value in means.items()}, **per_scale}

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """The original and what the first 1, 2, ... K scales reconstruct, for a few validation images."""
        if not self.ranks.main:
            return
        n = len(self.val_images)
        chosen_B = torch.arange(0, n, max(n // PREVIEW_IMAGES, 1))[:PREVIEW_IMAGES]
        pixels_B3HW = self.val_images.batch(chosen_B)[0].to(self.device) / 255
        sums = self.model.quantizer.partial_sums(self.model.encode(pixels_B3HW))
        columns = [to_images(pixels_B3HW), *(to_images(self.model.decode_latent(f_hat)) for f_hat in sums)]
        names = ["original", *(f"{h}x{w}" for h, w in self.model.config.schedule.shapes)]
        save_image(strip(list(zip(*columns, strict=True)), names), path)

    def bundle(self, steps: int) -> Bundle:
        classes = self.train_images.classes
        return Bundle(tokenizer=self.model, classes=classes, provenance=self.provenance(steps))

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts_KV}


def _psnr(output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Mean PSNR in dB of outputs in model space."""
    restored_B3HW = (output_B3HW.detach().float().clamp(-1, 1) + 1) / 2
    mse_B = (restored_B3HW - target_B3HW).square().mean((1, 2, 3))
    return -10 * mse_B.clamp(min=1e-10).log10().mean()


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and name != "quantizer.codebook"

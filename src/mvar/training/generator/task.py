"""Training a generator on the token maps of images.

Shapes: B images, K scales, L tokens of all scales, l tokens of the scales in use, U random numbers per image.
Source: VAR (Tian et al. 2024), section 3.2: cross-entropy of every token, averaged uniformly.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar.checkpoint.bundle import Bundle
from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.machine import send
from mvar.model import Model, from_bundle
from mvar.ops.dispatch import check_kernels
from mvar.ops.noise import uniform
from mvar.sampling.config import SamplingSettings
from mvar.sampling.cost import fitting_batch
from mvar.sampling.engine import Sampler
from mvar.sampling.export import save_image
from mvar.sampling.sheet import check_size, class_sheet
from mvar.tokenizer.config import TokenizerConfig
from mvar.training.config import MOST_TIMED_IMAGES, GeneratorTraining
from mvar.training.course import Course, TimedCourse, open_course
from mvar.training.generator.fine_tuning import Start, freeze, load_start, take_weights
from mvar.training.generator.loss import GeneratorLoss, check_compiler, compile_blocks, scales_in_use, stage_starts
from mvar.training.generator.token_data import TokenData, load_tokenizer
from mvar.training.loop import Callback, fit
from mvar.training.optim import WeightAverage, build_optimizer, low_precision
from mvar.training.parallel import Ranks, fill, full_state, process_group, replicated, shard
from mvar.training.rehearsal import rehearse
from mvar.training.run.folder import RunFolder
from mvar.training.task import VIEWED_AT_ONCE, Metrics, Task, check_memory_for

PREVIEW_CLASSES = 16
# What the backward pass keeps at least per token, block and unit of width, of all blocks or of their inputs alone.
TOKEN_BYTES, CHECKPOINTED_BYTES = 40, 4
COMPILING = "compile: blocks are compiled in the first step, a minute on a CPU, which saves 0 to 11 % of each later one"
DROPS = 2  # stream of the random numbers that belong to an image's place in the order of training
UNDECAYED = ("pos_embed", "level_embed.weight", "start_pos", "log_scale", "adaln_offset", "A_log", "dt_bias", "mamba.D")


def train(config: GeneratorTraining, callbacks: Sequence[Callback] = (), began: float | None = None) -> Model | None:
    """Train a generator and return it (None on all ranks but the main one); `config.out` is a loadable bundle.

    Args:
        config: the run.
        callbacks: called with the steps done and each record of metrics; one that returns True stops the run.
        began: when the run's minutes began, by time.monotonic(); by default now.

    Raises ValueError for bad settings, data, tokenizer or folders, before any training, and what `fit` raises.
    """
    began = TimedCourse.clock() if began is None else began
    with process_group(config.parallel, config.device, config.rank_timeout) as ranks:
        if config.compile:
            check_compiler(ranks.device)
        with RunFolder(config, ranks) as folder:
            data, start = _open_data(config, ranks)
            decided = decided_by(data.tokenizer.config, len(data.train.classes))
            planned = folder.check(data.train, data.val, data.tokenizer.fingerprint())
            data = data.ready(config.val_images or MOST_TIMED_IMAGES)
            course = open_course(config, planned, began, folder.checkpoint)
            task = GeneratorTask(config, ranks, data, start, course)
            if ranks.main and config.compile:
                print(COMPILING, file=sys.stderr, flush=True)
            rehearse(task, config, ranks)
            folder.begin(decided)
            data.remember_in(folder.path, ranks, folder.checkpoint is not None, course.steps * config.batch_size)
            with closing(task.loader):
                fit(task, config, folder, ranks, callbacks)
            task.average.take()
        bundle = task.bundle(course.steps)
        return None if bundle is None else from_bundle(bundle, ranks.device, "float32")


def _open_data(config: GeneratorTraining, ranks: Ranks) -> tuple[TokenData, Start | None]:
    """What to train on and what to start from, once the model is known to fit into memory."""
    tokenizer = load_tokenizer(config.tokenizer, ranks.device)
    with torch.device("meta"):
        model = Generator(replace(config.model, **decided_by(tokenizer.config, classes=0)))
    few = config.activation_checkpointing or config.compile
    check_memory_for([model], config, activation_bytes(model.config, bool(few)), ranks)
    start = None
    if config.init_from is not None and not config.resume:
        start = load_start(config.init_from, config.model, tokenizer.fingerprint())
    data = TokenData.open(config, ranks, tokenizer)
    rows = min(max(len(data.train.classes), 1), PREVIEW_CLASSES)
    check_size(rows, config.preview_per_class, tokenizer.config.image_shape, "preview_per_class")
    return data, start


def activation_bytes(model: GeneratorConfig, checkpointed: bool) -> int:
    """What the backward pass needs per image at least: that of all blocks."""
    return (CHECKPOINTED_BYTES if checkpointed else TOKEN_BYTES) * model.schedule.length * model.width * model.depth


class GeneratorTask(Task):
    """The generator as the loop trains it."""

    config: GeneratorTraining

    def __init__(
        self,
        config: GeneratorTraining,
        ranks: Ranks,
        data: TokenData,
        start: Start | None = None,
        course: Course | None = None,
    ) -> None:
        """`start` are the weights to begin with, by default random; `course` is by default the config's steps."""
        train_images = data.train if data.remembered is None else data.remembered
        super().__init__(config, ranks, train_images, data.val, course or Course(config))
        self.data, self.classes = data, data.train.classes
        sharded = ranks.kind == "fsdp"
        with torch.device("meta" if sharded and start is None else self.device):
            self.model = Generator(replace(config.model, **decided_by(data.tokenizer.config, len(self.classes))))
        new_classes = []
        if start is not None:
            initialise(self.model, config.seed)
            new_classes = take_weights(self.model, start, self.classes, config.seed)
        freeze(self.model, config.freeze, new_classes)
        if len(self.model.schedule) == 1:
            self.model.word_embed.requires_grad_(False)  # unused, which DDP does not accept
        self.model.activation_checkpointing = config.activation_checkpointing
        check_kernels(self.device)
        if config.compile:
            compile_blocks(self.model)
        losses = GeneratorLoss(self.model, config.label_smoothing)
        if sharded:
            shard(losses, self.model, low_precision(config.dtype, self.device))
        if start is None:
            self.model.to_empty(device=self.device)
            initialise(self.model, config.seed, fill)
        self.losses = losses if sharded else replicated(losses, ranks)
        self.called = [self.losses]
        self.networks = {"model": self.model.train()}
        self.optimizer = build_optimizer(self.model, config, decays)
        self.average = WeightAverage(self.model, config.ema)

    def phases(self) -> list[float]:
        return stage_starts(self.config.progressive, self.config.progressive_from, self.model.schedule)

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        rows, labels_B, positions_B = self.loader.batch(step, part)
        place, length = self.course.phase(step)
        stages = config.progressive, config.progressive_from, self.model.schedule
        count, weights_l = scales_in_use(place, length, *stages)
        noise_BU = uniform(config.seed, positions_B.tolist(), DROPS, (self.model.noise_size,))
        tokens, labels_B = self._maps(rows)[:count], send(labels_B, self.device)
        nll_Bl, correct_Bl = self._token_losses(tokens, labels_B, send(noise_BU, self.device))
        loss = (nll_Bl.mean(0) * send(weights_l, self.device)).sum()
        return loss, {"accuracy": correct_Bl.float().mean()}

    def _maps(self, rows: Tensor) -> list[Tensor]:
        """Token maps (B, P_k), one per scale, of what a source gives; see `mvar.data.loader.Batch`."""
        if self.data.remembered is not None and rows.dim() == 1:
            rows = self.data.remembered.tokens(rows)
        if rows.dim() == 2:
            return list(send(rows, self.device).long().split(self.model.schedule.areas, dim=1))
        tokenizer = self.data.tokenizer
        with torch.no_grad():  # 8-bit pixels need none of the checks of `Tokenizer.encode`
            return tokenizer.quantizer.encode(tokenizer.latent(send(rows, self.device) / 255))

    def _token_losses(
        self, tokens: list[Tensor], labels_B: Tensor, noise_BU: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs_BlZ = self.data.tokenizer.quantizer.generator_inputs(tokens)
        with self.autocast():
            return self.losses(labels_B, inputs_BlZ, torch.cat(tokens, 1), noise_BU)

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Cross-entropy and accuracy over the validation images, in total and per scale, without class dropout."""
        schedule, n = self.model.schedule, len(self.val_images)
        loss_L = torch.zeros(schedule.length, dtype=torch.float64)  # on the CPU, as Apple's GPUs have no float64
        correct_L = torch.zeros_like(loss_L)
        for indices_B, real_B in self.ranks.batches(n, VIEWED_AT_ONCE):
            rows, labels_B = self.val_images.batch(indices_B)
            nll_BL, correct_BL = self._token_losses(self._maps(rows), send(labels_B, self.device))
            loss_L += nll_BL.cpu()[real_B].double().sum(0)
            correct_L += correct_BL.cpu()[real_B].double().sum(0)
        loss_L, correct_L = self.ranks.total(loss_L) / n, self.ranks.total(correct_L) / n
        scales = [schedule.slice(k) for k in range(len(schedule))]
        return {
            "val_loss": float(loss_L.mean()),
            "val_bits_per_token": float(loss_L.mean()) / math.log(2),
            "val_accuracy": float(correct_L.mean()),
            "val_loss_scales": [float(loss_L[scale].mean()) for scale in scales],
            "val_accuracy_scales": [float(correct_L[scale].mean()) for scale in scales],
        }

    def preview(self, path: Path) -> None:
        """Samples of each class, with the same noise every time."""
        model = self._unsharded()
        if model is None:
            return
        names = self.classes[:PREVIEW_CLASSES] or ["samples"]
        n = self.config.preview_per_class
        ids = range(len(names)) if self.classes else [self.model.config.num_classes]
        labels_B = torch.tensor([i for i in ids for _ in range(n)])
        sampler = Sampler(self.data.tokenizer, model, self.config.seed, SamplingSettings())
        at_once = fitting_batch(self.data.tokenizer.config, model.config, self.device)
        images = sampler.in_batches(
            len(labels_B), at_once, lambda part: sampler.start(labels_B[part], range(part.start, part.stop))
        ).images
        save_image(class_sheet([(name, images[r * n : (r + 1) * n]) for r, name in enumerate(names)]), path)

    def bundle(self, steps: int) -> Bundle | None:
        model = self._unsharded()
        if model is None:
            return None
        origin = {**self.provenance(steps), "tokenizer": Path(self.config.tokenizer).name}
        if self.data.name is not None:
            origin["data"] = self.data.name
        if self.config.init_from is not None:
            origin["fine_tuned_from"] = Path(self.config.init_from).name
        return Bundle(tokenizer=self.data.tokenizer, generator=model, classes=self.classes, provenance=origin)

    def _unsharded(self) -> Generator | None:
        """The model as a single rank can use it, on the main rank; every rank must call this."""
        if self.ranks.kind != "fsdp":
            return self.model if self.ranks.main else None
        state = full_state(self.model.state_dict())
        if not self.ranks.main:
            return None
        with torch.device("meta"):
            model = Generator(self.model.config)
        model.load_state_dict(state, assign=True)
        return model.to(self.device).eval()


def decided_by(tokenizer: TokenizerConfig, classes: int) -> dict[str, Any]:
    """The values of the generator's config that the tokenizer and the number of classes of the data decide."""
    return {
        "num_classes": classes,
        "vocab_size": tokenizer.vocab_size,
        "latent_channels": tokenizer.latent_channels,
        "sides": tokenizer.sides,
    }


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to vectors, biases, positions, levels, temperatures and Mamba's A, dt, D."""
    return parameter.dim() > 1 and not name.endswith(UNDECAYED)

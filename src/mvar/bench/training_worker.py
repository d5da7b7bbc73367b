"""One case of the training benchmark, for a process of its own, whose peak memory is then that of the case.

Shapes: B images, L tokens, l those after the first scale, Z latent channels, U random numbers per image.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import nn
from torch.nn import functional as F

from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.machine import peak_bytes
from mvar.training.config import GeneratorTraining
from mvar.training.generator.loss import GeneratorLoss
from mvar.training.generator.task import decays
from mvar.training.optim import autocast, build_optimizer


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A case."""

    config: GeneratorConfig
    batch_size: int  # images per step
    dtype: str  # of the matrix products
    activation_checkpointing: bool = False
    full_logits: bool = False  # cross-entropy by plain autograd from all logits at once


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step."""

    seconds: float
    peak_bytes: int  # largest resident set of the process so far
    loss: float


class Worker:
    """A generator that trains on random tokens."""

    def __init__(self, settings: Settings) -> None:
        self.settings, config = settings, settings.config
        self.generator = Generator(config)
        initialise(self.generator, seed=0)
        self.generator.train().activation_checkpointing = settings.activation_checkpointing
        self.losses = GeneratorLoss(self.generator)
        run = GeneratorTraining(data="none", out="no-run", tokenizer="none", batch_size=settings.batch_size)
        self.optimizer = build_optimizer(self.generator, run, decays)
        self.grad_clip = run.grad_clip
        self.autocast = autocast(settings.dtype, torch.device("cpu"))
        B, schedule = settings.batch_size, config.schedule
        rng = torch.Generator().manual_seed(0)
        self.labels_B = torch.randint(config.num_classes + 1, (B,), generator=rng)
        self.inputs_BlZ = torch.randn(B, schedule.length - schedule.areas[0], config.latent_channels, generator=rng)
        self.tokens_BL = torch.randint(config.vocab_size, (B, schedule.length), generator=rng)
        self.noise_BU = torch.rand(B, self.generator.noise_size, generator=rng)

    def step(self) -> Step:
        """Forward, backward, clipping and update, as the training loop does it."""
        start = time.perf_counter()
        with self.autocast():
            if self.settings.full_logits:
                logits_BLV = self.generator(self.labels_B, self.inputs_BlZ, self.noise_BU)
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), self.tokens_BL.flatten())
                del logits_BLV
            else:
                loss = self.losses(self.labels_B, self.inputs_BlZ, self.tokens_BL, self.noise_BU)[0].mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        return Step(seconds=seconds, peak_bytes=peak_bytes(), loss=float(loss.detach()))


def serve(settings: Settings, connection: Connection) -> None:
    """Answer each message with a `Step`, until the other end closes."""
    worker = Worker(settings)
    with suppress(EOFError):
        while True:
            connection.recv()
            connection.send(worker.step())

"""How fast a GPU draws and trains, against its floors: what the matrix products take at the best rate measured here."""

import os
import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from mvar.bench.cases import Subject
from mvar.checkpoint.placement import Dtype, to_device
from mvar.generator.config import PRESETS
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.model import Model
from mvar.tokenizer.network import Tokenizer
from mvar.training.config import GeneratorTraining
from mvar.training.generator.loss import GeneratorLoss, compile_blocks
from mvar.training.generator.task import decays
from mvar.training.optim import autocast, build_optimizer

# What is compared: an M-VAR and the VAR that the paper sets beside it.
PAIRS = (("d16", "var-d16"), ("d24", "var-d24"), ("d24", "var-d30"), ("d30", "var-d30"), ("d24-512", "var-d36-s"))
TRAINED = (("var-d16", 64), ("d16", 64), ("d16", 96))
Found = dict[str, Any]


class Speed:
    """Measurements on one device; `quick` takes toy sizes."""

    def __init__(self, device: torch.device, quick: bool, left: Callable[[], float]) -> None:
        """`left` gives the seconds that remain."""
        self.device, self.quick, self.left = device, quick, left
        self.dtype: Dtype = "float32" if device.type == "cpu" else "bfloat16"  # which many processors emulate
        self.peaks: dict[str, float] = {}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _seconds(self, run: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def measure_peaks(self) -> Found:
        """The best square product, FLOP/s, and the best copy, bytes/s."""
        n = 256 if self.quick else 8192
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.randn(2, n, n, device=self.device, dtype=dtype).unbind()
            self.peaks[str(dtype)] = 2 * n**3 / min(self._seconds(partial(torch.matmul, a, b)) for _ in range(6))
        data = torch.empty(2**20 if self.quick else 2**30, device=self.device, dtype=torch.uint8)
        to = torch.empty_like(data)
        self.peaks["bytes"] = 2 * data.numel() / min(self._seconds(partial(to.copy_, data)) for _ in range(6))
        return dict(self.peaks)

    @cache  # noqa: B019  # one for each preset, as long as the benchmark runs
    def model(self, preset: str) -> Model:
        """A preset with random weights on the device."""
        tokenizer_config, generator_config = Subject(preset, self.dtype).configs()
        with torch.device("meta"):
            networks = Tokenizer(tokenizer_config), Generator(generator_config)
        for network in networks:
            network.to_empty(device=self.device)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in networks[0].parameters():
                parameter.normal_(0, 0.02)
        initialise(networks[1], 0)
        to_device(*networks, self.device, self.dtype)
        return Model(*networks, classes=[str(i) for i in range(generator_config.num_classes)])

    def floor(self, preset: str, batch: int, guidance: float) -> float:
        """Seconds that the products of a batch take at best."""
        work = _work(preset, self.dtype, guidance)
        rate, bandwidth = self.peaks[f"torch.{self.dtype}"], self.peaks["bytes"]
        return sum(max(batch * flop / rate, weights / bandwidth) for flop, weights in work)

    def sampling(self, pair: tuple[str, str]) -> Found:
        """Seconds of a batch for both of a pair, in turns: by recordings and without, with guidance and without."""
        found: Found = {}
        for batch in (2,) if self.quick else (1, 8, 64, 33):
            for guidance in (1.5,) if self.quick else (1.5, 0.0):
                if self.left() < 20:
                    return {**found, "left out": f"batch {batch} and more: no time"}
                found[f"batch {batch}, guidance {guidance}"] = self._turns(pair, batch, guidance)
        return found

    def _turns(self, pair: tuple[str, str], batch: int, guidance: float) -> Found:
        runs = {name: partial(self._draw, name, batch, guidance) for name in pair}
        rows: Found = {name: {"floor": self.floor(name, batch, guidance)} for name in pair}
        for way in ("recorded", "not recorded"):
            with patch.dict(os.environ, MVAR_GRAPHS="off" if way == "not recorded" else "on"):
                taken: dict[str, list[float]] = {name: [] for name in pair}
                for turn in range(2 if self.quick else 4 if batch > 8 else 6):
                    if self.left() < 0:
                        return {**rows, "left out": "no time"}
                    for name, run in runs.items():
                        seconds = self._seconds(run)
                        if turn >= (1 if self.quick else 3):  # compiled, recorded and replayed once
                            taken[name].append(seconds)
            for name in pair:
                rows[name][way] = median(taken[name])
        with patch.dict(os.environ, MVAR_GRAPHS="off"):  # the allocator does not see what a replay uses
            for name in pair:
                rows[name]["GB"] = self._peak_memory(runs[name])
        rows["ratio"] = rows[pair[0]]["recorded"] / rows[pair[1]]["recorded"]
        return rows

    def _draw(self, preset: str, batch: int, guidance: float) -> None:
        model = self.model(preset)
        labels = [i % len(model.classes) for i in range(batch)]
        model.sample(labels, batch_size=batch, guidance=guidance, top_k=900, top_p=0.96)

    def _peak_memory(self, run: Callable[[], object]) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device) / 1e9

    def first_image(self) -> Found:
        """Seconds from a model on the device to its first image; with a cold cache of kernels the first time."""
        model = self.model("tiny32" if self.quick else "d16")
        return {"seconds": self._seconds(lambda: model.sample(0))}

    def training(self, preset: str, batch: int, compiled: bool = False) -> Found:
        """Images a second, the share of the best product's rate, and peak memory of bfloat16 training steps."""
        config = PRESETS[preset]
        generator = Generator(config).to(self.device)
        initialise(generator, 0)
        losses = GeneratorLoss(generator.train())
        if compiled:
            compile_blocks(generator)
        run = GeneratorTraining(data="none", out="no-run", tokenizer="none", batch_size=batch)
        optimizer, cast = build_optimizer(generator, run, decays), autocast(self.dtype, self.device)
        L = config.schedule.length
        labels = torch.randint(0, config.num_classes, (batch,), device=self.device)
        inputs = torch.randn(batch, L - config.schedule.areas[0], config.latent_channels, device=self.device)
        tokens = torch.randint(0, config.vocab_size, (batch, L), device=self.device)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with cast():
                nll, _ = losses(labels, inputs, tokens)
            nll.mean().backward()
            torch.nn.utils.clip_grad_norm_(generator.parameters(), run.grad_clip)
            optimizer.step()

        first = self._seconds(step)
        memory = self._peak_memory(step)
        taken = median(self._seconds(step) for _ in range(2 if self.quick else 6))
        products = sum(p.numel() for b in generator.blocks for n, p in b.named_parameters() if "adaln" not in n)
        flop = 6 * (products + generator.head.weight.numel()) * batch * L
        return {
            "images/s": batch / taken,
            "share of peak": flop / taken / self.peaks[f"torch.{self.dtype}"],
            "GB": memory,
            "first step, s": first,
        }


@cache
def _work(preset: str, dtype: Dtype, guidance: float) -> list[tuple[float, float]]:
    """FLOP of one image and bytes of weights, of each product with weights."""
    return [(item.flop, item.weight_bytes) for item in Subject(preset, dtype).work(1, guidance)]

"""What a token cache gains: images per second of generator training with and without it, random crops included.

    python -m recipes.token_cache --data data/fashion-mnist/val --out docs/images/tokens --page-file docs/tokens.md

Machine: 2 cores (Intel Xeon with AMX). Minutes: 3. Expected gain: 1.08.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from mvar.bench.measuring import take_turns
from mvar.checkpoint.placement import find_device
from mvar.data.images.folders import ImageFolder
from mvar.data.tokens.writer import write_cache
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.studies.measuring import subset
from mvar.studies.page import table as markdown
from mvar.training.config import GeneratorTraining
from mvar.training.generator.task import GeneratorTask
from mvar.training.generator.token_data import TokenData, load_tokenizer
from mvar.training.parallel import Ranks
from recipes.shared import measured_on, publish, run_cli

FACTOR = 1.125
SOURCES = ("images", "cache")


def measure(
    data: str,
    out: str,
    tokenizer: str = "fashion-mnist",
    preset: str = "tiny32",
    images: int = 640,
    batch_sizes: Sequence[int] = (64, 32),
    rounds: int = 15,
    steps: int = 1,
    page_file: str | None = None,
) -> dict[str, Any]:
    """Train alternately on images and on their cache, in one process; writes report.json.

    Args:
        data: folder of images.
        out: folder to write into.
        tokenizer: packaged name, bundle or run folder.
        preset: of the generator.
        images: number of training images.
        batch_sizes: images per optimizer step, to try.
        rounds: turns of each source, of which the median is reported.
        steps: optimizer steps per turn.
        page_file: documentation page to fill in.
    """
    folder = writable_folder(out, "out")
    with tempfile.TemporaryDirectory() as scratch:
        some, cache = f"{scratch}/images", f"{scratch}/cache"
        _link(data, some, images)
        write_cache(some, cache, load_tokenizer(tokenizer, None), resize_factor=FACTOR)
        rates = {size: _rates(some, cache, tokenizer, preset, size, rounds, steps) for size in batch_sizes}
    report = {
        "preset": preset,
        "rounds": rounds,
        "steps": steps,
        "images_per_second": rates,
        "machine": machine(),
    }
    publish(report, folder, table(report), page_file)
    return report


def _link(data: str, folder: str, most: int) -> None:
    """Make a folder of links to at most this many images of another, evenly spaced."""
    index = subset(ImageFolder.scan(data), most)
    for i, (path, label) in enumerate(zip(index.paths, index.labels, strict=True)):
        link = Path(folder, str(label), f"{i}{path.suffix}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())


def _rates(
    data: str, cache: str, tokenizer: str, preset: str, batch_size: int, rounds: int, steps: int
) -> dict[str, float]:
    """Median images per second of each source."""
    tasks, ranks = {}, Ranks(device=find_device(None))
    for name, folder in zip(SOURCES, (data, cache), strict=True):
        config = GeneratorTraining.preset(
            preset, data=folder, tokenizer=tokenizer, out="-", batch_size=batch_size, resize_factor=FACTOR
        )
        opened = TokenData.open(config, ranks, load_tokenizer(tokenizer, ranks.device))
        tasks[name] = GeneratorTask(config, ranks, opened.ready(val_images=1))
    taken = take_turns({name: partial(_seconds, task, count(), steps) for name, task in tasks.items()}, rounds)
    return {name: batch_size * steps / median(times) for name, times in taken.items()}


def _seconds(task: GeneratorTask, numbers: Iterator[int], steps: int) -> float:
    """Seconds of the next optimizer steps, made as the training loop does."""
    start = time.perf_counter()
    for step in islice(numbers, steps):
        loss, _ = task.loss(step, 0)
        task.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), task.config.grad_clip)
        task.optimizer.step()
    return time.perf_counter() - start


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = [
        [f"batch {size}", *(f"{rates[name]:.0f}" for name in SOURCES), f"{rates['cache'] / rates['images']:.2f}"]
        for size, rates in report["images_per_second"].items()
    ]
    return (
        f"{markdown(['Images per second', 'from images', 'from the cache', 'gain'], rows)}\n\n"
        f"Preset `{report['preset']}`, random crops, median of {report['rounds']} turns (optimizer steps per turn: "
        f"{report['steps']}), taken alternately in one process on {measured_on(report['machine'])}."
    )


if __name__ == "__main__":
    run_cli("python -m recipes.token_cache", measure)

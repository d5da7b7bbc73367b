"""What a token cache gains: images a second of generator training with and without it, random crops included.

    python -m recipes.token_cache --data data/fashion-mnist/val --out docs/images/tokens --page-file docs/tokens.md

Machine: 2 cores (Intel Xeon with AMX). Minutes: 3. Expect: 1.08 times as many.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from mvar.checkpoint.placement import find_device
from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.data.tokens.writer import write_cache
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.progress import track
from mvar.studies import page
from mvar.training.config import GeneratorTraining
from mvar.training.generator.task import GeneratorTask
from mvar.training.generator.token_data import TokenData, load_tokenizer
from mvar.training.parallel import Ranks
from recipes.cli import run_cli

FACTOR = 1.125
SOURCES = ("images", "cache")


def measure(
    data: str,
    out: str,
    tokenizer: str = "fashion-mnist",
    preset: str = "tiny32",
    images: int = 640,
    batch_sizes: list[int] = [64, 32],  # noqa: B006 - the parser shows it, nothing changes it
    rounds: int = 15,
    steps: int = 1,
    page_file: str | None = None,
) -> dict[str, Any]:
    """Train on images and on their cache in turns, in one process; writes report.json.

    Args:
        data: folder of images.
        out: folder to write into.
        tokenizer: packaged name, bundle or run folder.
        preset: of the generator.
        images: how many of them to train on.
        batch_sizes: images an update.
        rounds: turns of each; the median counts.
        steps: updates a turn.
        page_file: documentation page whose table is filled in.
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
    page.write_json(folder / "report.json", report)
    print(table(report))
    if page_file is not None:
        page.fill(page_file, table(report))
    return report


def _link(data: str, folder: str, most: int) -> None:
    """A folder with links to some of the images of another, evenly spaced."""
    index = ImageFolder.scan(data)
    for i in evenly_spaced(len(index.paths), most):
        link = Path(folder, str(index.labels[i]), f"{i}{index.paths[i].suffix}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(index.paths[i].resolve())


def _rates(
    data: str, cache: str, tokenizer: str, preset: str, batch_size: int, rounds: int, steps: int
) -> dict[str, float]:
    """Median images a second of each source."""
    tasks, ranks = {}, Ranks(device=find_device(None))
    for name, place in zip(SOURCES, (data, cache), strict=True):
        config = GeneratorTraining.preset(
            preset, data=place, tokenizer=tokenizer, out="-", batch_size=batch_size, resize_factor=FACTOR
        )
        opened = TokenData.open(config, ranks, load_tokenizer(tokenizer, ranks.device))
        tasks[name] = GeneratorTask(config, ranks, opened.ready(val_images=1))
    taken: dict[str, list[float]] = {name: [] for name in SOURCES}
    for turn in track(range(rounds + 1), rounds + 1, "turns"):
        for name, task in tasks.items():
            start = time.perf_counter()
            for step in range(turn * steps, (turn + 1) * steps):
                _update(task, step)
            taken[name].append(time.perf_counter() - start)
    return {name: batch_size * steps / median(times[1:]) for name, times in taken.items()}  # the first warms up


def _update(task: GeneratorTask, step: int) -> None:
    """One step of the training loop."""
    loss, _ = task.loss(step, 0)
    task.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(task.model.parameters(), task.config.grad_clip)
    task.optimizer.step()


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = [
        [f"batch {size}", *(f"{rates[name]:.0f}" for name in SOURCES), f"{rates['cache'] / rates['images']:.2f}"]
        for size, rates in report["images_per_second"].items()
    ]
    machine = report["machine"]
    return (
        f"{page.table(['Images a second', 'from images', 'from the cache', 'gain'], rows)}\n\n"
        f"Preset `{report['preset']}`, random crops, median of {report['rounds']} turns (updates a turn: "
        f"{report['steps']}), taken alternately in one process on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['threads']} threads, torch {machine['torch']})."
    )


if __name__ == "__main__":
    run_cli(measure, "python -m recipes.token_cache")

"""Commands that measure speed and memory.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from typing import TYPE_CHECKING, Literal

from mvar.settings import Count, Counts, Many, Weight

if TYPE_CHECKING:
    from pathlib import Path


def bench_train(
    preset: str = "d16",
    batch_size: Count = 2,
    dtype: Literal["float32", "bfloat16"] | None = None,
    steps: Many = 5,
    out: str | None = None,
) -> None:
    """Measure a generator's training step on the CPU: tokens a second, share of the machine's best, memory; and VAR's.

    Args:
        preset: of the generator, as of train generator.
        batch_size: images of a step.
        dtype: of the matrix products; default: bfloat16 on processors that multiply it fast, else float32.
        steps: timed steps of each case, after two to warm up.
        out: folder to write train.json and train.png to.
    """
    from mvar.bench.measuring import quickest
    from mvar.bench.results import publish
    from mvar.bench.training import bench, plot, table

    folder = _folder(out)
    publish(bench(preset, batch_size, dtype or quickest(), steps), "train", folder, table, plot)


def bench_sample(
    preset: str = "d16",
    model: str | None = None,
    dtype: Literal["float32", "bfloat16", "fp32", "bf16"] | None = None,
    batch: Counts = 1,
    guidance: Weight = 1.5,
    rounds: Count = 5,
    against: str | None = None,
    json: bool = False,
    out: str | None = None,
) -> None:
    """Measure what drawing an image takes on the CPU: by scale and part, against the machine's floor.

    Args:
        preset: of the generator; its weights are random.
        model: instead, one with weights: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        dtype: of the weights in use; default: bfloat16 on processors that multiply it fast, else float32.
        batch: images at once; a list measures all of these, and looks at the first in detail.
        guidance: strength of guidance.
        rounds: timed, of everything, after one to warm up.
        against: what takes turns with it, between commas: prefix (Mamba runs over all scales so far again), float32,
            bfloat16, or other presets.
        json: print JSON instead of tables.
        out: folder to write sample.json and sample.png to.
    """
    from mvar.bench.measuring import quickest
    from mvar.bench.report import plot, table
    from mvar.bench.results import publish
    from mvar.bench.sampling import bench
    from mvar.generator.config import PRESETS
    from mvar.text import split_names

    if model is None and preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}; a model with weights goes to --model")
    batches = batch if isinstance(batch, list) else [batch]
    if not batches:
        raise ValueError("batch = []: give at least one")
    folder = _folder(out)
    rivals = split_names(against or "", "against")
    report = bench(model or preset, dtype or quickest(), batches, guidance, rounds, rivals)
    publish(report, "sample", folder, table, plot, json)


def bench_growth(
    preset: str = "d16",
    dtype: Literal["float32", "bfloat16"] | None = None,
    rounds: Count = 5,
    out: str | None = None,
) -> None:
    """Measure how the time of a token grows with their number, of M-VAR and of VAR, on the CPU.

    One block runs over the scales of images of 256, 512 and 1024 pixels.

    Args:
        preset: of the generator, for its width.
        dtype: of the weights in use; default: bfloat16 on processors that multiply it fast, else float32.
        rounds: timed, of everything, after one to warm up.
        out: folder to write growth.json and growth.png to.
    """
    from mvar.bench.growth import bench, plot, table
    from mvar.bench.measuring import quickest
    from mvar.bench.results import publish

    folder = _folder(out)
    publish(bench(preset, dtype or quickest(), rounds), "growth", folder, table, plot)


def bench_features(batch_size: Count = 64, rounds: Count = 5, out: str | None = None) -> None:
    """Measure how many images a second the networks of mvar evaluate take in, on the CPU, and of what peak that is.

    Args:
        batch_size: images at once.
        rounds: timed rounds of each network, in float32 and, where it is fast, bfloat16; one more warms up.
        out: folder to write features.json and features.png to.
    """
    from mvar.bench.features import bench, plot, table
    from mvar.bench.results import publish

    folder = _folder(out)
    publish(bench(batch_size, rounds), "features", folder, table, plot)


def _folder(out: str | None) -> "Path | None":
    from mvar.files import writable_folder

    return None if out is None else writable_folder(out, "out")

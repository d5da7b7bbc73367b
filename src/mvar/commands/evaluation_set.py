"""`mvar sample-set`: the images of an evaluation, a number of every class."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mvar.commands.drawing import Sampling, drawn_with
from mvar.commands.training import own_gpu
from mvar.sampling.labels import parse_labels
from mvar.settings import Count, Seed
from mvar.text import counted

if TYPE_CHECKING:
    from mvar.model import Model
    from mvar.sampling.engine import SampleOutput

LISTED_BYTES = 100  # of an image's class and file name in the lists of all
PROTOCOL = "imagenet-50k"


def sample_set(
    model: str,
    sampling: Sampling,
    out_dir: str | None = None,
    npz: str | None = None,
    labels: str | None = None,
    per_class: Count = 50,
    counts_of: str | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Draw the images of an evaluation: a number of every class, as single files or as the .npz that suites read.

    A second call goes on where the first was stopped. Under torchrun, or wherever RANK and WORLD_SIZE are set, several
    processes share the work. Sampling options that are left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        sampling: guidance and filters.
        out_dir: folder for one PNG per image, and a protocol.json that records what drew them.
        npz: file for all images in a mixed order; beside it a NAME.protocol.json.
        labels: classes to draw, as in sample; all of the model's by default.
        per_class: images of each class.
        counts_of: in place of --per-class, a folder with a folder for each class: as many images of each as it holds.
        seed: of the run; image i depends on (seed, i, its class, the settings) only.
        batch_size: images at once, 64 by default; another size rounds differently.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.

    Raises:
        ValueError: one line with field, value and fix: the model, its settings, or targets that hold something else.
        TimeoutError: other processes have stopped.
    """
    from mvar import __version__
    from mvar.files import writable_folder
    from mvar.model import load
    from mvar.sampling.cost import MOST_IMAGES
    from mvar.sampling.export import NPZ_SUFFIXES, target
    from mvar.sampling.protocol import SampleSet
    from mvar.sampling.report import Samples

    if out_dir is None and npz is None:
        raise ValueError("out_dir, npz: give at least one of them")
    if npz is not None:
        target(npz, NPZ_SUFFIXES, "npz")
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    loaded = load(model, device or own_gpu(), dtype)
    if loaded.sampler(seed, **sampling).settings.smooth:
        raise ValueError("smooth = True: is for looks and never for metrics; give --smooth=false")
    classes, counts = _counts(loaded, labels, per_class, counts_of)
    facts = {
        "protocol": PROTOCOL,
        "classes": classes,
        "counts": counts,
        "image_shape": list(loaded.tokenizer.config.image_shape),
        **drawn_with(loaded, model, dtype, seed, sampling),
        "batch_size": batch_size or MOST_IMAGES,  # not what fits into memory now, as all processes divide images alike
        "mvar": __version__,
    }
    most = loaded.fitting_batch_size(batch_size, sum(counts))
    asked = SampleSet(
        samples=Samples.of_protocol(facts),
        out_dir=None if out_dir is None else Path(out_dir),
        npz=None if npz is None else Path(npz),
    )

    def draw(labels: list[int], index: range) -> "SampleOutput":
        known = [label if loaded.classes else None for label in labels]
        return loaded.sample(known, **sampling, seed=seed, index=index, batch_size=most)

    asked.begin()
    written = asked.draw(draw, rank, ranks, loaded.device)
    if rank == 0:
        asked.finish(ranks)
        others = "" if ranks == 1 else " by this process"
        where = ", ".join(filter(None, (out_dir, npz)))
        print(f"{where}: {counted(sum(counts), 'image')}, {written} of them drawn now{others}")


def _counts(loaded: "Model", labels: str | None, per_class: int, counts_of: str | None) -> tuple[list[str], list[int]]:
    """The model's classes, and how many images of each are asked for; see `sample_set`."""
    from mvar.machine import check_memory
    from mvar.sampling.export import check_count
    from mvar.sampling.protocol import counts_like

    classes = loaded.classes or [loaded.class_name(0)]
    every = range(len(classes))
    chosen = {*every} if labels is None else {*loaded.label_ids(parse_labels(labels, loaded.classes))}
    if not chosen <= {*every}:
        raise ValueError(f"labels = {labels!r}: has -1, but a set is of classes; leave it out")
    counts = [per_class] * len(classes) if counts_of is None else counts_like(counts_of, classes, "counts_of")
    counts = [count if i in chosen else 0 for i, count in enumerate(counts)]
    if not any(counts):
        raise ValueError(f"labels = {labels!r}: counts_of = {counts_of!r} holds none of these classes; give others")
    check_count(sum(counts))
    size = f"per_class: {sum(counts):,} images of {counted(len(classes), 'class', 'classes')}"
    check_memory(LISTED_BYTES * sum(counts), f"{size}, listed by number,", "ask for fewer of each class")
    return classes, counts

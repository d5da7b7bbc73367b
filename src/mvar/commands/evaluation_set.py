"""`mvar sample-set`: the images of an evaluation, a number of every class."""

import os
from typing import TYPE_CHECKING, Literal

from mvar.commands.drawing import Sampling
from mvar.commands.training import own_gpu
from mvar.sampling.labels import parse_labels
from mvar.settings import Count, Seed
from mvar.text import counted

if TYPE_CHECKING:
    from mvar.model import Model

LISTED_BYTES = 8  # of an image's class in the list of all
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
    from mvar.checkpoint import hub
    from mvar.checkpoint.placement import dtype_for
    from mvar.files import writable_folder
    from mvar.model import load
    from mvar.sampling.cost import MOST_IMAGES
    from mvar.sampling.export import NPZ_SUFFIXES, target
    from mvar.sampling.protocol import Protocol, begin, draw_missing, finish, hashes

    if out_dir is None and npz is None:
        raise ValueError("out_dir, npz: give at least one of them")
    if npz is not None:
        target(npz, NPZ_SUFFIXES, "npz")
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    loaded = load(model, device or own_gpu(), dtype)
    settings = loaded.sampler(seed, **sampling).settings
    if settings.smooth:
        raise ValueError("smooth = True: is for looks and never for metrics; give --smooth=false")
    classes, counts = _counts(loaded, labels, per_class, counts_of)
    protocol = Protocol(
        protocol=PROTOCOL,
        classes=classes,
        counts=counts,
        image_shape=list(loaded.tokenizer.config.image_shape),
        model=model,
        sha256=hashes(hub.find(model)),
        seed=seed,
        sampling=settings,
        dtype=dtype_for(loaded.generator, loaded.device, dtype),
        batch_size=batch_size or MOST_IMAGES,  # not what fits into memory now, as all processes divide the images alike
    )
    most = loaded.fitting_batch_size(batch_size, protocol.count)
    folder = begin(protocol, out_dir, npz)
    written = 0
    if folder is not None:
        ids = range(len(loaded.classes)) if loaded.classes else [-1]
        written = draw_missing(
            protocol,
            folder,
            npz,
            lambda labels, index: loaded.sample(
                [ids[label] for label in labels], **sampling, seed=seed, index=index, batch_size=most
            ),
            rank,
            ranks,
        )
    if rank == 0 and folder is not None:
        finish(protocol, folder, npz, ranks)
    if rank == 0:
        others = "" if ranks == 1 else " by this process"
        where = ", ".join(filter(None, (out_dir, npz)))
        print(f"{where}: {counted(protocol.count, 'image')}, {written} of them drawn now{others}")


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

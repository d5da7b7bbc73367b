"""`mvar sample --protocol`: images of every class for an evaluation."""

import os
from collections.abc import Iterator
from typing import Any, Literal

from mvar.commands.training import own_gpu
from mvar.text import counted

LISTED_BYTES = 8  # of an image's class in the list of all


def draw_protocol(
    name: str,
    model: str,
    per_class: int | None,
    counts_of: str | None,
    out_dir: str | None,
    npz: str | None,
    seed: int,
    batch_size: int | None,
    device: str | None,
    dtype: Literal["float32", "bfloat16"] | None,
    settings: dict[str, Any],
) -> None:
    """Draw a protocol's images, or those that are missing; arguments are those of `sample`.

    Raises:
        ValueError: one line with field, value and fix: the model, its settings, or targets that hold something else.
        TimeoutError: other processes have stopped.
    """
    from mvar.checkpoint import hub
    from mvar.checkpoint.placement import dtype_for
    from mvar.files import writable_folder
    from mvar.machine import check_memory
    from mvar.model import load
    from mvar.sampling.cost import MOST_IMAGES
    from mvar.sampling.export import NPZ_SUFFIXES, check_count, target
    from mvar.sampling.protocol import PER_CLASS, Protocol, begin, counts_like, draw_missing, finish, hashes

    if npz is not None:
        target(npz, NPZ_SUFFIXES, "npz")
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    loaded = load(model, device or own_gpu(), dtype)
    sampling = loaded.sampler(seed, **settings).settings
    if sampling.smooth:
        raise ValueError("smooth = True: is for looks and never for metrics; give --smooth=false")
    classes = loaded.classes or [loaded.class_name(0)]
    if counts_of is not None:
        counts = counts_like(counts_of, classes, "counts_of")
    else:
        counts = [per_class or PER_CLASS[name]] * len(classes)
    check_count(sum(counts))
    size = f"per_class: {sum(counts):,} images of {counted(len(classes), 'class', 'classes')}"
    check_memory(LISTED_BYTES * sum(counts), f"{size}, listed by number,", "ask for fewer of each class")
    protocol = Protocol(
        protocol=name,
        classes=classes,
        counts=counts,
        image_shape=list(loaded.tokenizer.config.image_shape),
        model=model,
        sha256=hashes(hub.find(model)),
        seed=seed,
        sampling=sampling,
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
                [ids[label] for label in labels], **settings, seed=seed, index=index, batch_size=most
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


def unsuitable(
    labels: str | None,
    per_class: int | None,
    counts_of: str | None,
    out: str | None,
    out_dir: str | None,
    npz: str | None,
    show_scales: bool,
    judge: str | None,
) -> Iterator[str]:
    """What of `sample` does not go with a protocol, a line each."""
    if labels is not None:
        yield f"labels = {labels!r}: a protocol draws all classes; leave it out"
    if per_class is not None and counts_of is not None:
        yield f"per_class = {per_class}, counts_of = {counts_of!r}: both say how many images; give one of them"
    if out is not None or show_scales:
        yield "protocol: draws no sheet; leave --out and --show-scales away"
    if judge is not None:
        yield f"judge = {judge!r}: a protocol draws plain samples; leave it out, or give --per-class without --protocol"
    if out_dir is None and npz is None:
        yield "protocol: needs a place for its images; give --out-dir or --npz"

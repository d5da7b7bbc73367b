"""Commands that get data and train on it.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from mvar.data.sets.fetching import VERSION
from mvar.generator.config import GeneratorConfig
from mvar.options.fields import flat
from mvar.options.values import NULL
from mvar.settings import Augmentation, Count, Many, ResizeFactor, Seed, Size, Whole
from mvar.text import counted
from mvar.training.config import (
    GENERATOR_PRESETS,
    TOKENIZER_PRESETS,
    GeneratorTraining,
    TokenizerTraining,
    preset_for,
    preset_values,
)

# Any keeps type checkers from reading a Literal of names that are known at run time only.
TokenizerPreset: Any = Literal[tuple(TOKENIZER_PRESETS)]
GeneratorPreset: Any = Literal[tuple(GENERATOR_PRESETS)]


def data_fashion_mnist(out: str, source: str | None = None) -> None:
    """Write Fashion-MNIST as image folders: 60,000 training and 10,000 validation images of 10 classes.

    Args:
        out: a new or empty folder; gets train/<class>/*.png and val/<class>/*.png.
        source: folder with the four original .gz files; by default the installed Debian package
            dataset-fashion-mnist is used, or fetched by apt-get.
    """
    from mvar.data.sets.fashion_mnist import fashion_mnist

    fashion_mnist(out, source)
    print(f"wrote {out}/train and {out}/val")


def data_icons(
    out: str,
    size: Size = 64,
    concepts: str | None = None,
    source: str | None = None,
    package_version: str = VERSION,
) -> None:
    """Write icons as image folders: 21,108 black drawings of 360 things, split by designer.

    Args:
        out: a new or empty folder; gets train/<concept>/*.png, val/<concept>/*.png and LICENCES.md.
        size: side of the square images in pixels.
        concepts: names between commas, anchor,bell,cat; by default all that enough sets draw.
        source: folder of the unpacked npm package @iconify/json; fetched by npm by default.
        package_version: of the npm package that is fetched; the default is the one that the documentation counts.
    """
    from mvar.data.sets.icons import icons

    counts = icons(out, size, concepts, source, package_version)
    for part in ("train", "val"):
        found = {key: n for key, n in counts.items() if key[1] == part}
        images, classes = sum(found.values()), len({concept for _, _, concept in found})
        print(f"wrote {out}/{part}: {counted(images, 'image')} of {counted(classes, 'concept')}")
    print(f"wrote {out}/LICENCES.md: whose they are")


def train_tokenizer(config: TokenizerTraining, preset: TokenizerPreset | None = None, *, began: float) -> None:
    """Train a tokenizer on a folder of images.

    Args:
        config: the run.
        preset: what the other options start from, by image size; --preset NAME --help shows its values. Without one,
            --minutes chooses, and --resume goes on with what the run began with.
        began: when the command was given, by `time.monotonic`.
    """
    from mvar.training.tokenizer.task import train

    train(config, began=began)
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {config.out}: use it as --tokenizer {config.out}")


def tokenize(
    data: str,
    tokenizer: str,
    out: str,
    views: Annotated[int, Whole(1, 1000)] | None = None,
    resize_factor: ResizeFactor = 1.125,
    augment: tuple[Augmentation, ...] = (),
    shard_images: Many = 10_000,
    batch_size: Count = 64,
    on_bad_image: Literal["skip", "error"] = "skip",
    seed: Seed = 0,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Write the token maps of a folder of images as a cache that train generator reads.

    Called again with the same settings it goes on where it was stopped. Under torchrun, or wherever RANK and
    WORLD_SIZE are set, several processes share the work.

    Args:
        data: folder of images, as for training.
        tokenizer: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        out: new folder for the cache, or one that was begun.
        views: of each training image, one an epoch in turn; 4 by default, 1 where nothing is cropped or augmented.
        resize_factor: the shorter side is resized to this times the model's, then cropped at random;
            1 keeps whole (square) images.
        augment: what else differs from view to view: shift by up to 4 % of the side, scale to 0.84 to 1.06 of the size,
            flip left to right.
        shard_images: images of one file.
        batch_size: images encoded at once.
        on_bad_image: what an unreadable image does: "skip" it with a report, or "error".
        seed: of the views; a training run's own seed gives the views that it would draw itself.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the encoder's products; bfloat16 is quicker and changes some of the tokens.
    """
    from mvar.data.tokens.writer import write_cache
    from mvar.training.generator.token_data import load_tokenizer

    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    work = write_cache(
        data,
        out,
        load_tokenizer(tokenizer, device or own_gpu()),
        views=views if views is not None else 4 if augment or resize_factor != 1 else 1,
        resize_factor=resize_factor,
        augment=augment,
        shard_images=shard_images,
        dtype=dtype,
        batch_size=batch_size,
        on_bad_image=on_bad_image,
        seed=seed,
        rank=rank,
        ranks=ranks,
    )
    if rank == 0 and not work:
        print(f"nothing to do: {out} is complete and whole; its images were not read again")
    if rank == 0 and work:
        print(f"wrote {out}")
        print(f"try  mvar train generator --data {out} --tokenizer {tokenizer} --preset ... --out ...")


def train_generator(config: GeneratorTraining, preset: GeneratorPreset | None = None, *, began: float) -> None:
    """Train a generator on a folder of images or a token cache, with a trained tokenizer.

    Args:
        config: the run.
        preset: what the other options start from, by depth or image size; --preset NAME --help shows its values.
            Without one, --minutes chooses, and --resume goes on with what the run began with.
        began: when the command was given, by `time.monotonic`.
    """
    from mvar.training.generator.task import train

    model = train(config, began=began)
    if model is not None:  # the main rank speaks for all
        print(f"wrote {config.out}: try  mvar sample --model {config.out}{' --per-class 8' if model.classes else ''}")


def _defaults(presets: Mapping[str, dict[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of a training run start from, by those that were given: a run that is resumed from its own
    values, another one from a preset.
    """
    preset, minutes = given.get("preset"), given.get("minutes")
    before = settings_of(given.get("out")) if given.get("resume") in (True, "true") and preset is None else {}
    if before:
        for name, other in (("minutes", "steps"), ("steps", "minutes")):
            if given.get(name) is not None:
                before[other] = None
    elif preset is None and minutes is not None:
        preset = preset_for(float(minutes))
        if os.environ.get("RANK", "0") == "0":  # once among torchrun's processes
            print(f"preset: {preset}, as none was named; --preset NAME takes another", file=sys.stderr)
    elif preset is None:
        raise ValueError(f"preset: is missing; give --preset, one of {', '.join(presets)}, or --minutes")
    values = before or {"preset": preset, **preset_values(presets, preset, minutes)}
    start = given.get("init_from")
    if presets is GENERATOR_PRESETS and start not in (None, NULL):
        values |= {"model": generator_of(start, given.get("out")) or values.get("model", {})}
    return dict(flat(values))


tokenizer_defaults = partial(_defaults, TOKENIZER_PRESETS)
generator_defaults = partial(_defaults, GENERATOR_PRESETS)


def generator_of(source: str, out: str | None) -> GeneratorConfig | dict[str, object]:
    """The config of the run's generator in `out` once it has begun, else of the model `source`: what --model's options
    start from with --init-from. Nothing where there is none: training says what is wrong with it.
    """
    from mvar.checkpoint import hub
    from mvar.checkpoint.bundle import read_generator_config

    try:
        return settings_of(out).get("model") or read_generator_config(hub.find(source)) or {}
    except ValueError:
        return {}


def settings_of(out: str | None) -> dict[str, Any]:
    """The settings of the run in a folder; nothing where there is none: training says what is wrong with it."""
    from mvar.training.run.folder import SETTINGS

    if out is None or not (path := Path(out, SETTINGS)).is_file():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in settings.items() if name != "decided"}


def own_gpu() -> str | None:
    """The GPU of this process among those that torchrun started on this machine; None where there is no choice."""
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and torch.cuda.is_available() else None

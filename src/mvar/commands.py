"""What each `mvar` command does: plain functions whose arguments are the command's options.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvar.sampling.config import SamplingSettings
from mvar.training.config import GeneratorTraining, TokenizerTraining
from mvar.validation import raise_problems

MOST_ROWS = 10  # of a sheet whose labels were not asked for

if TYPE_CHECKING:
    from PIL import Image

    from mvar.model import Label, Model


def data_fashion_mnist(out: str, source: str | None = None) -> None:
    """Write Fashion-MNIST as image folders: 60,000 training and 10,000 validation images of 10 classes.

    Args:
        out: a new or empty folder; gets train/<class>/*.png and val/<class>/*.png.
        source: folder with the four original .gz files; by default the installed Debian package
            dataset-fashion-mnist is used, or fetched by apt-get.
    """
    from mvar.data.builtin import fashion_mnist

    fashion_mnist(out, source)
    print(f"wrote {out}/train and {out}/val")


def train_tokenizer(config: TokenizerTraining) -> None:
    """Train a tokenizer on a folder of images."""
    from mvar.training.tokenizer import train

    train(config)
    print(f"wrote {config.out}: use it as --tokenizer {config.out}")


def train_generator(config: GeneratorTraining) -> None:
    """Train a generator on a folder of images, with a trained tokenizer."""
    from mvar.training.generator import train

    model = train(config)
    print(f"wrote {config.out}: try  mvar sample --model {config.out}{' --per-class 8' if model.classes else ''}")


def sample(
    model: str,
    labels: str | None = None,
    per_class: int = 1,
    out: str | None = None,
    out_dir: str | None = None,
    npz: str | None = None,
    show_scales: bool = False,
    seed: int = 0,
    guidance: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    smooth: bool | None = None,
    batch_size: int = 64,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Draw images and write them as a sheet, as single files, or as an .npz.

    Sampling options left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        labels: classes to draw, indices or names between commas; -1 for no class. The first ten by default.
        per_class: images for each of the labels.
        out: sheet with a row for each class, .png or .webp; samples.png by default.
        out_dir: folder for one PNG an image, named by class and number.
        npz: file for all images as one uint8 array, as evaluation suites read it.
        show_scales: below the sheet, how the first image grows scale by scale.
        seed: the run's; image i depends on (seed, i, its label, the settings) only.
        guidance: strength of classifier-free guidance; 0 switches it off.
        top_k: sample from the k most likely codes; 0 switches it off, 1 is greedy.
        top_p: sample from the most likely codes that hold this much probability; 1 switches it off.
        temperature: divides the guided logits before the filters.
        smooth: mix code vectors instead of choosing one; prettier, but not for metrics.
        batch_size: images at once.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.data.progress import track
    from mvar.files import writable_folder
    from mvar.model import load
    from mvar.sampling.engine import to_uint8
    from mvar.sampling.export import IMAGE_SUFFIXES, NPZ_SUFFIXES, save_image, save_npz, save_pngs, target
    from mvar.sampling.sheet import check_size

    if out is None and out_dir is None and npz is None:
        out = "samples.png"
    changes: dict[str, Any] = {
        "guidance": guidance,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "smooth": smooth,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    problems = replace(SamplingSettings(), **changes).problems()
    for name, value in (("per_class", per_class), ("batch_size", batch_size)):
        if value < 1:
            problems.append(f"{name} = {value}: must be at least 1")
    if not 0 <= seed < 2**64:
        problems.append(f"seed = {seed}: must lie in 0 to 2**64 - 1")
    if show_scales and out is None:
        problems.append("show_scales = True: the strip is part of the sheet; give --out as well")
    raise_problems(problems)
    if out is not None:
        target(out, IMAGE_SUFFIXES, "out")
    if npz is not None:
        target(npz, NPZ_SUFFIXES, "npz")
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")

    loaded = load(model, device, dtype)
    asked = _labels(labels, loaded)
    names = [loaded.class_name(i) for i in loaded.label_ids(asked)]
    if out is not None:
        check_size(len(asked), per_class, loaded.tokenizer.config.image_shape)

    rows = [i for i in range(len(asked)) for _ in range(per_class)]
    starts = range(0, len(rows), batch_size)
    pixels = []
    for start in track(starts, len(starts), "batches"):
        index = range(start, min(start + batch_size, len(rows)))
        drawn = loaded.sample([asked[rows[i]] for i in index], **changes, seed=seed, index=index)
        if out_dir is not None:
            save_pngs(drawn, out_dir, [names[rows[i]] for i in index], index)
        if out is not None or npz is not None:
            pixels.append(to_uint8(drawn.pixels))

    written = [out_dir] if out_dir is not None else []
    if npz is not None:
        written.append(str(save_npz(np.concatenate(pixels), loaded.label_ids([asked[i] for i in rows]), npz)))
    if out is not None:
        sheet = _sheet(names, np.concatenate(pixels))
        if show_scales:
            sheet = _with_growth(sheet, loaded, asked[0], {**changes, "seed": seed})
        written.append(str(save_image(sheet, out)))
    print(f"wrote {len(rows)} images: {', '.join(written)}")


def info(model: str) -> None:
    """Say what a model is: its parts, sizes, classes, sampling defaults and origin.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
    """
    from mvar.model import load

    for name, value in load(model, device="cpu", dtype="float32").facts().items():
        print(f"{name:>24}  {value}")


def convert(
    out: str,
    tokenizer: str | None = None,
    generator: str | None = None,
    model: str | None = None,
) -> None:
    """Turn files of the official VAR and M-VAR code into a bundle, or a bundle into such files.

    Args:
        out: folder to write: a bundle, or with --model tokenizer.pth and generator.pth.
        tokenizer: official tokenizer file, .pth or .safetensors.
        generator: official generator file, or a trainer's checkpoint, which holds both networks.
        model: a bundle to turn into official files; give it instead of --tokenizer and --generator.
    """
    from mvar.checkpoint import official
    from mvar.files import new_folder
    from mvar.model import load

    if (model is None) == (tokenizer is None and generator is None):
        raise ValueError("convert: give either official files (--tokenizer, --generator) or a bundle (--model)")
    new_folder(out, "out")
    if model is None:
        official.convert(tokenizer, generator, out)
    else:
        loaded = load(model, device="cpu", dtype="float32")
        official.export(loaded.tokenizer, loaded.generator, out)
    print(f"wrote {out}")


# --- parts of `sample` ---


def _labels(text: str | None, model: "Model") -> list["Label"]:
    """Labels between commas: numbers are class indices, all else names; None takes all classes, or the first few.

    Raises:
        ValueError: a number that is the name of a class at another index.
    """
    classes = model.classes
    labels: list[Label] = []
    if text is None:
        if len(classes) > MOST_ROWS:
            print(f"the first {MOST_ROWS} of {len(classes)} classes; name others by --labels", file=sys.stderr)
        labels += range(min(len(classes), MOST_ROWS)) if classes else [-1]
        return labels
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not re.fullmatch(r"-?[0-9]+", part):
            labels.append(part)
        elif part in classes and classes.index(part) != int(part):
            i = classes.index(part)
            raise ValueError(f"labels has {part}: index {part} or the class named {part!r}? For the class, give {i}")
        else:
            labels.append(int(part))
    return labels


def _sheet(names: list[str], pixels_NHW3: np.ndarray) -> "Image.Image":
    """A row for each name, with its share of the images."""
    from PIL import Image

    from mvar.sampling.sheet import class_sheet

    images = [Image.fromarray(pixels_HW3) for pixels_HW3 in pixels_NHW3]
    columns = len(images) // len(names)
    return class_sheet([(name, images[r * columns : (r + 1) * columns]) for r, name in enumerate(names)])


def _with_growth(sheet: "Image.Image", model: "Model", label: "Label", settings: dict[str, Any]) -> "Image.Image":
    """The sheet, and below it how its first image grows scale by scale: drawn again, which gives the same image."""
    from mvar.sampling.engine import to_images
    from mvar.sampling.sheet import stack, strip

    previews = []
    model.sample(label, **settings, on_scale=lambda k, K, preview: previews.append(to_images(preview())[0]))
    shapes = model.tokenizer.config.schedule.shapes
    return stack(sheet, strip([previews], [f"{h}x{w}" for h, w in shapes]))

"""What each `mvar` command does: plain functions whose arguments are the command's options.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvar.training.config import GeneratorTraining, TokenizerTraining

if TYPE_CHECKING:
    from PIL import Image

    from mvar.model import Model
    from mvar.sampling.engine import SampleOutput


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
        labels: classes to draw, indices or names between commas; -1 for no class. All classes by default.
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
    from mvar.files import writable_folder
    from mvar.model import load
    from mvar.sampling.export import IMAGE_SUFFIXES, NPZ_SUFFIXES, save_image, save_npz, save_pngs, target

    if out is None and out_dir is None and npz is None:
        out = "samples.png"
    if per_class < 1:
        raise ValueError(f"per_class = {per_class}: must be at least 1")
    if show_scales and out is None:
        raise ValueError("show_scales = True: the strip is part of the sheet; give --out as well")
    if out is not None:
        target(out, IMAGE_SUFFIXES, "out")
    if npz is not None:
        target(npz, NPZ_SUFFIXES, "npz")
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")

    loaded = load(model, device, dtype)
    asked = _labels(labels) if labels is not None else list(range(len(loaded.classes))) or [-1]
    names = [loaded.label_name(label) for label in asked]
    settings: dict[str, Any] = {
        "guidance": guidance, "top_k": top_k, "top_p": top_p, "temperature": temperature, "smooth": smooth,
        "seed": seed, "batch_size": batch_size,
    }  # fmt: skip
    each = [i for i in range(len(asked)) for _ in range(per_class)]
    drawn = loaded.sample([asked[i] for i in each], **settings)

    written = []
    if out is not None:
        sheet = _sheet(names, drawn, per_class)
        if show_scales:
            sheet = _with_growth(sheet, loaded, asked[0], settings)
        written.append(save_image(sheet, out))
    if out_dir is not None:
        save_pngs(drawn, out_dir, [names[i] for i in each], range(len(each)))
        written.append(Path(out_dir))
    if npz is not None:
        written.append(save_npz(drawn.pixels, loaded.label_ids([asked[i] for i in each]), npz))
    print(f"wrote {len(each)} images: {', '.join(map(str, written))}")


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
    from mvar.model import load

    if (model is None) == (tokenizer is None and generator is None):
        raise ValueError("convert: give either official files (--tokenizer, --generator) or a bundle (--model)")
    if model is None:
        official.convert(tokenizer, generator, out)
    else:
        loaded = load(model, device="cpu", dtype="float32")
        official.export(loaded.tokenizer, loaded.generator, out)
    print(f"wrote {out}")


# --- parts of `sample` ---


def _labels(text: str) -> list[int | str | None]:
    """Labels between commas: numbers are class indices, all else names."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if re.fullmatch(r"-?[0-9]+", part) else part for part in parts if part]


def _sheet(names: list[str], drawn: "SampleOutput", per_class: int) -> "Image.Image":
    from mvar.sampling.sheet import class_sheet

    images = drawn.images
    return class_sheet([(name, images[r * per_class : (r + 1) * per_class]) for r, name in enumerate(names)])


def _with_growth(
    sheet: "Image.Image", model: "Model", label: int | str | None, settings: dict[str, Any]
) -> "Image.Image":
    """The sheet, and below it how its first image grows scale by scale: drawn again, which gives the same image."""
    from mvar.sampling.engine import to_images
    from mvar.sampling.sheet import stack, strip

    previews = []
    model.sample(label, **settings, on_scale=lambda k, K, preview: previews.append(to_images(preview())[0]))
    shapes = model.tokenizer.config.schedule.shapes
    return stack(sheet, strip([previews], [f"{h}x{w}" for h, w in shapes]))

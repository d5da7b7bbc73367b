"""Commands about models: what one is, what it thinks of images, and other forms of it.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvar.sampling.labels import parse_label
from mvar.scales import Sides
from mvar.settings import Count, Many
from mvar.text import Names, counted

if TYPE_CHECKING:
    from PIL import Image

    from mvar.data.images.folders import ImageFolder
    from mvar.data.source import PixelSource
    from mvar.model import Model


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
    official: str | None = None,
) -> None:
    """Turn files of the official VAR and M-VAR code into a bundle, or a bundle into such files.

    Args:
        out: folder to write: a bundle, or with --model tokenizer.pth and generator.pth.
        tokenizer: official tokenizer file, .pth or .safetensors.
        generator: official generator file, or a trainer's checkpoint, which holds both networks.
        model: a bundle to turn into official files; give it instead of --tokenizer and --generator.
        official: a public model to fetch from the Hugging Face hub: d16 ... for M-VAR, var-d16 ... for VAR.
    """
    from mvar.checkpoint import hub
    from mvar.checkpoint import official as official_format
    from mvar.checkpoint.bundle import write_bundle
    from mvar.files import new_folder
    from mvar.model import load

    given = [model is not None, tokenizer is not None or generator is not None, official is not None]
    if sum(given) != 1:
        raise ValueError(
            "convert: give one of official files (--tokenizer, --generator), a public model's name (--official), "
            "or a bundle (--model)"
        )
    new_folder(out, "out")
    if model is None:
        if official is not None:
            tokenizer, generator = map(str, hub.official_files(official))
        write_bundle(out, official_format.load(tokenizer, generator))
    else:
        loaded = load(model, device="cpu", dtype="float32")
        official_format.export(loaded.tokenizer, loaded.generator, out)
    print(f"wrote {out}")


def reschedule(model: str, sides: Sides, out: str) -> None:
    """Write a model at another schedule of scales, and so for another image size, to be fine-tuned.

    Weights stay; the embeddings of positions and levels are interpolated.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        sides: token maps from coarse to fine, such as 1,2,3,[4,6],[6,9]; [h,w] for those that are not square.
        out: new folder for the bundle.
    """
    from mvar.files import new_folder
    from mvar.model import load

    new_folder(out, "out")
    changed = load(model, device="cpu", dtype="float32").rescheduled(sides)
    changed.save(out)
    h, w = changed.tokenizer.config.image_shape
    print(f"wrote {out}: {w}x{h} pixels")


def join(tokenizer: str, generator: str, out: str) -> None:
    """Write a model of one's tokenizer and another's generator, such as a decoder that was trained on by itself.

    Args:
        tokenizer: packaged name, bundle or run folder; its encoder and codes must be those that the generator knows.
        generator: the same, with the generator.
        out: new folder for the bundle.
    """
    from mvar.files import new_folder
    from mvar.training.generator.fine_tuning import load_named

    new_folder(out, "out")
    coded, drawn = load_named("tokenizer", tokenizer), load_named("generator", generator)
    if drawn.generator is None:
        raise ValueError(f"generator = {generator!r}: is a tokenizer without a generator; give a model that has one")
    different = coded.tokenizer.codes_differ(drawn.tokenizer)
    if different is not None:
        raise ValueError(
            f"tokenizer = {tokenizer!r}: differs from the one that {generator!r} was trained with in {different}; "
            "give one that was trained from it with --decoder-only"
        )
    drawn.tokenizer = coded.tokenizer
    for name in ("steps", "batch_size"):
        if name in coded.provenance:
            drawn.provenance[f"tokenizer_{name}"] = coded.provenance[name]
    drawn.save(out)
    print(f"wrote {out}")


def score(
    model: str,
    images: str,
    label: str | None = None,
    limit: Many | None = None,
    out: str | None = None,
    sheet: str | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Say how likely a model finds images: bits per token, for each scale.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        images: an image, or a folder; class folders named as the model's classes give the labels.
        label: class of all images, index or name, where no folders say it; no class by default.
        limit: at most so many images, evenly spread.
        out: .csv with a line for each image.
        sheet: the likeliest and the least likely images of each class, .png or .webp.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    import torch

    from mvar.model import load
    from mvar.progress import track
    from mvar.sampling.export import IMAGE_SUFFIXES, save_image, target
    from mvar.sampling.likelihood import Score
    from mvar.sampling.sheet import check_size

    _check_csv(out)
    if sheet is not None:
        target(sheet, IMAGE_SUFFIXES, "sheet")
    loaded = load(model, device, dtype)
    source, labels = _images(images, limit, loaded)
    if labels is not None and label is not None:
        raise ValueError(f"label = {label!r}: the folders of {images!r} give the classes; leave it out")
    if labels is None:
        labels = loaded.label_ids(parse_label(label, loaded.classes)) * len(source)
    if sheet is not None:
        check_size(len({*labels}), 2 * RANKED, source.views.image_shape, "sheet")
    asked = [i if i < len(loaded.classes) else None for i in labels]  # None is no class
    parts = []
    batches = torch.arange(len(source)).split(AT_ONCE)
    for rows_B in track(batches, len(batches), "batches"):
        parts.append(loaded.score(source.batch(rows_B)[0] / 255, asked[rows_B[0] : rows_B[-1] + 1]).log_prob_BK)
    found = Score(torch.cat(parts), loaded.tokenizer.config.schedule.areas)
    mean = Score(found.log_prob_BK.mean(0, keepdim=True), found.areas)
    bits, log_prob = float(mean.bits_per_token), float(mean.log_prob)
    print(f"{counted(len(source), 'image')}: {bits:.3f} bits per token, log p = {log_prob:.1f}")
    for (h, w), own in zip(loaded.tokenizer.config.schedule.shapes, mean.bits_per_token_scales[0], strict=True):
        print(f"{f'{h}x{w}':>9}  {float(own):.3f}")
    names = [loaded.class_name(i) for i in labels]
    lines = zip(source.paths, names, found.bits_per_token.tolist(), found.log_prob.tolist(), strict=True)
    _write_csv(out, ["image", "class", "bits_per_token", "log_prob"], lines)
    if sheet is not None:
        save_image(_ranked(source, names, found.bits_per_token.tolist()), sheet, "sheet")
        print(f"wrote {sheet}")


def classify(
    model: str,
    images: str,
    limit: Many | None = None,
    scales: Count | None = None,
    out: str | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Name the class of images by Bayes' rule on the model's likelihoods.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        images: an image, or a folder; with class folders named as the model's classes, says how many are right.
        limit: at most so many images, evenly spread.
        scales: token maps that are looked at, from the coarsest; few are quick, but say less. All by default.
        out: .csv with a line for each image.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    import torch

    from mvar.model import load
    from mvar.progress import track

    _check_csv(out)
    loaded = load(model, device, dtype)
    source, labels = _images(images, limit, loaded)
    ids: list[int] = []
    sure: list[float] = []
    # Each image is scored under every class: of many classes a step is one image, so that progress is seen.
    batches = torch.arange(len(source)).split(max(1, AT_ONCE * FEW_CLASSES // max(len(loaded.classes), FEW_CLASSES)))
    for rows_B in track(batches, len(batches), "batches"):
        found = loaded.classify(source.batch(rows_B)[0] / 255, scales=scales)
        ids += found.ids
        sure += found.log_posterior_BC.exp().amax(1).tolist()
    lines = list(zip(source.paths, map(loaded.class_name, ids), sure, strict=True))
    if labels is not None:
        count, hits = Counter(labels), Counter(i for i, own in zip(ids, labels, strict=True) if i == own)
        print(f"{counted(len(source), 'image')}: {100 * hits.total() / len(source):.2f} % classified right")
        for i in sorted(count):
            print(f"{loaded.class_name(i):>20}  {100 * hits[i] / count[i]:6.2f} % of {count[i]}")
    elif out is None:
        for image, name, probability in lines:
            print(f"{image}: {name}, p = {probability:.4f}")
    _write_csv(out, ["image", "class", "probability"], lines)


# --- parts ---

AT_ONCE, FEW_CLASSES = 64, 10  # images, of a model with so many classes
RANKED = 5  # images at either end of a sheet's rows


def _images(place: str, limit: int | None, model: "Model") -> "tuple[PixelSource, list[int] | None]":
    """Images as the model sees them, and their class indices where they lie in folders of the model's class names.

    Images that cannot be read are left out, with one report.

    Raises:
        ValueError: nothing there, or class folders that the model does not know.
    """
    from mvar.data.images.folders import ImageFolder
    from mvar.data.order import evenly_spaced
    from mvar.data.source import PixelSource

    path = Path(place)
    folder = ImageFolder(path.parent, [path], [0], []) if path.is_file() else ImageFolder.scan(path, "images")
    names = _folder_names(folder, model)
    try:
        ids = None if names is None else model.label_ids(names)
    except ValueError as error:
        raise ValueError(f"images = {place!r}: has folders that are no classes of the model\n{error}") from error
    chosen = evenly_spaced(len(folder.paths), limit or len(folder.paths))
    some = replace(folder, paths=[folder.paths[i] for i in chosen], labels=chosen)
    source = PixelSource.read(some, model.tokenizer.config.image_shape, resize_factor=1.0)
    return source, None if ids is None else [ids[i] for i in source.labels.tolist()]


def _folder_names(folder: "ImageFolder", model: "Model") -> list[str] | None:
    """The class folder of each image; None where there are none, or a single one that is no class of the model."""
    if not model.classes:
        return None
    if folder.classes:
        return [folder.classes[label] for label in folder.labels]
    names, known = [path.relative_to(folder.root).parts[0] for path in folder.paths], Names(model.classes)
    return names if all(map(known.find, {*names})) else None


def _ranked(source: "PixelSource", names: Sequence[str], bits: Sequence[float]) -> "Image.Image":
    """A row for each class: its likeliest images as the model sees them, then its least likely ones."""
    from mvar.sampling.engine import to_images
    from mvar.sampling.sheet import class_sheet

    rows = []
    for name in dict.fromkeys(names):
        order = sorted((i for i, other in enumerate(names) if other == name), key=lambda i: bits[i])
        ends = list(dict.fromkeys([*order[:RANKED], *order[-RANKED:]]))
        rows.append((name, to_images(source.batch(ends)[0] / 255)))
    return class_sheet(rows)


def _check_csv(out: str | None) -> None:
    from mvar.sampling.export import target

    if out is not None:
        target(out, (".csv",), "out")


def _write_csv(out: str | None, head: list[str], lines: Iterable[Sequence[Any]]) -> None:
    from mvar.files import write_text

    if out is None:
        return
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *lines])
    write_text(out, text.getvalue())
    print(f"wrote {out}")

"""Commands about models: what one is, what it thinks of images, and other forms of it.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvar.scales import Side

if TYPE_CHECKING:
    from PIL import Image

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
        official_format.convert(tokenizer, generator, out)
    else:
        loaded = load(model, device="cpu", dtype="float32")
        official_format.export(loaded.tokenizer, loaded.generator, out)
    print(f"wrote {out}")


def reschedule(model: str, sides: list[Side], out: str) -> None:
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


def score(
    model: str,
    images: str,
    label: str | None = None,
    limit: int | None = None,
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

    from mvar.commands.drawing import _label
    from mvar.data.progress import track
    from mvar.model import load
    from mvar.sampling.export import IMAGE_SUFFIXES, save_image, target

    _check_csv(out)
    if sheet is not None:
        target(sheet, IMAGE_SUFFIXES, "sheet")
    loaded = load(model, device, dtype)
    paths, labels = _images(images, limit, loaded)
    asked = labels or [loaded.label_ids(_label(label, loaded))[0]] * len(paths)
    lines, log_probs = [], []
    for start in track(range(0, len(paths), AT_ONCE), -(-len(paths) // AT_ONCE), "batches"):
        some = slice(start, start + AT_ONCE)
        ids = [-1 if loaded.class_name(i) == "no class" else i for i in asked[some]]
        found = loaded.score(paths[some], ids)
        log_probs.append(found.log_prob_BK)
        for path, i, bits, nats in zip(paths[some], asked[some], found.bits_per_token, found.log_prob, strict=True):
            lines.append([str(path), loaded.class_name(i), f"{bits:.4f}", f"{nats:.4f}"])
    mean = type(found)(torch.cat(log_probs).mean(0, keepdim=True), found.areas)
    print(f"{len(paths)} images: {float(mean.bits_per_token):.3f} bits per token, log p = {float(mean.log_prob):.1f}")
    for (h, w), bits in zip(loaded.tokenizer.config.schedule.shapes, mean.bits_per_token_scales[0], strict=True):
        print(f"{f'{h}x{w}':>9}  {float(bits):.3f}")
    _write_csv(out, ["image", "class", "bits_per_token", "log_prob"], lines)
    if sheet is not None:
        save_image(_ranked(lines), sheet, "sheet")
        print(f"wrote {sheet}")


def classify(
    model: str,
    images: str,
    limit: int | None = None,
    out: str | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Name the class of images by Bayes' rule on the model's likelihoods.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        images: an image, or a folder; with class folders named as the model's classes, says how many are right.
        limit: at most so many images, evenly spread.
        out: .csv with a line for each image.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.data.progress import track
    from mvar.model import load

    _check_csv(out)
    loaded = load(model, device, dtype)
    paths, labels = _images(images, limit, loaded)
    lines: list[list[str]] = []
    ids: list[int] = []
    for start in track(range(0, len(paths), AT_ONCE), -(-len(paths) // AT_ONCE), "batches"):
        found = loaded.classify(paths[start : start + AT_ONCE])
        ids += found.ids
        sure = found.log_posterior_BC.exp().amax(1).tolist()
        for path, name, p in zip(paths[start : start + AT_ONCE], found.labels, sure, strict=True):
            lines.append([str(path), name, f"{p:.4f}"])
    if labels is not None:
        right = [a == b for a, b in zip(ids, labels, strict=True)]
        print(f"{len(paths)} images: {100 * sum(right) / len(right):.2f} % classified right")
        count, hits = Counter(labels), Counter(i for i, is_right in zip(labels, right, strict=True) if is_right)
        for i in sorted(count):
            print(f"{loaded.class_name(i):>20}  {100 * hits[i] / count[i]:6.2f} % of {count[i]}")
    elif out is None:
        for image, name, probability in lines:
            print(f"{image}: {name}, p = {probability}")
    _write_csv(out, ["image", "class", "probability"], lines)


# --- parts ---

AT_ONCE = 64  # images
RANKED = 5  # images at either end of a sheet's rows


def _images(source: str, limit: int | None, model: "Model") -> tuple[list[Path], list[int] | None]:
    """Image files, and their classes where they lie in folders of the model's class names.

    Raises:
        ValueError: nothing there, a limit below 1, or class folders that the model does not know.
    """
    from mvar.data.images import ImageFolder

    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit}: must be at least 1")
    if Path(source).is_file():
        return [Path(source)], None
    folder = ImageFolder.scan(source, "images")
    n = min(limit or len(folder.paths), len(folder.paths))
    chosen = [i * len(folder.paths) // n for i in range(n)]
    paths = [folder.paths[i] for i in chosen]
    if not folder.classes or not model.classes:
        return paths, None
    try:
        of_folder = model.label_ids(folder.classes)
    except ValueError as error:
        raise ValueError(f"images = {source!r}: folders that are no classes of the model\n{error}") from error
    return paths, [of_folder[folder.labels[i]] for i in chosen]


def _ranked(lines: Sequence[Sequence[str]]) -> "Image.Image":
    """A row for each class: its likeliest images, then its least likely ones. Lines are file, class, bits, ..."""
    from mvar.data.images import as_image
    from mvar.sampling.sheet import class_sheet

    rows = []
    for name in dict.fromkeys(line[1] for line in lines):
        files = [line[0] for line in sorted(lines, key=lambda line: float(line[2])) if line[1] == name]
        ends = dict.fromkeys([*files[:RANKED], *files[-RANKED:]])
        rows.append((name, [as_image(file) for file in ends]))
    return class_sheet(rows)


def _check_csv(out: str | None) -> None:
    from mvar.sampling.export import target

    if out is not None:
        target(out, (".csv",), "out")


def _write_csv(out: str | None, head: list[str], lines: Sequence[Sequence[Any]]) -> None:
    from mvar.files import atomic_write

    if out is None:
        return

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *lines])

    atomic_write(out, write)
    print(f"wrote {out}")

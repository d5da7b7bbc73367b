"""Sheets of samples to look at: a row for each class, or an image growing scale by scale."""

from collections.abc import Sequence
from textwrap import fill

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mvar.text import counted

INK = (32, 33, 36)
PAPER = (255, 255, 255)
HOLE = (255, 0, 160)
MIN_SIDE = 96  # smaller images are enlarged to at least this, pixel by pixel
MOST_SIDE = 14_000  # without margins; a WebP file ends at 16,383
NAME_WIDTH = 20  # characters in a line of a name


def class_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """One row per (class name, samples); rows may differ in length. Raises ValueError without any image."""
    return _sheet([list(images) for _, images in rows], row_names=[name for name, _ in rows])


def strip(rows: Sequence[Sequence[Image.Image]], names: Sequence[str] = ()) -> Image.Image:
    """Coarse to fine: a row per image, a column per scale with its name above; raises as `class_sheet`."""
    return _sheet([list(row) for row in rows], column_names=names)


def with_hole(image: Image.Image, hole_HW: Tensor) -> Image.Image:
    """The image with its hole (bool, of any size) in a colour that is rare in images."""
    shape = Image.fromarray(hole_HW.numpy()).resize(image.size)
    return Image.composite(Image.new("RGB", image.size, HOLE), image.convert("RGB"), shape)


def check_size(rows: int, columns: int, image_shape: tuple[int, int], field: str = "out") -> None:
    """Raise ValueError for a sheet too large to write or view, before its images are drawn; `field` is the option."""
    zoom = _zoom(image_shape)
    height, width = (n * side * zoom for n, side in zip((rows, columns), image_shape, strict=True))
    if max(height, width) > MOST_SIDE:
        shape = f"{counted(rows, 'row')} of {counted(columns, 'image')}"
        raise ValueError(
            f"{field}: a sheet of {shape} would be {width}x{height} pixels, more than {MOST_SIDE} along a side; "
            "ask for fewer labels or images, or write single files or an .npz instead"
        )


def stack(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two sheets as one, left edges aligned."""
    canvas = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), PAPER)
    canvas.paste(upper, (0, 0))
    canvas.paste(lower, (0, upper.height))
    return canvas


def _zoom(image_shape: tuple[int, int]) -> int:
    """A whole factor, so that pixels stay square and sharp."""
    return -(-MIN_SIDE // min(image_shape))


def _sheet(
    rows: list[list[Image.Image]], row_names: Sequence[str] = (), column_names: Sequence[str] = ()
) -> Image.Image:
    if not any(rows):
        raise ValueError("a sheet needs at least one image")
    width = max(image.width for row in rows for image in row)
    height = max(image.height for row in rows for image in row)
    zoom = _zoom((height, width))
    width, height = width * zoom, height * zoom
    gap, margin = max(4, height // 32), max(12, height // 12)
    font = ImageFont.load_default(size=max(14, height // 10))
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    row_names = [fill(name, NAME_WIDTH) for name in row_names]

    name_widths = [round(draw.multiline_textbbox((0, 0), name, font)[2]) + margin for name in row_names]
    left = margin + max(name_widths, default=0)
    top = margin + (round(draw.textbbox((0, 0), "x0", font)[3]) + margin // 2 if column_names else 0)
    columns = max(map(len, rows))
    size = (left + columns * (width + gap) - gap + margin, top + len(rows) * (height + gap) - gap + margin)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        y = top + r * (height + gap)
        if row_names:
            place = (left - margin, y + height // 2)
            draw.multiline_text(place, row_names[r], INK, font, anchor="rm", align="right")
        for c, image in enumerate(row):
            enlarged = image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left + c * (width + gap), y))
    for c, name in enumerate(column_names):
        draw.text((left + c * (width + gap) + width // 2, top - margin // 2), name, INK, font, anchor="mb")
    return canvas

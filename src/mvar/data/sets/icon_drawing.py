"""Icons as grey images, and whether two of them are the same drawing.

Shapes: N, M drawings; P = 32 x 32 pixels of a drawing's shape.
"""

import io
import re
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from mvar.data.sets.iconify import Icon

MARGIN = 4 / 64  # of the image's side, around the icon
SIDE = 64  # of the images that are compared
SHAPE = 32  # side of a shape
# Ink in float32, truncated: some shades lose 1 of 255. A dozen choices between near drawings depend on it.
ROUNDED = (np.float32(255) * (1 - (255 - np.arange(256, dtype=np.float32)) / 255)).astype(np.uint8)
MOST_TEXT = 6144  # characters of a body: what is longer is an illustration

ANIMATION = re.compile(r"<(animate\w*|set)\b[^>]*?(/>|>.*?</\1>)", re.DOTALL)
FOREIGN = re.compile(r'<text|<image|(?<!mask=")(?<!clip-path=")url\(')
COLOUR = re.compile(r"""(?:fill|stroke|color)\s*[=:]\s*["']?\s*([^"';/>\s]+)""")
BLACK = {"currentcolor", "none", "black", "white", "#000", "#fff", "#000000", "#ffffff", "inherit", "transparent"}
OPACITY = re.compile(r"""opacity\s*[=:]\s*["']?\s*(\d*\.?\d+)""")


def is_black_on_white(body: str) -> bool:
    """Whether an icon's SVG elements are of one colour: no shades, no text and no pictures, and not too many."""
    return (
        not FOREIGN.search(body)
        and all(colour.lower() in BLACK or colour.startswith("url") for colour in COLOUR.findall(body))
        and not any(0 < float(opacity) < 0.95 for opacity in OPACITY.findall(body))
        and len(_still(body)) <= MOST_TEXT
    )


def draw(icon: Icon, size: int) -> np.ndarray:
    """An icon, uint8 (size, size), 0 is ink and 255 paper.

    Raises:
        ValueError: it is not valid SVG, or resvg-py is not installed.
    """
    whole = max(icon.width, icon.height) / (1 - 2 * MARGIN)
    left, top = icon.left + (icon.width - whole) / 2, icon.top + (icon.height - whole) / 2
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" '
        f'height="{size}" viewBox="{left:g} {top:g} {whole:g} {whole:g}">{_still(icon.body)}</svg>'
    )
    try:
        png = resvg()(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    except ValueError as error:
        raise ValueError(f"source: the icon {icon.prefix}:{icon.name} cannot be drawn ({error})") from error
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def resvg() -> Callable[..., bytes]:
    """The function that draws SVG; raises ValueError where resvg-py is not installed."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ValueError('icons: drawing needs resvg-py; pip install "mvar-torch[icons]"') from error
    return svg_to_bytes


def shape_of(icon: Icon) -> np.ndarray | None:
    """An icon's ink, independent of its place and size, int16 (P,); None where there is no picture.

    Raises:
        ValueError: as `draw`.
    """
    ink = 255 - draw(icon, SIDE)
    return shape_of_ink(ink) if _is_picture(ink) else None


def shape_of_ink(ink: np.ndarray) -> np.ndarray:
    """Ink cropped to its box, centred in a square, scaled and blurred by the weights 1 2 1 each way, int16 (P,).

    Args:
        ink: uint8 (h, w), 255 for black; zeros come out where there is hardly any.
    """
    rows, columns = np.where(ink > 51)
    if not len(rows):
        return np.zeros(SHAPE * SHAPE, np.int16)
    box = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = box.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = ROUNDED[box]
    how = Image.Resampling.BOX if side >= SHAPE else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(square).resize((SHAPE, SHAPE), how), np.int16)
    rows = np.pad(scaled, 1)
    rows = rows[:-2] + 2 * rows[1:-1] + rows[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]).ravel()


def nearest(shapes_NP: np.ndarray, others_MP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the others to each shape, int64 (N,), and their differences as shares of the mean ink, (N,).

    A shape without ink differs from all by twice the mean.
    """
    found_N, least_N = np.zeros(len(shapes_NP), np.int64), np.zeros(len(shapes_NP))
    others_MP = others_MP.astype(float)
    ink_M = others_MP.sum(1)
    for n, shape_P in enumerate(shapes_NP.astype(float)):
        mean_M = np.maximum((shape_P.sum() + ink_M) / 2, 0.5)
        shares_M = cdist(shape_P[None], others_MP, "cityblock")[0] / mean_M
        found_N[n], least_N[n] = shares_M.argmin(), shares_M.min()
    return found_N, least_N


def _still(body: str) -> str:
    """SVG elements without animations."""
    return ANIMATION.sub("", body)


def _is_picture(ink: np.ndarray) -> bool:
    """Whether there is ink, not everywhere, with edges and without large grey areas."""
    grey, black = (ink > 50) & (ink < 205), ink > 127
    inside = grey[1:-1, 1:-1] & grey[:-2, 1:-1] & grey[2:, 1:-1] & grey[1:-1, :-2] & grey[1:-1, 2:]
    edges = (black[:, 1:] != black[:, :-1]).sum() + (black[1:] != black[:-1]).sum()
    return bool(0.012 <= ink.mean() / 255 <= 0.62 and black.sum() >= 40 and edges >= 60 and inside.sum() <= 150)

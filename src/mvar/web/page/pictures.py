"""Pictures as the page shows them: in HTML with their bytes inside, so that nothing else is fetched.

Shapes: H W pixels; h w the cells of a token map.
"""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mvar import __version__
from mvar.web.messages import Array

SHOWN = 512  # pixels of the longer side, about, of an image that is painted on, and at most of others
WAITING = "Waiting for the model."
# Dark to light, readable without colours and with most kinds of colour blindness.
RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)


def scaled(image: Image.Image) -> Image.Image:
    """The image with `SHOWN` pixels on its longer side."""
    times = SHOWN / max(image.size)
    kind = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * times)), max(1, round(image.height * times))), kind)


def png(image: Image.Image, facts: dict[str, Any] | None = None) -> bytes:
    """A PNG; `facts` are written as JSON into its text "mvar"."""
    content, text = io.BytesIO(), PngInfo()
    if facts is not None:
        text.add_text("Software", f"mvar {__version__}")
        text.add_text("mvar", json.dumps(facts))
    image.save(content, "PNG", pnginfo=text)
    return content.getvalue()


def figure(
    image: Image.Image | Array | None, alt: str, caption: str = "", file: tuple[str, dict[str, Any]] | None = None
) -> str:
    """An image with a caption, at most `SHOWN` pixels large; None is a place for one to come.

    Args:
        file: name under which it can be saved in full, and the facts that are written into it.
    """
    if image is None:
        return f'<figure><div class="to-come" role="img" aria-label="{escape(alt)}: pending"></div></figure>'
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if file is None:
        return framed(shown(picture, alt), caption)
    address, name = address_of(png(picture, file[1])), escape(file[0])
    link = f'<a href="{address}" download="{name}" aria-label="Save {escape(alt)} as {name}">Save</a>'
    return framed(shown(picture, alt, address), caption, link)


def framed(image: str, caption: str, link: str = "") -> str:
    """What `shown` returned, with a caption and a link."""
    return f"<figure>{image}<figcaption>{escape(caption)} {link}</figcaption></figure>"


def shown(picture: Image.Image, alt: str, address: str | None = None) -> str:
    """An image in HTML, at most `SHOWN` pixels large; `address` is its own, where there is one already."""
    if max(picture.size) > SHOWN:
        picture, address = scaled(picture), None
    sharp = ' class="sharp"' if picture.width < SHOWN // 2 else ""
    return f'<img src="{address or address_of(png(picture))}" alt="{escape(alt)}"{sharp}>'


def address_of(content: bytes) -> str:
    """A PNG as an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def pictures(figures: Iterable[str], kind: str = "gallery") -> str:
    """Figures side by side; `kind` is "gallery", "strip" (small) or "pair" (large)."""
    return f'<div class="pictures {kind}">{"".join(figures)}</div>'


def status(text: str, done: float | None = None) -> str:
    """A line on what is going on, and the share that is done."""
    bar = "" if done is None else f'<progress value="{done:.3f}" max="1" aria-label="progress"></progress>'
    return f'<p role="status" class="status">{escape(text)} {bar}</p>'


def progress(done: float, more: str) -> str:
    """The line of a drawing of which this share of the maps is done."""
    return status(f"Drawing: {100 * done:.0f} % of the maps, {more}." if done else WAITING, done)


def heat(values_hw: Array, image: Image.Image, most: float) -> Image.Image:
    """Numbers from 0 to `most` as colours over an image in grey, a cell for each."""
    size = max(image.width, 128), max(image.height, 128 * image.height // image.width)
    colours_hw3 = colours(values_hw / most if most else values_hw).astype(np.uint8)
    cells = Image.fromarray(colours_hw3).resize(size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB").resize(size), cells, 0.65)


def colours(shares: Array) -> Array:
    """Colours (..., 3) from 0 to 255 of numbers from 0 to 1."""
    places = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(shares, places, RAMP[:, c]) for c in range(3)], axis=-1)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[float] | None], first: str) -> str:
    """Shares as a table of coloured cells, a row for each block; None is a row without numbers."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in [first, *columns])
    body = []
    for i, row in enumerate(rows):
        cells = "".join(map(_cell, row)) if row is not None else f'<td colspan="{len(columns)}">none</td>'
        body.append(f'<tr><th scope="row">{i}</th>{cells}</tr>')
    table = f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{''.join(body)}</table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div>'


def _cell(share: float) -> str:
    red, green, blue = colours(np.array(share)).round().astype(int).tolist()
    ink = "#000" if share > 0.5 else "#fff"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{100 * share:.0f}</td>'


def bars(title: str, shares: Sequence[tuple[str, float]]) -> str:
    """Named shares as bars."""
    lines = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td><div style='width:{100 * share:.1f}%'></div></td>"
        f"<td>{100 * share:.1f} %</td></tr>"
        for name, share in shares
    )
    return f'<table class="bars"><caption>{escape(title)}</caption>{lines}</table>'

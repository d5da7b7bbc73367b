"""Image files by hand, as no writer gives them, and what reading them gives."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from mvar.data.images.decoding import decode

RED = (233, 54, 40)  # about the red of sRGB, in Display P3
KINDS = ("PNG", "JPEG", "WEBP")
PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(kind, body, crc=None):
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(rows, *, size=(16, 8), bits=8, colour=2, before=b"", after=b"", data=None):
    """A PNG by hand; rows: bytes of all samples, before and after: chunks around the pixels."""
    step = len(rows) // size[1]
    data = (
        zlib.compress(b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step))) if data is None else data
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    return PNG_START + header + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")


def samples(values, bits):
    """Samples of one row as PNG stores them."""
    if bits == 16:
        return np.asarray(values, ">u2").tobytes()
    return np.packbits((np.asarray(values)[:, None] >> np.arange(bits)[::-1]) & 1).tobytes()


def segment(marker, body):
    return bytes((255, marker)) + struct.pack(">H", len(body) + 2) + body


def saved(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, quality=100, **({"lossless": True, "exact": True} if kind == "WEBP" else {}) | options)
    return file.getvalue()


def rgb(content):
    return np.asarray(decode(BytesIO(content))).astype(int)


def outcome(content):
    """Pixels, or the reason why there are none."""
    try:
        return rgb(content)
    except ValueError as error:
        return str(error)


def plain(colour, mode="RGB", size=(16, 8)):
    return Image.new(mode, size, colour)


def exif(value=6, order="<"):
    """TIFF with nothing but an orientation."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHI", 8, 1, 0x0112, 3, 1)
    return head + struct.pack(order + "Hxx", value) + bytes(4)

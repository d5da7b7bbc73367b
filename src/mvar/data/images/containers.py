"""What a PNG, JPEG or WebP file says before its pixels are decoded, and the part of it that holds them.

Pillow refuses a file for a fault in what nobody needs: EXIF, texts, profiles. So these are taken out here: orientation
and colour profile are read, a damaged one counts as missing, and Pillow never sees the rest.

Sources: PNG (W3C, third edition); JPEG (ITU-T T.81, annex B); WebP (RFC 9649); EXIF, whose orientation is a tag of
TIFF 6.0; ICC.1 for how files carry profiles.
"""

import re
import struct
import zlib
from typing import NamedTuple

MIN_SIDE = 8  # smaller images hold nothing to learn from
MAX_ASPECT = 100  # a longer strip would grow beyond all memory when its short side is enlarged
MOST_PIXELS = 250_000_000  # above every camera; a bomb would have more
MOST_PROFILE = 2**24  # bytes, what a JPEG can hold
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
GREY, COLOUR, PALETTE, GREY_ALPHA = 0, 2, 3, 4  # colour types of PNG
RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])", re.DOTALL)  # of a JPEG's segment; others have no content
MOST_PARTS = 2**18  # chunks or segments that are looked at; no encoder writes so many
TAIL = 64  # bytes at the end of a file, where a JPEG says that it is complete


class Container(NamedTuple):
    """A file taken apart."""

    kind: str  # PNG, JPEG or WEBP
    pixels: bytes  # a file of this kind without metadata
    size: tuple[int, int]  # width and height as stored, before the image is turned upright
    orientation: int  # EXIF's, 1 to 8
    profile: bytes | None  # ICC
    complete: bool  # known not to be cut off; where False, decoding tells
    lossy: str | None  # how the file lost something when it was written: "JPEG", "lossy WebP"
    bits: int = 8  # of a PNG's sample
    colour: int | None = None  # a PNG's colour type
    clear: tuple[int, ...] = ()  # of a PNG in grey or RGB, the samples of the colour that is transparent

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the image upright."""
        width, height = self.size
        return (height, width) if self.orientation >= 5 else (width, height)


def take_apart(content: bytes) -> Container:
    """Read everything of a file except its pixels.

    Raises:
        ValueError: the reason why it cannot be used: no image, damaged or cut off before its pixels, too small, too
            narrow, too large.
    """
    if content.startswith(PNG_START):
        found = _png(content)
    elif content.startswith(b"\xff\xd8\xff"):
        found = _jpeg(content)
    elif content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        found = _webp(content)
    else:
        raise ValueError("not a PNG, JPEG or WebP file" if content else "empty file")
    width, height = found.size
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width}x{height} pixels, a side must have at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than {MOST_PIXELS // 1_000_000} million in all")
    return found


# --- PNG ---


def _png(content: bytes) -> Container:
    view = memoryview(content)
    first: dict[bytes, bytes] = {}  # of each kind of chunk
    data, exif = list[memoryview](), b""  # of IDAT, complete chunks
    at, complete = len(PNG_START), False
    for _ in range(MOST_PARTS):
        if complete or at + 8 > len(content):
            break
        length, kind = struct.unpack_from(">I4s", content, at)
        body, end = view[at + 8 : at + 8 + length], at + 12 + length
        sound = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(content[end - 4 : end], "big")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT") and end <= len(content) and not sound:
            raise ValueError(f"damaged (checksum of {kind.decode()})")
        if kind == b"IDAT":
            data.append(view[at:end])
        elif sound and kind in (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf"):
            first.setdefault(kind, bytes(body))
        elif sound and kind in (b"tEXt", b"zTXt"):
            exif = exif or _raw_exif(kind, bytes(body))
        at, complete = end, kind == b"IEND"

    header = first.get(b"IHDR", b"")
    if len(header) != 13 or not data:
        raise ValueError("holds no pixels" if complete else "truncated")
    width, height, bits, colour = struct.unpack_from(">IIBB", header)
    if bits not in PNG_BITS.get(colour, ()):
        raise ValueError(f"no PNG has {bits} bits and colour type {colour}")
    chunks, clear = {b"IHDR": header}, first.get(b"tRNS", b"")
    if colour == PALETTE:
        entries = min(len(first.get(b"PLTE", b"")) // 3, 2**bits)
        if not entries:
            raise ValueError("has no palette")
        chunks |= {b"PLTE": first[b"PLTE"][: 3 * entries]} | ({b"tRNS": clear[:entries]} if clear else {})
    if len(clear) != {GREY: 2, COLOUR: 6}.get(colour):
        clear = b""
    last = [_chunk(b"IEND", b"")] if complete else []  # after a chunk that was cut off it would be read as pixels
    return Container(
        kind="PNG",
        pixels=b"".join([PNG_START, *(_chunk(kind, body) for kind, body in chunks.items()), *data, *last]),
        size=(width, height),
        orientation=_orientation(first.get(b"eXIf", exif)),
        profile=_inflated(first[b"iCCP"].partition(b"\0")[2][1:]) or None if b"iCCP" in first else None,
        complete=complete,
        lossy=None,
        bits=bits,
        colour=colour,
        clear=tuple(value % 2**bits for (value,) in struct.iter_unpack(">H", clear)),
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((len(body).to_bytes(4, "big"), kind, body, zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")))


def _raw_exif(kind: bytes, text: bytes) -> bytes:
    """EXIF in hexadecimal, as ImageMagick writes it into a text: an empty line, the name, the length, the digits."""
    key, _, value = text.partition(b"\0")
    if key not in RAW_PROFILES:
        return b""
    lines = (_inflated(value[1:]) if kind == b"zTXt" else value).split(b"\n", 3)
    try:
        return bytes.fromhex(lines[-1].decode("ascii"))
    except ValueError:
        return b""


def _inflated(stream: bytes) -> bytes:
    """What a zlib stream holds; nothing where it is damaged, or holds more than a profile may have."""
    try:
        plain = zlib.decompressobj().decompress(stream, MOST_PROFILE + 1)
    except zlib.error:
        return b""
    return plain if len(plain) <= MOST_PROFILE else b""


# --- JPEG ---


def _jpeg(content: bytes) -> Container:
    kept = [content[:2]]
    profile, parts = dict[int, bytes](), 0
    at, size, exif, scans = 2, (0, 0), b"", False
    for _ in range(MOST_PARTS):
        marker = MARKER.search(content, at)
        if marker is None:
            break
        kind, start = marker[1][0], marker.end()
        at = start + max(2, int.from_bytes(content[start : start + 2], "big"))
        body, segment = content[start + 2 : at], content[start - 2 : at]
        if kind == 0xDA:  # a scan: from here on there are pixels
            kept.append(content[start - 2 :])
            scans = at <= len(content)
            break
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            size = width, height
        if kind == 0xE1 and body.startswith(b"Exif\0"):
            exif = exif or body[6:]
        elif kind == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            parts, profile[body[12]] = body[13], body[14:]
        # Applications' segments and comments are left out, but for the two that say how colours are stored.
        said = (kind == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14) or (
            kind == 0xEE and body[:5] == b"Adobe" and len(body) >= 12
        )
        if said or not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            kept.append(segment)
    if not scans or size == (0, 0):
        raise ValueError("truncated")
    return Container(
        kind="JPEG",
        pixels=b"".join(kept),
        size=size,
        orientation=_orientation(exif),
        profile=b"".join(profile[i] for i in sorted(profile)) if profile and len(profile) == parts else None,
        complete=b"\xff\xd9" in content[-TAIL:],
        lossy="JPEG",
    )


# --- WebP ---


def _webp(content: bytes) -> Container:
    first: dict[bytes, bytes] = {}  # of each kind of chunk
    kept, image = [], b""  # the kind of chunk with the pixels: of an animation, its first frame
    at, end = 12, 8 + int.from_bytes(content[4:8], "little")
    for _ in range(MOST_PARTS):
        if at + 8 > min(end, len(content)):
            break
        kind, length = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        body = content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if len(body) < length:
            break
        first.setdefault(kind, body)
        if not image and kind in (b"VP8X", b"ANIM", b"ALPH", b"ANMF", b"VP8 ", b"VP8L"):
            image = kind if kind in (b"ANMF", b"VP8 ", b"VP8L") else b""
            if kind == b"VP8X":
                body = bytes(b & 0b11010011 for b in body[:1]) + body[1:]  # neither profile, EXIF nor XMP
            kept.append(kind + length.to_bytes(4, "little") + body + b"\0" * (length % 2))
    flags = int.from_bytes(first.get(b"VP8X", b"")[:1], "little")
    lacks_exif = flags & 0b1000 and b"EXIF" not in first and end > len(content)  # nobody knows which side is up
    if not image or lacks_exif:
        raise ValueError("truncated")
    file = b"WEBP" + b"".join(kept)
    if image == b"ANMF":  # its pixels follow 16 bytes, and perhaps a chunk of transparency
        frame = first[image][16:]
        if frame.startswith(b"ALPH"):
            length = int.from_bytes(frame[4:8], "little")
            frame = frame[8 + length + length % 2 :]
        image = frame[:4]
    return Container(
        kind="WEBP",
        pixels=b"RIFF" + len(file).to_bytes(4, "little") + file,
        size=_webp_size(first),
        orientation=_orientation(first.get(b"EXIF", b"")),
        profile=first.get(b"ICCP") or None,
        complete=True,
        lossy="lossy WebP" if image == b"VP8 " else None,
    )


def _webp_size(first: dict[bytes, bytes]) -> tuple[int, int]:
    if b"VP8X" in first:
        width, height = (1 + int.from_bytes(first[b"VP8X"][i : i + 3], "little") for i in (4, 7))
    elif b"VP8L" in first:
        bits = int.from_bytes(first[b"VP8L"][1:5], "little")
        width, height = (1 + (bits >> shift) % 2**14 for shift in (0, 14))
    else:
        width, height = (int.from_bytes(first.get(b"VP8 ", b"")[i : i + 2], "little") % 2**14 for i in (6, 8))
    return width, height


# --- EXIF ---


def _orientation(exif: bytes) -> int:
    """1 to 8; 1, upright, where EXIF does not say it or makes no sense."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4], "")
    if not order:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for i in range(entries):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at + 2 + 12 * i)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], tiff, at + 2 + 12 * i + 8)
                return int(value) if 1 <= value <= 8 else 1
    except (struct.error, KeyError):  # cut off, or of a type that holds no whole number
        return 1
    return 1

"""Emoji as a data set of colour images, drawn from icon sets whose licences let anyone share and change them freely.

The classes are the Unicode groups. Drawings of one emoji by several vendors, and its variants of gender and direction,
are all in the training images or all in the validation images; see `EmojiNames` for how they are recognised.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mvar.data.decoding import decode
from mvar.data.emoji_names import Emoji, EmojiNames
from mvar.data.iconify import NPM_PACKAGE, VERSION, IconSet, read_sets
from mvar.data.progress import track
from mvar.files import atomic_folder
from mvar.validation import number_problems, raise_problems

# SPDX identifiers; with none of them must a changed picture be shared under the same licence.
PERMISSIVE = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "Unlicense"}
VALIDATION_SHARE = 0.1
SUPERSAMPLING = 4  # the edges of shaded shapes, which SVG calls filters, are drawn without antialiasing

Counts = Counter[tuple[str, str, str]]


def emoji(out: str, size: int = 64, source: str | None = None, package_version: str = VERSION) -> Counts:
    """Write emoji as out/train/<class>/<set>-<name>.png, out/val/... and out/LICENCES.md.

    Args:
        out: a new or empty folder; it appears only when complete.
        size: side of the square images in pixels, 8 to 1024.
        source: folder of the unpacked npm package @iconify/json; None downloads it by npm.
        package_version: of the package that is downloaded.

    Returns:
        How many images of which (set, split, class) were written.

    Raises:
        ValueError: resvg-py is not installed, the package cannot be fetched or has no such sets, an icon cannot be
            drawn, or `out` is in use or cannot be written.
    """
    raise_problems(number_problems({"size": size}))
    _resvg()
    counts: Counts = Counter()

    def write(folder: Path) -> None:
        version, sets = read_sets(source, package_version, is_wanted)
        names = EmojiNames(sets)
        jobs = [(icons, name, found) for icons in sets for name in icons.icons if (found := names.find(icons, name))]
        if not jobs:
            raise ValueError(
                f"source = {source!r}: holds no emoji in colour under a permissive licence with Unicode code points; "
                f"give another version of the npm package {NPM_PACKAGE}"
            )
        sides = split([(found, icons.icons[name].svg) for icons, name, found in jobs])
        seen = set()
        with ThreadPoolExecutor() as pool:
            drawn = pool.map(lambda job: draw(job[0], job[1], size), jobs)
            for (icons, name, found), png in zip(jobs, track(drawn, len(jobs), "drawing emoji"), strict=True):
                if png in seen:  # sets share some pictures, and some flags are alike
                    continue
                seen.add(png)
                side = sides[found.family]
                place = folder / side / found.group
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{icons.prefix}-{name}.png").write_bytes(png)
                counts[icons.prefix, side, found.group] += 1
        (folder / "LICENCES.md").write_text(licences(version, sets, counts), encoding="utf-8")

    atomic_folder(out, write)
    return counts


def is_wanted(info: Mapping[str, Any]) -> bool:
    """Whether a set, by its description in the package, is of emoji in colour and under a permissive licence."""
    return (
        (info.get("category") == "Emoji" or "Emoji" in str(info.get("name")))
        and info.get("palette") is True
        and str(_part(info, "license").get("spdx")) in PERMISSIVE
    )


def draw(icons: IconSet, name: str, size: int) -> bytes:
    """One icon on white as a PNG file, RGB, size x size; the same pixels give the same bytes.

    Raises:
        ValueError: it is not valid SVG.
    """
    side = size * SUPERSAMPLING
    try:
        png = _resvg()(
            svg_string=icons.icons[name].svg, width=side, height=side, background="white", skip_system_fonts=True
        )
    except ValueError as error:
        raise ValueError(f"source: the icon {icons.prefix}:{name} cannot be drawn ({error})") from error
    file = io.BytesIO()
    decode(io.BytesIO(png)).reduce(SUPERSAMPLING).save(file, "PNG")
    return file.getvalue()


def split(icons: Sequence[tuple[Emoji, str]]) -> dict[str, str]:
    """Which families of emoji are for training and which for validation.

    A tenth of each class is held out, by the hash of the code points. Families that have the same picture in any set,
    such as the flags of Norway and Svalbard, stay together.

    Args:
        icons: each icon's emoji and SVG document.

    Returns:
        Family to "train" or "val".
    """
    looks: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, str] = {}
    for found, svg in icons:
        looks[svg].add(found.family)
        groups[found.family] = found.group
    together = {family: {family} for family in groups}
    for families in looks.values():
        joined = set().union(*(together[family] for family in families))
        together.update(dict.fromkeys(joined, joined))
    ranked: dict[str, list[tuple[bytes, str]]] = defaultdict(list)
    for first in {min(joined) for joined in together.values()}:
        ranked[groups[first]].append((blake2b(first.encode(), digest_size=8).digest(), first))
    held_out = {
        first
        for families in ranked.values()
        for _, first in sorted(families)[: round(VALIDATION_SHARE * len(families))]
    }
    return {family: "val" if min(joined) in held_out else "train" for family, joined in together.items()}


def licences(version: str, sets: Sequence[IconSet], counts: Counts) -> str:
    """The page that goes with the images: whose they are and under which licence, as the package says."""
    lines = [
        "# Where these images come from",
        "",
        f"Icons of the npm package {NPM_PACKAGE} {version}, drawn as PNG files on white.",
        "What the package says of each set:",
        "",
        "| set | title | author | licence | version | images |",
        "| --- | --- | --- | --- | --- | ---: |",
    ]
    for icons in sets:
        author, licence = _part(icons.info, "author"), _part(icons.info, "license")
        images = sum(n for (prefix, _, _), n in counts.items() if prefix == icons.prefix)
        cells = [
            icons.prefix,
            icons.info.get("name"),
            _link(author.get("name"), author.get("url")),
            _link(f"{licence.get('title')} ({licence['spdx']})", licence.get("url")),
            icons.info.get("version") or "not given",
            images,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _part(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = info.get(key)
    return part if isinstance(part, dict) else {}


def _link(text: str | None, url: str | None) -> str:
    return f"[{text}]({url})" if url else str(text)


def _resvg() -> Callable[..., bytes]:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ValueError('emoji: drawing needs resvg-py; pip install "mvar-torch[emoji]"') from error
    return svg_to_bytes

"""Icons as a data set: black drawings of things on white by concept, from sets whose licences let anyone share them.

Training and validation images are by different designers. Of drawings that are nearly the same only one is taken.

Shapes: N, M drawings; P pixels of a drawing's shape.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from difflib import get_close_matches
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from mvar.data.sets.fetching import NPM_PACKAGE, VERSION
from mvar.data.sets.icon_drawing import draw, is_black_on_white, nearest, resvg, shape_of
from mvar.data.sets.iconify import CONCEPTS, Icon, IconSet, is_wrong, read_sets, split_of
from mvar.data.workers import in_processes
from mvar.files import atomic_folder
from mvar.progress import track
from mvar.settings import Size, check
from mvar.text import Names, some, split_names

SAME = 0.16  # two drawings of one concept that differ by less are one
SEEN = 0.22  # an image for validation that differs by less from one for training is left out
LEAST_SETS, LEAST_TRAINING = 10, 16  # of a concept: sets that draw it, training images

Counts = Counter[tuple[str, str, str]]
Shaped = tuple[Icon, np.ndarray]


def icons(
    out: str,
    size: int = 64,
    concepts: str | None = None,
    source: str | None = None,
    package_version: str = VERSION,
) -> Counts:
    """Write icons as out/train/<concept>/<set>_<name>.png, out/val/... and out/LICENCES.md.

    Args:
        size: side of the square images in pixels.
        concepts: names between commas, as if there were no others; None takes all that have enough icons.
        source: folder of the unpacked npm package @iconify/json; None downloads it by npm.

    Returns:
        The number of images by (set, split, concept).

    Raises:
        ValueError: resvg-py is not installed, a concept is unknown or has too few icons, the package cannot be fetched
            or is damaged, an icon cannot be drawn, or `out` is in use or cannot be written.
    """
    check("size", size, Size)
    wanted = set(CONCEPTS) if concepts is None else _asked(concepts)
    resvg()
    counts: Counts = Counter()

    def write(folder: Path) -> None:
        version, sets = read_sets(source, package_version, wanted)
        chosen = choose(sets)
        missing = wanted - {icon.concept for icon in chosen}
        if missing and (concepts is not None or missing == wanted):
            raise ValueError(
                f"concepts = {concepts!r}: too few icons of {some(sorted(missing))}: a concept needs {LEAST_SETS} sets "
                f"that draw it and {LEAST_TRAINING} training images; leave it out, or give another package"
            )
        jobs = []
        for icon in chosen:
            place = folder / icon.split / icon.concept
            place.mkdir(parents=True, exist_ok=True)
            jobs.append((icon, place / f"{icon.prefix}_{icon.name}.png"))
            counts[icon.prefix, icon.split, icon.concept] += 1
        with closing(in_processes(partial(_write_png, size=size), jobs)) as saved:
            for _ in track(saved, len(jobs), "writing icons"):
                pass
        (folder / "LICENCES.md").write_text(licences(version, sets, counts), encoding="utf-8")

    atomic_folder(out, write)
    return counts


def choose(sets: Sequence[IconSet]) -> list[Icon]:
    """The icons to write, by concept: right pictures, each drawing once, of concepts that have enough."""
    found = [icon for icons in sets for icon in icons.icons if is_black_on_white(icon.body)]
    wrong = {icon.picture for icon in found if is_wrong(icon.concept, icon.prefix, icon.name)}

    def rank(icon: Icon) -> tuple[str, bool, bool, int, str, str]:
        """Of nearly equal drawings the first stays: wrong before right, training before val, short names first."""
        is_right, is_val = icon.picture not in wrong, icon.split == "val"
        return icon.concept, is_right, is_val, len(icon.name), icon.prefix, icon.name

    found.sort(key=rank)
    drawn = zip(found, track(in_processes(shape_of, found), len(found), "comparing icons"), strict=True)
    train: list[Shaped] = []
    val: list[Shaped] = []
    for _, of_one in groupby(drawn, key=lambda shaped: shaped[0].concept):
        kept = [shaped for shaped in _distinct(of_one) if shaped[0].picture not in wrong]
        for_training = [shaped for shaped in kept if shaped[0].split == "train"]
        if len({icon.prefix for icon, _ in kept}) >= LEAST_SETS and len(for_training) >= LEAST_TRAINING:
            train += for_training
            val += [shaped for shaped in kept if shaped[0].split == "val"]
    if val:
        val_NP, train_MP = (np.stack([shape_P for _, shape_P in part]) for part in (val, train))
        _, least_N = nearest(val_NP, train_MP)
        val = [shaped for shaped, least in zip(val, least_N, strict=True) if least >= SEEN]
    return sorted((icon for icon, _ in train + val), key=lambda icon: (icon.concept, icon.prefix, icon.name))


def licences(version: str, sets: Sequence[IconSet], counts: Counts) -> str:
    """The page that goes with the images: their authors and licences, as the package names them."""
    lines = [
        "# Where these images come from",
        "",
        f"Icons of the npm package {NPM_PACKAGE} {version}, drawn as PNG files, black on white.",
        "What the package says of each set, and the part that its images are in:",
        "",
        "| set | title | author | licence | version | images | part |",
        "| --- | --- | --- | --- | --- | ---: | --- |",
    ]
    for icons in sets:
        images = sum(n for (prefix, _, _), n in counts.items() if prefix == icons.prefix)
        author, licence = icons.info.get("author", {}), icons.info["license"]
        cells = [
            icons.prefix,
            icons.info.get("name"),
            _link(author.get("name"), author.get("url")),
            _link(f"{licence.get('title')} ({licence['spdx']})", licence.get("url")),
            icons.info.get("version") or "not given",
            images,
            split_of(icons.prefix),
        ]
        if images:
            lines.append(f"| {' | '.join(' '.join(str(cell).replace('|', '/').split()) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _asked(concepts: str) -> set[str]:
    """The known concepts of these names, between commas."""
    known, names = list(CONCEPTS), Names(CONCEPTS)
    asked = {name: names.find(name) for name in split_names(concepts, "concepts")}
    if unknown := [name for name, places in asked.items() if not places]:
        near = "".join(f"; close: {name}" for name in get_close_matches(unknown[0], known, n=1))
        raise ValueError(f"concepts = {concepts!r}: no concept {unknown[0]!r}{near}")
    if not asked:
        raise ValueError(f"concepts = {concepts!r}: names no concept; leave it out for all")
    return {known[place] for places in asked.values() for place in places}


def _distinct(drawn: Iterable[tuple[Icon, np.ndarray | None]]) -> list[Shaped]:
    """The pictures that differ from all kept before them."""
    kept: list[Shaped] = []
    for icon, shape_P in drawn:
        if shape_P is not None:
            kept_MP = [kept_P for _, kept_P in kept]
            if not kept or nearest(shape_P[None], np.stack(kept_MP))[1][0] >= SAME:
                kept.append((icon, shape_P))
    return kept


def _write_png(job: tuple[Icon, Path], size: int) -> None:
    icon, path = job
    Image.fromarray(draw(icon, size)).save(path)


def _link(text: object, url: object) -> str:
    return f"[{text}]({url})" if url else str(text)

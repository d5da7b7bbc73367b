"""Icon sets of the npm package @iconify/json: hundreds of sets of SVG icons, each with its author and licence.

The package holds collections.json, which lists the sets, and json/<prefix>.json with a set's description and icons.
What an icon shows follows from its name and from lists made by looking: in icon_lists/, lines "key: words", of which
several may have the same key.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvar.data.sets.fetching import NPM_PACKAGE, fetched

BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # where a set gives none
# SPDX identifiers; with none of them must a changed picture be shared under the same licence.
PERMISSIVE = {"MIT", "Apache-2.0", "OFL-1.1", "CC0-1.0", "ISC", "BSD-3-Clause", "Unlicense"}


def _read(name: str) -> dict[str, list[str]]:
    found = defaultdict[str, list[str]](list)
    for line in (Path(__file__).parent / "icon_lists" / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, words = line.split(": ", 1)
            found[key] += words.split()
    return dict(found)


CONCEPTS = _read("concepts.txt")
RULES = _read("rules.txt")
LEFT_OUT, HELD_OUT, STYLE = (frozenset(RULES[key]) for key in ("sets-left-out", "designers-held-out", "style-words"))
LAMPS = tuple(RULES["lamps"])
SIZE = re.compile(r"\d+(px|x\d+)")

_CONCEPT_OF = {name: concept for concept, names in CONCEPTS.items() for name in names}
_DESIGNER_OF = {prefix: designer for designer, sets in _read("designers.txt").items() for prefix in sets}
_WRONG = {concept: re.compile("|".join(patterns)) for concept, patterns in _read("rejects.txt").items()}
_RELABELLED = {
    tuple(key.split(" > ")): re.compile("|".join(patterns)) for key, patterns in _read("relabels.txt").items()
}


def concept_of(prefix: str, name: str) -> str | None:
    """The known concept that the icon `name` of the set `prefix` shows, or None."""
    concept = _CONCEPT_OF.get(plain_name(name))
    for (old, new), pattern in _RELABELLED.items():
        if concept == old and pattern.fullmatch(f"{prefix}/{name}"):
            return None if new == "-" else new
    return concept


def plain_name(name: str) -> str:
    """An icon's name without style, sizes and numbers: "alarm-clock" of "alarm-clock-2-outline-24px"."""
    lamp = next((lamp for lamp in LAMPS if name.startswith(lamp)), "")
    words = [word for word in name[len(lamp) :].split("-") if word not in STYLE and not SIZE.fullmatch(word)]
    bare = [word.rstrip("0123456789") for word in words]
    return "-".join(filter(None, [lamp, *(word for word in bare if word not in STYLE)]))


def picture_of(name: str) -> str:
    """An icon's name without style, which the versions of one picture share."""
    return "-".join(word for word in name.split("-") if word not in STYLE)


def is_wrong(concept: str, prefix: str, name: str) -> bool:
    """Whether an icon, looked at, does not show the concept."""
    pattern = _WRONG.get(concept)
    return pattern is not None and pattern.fullmatch(f"{prefix}/{name}") is not None


def designer_of(prefix: str) -> str:
    """The designer of a set: the sets of one designer have much in common."""
    return _DESIGNER_OF.get(prefix, prefix)


def split_of(prefix: str) -> str:
    """The split of a set's icons: train or val."""
    return "val" if designer_of(prefix) in HELD_OUT else "train"


# --- the package ---


@dataclass(frozen=True)
class Icon:
    """One picture of a set: SVG elements, their view box, and the concept that they show."""

    concept: str
    prefix: str
    name: str
    body: str
    left: float
    top: float
    width: float
    height: float

    @property
    def split(self) -> str:
        """train or val."""
        return split_of(self.prefix)

    @property
    def picture(self) -> tuple[str, str, str]:
        """A key that a designer's thin, filled or outlined versions of one picture share."""
        return self.concept, designer_of(self.prefix), picture_of(self.name)


@dataclass(frozen=True)
class IconSet:
    """A set's short name, its description in the package (author, license, ...), and its icons sorted by name."""

    prefix: str
    info: dict[str, Any]
    icons: list[Icon]


def read_sets(source: str | None, version: str, concepts: Collection[str]) -> tuple[str, list[IconSet]]:
    """Read the package's version, and the icons of these concepts in the wanted sets, sorted by prefix.

    Icons that their set hides as outdated, or defines by turning or mirroring others, are left out.

    Args:
        source: an unpacked package; None fetches it by npm, and deletes it after use.
        version: to be fetched, or a tag of npm such as "latest".

    Raises:
        ValueError: the package cannot be fetched, or is not what it should be.
    """
    if source is None:
        script = 'npm pack "$1" --loglevel error && tar -xzf *.tgz'
        named = f"package_version = {version!r}: the npm package {NPM_PACKAGE}"
        fix = "install npm and check the network, or give --source DIR with the unpacked package"
        with fetched(script, f"{NPM_PACKAGE}@{version}", named, fix) as folder:
            return read_sets(str(folder / "package"), version, concepts)
    sets = []
    path = Path(source, "package.json")
    try:
        version = json.loads(path.read_bytes())["version"]
        path = Path(source, "collections.json")
        for prefix in sorted(json.loads(path.read_bytes())):
            path = Path(source, "json", f"{prefix}.json")
            data = json.loads(path.read_bytes())
            if is_wanted(prefix, data["info"]):
                sets.append(IconSet(prefix, data["info"], _icons(prefix, data, concepts)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"source: {str(path)!r} is missing or damaged ({error}); give a whole copy of the npm package {NPM_PACKAGE}"
        ) from error
    return version, sets


def is_wanted(prefix: str, info: Mapping[str, Any]) -> bool:
    """Whether a set, by its description in the package, shows things in one colour under a permissive licence."""
    return prefix not in LEFT_OUT and not info.get("palette") and info["license"].get("spdx") in PERMISSIVE


def _icons(prefix: str, data: Mapping[str, Any], concepts: Collection[str]) -> list[Icon]:
    box = {key: data.get(key, default) for key, default in BOX.items()}
    return [
        Icon(concept, prefix, name, icon["body"], *(float((box | icon)[key]) for key in BOX))
        for name, icon in sorted(data["icons"].items())
        if (concept := concept_of(prefix, name)) is not None
        and concept in concepts
        and not any(icon.get(key) for key in ("hidden", "rotate", "hFlip", "vFlip"))
    ]

"""What an icon shows, by its name and by lists made by looking at it, and who designed its set.

The files in icon_lists/ have lines "key: words"; several lines of one key go together.
"""

import re
from collections import defaultdict
from pathlib import Path


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

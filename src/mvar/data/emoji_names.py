"""Which emoji an icon shows, whatever its set calls it: the Unicode code points, and the group they belong to.

Sets that give code points are the reference. Icons of other sets are found by name: the names and aliases of the
reference sets, and the official Unicode names.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mvar.data.iconify import IconSet

GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
    "flags",
)
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
DRAWING = re.compile(r"-\d+$")  # the number of one of several drawings
LATER_DRAWING = re.compile(r"-(?!1$)\d+$")
JOINER, EMOJI_STYLE = "200d", "fe0f"
SIGNS = {"2640", "2642", "27a1"}  # joined to another emoji: female, male, facing right
# Woman, man and person; girl, boy and child; old woman, old man and older person; couples.
PERSONS = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3", "1f475": "1f9d3"}
PERSONS |= {"1f46c": "1f46b", "1f46d": "1f46b"}


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        code: its code points in hexadecimal, joined by "-", without the sign for emoji style.
        group: one of GROUPS.
    """

    code: str
    group: str

    @property
    def family(self) -> str:
        """The code without gender and direction: emoji of one family are often drawn nearly or wholly alike."""
        return "-".join(PERSONS.get(point, point) for point in self.code.split("-") if point not in SIGNS | {JOINER})


class EmojiNames:
    """Finds the emoji of an icon.

    Skin-tone variants and emoji outside the Unicode groups are not found, so that they are left out.
    """

    def __init__(self, sets: Sequence[IconSet]) -> None:
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        self._codes: dict[str, str] = {}
        for icons in sets:
            for name, code in icons.codes.items():
                group = _slug(icons.categories.get(name, ""))
                if group in GROUPS:
                    groups[_plain_code(code)][group] += 1
            for name in [*icons.codes, *icons.aliases]:
                if (parent := icons.aliases.get(name, name)) in icons.codes:
                    self._codes.setdefault(_slug(name, ""), _plain_code(icons.codes[parent]))
        self._emoji = {
            code: Emoji(code, max(GROUPS, key=votes.__getitem__))  # of groups with as many votes, the first
            for code, votes in groups.items()
            if SKIN_TONES.isdisjoint(code.split("-"))
        }
        for code in self._emoji:
            if "-" not in code:
                self._codes.setdefault(_slug(unicodedata.name(chr(int(code, 16)), code), ""), code)

    def find(self, icons: IconSet, name: str) -> Emoji | None:
        """The emoji that an icon shows, or None."""
        if name in icons.codes:
            return self._emoji.get(_plain_code(icons.codes[name]))
        others = [alias for alias, parent in icons.aliases.items() if parent == name]
        candidates = (self._codes.get(_slug(way, "")) for way in _ways(icons, [name, *others]))
        found = self._emoji.get(next(filter(None, candidates), ""))
        if found and found.group == "people-body" and LATER_DRAWING.search(name):
            return None  # the same person in another skin tone
        return found


def _ways(icons: IconSet, names: Iterable[str]) -> Iterator[str]:
    """Ways to write an icon's name, the likeliest first."""
    for name in names:
        yield name
        yield DRAWING.sub("", name)
        if icons.categories.get(name) == "Flags":
            bare = re.sub(r"^(flag-for-)+(flag-)?", "", name)
            yield f"flag-{bare}"
            yield bare


def _plain_code(code: str) -> str:
    return "-".join(point for point in code.lower().split("-") if point != EMOJI_STYLE)


def _slug(name: str, separator: str = "-") -> str:
    """Lower-case ASCII letters and digits, words joined by the separator."""
    return separator.join(re.findall(r"[a-z0-9]+", name.lower()))

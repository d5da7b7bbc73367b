"""Text from users and files: names of classes and files, how they are compared and how they are shown."""

import csv
import io
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable

MOST_SHOWN = 500  # characters of a message's line
# Invisible text directions, which can make a name look like another one.
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(name: str) -> str:
    """A name as it is compared and stored: NFC, no byte order mark, single spaces inside and none around."""
    return " ".join(unicodedata.normalize("NFC", name.replace("\ufeff", "")).split())


def split_names(text: str, field: str) -> list[str]:
    """Names between commas, as in a line of CSV: a name with a comma is in double quotes. Empty names are left out.

    Args:
        text: the names.
        field: the option that gave them, for the message.

    Raises:
        ValueError: a double quote is not closed, or something follows it.
    """
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise ValueError(f"{field} = {text!r}: close each name in double quotes, with a comma after it") from error
    return [name.strip() for name in names if name.strip()]


def join_names(names: Iterable[str]) -> str:
    """The inverse of `split_names`."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def shown(text: str, most: int | None = None) -> str:
    """Text that is safe to print: control characters and undecodable bytes are escaped, line breaks stay.

    Args:
        most: characters per line; the middle of a longer one is left out. None keeps all.
    """
    safe = "".join(c if _printable(c) else c.encode("unicode_escape").decode() for c in text)
    return safe if most is None else "\n".join(_cut(line, most) for line in safe.split("\n"))


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 image, 2 images, 3 classes."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def some(names: Collection[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most:,} more"


class Names:
    """Finds names in a list, tolerant of case and spacing."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact, self._folded = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
        for index, name in enumerate(map(clean, names)):
            self._exact[name].append(index)
            self._folded[name.casefold()].append(index)

    def find(self, name: str) -> list[int]:
        """Indices of the names equal to this one once cleaned; if there are none, of those that differ in case only."""
        name = clean(name)
        return self._exact.get(name) or self._folded.get(name.casefold()) or []


def _printable(c: str) -> bool:
    return c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in DIRECTIONS)


def _cut(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most * 2 // 3]} ... {line[-(most // 3) :]}"

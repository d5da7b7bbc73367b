"""Text from users and files: names of classes and files, how they are compared and how they are shown."""

import csv
import io
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

MOST_SHOWN = 500  # characters of a message's line


def clean(name: str) -> str:
    """A name as it is compared and stored: NFC, no byte order mark, single spaces inside and none around."""
    return " ".join(unicodedata.normalize("NFC", name.replace("\ufeff", "")).split())


def split_names(text: str, field: str) -> list[str]:
    """Names between commas, as in a line of CSV: a name with a comma is in double quotes. Empty names are left out.

    Raises:
        ValueError: a double quote is not closed, or something follows it; `field` names the option.
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

    The middle of a line with more than `most` characters is left out.
    """
    safe = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    if most is None:
        return safe
    lines = safe.split("\n")
    return "\n".join(
        line if len(line) <= most else f"{line[: most * 2 // 3]} ... {line[-(most // 3) :]}" for line in lines
    )


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 image, 2 images, 3 classes."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def some(names: Collection[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most:,} more"


def listed(names: Sequence[str]) -> str:
    """All names: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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

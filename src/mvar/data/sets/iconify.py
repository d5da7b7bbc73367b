"""Icon sets of the npm package @iconify/json: hundreds of sets of SVG icons, each with its author and licence.

The package holds collections.json, which lists the sets, and json/<prefix>.json with a set's description and icons.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvar.data.sets.fetching import NPM_PACKAGE, fetched
from mvar.data.sets.icon_rules import LEFT_OUT, concept_of, designer_of, picture_of, split_of

BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # where a set gives none
# SPDX identifiers; with none of them must a changed picture be shared under the same licence.
PERMISSIVE = {"MIT", "Apache-2.0", "OFL-1.1", "CC0-1.0", "ISC", "BSD-3-Clause", "Unlicense"}


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
    """One set of icons.

    Attributes:
        prefix: the set's short name.
        info: its description in the package: name, author, license, ...
        icons: sorted by name, without those that the set hides as outdated or defines by turning or mirroring others.
    """

    prefix: str
    info: dict[str, Any]
    icons: list[Icon]


def read_sets(source: str | None, version: str, concepts: Collection[str]) -> tuple[str, list[IconSet]]:
    """Read the package's version, and the icons of these concepts in the wanted sets, sorted by prefix.

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

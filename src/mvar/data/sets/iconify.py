"""Icon sets of the npm package @iconify/json: hundreds of sets of SVG icons, each with its author and licence.

The package holds collections.json, which lists the sets, and json/<prefix>.json with a set's description and icons.
"""

import json
import re
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mvar.files import read_bounded

NPM_PACKAGE = "@iconify/json"
VERSION = "2.2.535"  # whose icons docs/data.md counts
DESCRIPTION, COLLECTIONS = "package.json", "collections.json"
MOST_BYTES = 300_000_000  # of a file; the largest has a third of that
BOX = ("left", "top", "width", "height")
ICON_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
FIX = f"give a whole copy of the npm package {NPM_PACKAGE}"


@dataclass(frozen=True)
class Icon:
    """One picture: SVG elements, and their view box."""

    prefix: str
    name: str
    body: str
    left: float
    top: float
    width: float
    height: float

    def __post_init__(self) -> None:
        for name in (self.prefix, self.name):
            if not ICON_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a name of a set or an icon")
        if not isinstance(self.body, str) or not (0 < self.width < MOST_BYTES and 0 < self.height < MOST_BYTES):
            raise ValueError(f"{self.name!r} has no SVG text or no size")


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


def read_sets(
    source: str | None,
    version: str,
    is_wanted: Callable[[str, Mapping[str, Any]], bool],
    is_named: Callable[[str, str], bool],
) -> tuple[str, list[IconSet]]:
    """Read the package's version, and the wanted icons of the wanted sets, sorted by prefix.

    Args:
        source: an unpacked package; None fetches it by npm, and deletes it after use.
        version: to be fetched, or a tag of npm such as "latest".
        is_wanted: chooses sets by prefix and description.
        is_named: chooses icons by the set's prefix and the icon's name.

    Raises:
        ValueError: the package cannot be fetched, or is not what it should be.
    """
    given: dict[str, dict[str, Any]] = {}
    sets: dict[str, IconSet | None] = {}
    for name, content in _files(source, version):
        data = _json(name, content)
        if name in (DESCRIPTION, COLLECTIONS):
            given[name] = data
            continue
        prefix = PurePosixPath(name).stem
        try:
            sets[prefix] = _icon_set(prefix, data, is_named) if is_wanted(prefix, data["info"]) else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"source: {name!r} is not a set of icons ({error}); {FIX}") from error
    missing = [name for name in (DESCRIPTION, COLLECTIONS) if name not in given]
    missing += [f"json/{prefix}.json" for prefix in sorted(given.get(COLLECTIONS, {})) if prefix not in sets]
    if missing:
        raise ValueError(f"source = {source!r}: {missing[0]} is missing; {FIX}")
    return str(given[DESCRIPTION].get("version")), [found for _, found in sorted(sets.items()) if found is not None]


def _icon_set(prefix: str, data: Mapping[str, Any], is_named: Callable[[str, str], bool]) -> IconSet:
    box = {"left": 0, "top": 0, "width": 16, "height": 16} | {key: data[key] for key in BOX if key in data}
    icons = [
        Icon(prefix, name, icon["body"], *(float((box | icon)[key]) for key in BOX))
        for name, icon in sorted(data["icons"].items())
        if is_named(prefix, name) and not any(icon.get(key) for key in ("hidden", "rotate", "hFlip", "vFlip"))
    ]
    return IconSet(prefix, data["info"], icons)


def _files(source: str | None, version: str) -> Iterator[tuple[str, bytes]]:
    """The package's JSON files by their names: of a folder, or of a download that is deleted after use."""
    if source is None:
        yield from _download(version)
        return
    for path in (Path(source, DESCRIPTION), Path(source, COLLECTIONS), *sorted(Path(source, "json").glob("*.json"))):
        try:
            content = read_bounded(path, MOST_BYTES)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"source = {source!r}: {str(path)!r} cannot be read ({reason}); {FIX}") from error
        yield path.relative_to(source).as_posix(), content


def _download(version: str) -> Iterator[tuple[str, bytes]]:
    """The files in the order of the archive, which has 100 MB, and five times that unpacked."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", f"{NPM_PACKAGE}@{version}", "--loglevel", "error"]
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=1800)
            with tarfile.open(next(Path(scratch).glob("*.tgz")), "r:gz") as tar:
                for member in tar:
                    name = member.name.removeprefix("package/")
                    is_set = PurePosixPath(name).match("json/*.json")
                    file = tar.extractfile(member) if is_set or name in (DESCRIPTION, COLLECTIONS) else None
                    if file is not None and member.size <= MOST_BYTES:
                        yield name, file.read()
        except (OSError, subprocess.SubprocessError, StopIteration, tarfile.TarError, EOFError, zlib.error) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").splitlines()
            raise ValueError(
                f"package_version = {version!r}: the npm package {NPM_PACKAGE} could not be downloaded "
                f"({' '.join(said[:2]) or error}); install npm and check the network, or give --source DIR with the "
                "unpacked package"
            ) from error


def _json(name: str, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source: {name!r} cannot be read as JSON ({error}); {FIX}") from error
    if not isinstance(data, dict):
        raise ValueError(f"source: {name!r} is not a JSON object; {FIX}")
    return data

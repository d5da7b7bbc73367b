"""Icon sets of the npm package @iconify/json: hundreds of sets of SVG icons, each with its author and licence.

The package holds collections.json, which describes every set, and json/<prefix>.json with a set's icons.
"""

import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NPM_PACKAGE = "@iconify/json"
VERSION = "2.2.535"  # whose images docs/data.md counts and the packaged model has seen
COLLECTIONS = "collections.json"
BOX = ("left", "top", "width", "height")
CODE_POINTS = re.compile(r"[0-9a-f]{1,5}(-[0-9a-f]{1,5})*")
ICON_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Icon:
    """One picture: SVG elements, and the box that they are seen through, in their own units."""

    body: str
    left: float
    top: float
    width: float
    height: float

    @property
    def svg(self) -> str:
        """The picture as an SVG document, centred in a square."""
        side = max(self.width, self.height)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{side}" height="{side}" viewBox="{self.left} {self.top} {self.width} {self.height}">'
            f"{self.body}</svg>"
        )


@dataclass(frozen=True)
class IconSet:
    """One set of icons.

    Attributes:
        prefix: the set's short name.
        info: what collections.json says of it: name, author, license, ...
        icons: by name; those that the set hides, as outdated, are left out.
        codes: icon name to its Unicode code points in hexadecimal, joined by "-"; empty where the set gives none.
        aliases: other names to icon names.
        categories: icon name to category.
    """

    prefix: str
    info: dict[str, Any]
    icons: dict[str, Icon]
    codes: dict[str, str]
    aliases: dict[str, str]
    categories: dict[str, str]

    @classmethod
    def read(cls, package: Path, prefix: str, info: dict[str, Any]) -> "IconSet":
        """Read one set of an unpacked package.

        Raises:
            ValueError: its file is missing or not what it should be.
        """
        path = package / "json" / f"{prefix}.json"
        data = _json(path)
        try:
            box = {"left": 0, "top": 0, "width": 16, "height": 16} | {key: data[key] for key in BOX if key in data}
            icons = {
                name: _icon(name, box | icon) for name, icon in sorted(data["icons"].items()) if not icon.get("hidden")
            }
            codes = {name: code for code, name in sorted(data.get("chars", {}).items())}
            if wrong := [code for code in codes.values() if not CODE_POINTS.fullmatch(code)]:
                raise ValueError(f"{wrong[0]!r} are no code points")
            return cls(
                prefix,
                info,
                icons,
                codes,
                # An alias with a transformation is another picture, not another name.
                aliases={
                    name: str(alias["parent"])
                    for name, alias in data.get("aliases", {}).items()
                    if set(alias) == {"parent"}
                },
                categories={name: group for group, names in data.get("categories", {}).items() for name in names},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"source: {str(path)!r} is not a set of icons ({error}); get the package anew") from error


def read_sets(
    source: str | None, version: str, wanted: Callable[[Mapping[str, Any]], bool]
) -> tuple[str, list[IconSet]]:
    """Read the icon sets whose description in collections.json is wanted.

    Args:
        source: an unpacked package; None fetches it by npm, and deletes it after use.
        version: to be fetched, or what npm knows as such: "latest".
        wanted: says so of a set.

    Returns:
        The package's version and the sets in the order of their prefixes; none where nothing is wanted.

    Raises:
        ValueError: the package cannot be fetched, or is not what it should be.
    """
    with _package(source, version, wanted) as package:
        found = str(_json(package / "package.json").get("version", "unknown"))
        infos = _wanted(_json(package / COLLECTIONS), wanted)
        return found, [IconSet.read(package, prefix, info) for prefix, info in infos.items()]


def _wanted(collections: Mapping[str, Any], wanted: Callable[[Mapping[str, Any]], bool]) -> dict[str, dict[str, Any]]:
    return {
        prefix: info
        for prefix, info in sorted(collections.items())
        if ICON_NAME.fullmatch(prefix) and isinstance(info, dict) and wanted(info)
    }


def _icon(name: str, content: Mapping[str, Any]) -> Icon:
    """Check one icon of a set's file."""
    if not ICON_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no icon's name")
    icon = Icon(content["body"], *(float(content[key]) for key in BOX))
    if not isinstance(icon.body, str) or not (icon.width > 0 and icon.height > 0):
        raise ValueError(f"{name!r} has no SVG text or no size")
    return icon


@contextmanager
def _package(source: str | None, version: str, wanted: Callable[[Mapping[str, Any]], bool]) -> Iterator[Path]:
    """The unpacked package: the folder named, or a download that is deleted after use."""
    if source is not None:
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", f"{NPM_PACKAGE}@{version}", "--loglevel", "error"]
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=1800)
            _unpack(next(Path(scratch).glob("*.tgz")), Path(scratch), wanted)
        except (OSError, subprocess.SubprocessError, StopIteration, tarfile.TarError, EOFError, KeyError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").splitlines()
            raise ValueError(
                f"source = None: the npm package {NPM_PACKAGE}@{version} could not be downloaded "
                f"({' '.join(said[:2]) or error}); install npm and check the network, or give --source DIR with the "
                "unpacked package"
            ) from error
        yield Path(scratch)


def _unpack(archive: Path, folder: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Take what is needed out of the archive: it is 100 MB, and five times that unpacked."""
    with tarfile.open(archive, "r:gz") as tar:

        def take(name: str) -> Path:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            member = tar.extractfile(f"package/{name}")
            path.write_bytes(member.read() if member else b"")
            return path

        take("package.json")
        for prefix in _wanted(_json(take(COLLECTIONS)), wanted):
            take(f"json/{prefix}.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(
            f"source: {str(path)!r} does not exist; give the folder of the unpacked npm package {NPM_PACKAGE}"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"source: {str(path)!r} cannot be read as JSON ({error}); get the package anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"source: {str(path)!r} is not a JSON object; get the package anew")
    return content

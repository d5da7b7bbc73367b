"""YAML files with options."""

import os
import stat
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import yaml

from mvar.options.fields import Option
from mvar.settings import raise_problems

MOST_BYTES, MOST_DEPTH = 2**20, 16  # of a YAML file
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def as_typed(value: Any) -> str:
    """A value in one line, as a user would type it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_typed(item)}" for key, item in value.items()) + "}"
    many = isinstance(value, (list, tuple))
    return "[" + ", ".join(map(as_typed, value)) + "]" if many else " ".join(str(value).split())


class _Text(yaml.BaseLoader):
    """YAML whose scalars stay text; a key that is given twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key, problem = self.construct_object(key_node, deep=True), None
            if not isinstance(key, str):
                problem = "has a key that is not text"
            elif key in seen:
                problem = f"{key} is given twice; leave one out"
            if problem is not None:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Values of YAML, all of them text, in lists and mappings.

    Raises:
        yaml.MarkedYAMLError: with the line of what is wrong.
    """
    depth = 0
    for token in yaml.scan(text):  # which reads on only as far as it is asked
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        problem = f"is nested deeper than {MOST_DEPTH} levels" if depth > MOST_DEPTH else None
        if isinstance(token, (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)):
            problem = "has an anchor, an alias or a tag, which are not read; write the value out"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=token.start_mark)
    return yaml.load(text, _Text)


def read_yaml(path: str, options: Mapping[str, Option]) -> dict[str, Any]:
    """The values of options that a YAML file holds, by name.

    Raises:
        ValueError: a line for each thing that is wrong, with the file's name.
    """
    groups = {name.rpartition(".")[0] for name in options} - {""}
    found: dict[str, Any] = {}
    problems = []
    try:
        for name, value in _named(_values(path), groups):
            if name in found:
                problems.append(f"{name} is given twice; leave one out")
            elif name in groups:
                problems.append(f"{name} = {as_typed(value)}: give its options by name")
            elif name not in options:
                near = "".join(f"; close: {one}" for one in get_close_matches(name, list(options), n=1))
                problems.append(f"{name} = {as_typed(value)}: no such option{near}")
            found[name] = value
        raise_problems(problems)
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise ValueError("\n".join(f"--config {path}: {line}" for line in _reason(error).split("\n"))) from error
    return found


def _values(path: str) -> dict[str, Any]:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever, a device never end
        raise ValueError("is not a file; give a YAML file")
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES:,} bytes; give a file with options")
    values = parse_yaml(content.decode("utf-8-sig"))
    if not isinstance(values, dict):
        held = "a list" if isinstance(values, list) else "text" if values else "nothing"
        raise ValueError(f"holds {held}, expected options by name")
    return values


def _reason(error: Exception) -> str:
    """What is wrong with a file, in one line or several."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror}); give a YAML file"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        why = ", ".join(filter(None, (error.context, error.problem)))
        return f"line {error.problem_mark.line + 1}: {why}; fix the file"
    if isinstance(error, (UnicodeDecodeError, yaml.YAMLError)):
        return f"is not YAML ({' '.join(str(error).split())}); give a YAML file"
    return str(error)


def _named(values: Mapping[str, Any], groups: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a mapping and of the groups in it."""
    for key, value in values.items():
        name = prefix + key.replace("-", "_")
        if isinstance(value, dict) and name in groups:
            yield from _named(value, groups, f"{name}.")
        else:
            yield name, value

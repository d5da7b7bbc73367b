"""YAML files with options."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from mvar.options.fields import Option
from mvar.settings import raise_problems


def as_typed(value: Any) -> str:
    """A value in one line, as a user would type it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_typed(item)}" for key, item in value.items()) + "}"
    many = isinstance(value, (list, tuple))
    return "[" + ", ".join(map(as_typed, value)) + "]" if many else " ".join(str(value).split())


class _Text(yaml.BaseLoader):
    """YAML whose scalars stay text; a key that is given twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key_node, _ in node.value:
            if keys.count(key_node.value) > 1:
                problem = f"{key_node.value} is given twice; leave one out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Values of YAML, all of them text, in lists and mappings.

    Raises:
        yaml.YAMLError: what is wrong.
    """
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
    values = parse_yaml(Path(path).read_text(encoding="utf-8-sig"))
    if not isinstance(values, dict):
        raise ValueError("holds no options by name; give a YAML file with lines such as  steps: 100")
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

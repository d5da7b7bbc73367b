"""The value of an option, from text: what a user types and what a YAML file holds mean the same."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter

from mvar.options.fields import REQUIRED, Option
from mvar.options.files import as_typed, parse_yaml
from mvar.text import join_names

NULL = "null"
NAMES = ("labels", "reports", "against", "concepts")  # text with names between commas: a YAML list joins them
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
PLURALS = {int: "whole numbers", float: "numbers", bool: "some of true, false"}
METAVARS = {int: "INT", float: "NUMBER", bool: "BOOL", str: "TEXT"}


def read(option: Option, value: Any) -> Any:
    """The value of an option: text as typed, a switch, or what a YAML file holds there, whose scalars are text too.

    Raises:
        ValueError: one line with the option, the value and what it takes.
    """
    kinds, given = kinds_of(option.hint), value
    if value == "" and kinds == [str]:
        raise ValueError(f"{option.name} = '': is empty; give a value, or leave it out")
    try:
        if isinstance(value, bool) or (value == NULL and option.default in (None, REQUIRED)):
            return None if value == NULL else value
        if kinds == [str]:
            return _text(option, value)
        if isinstance(value, str) and any(map(_is_list, kinds)):
            value = _split(value, always=all(map(_is_list, kinds)))
        return TypeAdapter(_unruled(option.hint)).validate_python(value)
    except (ValueError, yaml.YAMLError):
        raise ValueError(f"{option.name} = {as_typed(given)}: give {expected(option.hint)}") from None


def _split(text: str, always: bool) -> Any:
    """1,2,[3,4] as a list; text without a comma stays as it is, unless an option takes nothing but lists."""
    if text.lstrip().startswith("["):
        return parse_yaml(text)
    return parse_yaml(f"[{text}]") if always or "," in text else text


def _text(option: Option, value: Any) -> str:
    """Text that can name a file or a class."""
    if option.name in NAMES and isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = join_names(value)
    if not isinstance(value, str):
        raise ValueError
    return value


def kinds_of(hint: Any) -> list[Any]:
    """The types that a declared type allows, None apart."""
    if get_origin(hint) is Annotated:
        return kinds_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for member in get_args(hint) for kind in kinds_of(member)]
    return [] if hint is type(None) else [hint]


def _unruled(hint: Any) -> Any:
    """A type without the rules of settings, which take no text."""
    inner = get_args(hint)
    if get_origin(hint) is Annotated:
        return _unruled(inner[0])
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(_unruled, inner))]  # noqa: UP007
    return (
        get_origin(hint)[tuple(part if part is ... else _unruled(part) for part in inner)] if _is_list(hint) else hint
    )


def expected(hint: Any) -> str:
    """What an option takes, in the words of a user: "a number or numbers with commas between them"."""
    return " or ".join(dict.fromkeys(map(_described, kinds_of(hint))))


def _described(kind: Any) -> str:
    inner, is_list = _inner(kind), _is_list(kind)
    choices = ", ".join(map(str, get_args(inner))) if get_origin(inner) is Literal else ""
    if not is_list:
        return f"one of {choices}" if choices else WORDS[inner]
    many = f"some of {choices}" if choices else PLURALS[inner]
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        many = f"{len(get_args(kind))} {many}"
    pair = ", [height,width] for a pair" if any(map(_is_list, kinds_of(get_args(kind)[0]))) else ""
    return f"{many} with commas between them{pair}"


def metavar(hint: Any) -> str:
    """What stands for a value in --help: INT, or INT,... where several are taken."""
    kinds = kinds_of(hint)
    inner = [_inner(kind) for kind in kinds]
    words = ["|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else METAVARS[kind] for kind in inner]
    return "|".join(dict.fromkeys(words)) + (",..." if any(map(_is_list, kinds)) else "")


def _inner(kind: Any) -> Any:
    return kinds_of(get_args(kind)[0])[0] if _is_list(kind) else kind


def _is_list(kind: Any) -> bool:
    return isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Sequence)

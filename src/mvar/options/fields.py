"""The options of a command: the arguments of its function, and the fields of the settings among them."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from docstring_parser import parse

REQUIRED: Any = inspect.Parameter.empty


class Given(NamedTuple):
    """Marks an argument that takes, as a dict, those fields of a settings class that the user gave."""

    settings: type


class Option(NamedTuple):
    """One option: its name, "per_class" or "model.depth", declared type, default or REQUIRED, and help."""

    name: str
    hint: Any
    default: Any
    help: str


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The options of a function, by name: its arguments, with the fields of those that are settings.

    Keyword-only arguments are not the user's.
    """
    helps, found = _helps(function), []
    for name, argument in _arguments(function).items():
        if (cls := _settings(argument.annotation)) is None:
            found.append(Option(name, argument.annotation, argument.default, helps.get(name, "")))
        else:
            fields = _fields(cls)
            found += [o._replace(default=None) for o in fields] if _given(argument.annotation) else fields
    return {option.name: option for option in found}


def call(function: Callable[..., Any], values: Mapping[str, Any], **extra: Any) -> Any:
    """Call a function with the values of its options, and with the keyword-only arguments that it has among `extra`.

    Raises:
        ValueError: a line for each setting that is wrong.
    """
    arguments: dict[str, Any] = {}
    for name, argument in _arguments(function).items():
        if (cls := _settings(argument.annotation)) is None:
            arguments |= {name: values[name]} if name in values else {}
            continue
        fields = nested({o.name: values[o.name] for o in _fields(cls) if o.name in values})
        made = cls(**fields)
        arguments[name] = fields if _given(argument.annotation) else made
    own = inspect.signature(function).parameters
    return function(**arguments, **{name: value for name, value in extra.items() if name in own})


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"model.depth": 4} as {"model": {"depth": 4}}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The reverse of `nested`; settings are taken apart too."""
    for key, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            written = value.written() if hasattr(value, "written") else dataclasses.asdict(value)
            yield from flat(written, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plain(values: Any) -> Any:
    """Values as YAML writes them."""
    if isinstance(values, Mapping):
        return {key: plain(value) for key, value in values.items()}
    return list(map(plain, values)) if isinstance(values, (list, tuple)) else values


def _settings(hint: Any) -> type | None:
    """The settings class that an argument takes, or takes the given fields of."""
    if (mark := _given(hint)) is not None:
        return mark.settings
    return hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None


def _given(hint: Any) -> Given | None:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Given)), None)


@cache
def _arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(function, include_extras=True)
    own = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.KEYWORD_ONLY]
    return {one.name: one.replace(annotation=hints[one.name]) for one in own}


@cache
def _fields(cls: Any, prefix: str = "") -> list[Option]:
    """The fields of a settings class as options, those that are settings themselves taken apart."""
    hints, found = get_type_hints(cls, include_extras=True), []
    helps = {name: text for base in reversed(cls.__mro__) for name, text in _helps(base).items()}
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += _fields(hint, f"{name}.")  # type: ignore[arg-type]
            continue
        default = field.default if field.default is not dataclasses.MISSING else REQUIRED
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Option(name, hint, default, helps.get(field.name, "")))
    return found


def _helps(documented: Any) -> dict[str, str]:
    """What a docstring says of arguments or attributes."""
    return {one.arg_name: " ".join((one.description or "").split()) for one in parse(documented.__doc__ or "").params}

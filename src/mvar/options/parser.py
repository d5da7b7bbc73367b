"""A command and its options as cyclopts takes them."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import yaml
from cyclopts import Parameter
from docstring_parser import parse

from mvar.options.fields import REQUIRED, Option, call, nested, options_of, plain
from mvar.options.files import as_typed, read_yaml
from mvar.options.values import kinds_of, metavar, read
from mvar.output import refuse
from mvar.settings import checked

Defaults = Callable[[Mapping[str, Any]], dict[str, Any]]


def runner(
    name: str, function: Callable[..., None], defaults: Defaults | None, positional: bool, words: Sequence[str]
) -> Callable[..., None]:
    """A command as cyclopts takes it: what it accepts follows from the function's options.

    Args:
        name: of the command.
        function: does the work.
        defaults: what options start from, by those that were given; None where that is fixed.
        positional: whether what is required is given without an option's name.
        words: as typed, for the defaults that --help shows.
    """
    typed = _typed(words) if defaults is not None and HELP & {*words} else {}
    start = defaults(typed) if defaults is not None and typed else {}

    def run(*placed: str, **typed: Any) -> None:
        _run(name, function, defaults, placed if positional else None, typed)

    options = _parameters(function, start, positional)
    run.__signature__ = inspect.Signature([*options, *COMMON])  # type: ignore[attr-defined]
    return run


def description(function: Callable[..., None]) -> str:
    """What a function's docstring says before its arguments."""
    return parse(function.__doc__ or "").description or ""


def _typed(words: Sequence[str]) -> dict[str, str]:
    """Options that were typed with a value, as far as one can tell without knowing them."""
    found = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--") and (equals or not following.startswith("-")):
            found[name[2:].replace("-", "_")] = value if equals else following
    return found


def _parameters(
    function: Callable[..., None], start: Mapping[str, Any], positional: bool
) -> Iterator[inspect.Parameter]:
    """A command's options as the parser takes them; values stay text until all are known."""
    for option in options_of(function).values():
        default = start.get(option.name, option.default)
        yield _parameter(option.name, option.hint, option.help, default, positional and option.default is REQUIRED)


def _parameter(name: str, hint: Any, help: str, default: Any = None, positional: bool = False) -> inspect.Parameter:
    more: dict[str, Any] = {"negative": ""}
    if kinds_of(hint) != [bool]:  # not a switch
        more |= {"converter": _text, "n_tokens": 1, "metavar": metavar(hint)}  # the last of several wins
        more |= {"converter": _texts} if name == "config" else {}  # which may be repeated
    if name.startswith("model."):
        more["group"] = "Options of the model"
    parameter = Parameter(
        name=None if positional else f"--{name.replace('_', '-')}",
        help=f"{help} [required]" if default is REQUIRED else help,
        show_default=False if default in (None, False, REQUIRED, ()) else lambda _: as_typed(default),
        required=False,
        allow_repeating=True,
        **more,
    )
    kind = inspect.Parameter.POSITIONAL_ONLY if positional else inspect.Parameter.KEYWORD_ONLY
    plain: Any = bool | None if kinds_of(hint) == [bool] else list[str] | None if name == "config" else Any
    return inspect.Parameter(name.replace(".", DOT), kind, default=None, annotation=Annotated[plain, parameter])


def _text(_: Any, tokens: Sequence[Any]) -> str:
    return tokens[0].value


def _texts(_: Any, tokens: Sequence[Any]) -> list[str]:
    return [token.value for token in tokens]


DOT = "__"  # in place of the one in model.depth, in Python's names
HELP = {"-h", "--help"}
COMMON = [
    _parameter("config", list[str], "YAML file with options; may be repeated. What is typed wins."),
    _parameter("print_config", bool, "Print all options as YAML and stop."),
]


def _run(
    name: str,
    function: Callable[..., None],
    defaults: Defaults | None,
    placed: Sequence[str] | None,
    typed: dict[str, Any],
) -> None:
    """Run a command with what was typed: text for each option, or whether a switch is set.

    `placed` are the values of what is required, where they are given without names; else None.
    """
    began = time.monotonic()  # importing torch counts among a training's minutes
    options = options_of(function)
    required = [option.name for option in options.values() if option.default is REQUIRED]
    files, only_print = typed.pop("config", []), typed.pop("print_config", False)
    texts: dict[str, Any] = {}
    for file in files:
        texts |= read_yaml(file, options)
    texts |= {option.replace(DOT, "."): value for option, value in typed.items()}
    texts |= dict(zip(required, placed or (), strict=False))
    usage = f"mvar {name}", f"; see mvar {name} --help"
    given = _read_all(texts, options, usage)
    values = (defaults(given) if defaults is not None else {}) | given
    if only_print:
        every = {option.name: values.get(option.name, option.default) for option in options.values()}
        printed = nested({name: None if value is REQUIRED else value for name, value in every.items()})
        print(yaml.safe_dump(plain(printed), sort_keys=False), end="")
        return
    if missing := [option for option in required if option not in values]:
        refuse(f"give {', '.join(map(_dashed if placed is None else str.upper, missing))}", *usage)
    call(checked(function), values, began=began)


def _read_all(texts: Mapping[str, Any], options: Mapping[str, Option], usage: tuple[str, str]) -> dict[str, Any]:
    """The values of all options; those that cannot be read end the command, a line each."""
    values: dict[str, Any] = {}
    problems = []
    for name, text in texts.items():
        try:
            values[name] = read(options[name], text)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        refuse("\n".join(problems), *usage)
    empty = [name for name, value in values.items() if value is None and options[name].default is REQUIRED]
    return {name: value for name, value in values.items() if name not in empty}  # as --print-config writes them


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""Commands and their options as cyclopts takes them."""

import inspect
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from cyclopts import App, Parameter
from docstring_parser import parse

from mvar import __version__
from mvar.options.fields import REQUIRED, Option, call, nested, options_of, plain
from mvar.options.files import as_typed, read_yaml
from mvar.options.values import NO, YES, kinds_of, metavar, read
from mvar.output import BAD_PATH, refuse
from mvar.settings import checked


class Command(NamedTuple):
    """One subcommand: the function that does the work, and what its options start from where that depends on others."""

    run: Callable[..., None]
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda given: {}
    positional: bool = False  # whether what is required is given without an option's name


def command_line(
    commands: Mapping[str, Command], groups: Mapping[str, str], chosen: Collection[str], words: Sequence[str] = ()
) -> App:
    """All commands, of which only the chosen ones know their options: those of all would take a while.

    Args:
        commands: by name, such as "train generator".
        groups: what the help says of each first word of several commands, and of "" for all.
        chosen: names of commands, such as the one that the words call.
        words: as typed.
    """
    apps = {"": App(name="mvar", help=groups[""], version=__version__, help_format="plaintext")}
    for name, text in groups.items():
        if name:
            apps[name] = App(name=name.split()[-1], help=text)
            _parent(apps, name).command(apps[name])
    for name, command in commands.items():
        about = parse(command.run.__doc__ or "").description
        run = _runner(name, command)
        if name in chosen:
            typed = _typed(words) if HELP & {*words} else {}
            values = command.defaults(typed) if typed else {}
            run.__signature__ = inspect.Signature([*_parameters(command, values), *COMMON])  # type: ignore[attr-defined]
        _parent(apps, name).command(run, name=name.split()[-1], help=about)
    return apps[""]


def _typed(words: Sequence[str]) -> dict[str, str]:
    """Options that were typed with a value, as far as one can tell without knowing them."""
    found = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--") and (equals or not following.startswith("-")):
            found[name[2:].replace("-", "_")] = value if equals else following
    return found


def _runner(name: str, command: Command) -> Callable[..., None]:
    def run(*positional: str, **typed: Any) -> None:
        _run(name, command, positional, typed)

    return run


def _parent(apps: Mapping[str, App], name: str) -> App:
    return apps[" ".join(name.split()[:-1])]


def _parameters(command: Command, start: Mapping[str, Any]) -> Iterator[inspect.Parameter]:
    """A command's options as the parser takes them; values stay text until all are known."""
    for option in options_of(command.run).values():
        default = start.get(option.name, option.default)
        positional = command.positional and option.default is REQUIRED
        yield _parameter(option.name, option.hint, option.help, default, positional)


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


def _run(name: str, command: Command, positional: Sequence[str], typed: dict[str, Any]) -> None:
    """Run a command with what was typed: text for each option, or whether a switch is set."""
    began = time.monotonic()  # importing torch counts among a training's minutes
    options = options_of(command.run)
    required = [option.name for option in options.values() if option.default is REQUIRED]
    files, only_print = typed.pop("config", []), typed.pop("print_config", False)
    texts: dict[str, Any] = {}
    for file in files:
        texts |= read_yaml(file, options)
    texts |= {option.replace(DOT, "."): value for option, value in typed.items()}
    texts |= dict(zip(required, positional, strict=False))
    usage = f"mvar {name}", f"; see mvar {name} --help"
    given = _read_all(texts, options, usage)
    values = command.defaults(given) | given
    if only_print:
        every = {option.name: values.get(option.name, option.default) for option in options.values()}
        printed = nested({name: None if value is REQUIRED else value for name, value in every.items()})
        print(yaml.safe_dump(plain(printed), sort_keys=False), end="")
        return
    if missing := [option for option in required if option not in values]:
        refuse(f"give {', '.join(map(_dashed, missing))}", *usage)
    try:
        call(checked(command.run), values, began=began)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # Path.resolve() hides a loop of links
        if not (isinstance(cause, OSError) and cause.errno in BAD_PATH):
            raise
        places = (Path(str(cause.filename)), *Path(str(cause.filename)).parents)
        named = [name for name, value in given.items() if isinstance(value, str) and Path(value) in places]
        field = "".join(f"{name} = " for name in named[:1])
        raise ValueError(f"{field}{cause.filename!r}: {cause.strerror}; give another path") from error


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


def joined(words: Sequence[str]) -> list[str]:
    """Words as the parser understands them: --label=-1 for --label -1, --smooth=false for --smooth false."""
    joined: list[str] = []
    for word in words:
        value = re.match(r"-[0-9.]", word) or word.lower() in YES + NO
        if value and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined

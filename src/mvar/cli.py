"""The `mvar` command: which function each subcommand calls, and how errors reach the user."""

import argparse
import difflib
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, NamedTuple, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from mvar import __version__
from mvar.commands import bench, drawing, evaluation, models, study, training
from mvar.generator.config import GeneratorConfig
from mvar.training.config import GENERATOR_PRESETS, TOKENIZER_PRESETS, GeneratorTraining, TokenizerTraining
from mvar.training.stopping import Stopped
from mvar.validation import given, number_problems, raise_problems


class Command(NamedTuple):
    """One subcommand: the function that does the work, and for training its config and presets."""

    run: Callable[..., None]
    positional: bool = False  # whether what is required is given without an option's name
    config: type | None = None
    presets: Mapping[str, dict[str, Any]] | None = None


COMMANDS = {
    "data fashion-mnist": Command(training.data_fashion_mnist),
    "data emoji": Command(training.data_emoji),
    "tokenize": Command(training.tokenize),
    "train tokenizer": Command(training.train_tokenizer, config=TokenizerTraining, presets=TOKENIZER_PRESETS),
    "train generator": Command(training.train_generator, config=GeneratorTraining, presets=GENERATOR_PRESETS),
    "sample": Command(drawing.sample),
    "edit": Command(drawing.edit),
    "vary": Command(drawing.vary),
    "score": Command(models.score),
    "classify": Command(models.classify),
    "evaluate": Command(evaluation.evaluate_images),
    "compare": Command(evaluation.compare),
    "info": Command(models.info, positional=True),
    "convert": Command(models.convert),
    "reschedule": Command(models.reschedule),
    "join": Command(models.join),
    "bench sample": Command(bench.bench_sample),
    "bench growth": Command(bench.bench_growth),
    "bench features": Command(bench.bench_features),
    "bench train": Command(bench.bench_train),
    "study list": Command(study.study_list),
    "study run sweep": Command(study.study_run_sweep),
}
LIST_OPTIONS = (
    *("batch", "box", "keep_box", "from_scale", "sides"),
    *("guidance", "top_k", "top_p", "temperature"),
)
GROUPS = {
    "data": "Get real images",
    "train": "Train on a folder of images",
    "bench": "Measure speed and memory",
    "study": "Study what settings do",
    "study run": "Run a study",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; bad input prints what is wrong, a line for each problem, and exits with 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = _split(arguments)
    if name not in COMMANDS:
        _explain(name, rest)
        return
    rest = _normalised(rest)
    options = command_parser(name, rest).parse_args(rest)
    warnings.showwarning = lambda message, *_: print(f"mvar: warning: {message}", file=sys.stderr)
    try:
        _run(COMMANDS[name], options)
    except (ValueError, FloatingPointError) as error:
        for line in str(error).splitlines():
            print(f"mvar: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that vanished
        print(f"mvar: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        print(f"mvar: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        again = "a training run goes on with --resume, tokenize and studies when called again"
        print(f"mvar: interrupted; {again}", file=sys.stderr)
        sys.exit(130)


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, as many words as there are in one that exists, and what follows it."""
    words = 0
    while words < len(arguments) and _within(arguments[: words + 1]):
        words += 1
    return " ".join(arguments[:words]), list(arguments[words:])


def _within(words: Sequence[str]) -> list[str]:
    """The commands that begin with these words."""
    return [known for known in COMMANDS if known.split()[: len(words)] == list(words)]


def _explain(group: str, rest: Sequence[str]) -> None:
    """Print the version or the list of commands; a command that does not exist exits with 2."""
    asked = (*rest, "")[0]
    if f"{group} {asked}" == " --version":
        print(f"mvar {__version__}")
        return
    lines = [f"usage: {' '.join(filter(None, ('mvar', group)))} COMMAND [OPTIONS]", ""]
    lines += [f"{GROUPS[group]}." if group else "Scale-wise autoregressive image generation with M-VAR.", ""]
    lines += [f"  {known:<20} {_summary(COMMANDS[known])}" for known in _within(group.split())]
    lines += ["", "mvar COMMAND --help explains a command's options."]
    if asked in ("", "-h", "--help"):
        print("\n".join(lines))
        return
    print("\n".join([*lines, "", f"mvar: no such command: {f'{group} {asked}'.strip()}"]), file=sys.stderr)
    sys.exit(2)


def _run(command: Command, options: Namespace) -> None:
    values = {key: value for key, value in options.as_dict().items() if key != "config"}
    if command.config is None:
        raise_problems(number_problems(given(values)))
        command.run(**values)
    else:
        del values["preset"]  # its values are in the others
        model = values["model"]
        if not isinstance(model, Mapping):
            raise ValueError(f"model = {model!r}: give its options by name, as in {{vocab_size: 1024}}")
        own = {key: value for key, value in model.items() if key != "__path__"}  # of a file that --model named
        model_config = type(command.config.__dataclass_fields__["model"].default_factory())  # type: ignore[attr-defined]
        command.run(command.config(**{**values, "model": model_config(**own)}))


def _summary(command: Command) -> str:
    """The first line of the function's docstring."""
    return (command.run.__doc__ or "").strip().splitlines()[0]


def command_parser(name: str, arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of one command; for training, the arguments decide the preset, whose values become the defaults."""
    command = COMMANDS[name]
    parser = _Parser(prog=f"mvar {name}", description=_summary(command), formatter_class=_Formatter, allow_abbrev=False)
    if command.config is None or command.presets is None:
        parser.add_argument("--config", action=_ConfigFile, help="YAML file with options")
        parser.add_function_arguments(command.run, as_group=False, as_positional=command.positional)
        _allow_bare_switches(parser)
        return parser
    named = _given(arguments, "preset")
    parser.add_argument(
        "--preset",
        choices=list(command.presets),
        required=True,
        help="what the other options start from, by image size or depth; --preset NAME --help shows its values",
    )
    parser.add_argument("--config", action=_ConfigFile, help="YAML file with options")
    parser.add_class_arguments(command.config)
    if named is not None and named in command.presets:  # the parser refuses an unknown one
        parser.set_defaults(dict(_flat(command.presets[named])))
    if (start := _given(arguments, "init_from")) is not None and command.config is GeneratorTraining:
        parser.set_defaults(dict(_flat({"model": training.generator_of(start, _given(arguments, "out"))})))
    _allow_bare_switches(parser)
    return parser


def _given(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option on the command line, else in its YAML file."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (option, "config"):
        scan.add_argument(f"--{name}", nargs="?")  # the parser says where a value is missing
    found = vars(scan.parse_known_args(arguments)[0])
    value = found[option]
    if value is None and found["config"] is not None:
        try:
            value = _read_yaml(found["config"]).get(option)
        except ValueError:
            value = None  # the parser says what is wrong with the file
    return value if isinstance(value, str) else None


def _read_yaml(path: str) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError: one line that names the file: it cannot be read, is no YAML, or holds something else.
    """
    named = f"--config {path}"
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except FileNotFoundError as error:
        raise ValueError(f"{named}: no such file") from error
    except OSError as error:
        raise ValueError(f"{named}: cannot be read ({error.strerror}); give a YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{named}: is no YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(values, dict):
        held = "nothing" if values is None else f"a {type(values).__name__}"
        raise ValueError(f"{named}: holds {held}, expected options by name")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A preset as the parser's defaults: {"model": config} becomes "model.depth", "model.width", ..."""
    for key, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            written = value.written() if isinstance(value, GeneratorConfig) else asdict(value)
            yield from _flat(written, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class _Parser(ArgumentParser):
    """Says what is wrong in one line, without the usage of every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        found = re.fullmatch(r"(unrecognized arguments|the following arguments are required): (.*)", message)
        if found is None:
            self.refuse([_plain(" ".join(_dashed(message).split()))])
        named = {action.dest: f"--{action.dest}" for action in self._actions if action.option_strings}
        what, names = found.groups()
        if what == "unrecognized arguments":
            self.refuse([_dashed(message + _close(re.findall(r"--([\w.+]+)", names), named, "--"))])
        self.refuse([_dashed(f"{what}: {', '.join(named.get(name, name) for name in names.split(', '))}")])

    def refuse(self, problems: Iterable[str]) -> NoReturn:
        """Print the problems, a line each, and exit with 2."""
        for problem in problems:
            print(f"{self.prog}: {problem}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


class _ConfigFile(ActionConfigFile):
    """Says what is wrong with a YAML file by its name, before the parser reads it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        known = {action.dest for action in parser._actions}
        try:
            unknown = list(_unknown(_read_yaml(values), known))
        except ValueError as error:
            parser.refuse([str(error)])
        if unknown:
            parser.refuse(
                f"--config {values}: {name} = {value!r}: no such option{_close([name], known)}"
                for name, value in unknown
            )
        super().__call__(parser, cfg, values, option_string)


def _unknown(values: Mapping[Any, Any], known: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a YAML file that do not exist, with their values; the model's are called model.depth, ..."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in known:
            yield name, value
        elif isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in known):
            yield from _unknown(value, known, f"{name}.")


def _close(names: Iterable[str], known: Iterable[str], before: str = "") -> str:
    """The known options nearest to these, as the end of a message; empty where nothing is near.

    Args:
        before: what each begins with where it is typed.
    """
    near = [before + option for name in names for option in difflib.get_close_matches(name, list(known), n=1)]
    return f"; close: {', '.join(near)}" if near else ""


def _plain(message: str) -> str:
    """The parser's message about a value of the wrong type, in the words of a user; others as they are."""
    # The last "value" is the whole option's; those before it are of the attempts to read it as one type or another.
    found = re.search(r'Parser key "([\w.]+)": (.*)(?:Got|Given) value: (.*)', message)
    if found is None:
        return message
    name, types, value = found.groups()
    expected = [text for kind, text in _KINDS.items() if kind in types]
    expected += [f"one of {choices.replace(chr(39), '')}" for choices in re.findall(r"Literal\[(.*?)\]", types)[:1]]
    if not expected and (long := re.search(r"<class '(?:list|tuple)'>|tuple with (\d+) elements", types)):
        expected = [f"a list of {long[1]}, in brackets" if long[1] else "a list, in brackets"]
    return f"{name} = {value}: give {' or '.join(expected)}" if expected else message


# Types as the parser prints them, and as users know them.
_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "collections.abc.Sequence[int]": "a pair of them, [height, width]",
    "list[int]": "whole numbers with commas between them",
    "list[float]": "numbers with commas between them",
}


class _Formatter(DefaultHelpFormatter):
    """Shows options with dashes, as users type them."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return _dashed(super()._format_action_invocation(action))

    def _format_usage(self, *args: Any, **kwargs: Any) -> str:
        return _dashed(super()._format_usage(*args, **kwargs))


def _dashed(text: str) -> str:
    return re.sub(r"--[a-z][\w.+-]*", lambda match: match[0].replace("_", "-"), text)


def _allow_bare_switches(parser: ArgumentParser) -> None:
    """Let --resume stand for --resume=true, and so for every option that is true or false."""
    for action in parser._actions:
        if str(action.metavar).startswith("{true,false"):
            action.nargs, action.const = "?", True


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Options as the parser wants them: --per_class for --per-class, --labels=-1,0 for --labels -1,0, [8,9] for 8,9."""
    normal: list[str] = []
    for argument in arguments:
        option = re.match(r"--[a-z][\w.+-]*", argument)
        if option:
            normal.append("--" + option[0][2:].replace("-", "_") + argument[option.end() :])
        elif re.match(r"-\d", argument) and normal and re.fullmatch(r"--[\w.+]+", normal[-1]):
            normal[-1] += f"={argument}"
        else:
            normal.append(argument)
    return _bracketed(normal)


def _bracketed(arguments: list[str]) -> list[str]:
    """Values with commas as lists, for the options that take one: --box 4,4,8,8."""
    lists = rf"--([\w]+\.)*({'|'.join(LIST_OPTIONS)})"
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not re.fullmatch(lists, name):
            continue
        if equals:
            arguments[i] = name + equals + _list(value)
        elif i + 1 < len(arguments):
            arguments[i + 1] = _list(arguments[i + 1])
    return arguments


def _list(value: str) -> str:
    return f"[{value}]" if re.match(r"-?[\d.]+\s*,", value) or re.match(r"\[[^\]]*\]\s*,", value) else value

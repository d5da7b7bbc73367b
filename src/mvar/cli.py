"""The `mvar` command: which function each subcommand calls, and how errors reach the user."""

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, _loaders_dumpers

from mvar import __version__
from mvar.commands import bench, drawing, evaluation, models, study, training
from mvar.generator.config import GeneratorConfig
from mvar.options import NULL, Loader, Option, bracketed, close, expected, gathered, told, values_of
from mvar.output import BAD_PATH, refuse, safe_output
from mvar.settings import checked
from mvar.training.config import (
    GENERATOR_PRESETS,
    QUICK_BELOW,
    TOKENIZER_PRESETS,
    GeneratorTraining,
    TokenizerTraining,
    preset_for,
    preset_values,
)
from mvar.training.stopping import Stopped

# The loader of typed values; `set_loader` reaches only some of them.
_loaders_dumpers.yaml_default_loader = Loader  # type: ignore[assignment]


RESUMED = {"--resume", "--resume=true", "--resume=yes", "--resume=on"}


class Command(NamedTuple):
    """One subcommand: the function that does the work, and for training its config and presets."""

    run: Callable[..., None]
    positional: bool = False  # whether what is required is given without an option's name
    config: type | None = None
    presets: Mapping[str, dict[str, Any]] | None = None


COMMANDS = {
    "data fashion-mnist": Command(training.data_fashion_mnist),
    "data icons": Command(training.data_icons),
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
    with safe_output():
        warnings.showwarning = lambda message, *_: print(f"mvar: warning: {message}", file=sys.stderr)
        name, rest = _split(arguments)
        if name in COMMANDS:
            _run(name, rest)
        else:
            _explain(name, rest)


def _run(name: str, typed: Sequence[str]) -> None:
    """Run a command with what follows its name."""
    began = time.monotonic()  # importing torch takes seconds, which count among a training's minutes
    command, parser = COMMANDS[name], command_parser(name)
    try:
        words = gathered(_options(parser), typed)
    except ValueError as error:
        parser.refuse(str(error))
    try:
        chosen = _set_defaults(command, parser, words)
        values = parser.parse_words(words)
        del values["config"]  # its options are among the words
        if command.config is not None:
            del values["preset"]  # its values are in the others
            values = {"config": command.config(**values), "began": began}
            if chosen is not None:
                training.tell(f"preset: {chosen}, as none was named; --preset NAME takes another")
        checked(command.run)(**values)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # Path.resolve() hides a loop of links
        if isinstance(cause, OSError) and cause.errno in BAD_PATH:
            field = _option_of(str(cause.filename), words)
            raise ValueError(f"{field}{cause.filename!r}: {cause.strerror}; give another path") from error
        raise
    except Stopped as stopped:
        print(f"mvar: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        again = "a training run that has a checkpoint goes on with --resume, tokenize and studies if you run them again"
        print(f"mvar: interrupted; {again}", file=sys.stderr)
        sys.exit(130)


def _option_of(path: str, words: Sequence[str]) -> str:
    """The option that named a path, or a folder above it, as a message begins: "out = "."""
    for word in words:
        name, _, value = word.partition("=")
        if value and Path(value) in (Path(path), *Path(path).parents):
            return f"{name.removeprefix('--')} = "
    return ""


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


def _summary(command: Command) -> str:
    """The first line of the function's docstring."""
    return (command.run.__doc__ or "").strip().splitlines()[0]


def command_parser(name: str) -> "_Parser":
    """The parser of one command, with the defaults of its function or config."""
    command = COMMANDS[name]
    parser = _Parser(prog=f"mvar {name}", description=_summary(command), formatter_class=_Formatter, allow_abbrev=False)
    if command.presets is not None:
        parser.add_argument(
            "--preset",
            choices=list(command.presets),
            required=True,
            help="what the other options start from, by image size or depth; --preset NAME --help shows its values. "
            f"Of --minutes below {QUICK_BELOW} it is quick32 unless named, of --resume what the run began with",
        )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with options; typed ones win over it")
    if command.config is None:
        parser.add_function_arguments(command.run, as_group=False, as_positional=command.positional)
    else:
        parser.add_class_arguments(command.config)
    for action in parser._actions:
        if str(action.metavar).startswith("{true,false"):  # --resume stands for --resume=true
            action.nargs, action.const = "?", True
    return parser


def _options(parser: ArgumentParser) -> dict[str, Option]:
    """What a command's words and YAML files may hold, by name."""
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    groups = {name.rpartition(".")[0] for name in actions}
    return {
        name: Option(None if name in groups else getattr(action, "_typehint", str), action.default)
        for name, action in actions.items()
        if action.nargs in (None, "?") and name != "config"
    }


def _set_defaults(command: Command, parser: ArgumentParser, words: Sequence[str]) -> str | None:
    """Let the values of a preset be a training run's defaults, and the shape of the generator that it starts from.

    Where no preset is named, a run that goes on has its own values, and another one the preset for its minutes.

    Returns:
        The preset that was chosen so.
    """
    if command.presets is None:
        return None
    preset, start, out, minutes = (
        ["", *values_of(words, name)][-1] for name in ("preset", "init_from", "out", "minutes")
    )
    lasts = _number(minutes)
    before = training.settings_of(out or None) if not preset and RESUMED & {word.lower() for word in words} else {}
    chosen = preset_for(lasts) if not preset and not before and lasts is not None else None
    if before:
        own = dict(_flat(before)) | {"preset": next(iter(command.presets))}  # which is asked for, but changes nothing
        for given, other in (("minutes", "steps"), ("steps", "minutes")):
            if values_of(words, given):
                own[other] = None
        known = _options(parser)  # the run may be of the other kind, which the folder's check will say
        parser.set_defaults({name: value for name, value in own.items() if name in known})
    elif (name := chosen or preset) in command.presets:  # the parser refuses an unknown one
        parser.set_defaults(dict(_flat({"preset": name, **preset_values(command.presets, name, lasts)})))
    if command.config is GeneratorTraining and start not in ("", NULL):
        parser.set_defaults(dict(_flat({"model": training.generator_of(start, out or None)})))
    return chosen


def _number(text: str) -> float | None:
    """A number that was typed; the parser refuses what is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A preset as the parser's defaults: {"model": config} becomes "model.depth", "model.width", ..."""
    for key, value in values.items():
        if isinstance(value, GeneratorConfig):
            yield from _flat(value.written(), f"{prefix}{key}.")
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _flat(asdict(value), f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class _Parser(ArgumentParser):
    """Says what is wrong in one line, without the usage of every option."""

    def parse_words(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of all options, from words as `gathered` gives them."""
        self.words, options = words, _options(self)
        try:
            return dict(self.parse_args([bracketed(word, options) for word in words]).as_dict())
        except OverflowError:  # of a whole number where any number may stand
            self.error("a number has more than 308 digits; give a smaller one")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        what, _, names = message.partition(": ")
        if found := re.match(r'Parser key "([\w.]+)"', what):
            message = self._wrong(found[1])
        elif what == "unrecognized arguments":
            message += close(re.findall(r"--([\w.+]+)", names), _options(self), "--")
        elif what == "the following arguments are required":
            named = [f"--{name}" if name in _options(self) else name for name in names.split(", ")]
            named = ["--preset (or --minutes)" if name == "--preset" else name for name in named]
            message = f"{what}: {', '.join(named)}"
        self.refuse(_dashed(" ".join(message.split())))

    def _wrong(self, name: str) -> str:
        """What to say of a value of the wrong type."""
        option = _options(self)[name]
        value = [option.default, *values_of(self.words, name)][-1]
        return f"{told(name, value)}: give {expected(option.type)}"

    def refuse(self, problems: str) -> NoReturn:
        """Print the problems, a line each, and exit with 2."""
        refuse(problems, self.prog, f"; see {self.prog} --help")


class _Formatter(DefaultHelpFormatter):
    """Shows options with dashes, as users type them."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return _dashed(super()._format_action_invocation(action)).replace(" \b", "")  # before [=flags]

    def _format_usage(self, *args: Any, **kwargs: Any) -> str:
        return _dashed(super()._format_usage(*args, **kwargs)).replace(" \b", "")


def _dashed(text: str) -> str:
    return re.sub(r"--[a-z][\w.+-]*", lambda match: match[0].replace("_", "-"), text)

"""The `mvar` command: its subcommands, whose modules are imported when they run, and how errors reach the user."""

import re
import sys
import warnings
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, Literal, NamedTuple, NoReturn

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownOptionError

from mvar.output import refuse, safe_output
from mvar.training.stopping import Stopped


class Command(NamedTuple):
    """One subcommand: its functions in `mvar.commands` as "module.function", and its line in the list of commands."""

    function: str
    help: str
    defaults: str | None = None  # what options start from, where that depends on others
    positional: bool = False  # whether what is required is given without an option's name


COMMANDS = {
    "data fashion-mnist": Command(
        "training.data_fashion_mnist",
        "Write Fashion-MNIST as image folders: 60,000 training and 10,000 validation images of 10 classes.",
    ),
    "data icons": Command(
        "training.data_icons",
        "Write icons as image folders: 21,108 black drawings of 360 things, split by designer.",
    ),
    "tokenize": Command(
        "training.tokenize",
        "Write the token maps of a folder of images as a cache that train generator reads.",
    ),
    "train tokenizer": Command(
        "training.train_tokenizer",
        "Train a tokenizer on a folder of images.",
        defaults="training.tokenizer_defaults",
    ),
    "train generator": Command(
        "training.train_generator",
        "Train a generator on a folder of images or a token cache, with a trained tokenizer.",
        defaults="training.generator_defaults",
    ),
    "sample": Command("drawing.sample", "Draw images and write them as a sheet, as single files, or as an .npz."),
    "sample-best": Command(
        "drawing.sample_best",
        "Draw several candidates for each image and keep those that a judge likes best (rejection sampling).",
    ),
    "sample-set": Command(
        "evaluation_set.sample_set",
        "Draw the images of an evaluation: a number of every class, as single files or as the .npz that suites read.",
    ),
    "edit": Command("editing.edit", "Repaint a part of an image: in-painting, out-painting, or another class."),
    "vary": Command("editing.vary", "Keep the coarse maps of an image and draw the finer ones again."),
    "score": Command("models.score", "Say how likely a model finds images: bits per token, for each scale."),
    "classify": Command("models.classify", "Name the class of images by Bayes' rule on the model's likelihoods."),
    "evaluate": Command(
        "evaluation.evaluate_images",
        "Compare samples, or a tokenizer's reconstructions, with real images: Frechet distance, precision, recall, ...",
    ),
    "compare": Command(
        "evaluation.compare",
        "Put reports of mvar evaluate into one table; those of different protocols are refused.",
    ),
    "info": Command(
        "models.info",
        "Say what a model is: its parts, sizes, classes, sampling defaults and origin.",
        positional=True,
    ),
    "convert": Command(
        "models.convert",
        "Turn files of the official VAR and M-VAR code into a bundle, or a bundle into such files.",
    ),
    "reschedule": Command(
        "models.reschedule",
        "Write a model at another schedule of scales, and so for another image size, to be fine-tuned.",
    ),
    "join": Command(
        "models.join",
        "Write a model of one's tokenizer and another's generator, such as a decoder that was trained on by itself.",
    ),
    "bench sample": Command(
        "bench.bench_sample",
        "Measure what drawing an image takes on the CPU: by scale and part, against the machine's floor.",
    ),
    "bench growth": Command(
        "bench.bench_growth",
        "Measure how the time of a token grows with their number, of M-VAR and of VAR, on the CPU.",
    ),
    "bench features": Command(
        "bench.bench_features",
        "Measure how many images a second the networks of mvar evaluate take in, on the CPU, and of what peak that is.",
    ),
    "bench train": Command(
        "bench.bench_train",
        "Measure a generator's training step on the CPU: tokens a second, share of the machine's best, memory; "
        "and VAR's.",
    ),
    "study list": Command("study.study_list", "List the studies: what each measures."),
    "study run sweep": Command(
        "study.study_run_sweep",
        "Sweep guidance, temperature and filters: distance, accuracy, precision and recall; choose a setting.",
    ),
}
GROUPS = {
    "data": "Get real images.",
    "train": "Train on a folder of images.",
    "bench": "Measure speed and memory.",
    "study": "Study what settings do.",
    "study run": "Run a study.",
}
MOVED = {  # options that became commands
    ("sample", "--protocol"): "mvar sample-set draws the images of an evaluation",
    ("sample", "--counts-of"): "mvar sample-set draws as many of each class",
    ("sample", "--judge"): "mvar sample-best keeps the best of several candidates",
}
# What a word looks like that is the value of the option before it: a negative number, or that of a switch.
VALUE = re.compile(r"-[0-9.].*|true|yes|on|false|no|off", re.IGNORECASE | re.DOTALL)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; bad input prints what is wrong, a line for each problem, and exits with 2."""
    words = _joined(sys.argv[1:] if argv is None else argv)
    name = next((name for name in COMMANDS if name.split() == words[: len(name.split())]), "")
    with safe_output():
        warnings.showwarning = lambda message, *_: print(f"mvar: warning: {message}", file=sys.stderr)
        try:
            app = _app([name], words)
            run, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False, verbose=False)
            run(*bound.args, **bound.kwargs)
        except CycloptsError as error:
            _refuse(error, name)
        except Stopped as stopped:
            print(f"mvar: {stopped}", file=sys.stderr)
            sys.exit(stopped.code)
        except KeyboardInterrupt:
            again = "training goes on with --resume, tokenize, sample-set and studies if you run them again"
            print(f"mvar: interrupted; {again}", file=sys.stderr)
            sys.exit(130)


def completion(shell: Literal["bash", "zsh", "fish", "powershell"]) -> None:
    """Print a script that completes commands and options in a shell.

    Args:
        shell: the one in use; for bash, add the line  eval "$(mvar completion --shell bash)"  to ~/.bashrc.
    """
    print(_app(COMMANDS).generate_completion(shell=shell))


def _app(chosen: Collection[str], words: Sequence[str] = ()) -> App:
    """All commands, of which only the chosen ones are imported and know their options."""
    about = "Scale-wise autoregressive image generation with M-VAR."
    apps = {"": App(name="mvar", help=about, version=_version, help_format="plaintext")}
    for name, line in GROUPS.items():
        group, _, last = name.rpartition(" ")
        apps[name] = App(name=last, help=line)
        apps[group].command(apps[name])
    for name, command in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        run, line = print, command.help
        if name in chosen:
            from mvar.options.parser import description, runner

            function = imported(command.function)
            defaults = imported(command.defaults) if command.defaults is not None else None
            run, line = runner(name, function, defaults, command.positional, words), description(function)
        apps[group].command(run, name=last, help=line)
    apps[""].command(completion)
    return apps[""]


def _version() -> str:
    from mvar import __version__  # reading it takes a while

    return __version__


def imported(place: str) -> Any:
    """The function at "module.function" in `mvar.commands`."""
    module, _, function = place.partition(".")
    return getattr(import_module(f"mvar.commands.{module}"), function)


def _joined(words: Sequence[str]) -> list[str]:
    """Words as cyclopts understands them: --label=-1 for --label -1, --smooth=false for --smooth false."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and VALUE.fullmatch(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _refuse(error: CycloptsError, name: str) -> NoReturn:
    """Print what is wrong with the words of a command, and exit with 2."""
    message = str(error).removesuffix(".")
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        message = f"{option}: {MOVED[name, option]}" if (name, option) in MOVED else message
    refuse(message, f"mvar {name}".strip(), f"; see {f'mvar {name}'.strip()} --help")

"""The `mvar` command: which function each subcommand calls, and how errors reach the user."""

import sys
import warnings
from collections.abc import Sequence
from typing import Literal, NoReturn

from cyclopts import CycloptsError
from cyclopts.exceptions import UnknownOptionError

from mvar.commands import bench, drawing, editing, evaluation, evaluation_set, models, study, training
from mvar.options.parser import Command, command_line, joined
from mvar.output import refuse, safe_output
from mvar.training.stopping import Stopped


def completion(shell: Literal["bash", "zsh", "fish", "powershell"]) -> None:
    """Print a script that completes commands and options in a shell.

    Args:
        shell: the one in use; for bash, add the line  eval "$(mvar completion --shell bash)"  to ~/.bashrc.
    """
    print(command_line(COMMANDS, GROUPS, COMMANDS).generate_completion(shell=shell))


COMMANDS = {
    "data fashion-mnist": Command(training.data_fashion_mnist),
    "data icons": Command(training.data_icons),
    "tokenize": Command(training.tokenize),
    "train tokenizer": Command(training.train_tokenizer, training.tokenizer_defaults),
    "train generator": Command(training.train_generator, training.generator_defaults),
    "sample": Command(drawing.sample),
    "sample-best": Command(drawing.sample_best),
    "sample-set": Command(evaluation_set.sample_set),
    "edit": Command(editing.edit),
    "vary": Command(editing.vary),
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
    "completion": Command(completion),
}
GROUPS = {
    "": "Scale-wise autoregressive image generation with M-VAR.",
    "data": "Get real images.",
    "train": "Train on a folder of images.",
    "bench": "Measure speed and memory.",
    "study": "Study what settings do.",
    "study run": "Run a study.",
}
MOVED = {  # options that became commands
    ("sample", "protocol"): "mvar sample-set draws the images of an evaluation",
    ("sample", "counts_of"): "mvar sample-set draws as many of each class",
    ("sample", "judge"): "mvar sample-best keeps the best of several candidates",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; bad input prints what is wrong, a line for each problem, and exits with 2."""
    words = joined(sys.argv[1:] if argv is None else argv)
    name = next((name for name in COMMANDS if name.split() == words[: len(name.split())]), "")
    with safe_output():
        warnings.showwarning = lambda message, *_: print(f"mvar: warning: {message}", file=sys.stderr)
        try:
            app = command_line(COMMANDS, GROUPS, [name], words)
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


def _refuse(error: CycloptsError, name: str) -> NoReturn:
    """Print what is wrong with the words of a command, and exit with 2."""
    message = str(error)
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0].lstrip("-").replace("-", "_")
        message = f"--{option.replace('_', '-')}: {MOVED[name, option]}" if (name, option) in MOVED else message
    refuse(message.removesuffix("."), f"mvar {name}".strip(), f"; see {f'mvar {name}'.strip()} --help")

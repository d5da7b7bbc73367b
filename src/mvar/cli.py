"""The `mvar` command: its subcommands, whose modules are imported when they run, and how errors reach the user."""

import re
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Literal, NoReturn

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownOptionError

from mvar.commands.table import COMMANDS, GROUPS, MOVED, imported
from mvar.output import refuse, safe_output
from mvar.training.stopping import Stopped

# What a word looks like that is the value of the option before it: a negative number, or that of a switch.
VALUE = re.compile(r"-[0-9.].*|true|yes|on|false|no|off", re.IGNORECASE | re.DOTALL)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; bad input prints what is wrong, a line for each problem, and exits with 2."""
    words = _joined(sys.argv[1:] if argv is None else argv)
    named = [name for name in (*GROUPS, *COMMANDS) if name.split() == words[: len(name.split())]]
    name = max(named, key=len, default="")
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
            again = "run the same command again, with --resume for training"
            print(
                f"mvar: interrupted; to continue a training, tokenize, sample-set or a study, {again}", file=sys.stderr
            )
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
    message = re.sub(r"(?<!\.)\.$", "", str(error))  # "..." stays
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        message = f"{option}: {MOVED[name, option]}" if (name, option) in MOVED else message
    refuse(message, f"mvar {name}".strip(), f"; see {f'mvar {name}'.strip()} --help")

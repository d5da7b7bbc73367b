"""How a recipe's functions become commands."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import auto_cli

from mvar.output import safe_output


def run_cli(commands: Any, prog: str, argv: Sequence[str] | None = None) -> None:
    """Run a function, or one of several by name, with its arguments as options.

    Bad input prints what is wrong, a line for each problem, and exits with 2.

    Args:
        commands: the function, or functions by name (Any: jsonargparse takes no Callable values by its own types).
        prog: what the user types.
        argv: the options; those of the process by default.
    """
    arguments = [_with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    with safe_output():
        auto_cli(commands, args=arguments, as_positional=False, prog=prog)


def _with_underscores(argument: str) -> str:
    """--tokenizer-run as --tokenizer_run, which is how the parser names it; values stay as they are."""
    return re.sub(r"(?<=\w)-", "_", argument) if re.fullmatch(r"--[a-z-]+", argument) else argument

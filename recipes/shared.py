"""What recipes share: their commands, their report.json, and the documentation pages that show it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from mvar.output import refuse, safe_output
from mvar.studies.page import fill, markers, write_json
from mvar.text import counted


def run_cli(prog: str, *functions: Callable[..., Any], argv: Sequence[str] | None = None) -> None:
    """Run a function, or one of several by name, with its arguments as options.

    Bad input prints one line per problem and exits with status 2.

    Args:
        prog: what the user types.
        functions: the commands; a single one needs no name.
        argv: the options; those of the process by default.
    """
    app = App(
        name=prog,
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative="", consume_multiple=True),
        result_action="return_value",
    )
    for function in functions:
        app.command(function) if len(functions) > 1 else app.default(function)
    with safe_output():
        try:
            app(argv, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            refuse(str(error), prog)


def publish(report: Mapping[str, Any], folder: Path, text: str, page_file: str | None, name: str = "results") -> None:
    """Write report.json, print the report as Markdown, and put that on a documentation page where one is given."""
    write_json(folder / "report.json", report)
    print(text)
    if page_file is not None:
        fill(page_file, text, name)


def between(path: Path, name: str = "results") -> str:
    """What a page has between its two markers."""
    begin, end = markers(name)
    return path.read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip()


def measured_on(machine: Mapping[str, Any]) -> str:
    """The machine of a report in words."""
    threads = counted(machine["threads"], "thread")
    return f"{machine['cores']} cores ({machine['processor']}, {threads}, torch {machine['torch']})"

"""What a command prints, whatever it is."""

import contextlib
import errno
import io
import subprocess
import sys

import pytest

from mvar.output import safe_output

EVIL = "a\x1b[2J\rb\udcff\u202e\x9b"
SAFE = r"a\x1b[2J\rb\udcff\u202e\x9b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(write, encoding="utf-8"):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), safe_output():
        write()
    for stream in (out, err):
        stream.flush()
    return out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def test_both_streams_escape():
    assert printed(lambda: (print(EVIL), print(EVIL, file=sys.stderr))) == (f"{SAFE}\n", f"{SAFE}\n")
    assert printed(lambda: print("\u65e5\u672c"), "ascii")[0] == "\\u65e5\\u672c\n"
    assert printed(lambda: print("\u65e5\u672c"))[0] == "\u65e5\u672c\n"
    assert sys.stdout.__class__.__name__ != "_Safe"


def test_lines_of_messages_are_cut_and_results_are_not():
    out, err = printed(lambda: (print("x" * 10_000), print("x" * 10_000 + "end", file=sys.stderr)))
    assert len(out) == 10_001
    assert len(err) < 600
    assert err.endswith("end\n")


def test_a_progress_bar_redraws_its_line():
    with contextlib.redirect_stderr(Terminal()) as terminal, safe_output():
        sys.stderr.write(f"\r{EVIL[:5]}: 1 of 3")
        sys.stderr.write("\x1b[A")
        sys.stderr.write("x\r")
    assert terminal.getvalue() == "\ra\\x1b[2J: 1 of 3\x1b[Ax\\r"


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ValueError("a = 1: wrong\nb = 2: wrong"), 2, ["mvar: a = 1: wrong", "mvar: b = 2: wrong"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, ["mvar: [Errno 36] File name too long: 'x'"]),
        (OSError(errno.ENOSPC, "No space left on device"), 1, ["mvar: [Errno 28] No space left on device"]),
        (
            ValueError("\n".join("abc" * 20)),
            2,
            [f"mvar: {c}" for c in "abcabcabcabcabcabcab"] + ["mvar: and 40 more problems"],
        ),
    ],
)
def test_errors_end_with_lines_and_a_status(capsys, error, code, lines):
    with pytest.raises(SystemExit) as exit_, safe_output():
        raise error
    assert exit_.value.code == code
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(("target", "code", "message"), [("| head -c 1", 141, ""), ("> /dev/full", 1, "No space left")])
def test_output_that_nobody_takes(target, code, message):
    script = "from mvar.output import safe_output\nwith safe_output():\n  for i in range(99999): print(i)"
    command = f"{sys.executable} -c '{script}' {target}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr

"""How a command ends."""

import errno
import subprocess
import sys

import pytest

from mvar.output import safe_output


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ValueError("a = 1: wrong\nb = 2: wrong"), 2, ["mvar: a = 1: wrong", "mvar: b = 2: wrong"]),
        (ValueError("\x1b[2J" + 5000 * "x" + "end"), 2, [f"mvar: \\x1b[2J{326 * 'x'} ... {163 * 'x'}end"]),
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


def test_output_that_nobody_reads_and_names_that_are_no_text():
    script = "from mvar.output import safe_output\nwith safe_output():\n  for i in range(99999): print(i, chr(0xdcff))"
    command = f"set -o pipefail; {sys.executable} -c '{script}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "0 \\udcff\n", "")

"""Work in processes: results in order, errors as they were raised, and workers that end."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from mvar.data.workers import in_processes
from mvar.text import counted


def test_results_come_in_order_from_other_processes_that_import_no_torch():
    expected = ["1 icon" if i == 1 else f"{i} icons" for i in range(300)]
    assert list(in_processes(partial(counted, noun="icon"), range(300), 2, few=0)) == expected
    asked = ["__import__('os').getpid(), 'torch' in __import__('sys').modules"] * 300
    found = {*in_processes(eval, asked, 2, few=0)}
    assert 1 <= len(found) <= 2
    assert os.getpid() not in {pid for pid, _ in found}
    assert not any(has_torch for _, has_torch in found)
    assert {*in_processes(eval, asked, 2, few=300)} == {(os.getpid(), True)}


def test_the_error_of_an_item_is_raised_and_nothing_is_left_running():
    rows = in_processes(int, ["1"] * 100 + ["one"] * 100, 2, few=0)
    with pytest.raises(ValueError, match="'one'"):
        list(rows)
    some = in_processes(int, ["1"] * 1000, 2, few=0)
    assert next(some) == 1
    some.close()
    with pytest.raises(ChildProcessError, match="a worker process died"):
        list(in_processes(os._exit, [3] * 100, 2, few=0))


def test_workers_end_when_a_script_without_a_guarded_main_module_is_killed():
    script = "from mvar.data.workers import in_processes\n"
    script += 'for pid in in_processes(eval, [\'b"x" * 2**16, __import__("os").getpid()\'] * 10_000, 2, few=0): '
    script += "print(pid[1], flush=True); __import__('time').sleep(60)"  # while workers wait to send their results
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        worker = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.1)

"""Work in processes: results in order, errors as they were raised, and workers that end."""

import os
from functools import partial

import pytest

from mvar.data.workers import in_processes
from mvar.text import counted


def test_results_come_in_order_from_other_processes():
    assert list(in_processes(partial(counted, noun="icon"), range(300), 2, few=0)) == [
        "1 icon" if i == 1 else f"{i} icons" for i in range(300)
    ]
    owner = ["__import__('os').getpid()"] * 300
    assert 1 <= len({*in_processes(eval, owner, 2, few=0)} - {os.getpid()}) <= 2
    assert {*in_processes(eval, owner, 2, few=300)} == {os.getpid()}


def test_the_error_of_an_item_is_raised_and_nothing_is_left_running():
    rows = in_processes(int, ["1"] * 100 + ["one"] * 100, 2, few=0)
    with pytest.raises(ValueError, match="'one'"):
        list(rows)
    some = in_processes(int, ["1"] * 1000, 2, few=0)
    assert next(some) == 1
    some.close()


def test_a_worker_that_ends_is_told_of():
    with pytest.raises(ChildProcessError, match="a worker process died"):
        list(in_processes(os._exit, [3] * 100, 2, few=0))

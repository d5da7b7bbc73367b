import pytest

from mvar import progress
from mvar.progress import track


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds an item."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def passed(clock, total):
    for item in track(range(total), total, "images"):
        clock[0] += 10
        yield item


def test_piped_it_tells_rate_and_remaining_time_now_and_then(clock, capsys):
    assert list(passed(clock, 5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == [
        "images: 2 of 5, 0.1 a second, 30 s left",
        "images: 4 of 5, 0.1 a second, 10 s left",
        "images: 5 of 5, 0.1 a second",
    ]


def test_what_is_soon_done_is_silent(clock, capsys):
    assert list(passed(clock, 1)) == [0]
    assert capsys.readouterr().err == ""

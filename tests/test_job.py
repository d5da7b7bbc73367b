"""A job of pieces: what is kept, what is made again, who makes it, and how long rank 0 waits for the others."""

import pytest

from mvar import job
from mvar.job import Job, check_same


@pytest.fixture
def files(tmp_path):
    """A job of five files whose content is their number."""
    return Job(
        folder=tmp_path,
        pieces=range(5),
        noun="files",
        name=lambda i: f"{i}.txt",
        is_complete=lambda i: path(tmp_path, i).exists() and path(tmp_path, i).read_text() == str(i),
    )


def path(folder, i):
    return folder / f"{i}.txt"


def test_complete_pieces_are_kept_and_each_process_makes_its_own(files):
    path(files.folder, 2).write_text("damaged")
    path(files.folder, 4).write_text("4")
    made = []

    def make(i):
        path(files.folder, i).write_text(str(i))
        made.append(i)

    files.make_missing(make, range(0, 5, 2), 3)
    assert made == [0, 2]
    files.make_missing(make, range(1, 5, 2))
    files.make_missing(make)
    assert made == [0, 2, 1, 3]
    files.wait()
    for name in (".3.0123abcd.partial.txt", ".mine.partial.txt"):
        (files.folder / name).write_text("half")
    files.clean()
    assert sorted(file.name for file in files.folder.glob(".*")) == [".mine.partial.txt"]


def test_rank_0_waits_while_anything_is_written_and_says_so(files, monkeypatch, capsys):
    def sleep(seconds):
        clock[0] += seconds

    clock = [0.0]
    monkeypatch.setattr(job.time, "sleep", sleep)
    monkeypatch.setattr(job.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(job, "PATIENCE_SECONDS", 5)
    monkeypatch.setattr(job, "NOTICE_SECONDS", 2)
    path(files.folder, 0).write_text("0")
    missing = "4 of 5 files are missing (1.txt, 2.txt, 3.txt, 4.txt)"
    with pytest.raises(TimeoutError) as error:
        files.wait()
    assert str(error.value) == (
        f"{files.folder}: nothing was written for {5 / 3600:g} hours, and {missing}; see why the other processes "
        "stopped, then run the same command again: it continues"
    )
    assert clock[0] == pytest.approx(5, abs=2 * job.POLL_SECONDS)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"waiting for other processes: {missing}, the last was written 2 s ago"
    assert len(told) == 2


def test_other_settings_are_refused_with_a_line_for_each():
    before = {"seed": 1, "sides": [1, 2], "model": "a", "sha256": {"config": "x" * 100, "weights": "w"}, "old": 1}
    same = {**before, "sides": (1, 2), "model": "b"}
    del same["old"]
    check_same(before, same, "out", "there", free=["model"])
    changed = {**same, "seed": 2, "sha256": {"config": "y" * 100, "weights": "w"}, "new": 3}
    with pytest.raises(ValueError) as error:
        check_same(before, changed, "out", "there", free=["model"])
    seed, config, new = str(error.value).splitlines()
    assert seed == "seed = 2: out = 'there' was started with 1; give the same settings, or another out"
    assert config.startswith("sha256.config = 'yyyyy")
    assert len(config) < 240
    assert new.startswith("new = 3: out = 'there' was started with None;")

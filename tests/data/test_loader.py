import threading
import time
from contextlib import ExitStack, closing

import pytest
import torch

from mvar.data.loader import Loader, Slices
from mvar.data.order import batch_indices


class Numbers:
    """A source whose row i of epoch e is the number 1000 e + i; it notes what was read, and can fail or wait."""

    def __init__(self, n=7, broken=None):
        self.labels, self.classes, self.broken = torch.arange(n) % 3, ["a", "b", "c"], broken
        self.read, self.gate = [], threading.Event()
        self.gate.set()

    def __len__(self):
        return len(self.labels)

    def batch(self, indices_B, epochs_B=None):
        self.gate.wait(10)
        self.read.append(indices_B.tolist())
        if self.broken in indices_B.tolist():
            raise ValueError(f"{self.name(self.broken)} is broken")
        return 1000 * epochs_B + indices_B, self.labels[indices_B]

    def name(self, i):
        return f"image {i}"


def step_rows(n, batch_size, seed, step):
    indices_B, epochs_B = batch_indices(n, batch_size, seed, step)
    return 1000 * epochs_B + indices_B


@pytest.fixture
def loader():
    """Loaders that are closed in the end."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(closing(Loader(*arguments)))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (2, 3)])
def test_slices_of_all_ranks_and_parts_make_the_batch(loader, workers, ranks, parts):
    source = Numbers()
    loaders = [loader(source, Slices(12, rank, ranks, parts), 5, workers) for rank in range(ranks)]
    for step in (0, 1, 2, 7, 3, 3, 4):  # in order, ahead, back, again
        got = [one.batch(step, part) for one in loaders for part in range(parts)]
        assert {len(batch.rows) for batch in got} == {12 // (ranks * parts)}
        rows, labels, positions = (torch.cat(parts) for parts in zip(*got, strict=True))
        assert torch.equal(rows, step_rows(7, 12, 5, step))
        assert torch.equal(labels, source.labels[rows % 1000])
        assert torch.equal(positions, torch.arange(12 * step, 12 * step + 12))
        assert [name for one in loaders for name in one.names(step)] == [f"image {row % 1000}" for row in rows.tolist()]


def test_the_next_slices_are_read_ahead_and_no_more(loader):
    source = Numbers(1000)
    ahead = loader(source, Slices(10), 0, 2)
    ahead.batch(0)
    for _ in range(500):
        if len(source.read) == 3:
            break
        time.sleep(0.01)
    time.sleep(0.05)  # were there more to come, they would
    assert sorted(source.read) == sorted(step_rows(1000, 10, 0, step).tolist() for step in range(3))
    source.gate.clear()
    got = []
    reader = threading.Thread(target=lambda: got.append(ahead.batch(1)))
    reader.start()
    reader.join(10)  # although nothing can be read
    source.gate.set()
    assert torch.equal(got[0].rows, step_rows(1000, 10, 0, 1))


def test_an_error_of_a_worker_comes_out_of_its_own_step(loader):
    n, size = 40, 4
    broken = int(batch_indices(n, size, 0, 2)[0][1])
    failing = loader(Numbers(n, broken), Slices(size), 0)
    for step in (0, 1):
        failing.batch(step)
    with pytest.raises(ValueError, match=f"image {broken} is broken"):
        failing.batch(2)
    assert f"image {broken}" in failing.names(2)
    assert torch.equal(failing.batch(3).rows, step_rows(n, size, 0, 3))


def test_a_batch_that_cannot_be_divided_is_refused():
    said = r"batch_size = 8: does not divide into ranks \* micro-batches = 2 \* 3 equal slices; give a multiple of 6"
    with pytest.raises(ValueError, match=said):
        Slices(8, ranks=2, micro_batches=3)
    with pytest.raises(ValueError, match=r"rank = 2: must lie in \[0, 2\)"):
        Slices(8, rank=2, ranks=2)

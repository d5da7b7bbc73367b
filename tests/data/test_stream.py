import re
import shutil
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mvar.data.loader import Slices
from mvar.data.shards.stream import Stream, StreamLoader
from mvar.data.splits import open_loader, open_splits
from mvar.data.views import Views


@pytest.fixture
def stream(three_shards):
    """A stream of the three shards, with changes."""

    def make(resize_factor=1.5, seed=1, augment=(), **changes):
        urls = [f"pipe:cat {Path(three_shards).parent}/train-{i}.tar" for i in range(3)]
        views = Views(image_shape=(8, 8), resize_factor=resize_factor, augment=augment, seed=seed)
        return Stream(**{"urls": urls, "classes": list("0123"), "views": views, **changes})

    return make


@pytest.fixture
def loader():
    """Stream loaders that are closed in the end."""
    with ExitStack() as stack:

        def make(stream, batch_size, workers=2, **place):
            return stack.enter_context(closing(StreamLoader(stream, Slices(batch_size, **place), workers)))

        yield make


def flat(lists):
    return [item for items in lists for item in items]


def walk(loader, steps, parts=1):
    """The batches of some steps, and the keys of each."""
    batches, keys = [], []
    for step in steps:
        batches += [loader.batch(step, part) for part in range(parts)]
        keys.append([name.rpartition("/")[2] for name in loader.names(step)])
    return batches, keys


def test_every_epoch_has_every_image_once_in_another_order_whatever_the_workers(stream, loader):
    batches, keys = walk(loader(stream(), 6, workers=0), range(8))
    epochs = [flat(keys[:4]), flat(keys[4:])]
    assert epochs[0] != epochs[1]
    assert all(sorted(epoch) == [f"{i:03d}" for i in range(24)] for epoch in epochs)
    assert [batch.labels_B.tolist() for batch in batches] == [[int(key) % 4 for key in step] for step in keys]
    assert torch.equal(torch.cat([batch.positions_B for batch in batches]), torch.arange(48))
    assert {batch.rows.shape for batch in batches} == {(6, 3, 8, 8)}
    for workers in (1, 3):
        again, _ = walk(loader(stream(), 6, workers=workers), range(8))
        assert all(all(map(torch.equal, *pair)) for pair in zip(batches, again, strict=True))
    other, _ = walk(loader(stream(seed=2), 6), range(8))
    assert not all(torch.equal(a.rows, b.rows) for a, b in zip(batches, other, strict=True))


def test_an_image_is_augmented_by_its_place_in_training(stream, loader):
    plain, augmented = stream(resize_factor=1.0), stream(resize_factor=1.0, augment=("shift", "scale", "flip"))
    batches, _ = walk(loader(augmented, 6), range(8))
    images = [image for place in range(6) for image in plain.shard(place)]
    for batch in batches:
        own = [images[i].pixels_HW3 for i in batch.positions_B]
        epochs_B = torch.zeros_like(batch.positions_B)
        assert torch.equal(batch.rows, augmented.views.batch(own, batch.positions_B, epochs_B))
        assert not torch.equal(batch.rows, plain.views.batch(own))
    assert [len(batch) for batch in plain.first(10, 4)] == [4, 4, 2]
    first = torch.cat(list(plain.first(10, 4)))
    assert torch.equal(torch.cat(list(augmented.first(10, 4))), first), "centre crops"
    assert torch.equal(first, walk(loader(plain, 10), [0])[0][0].rows)


def test_the_ranks_take_whole_shards_by_turns(stream, loader):
    ranks = [loader(stream(), 16, rank=rank, ranks=2, micro_batches=2) for rank in range(2)]
    keys = [walk(one, range(3), parts=2)[1] for one in ranks]
    for step in keys[0] + keys[1]:  # 8 images, all of one shard
        assert len({int(key) // 8 for key in step}) == 1
        assert len(set(step)) == 8
    taken = [int(keys[rank][step][0]) // 8 for step in range(3) for rank in range(2)]
    assert sorted(taken[:3]) == sorted(taken[3:]) == [0, 1, 2]


def test_a_stream_resumes_at_the_beginning_of_its_shard(stream, loader, capsys):
    unbroken = loader(stream(resize_factor=1.0), 5)
    batches, keys = walk(unbroken, range(3))  # 15 images: the second shard has one left
    assert unbroken.state() == {"shards": 1}
    resumed = loader(stream(resize_factor=1.0), 5)
    resumed.load_state(unbroken.state())
    assert "resumes at the beginning of shard 2 of 3 in epoch 1; images" in capsys.readouterr().err
    again, keys_again = walk(resumed, range(3, 6))
    assert flat(keys_again)[:7] == flat(keys)[8:]
    assert torch.equal(again[0].rows[:2], batches[1].rows[3:])
    assert again[0].positions_B.tolist() == list(range(15, 20))
    exact = loader(stream(), 8)
    exact.batch(0)
    assert exact.state() == {"shards": 1}, "a shard that was just done with does not come again"
    three = loader(stream(), 6, rank=1, ranks=3)
    three.load_state({"shards": 4})
    assert three.state() == {"shards": 3}, "the shard that three ranks had begun comes again; none is left out"


def test_bad_images_are_passed_over_or_refused(stream, loader, write_shard, write_tar, picture, tmp_path):
    samples = {"good": {"png": picture(0), "cls": 1}, "cut": {"png": picture(1)[:200], "cls": 1}, "bare": {"cls": 2}}
    url = f"pipe:cat {write_shard(tmp_path / 'bad.tar', samples)}"
    with pytest.warns(UserWarning, match="cannot be used") as caught:
        assert walk(loader(stream(urls=[url]), 1, workers=0), range(2))[1] == [["good"], ["good"]]
    said = "\n".join(str(warning.message) for warning in caught)
    assert re.search(r"bad\.tar/cut' cannot be used: .*truncated; it is left out", said)
    assert re.search(r"bad\.tar/bare' cannot be used: has no image of a kind that is read, only \.cls; it", said)
    with pytest.raises(ValueError, match=r"^data: 'pipe:.*bad\.tar/(cut|bare)' cannot be used"):
        loader(stream(urls=[url], on_bad_image="error"), 3).batch(0)
    with pytest.raises(ValueError, match=r"bad\.tar/good' has label 1, which is none of the 1 classes"):
        loader(stream(urls=[url], classes=["only"]), 1, workers=0).batch(0)
    url = f"pipe:cat {write_shard(tmp_path / 'none.tar', {'a': {'txt': 'text'}})}"
    with pytest.raises(ValueError, match=r"none\.tar': holds no readable image; take this shard out"):
        loader(stream(urls=[url]), 1, workers=0).batch(0)
    late = [("a.png", picture(0)), ("b.png", picture(1)), ("b.cls", b"1"), ("a.cls", b"0")]
    late = stream(urls=[f"pipe:cat {write_tar(tmp_path / 'late.tar', late)}"])
    with pytest.raises(ValueError, match=r"late\.tar/a' has no label beside it; pack each image and its label tog"):
        list(late.shard(0, 0))
    with pytest.warns(UserWarning, match="late.tar/a' cannot be used: has no image"):
        assert {image.label for image in replace(late, classes=[]).shard(0, 0)} == {0}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false", r"the command that fetches it ended with exit status 1; check that it can be fetched, then resume$"),
        ("yes", r"is no plain \.tar file \("),
        ("head -c 9000 {}", r"breaks off near '00\d\.\w+' \(unexpected end of data\)"),
        ("cat {}; exit 3", "exit 3"),
    ],
)
def test_a_stream_that_breaks_is_named_in_one_line(stream, loader, three_shards, command, message):
    url = f"pipe:{command.format(three_shards.replace('{0..2}', '0'))}"
    with pytest.raises(ValueError, match=message) as caught:
        walk(loader(stream(urls=[url]), 8), range(3))
    assert str(caught.value).startswith(f"data = {url!r}: ")
    assert "\n" not in str(caught.value)


def test_streams_need_validation_and_the_library(three_shards, monkeypatch):
    url = f"pipe:cat {three_shards}"
    with pytest.raises(ValueError, match="is a stream; give val_data, a folder or local shards, for validation"):
        open_splits(url, (8, 8))
    train, val = open_splits(url, (8, 8), val_data=three_shards, seed=4)
    assert (len(train.urls), train.classes, len(val)) == (3, list("0123"), 24)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "webdataset", None)
        with pytest.raises(ValueError, match=r"needs the package webdataset; pip install 'mvar-torch\[shards\]'"):
            open_splits(url, (8, 8), val_data=three_shards)


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset fetches by curl")
def test_shards_come_from_a_server(three_shards):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(Path(three_shards).parent))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/train-{{0..2}}.tar"
            train, _ = open_splits(url, (8, 8), val_data=three_shards)
            with closing(open_loader(train, Slices(24), 0)) as batches:
                assert sorted(batches.batch(0).labels_B.tolist()) == sorted([0, 1, 2, 3] * 6)
                assert sorted(name[-3:] for name in batches.names(0)) == [f"{i:03d}" for i in range(24)]
            missing = f"http://127.0.0.1:{server.server_port}/train-9.tar"
            with pytest.raises(ValueError, match=f"^data = '{missing}': .* check that it can be fetched"):
                next(replace(train, urls=[missing]).shard(0))
        finally:
            server.shutdown()

"""Token caches: what is in them, and that nothing that happens to them while they are made or later goes unnoticed."""

import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar import job
from mvar.cli import main
from mvar.data.splits import open_splits
from mvar.data.tokens import writer as token_writer
from mvar.data.tokens.cache import TokenCache
from mvar.data.tokens.encoded import EncodedImages
from mvar.data.tokens.writer import write_cache
from mvar.model import load
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

VIEWS, FACTOR, SEED = 3, 1.5, 4
# 7 training images in shards of 2, so four of them, and 2 validation images in one.
SETTINGS = {"views": VIEWS, "resize_factor": FACTOR, "seed": SEED, "shard_images": 2, "batch_size": 1}


@pytest.fixture(scope="module")
def data(fashion_arrays, tmp_path_factory) -> Path:
    """train/ and val/ of two classes, one with a name that needs care."""
    root = tmp_path_factory.mktemp("photos")
    for split, counts in (("train", (4, 3)), ("val", (1, 1))):
        for label, (name, count) in enumerate(zip(("bag", "ящик\n"), counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for i, image in enumerate(fashion_arrays[split][label, :count]):
                Image.fromarray(np.asarray(image)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def tokenizer(bundle) -> Tokenizer:
    return load(bundle, "cpu", "float32").tokenizer


@pytest.fixture(scope="module")
def finished(data, tokenizer, tmp_path_factory) -> Path:
    """A cache of SETTINGS; read only."""
    out = tmp_path_factory.mktemp("caches") / "finished"
    assert write_cache(str(data), str(out), tokenizer, **SETTINGS)
    return out


@pytest.fixture
def command(data, bundle):
    """The words of `mvar tokenize` with SETTINGS."""

    def words(out: Path, **changes) -> list[str]:
        options = {"data": data, "tokenizer": bundle, "out": out, **SETTINGS, "device": "cpu", **changes}
        return ["tokenize", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]

    return words


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*-0*.npy"))


ALL = ("shift", "scale", "flip")


@pytest.mark.parametrize(("dtype", "factor", "augment"), [("bfloat16", FACTOR, ()), ("float32", 1.0, ALL)])
def test_a_view_is_that_of_its_epoch_and_validation_the_centre(data, tokenizer, dtype, factor, augment, tmp_path):
    changes = {"resize_factor": factor, "augment": augment}
    write_cache(str(data), str(tmp_path / "c"), tokenizer, **{**SETTINGS, **changes}, dtype=dtype)
    sources = TokenCache.open(tmp_path / "c").splits()

    def encoded(images, i, epoch):
        pixels = images.batch([i], epoch)[0] / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return torch.cat(tokenizer.encode(pixels), dim=1)[0]

    folders = open_splits(data, (8, 8), **changes, seed=SEED)
    for split, source, images in zip(("train", "val"), sources, folders, strict=True):
        n = len(source)
        assert (n, source.classes) == (len(images), ["bag", "ящик"])  # of the folder "ящик\n"
        assert torch.equal(source.labels, images.labels)
        assert [source.name(i) for i in range(n)] == [os.path.relpath(path, data) for path in images.paths]
        views = VIEWS if split == "train" else 1
        assert {(shard.dtype, *shard.shape[1:]) for shard in source.shards} == {(np.dtype("uint16"), views, 21)}
        order = torch.tensor([*range(n - 1, -1, -1), 0])
        for epoch in range(2 * views):
            tokens, labels = source.batch(order, torch.full_like(order, epoch))
            assert tokens.dtype == labels.dtype == torch.int64
            assert torch.equal(labels, images.labels[order])
            for row, i in zip(tokens, order, strict=True):
                shown = torch.tensor([epoch % VIEWS]) if split == "train" else None
                assert torch.equal(row, encoded(images, int(i), shown))
        assert torch.equal(source.batch(order)[0], source.batch(order, torch.zeros_like(order))[0])
    train = sources[0]
    assert not torch.equal(train.batch(range(7))[0], train.batch(range(7), torch.ones(7, dtype=torch.long))[0])


def test_codes_beyond_sixteen_bits(data, tmp_path):
    torch.manual_seed(0)
    config = TokenizerConfig(
        channels=32, multipliers=(1, 1), res_blocks=1, latent_channels=4, vocab_size=2**16 + 9, sides=[1, 4]
    )
    large = Tokenizer(config).eval()
    large.quantizer.codebook.data[: 2**16] = 1e3  # never nearest
    write_cache(str(data), str(tmp_path / "c"), large, batch_size=4)
    (train, _), (images, _) = TokenCache.open(tmp_path / "c").splits(), open_splits(data, (8, 8), resize_factor=1.0)
    tokens = train.batch(range(7))[0]
    assert torch.equal(tokens, EncodedImages(images=images, tokenizer=large).tokens(range(7)))
    assert tokens.min() >= 2**16


KILLED = """
import os, signal, sys
from mvar.cli import main
from mvar.data.tokens.encoded import EncodedImages

tokens, calls = EncodedImages.tokens, 0

def killing(self, *args):
    global calls
    calls += 1
    if calls == 2 * 3 + 3 + 2:  # two images of three views are a shard: in the middle of the second one
        os.kill(os.getpid(), signal.SIGKILL)
    return tokens(self, *args)

EncodedImages.tokens = killing
main(sys.argv[1:])
"""


def test_killed_and_finished_by_two_processes_it_is_the_same_bytes(finished, command, processes, tmp_path):
    out = tmp_path / "cache"
    words = command(out)
    killed = processes.Processes(KILLED, words, tmp_path)
    assert killed.wait() == [-9], killed.errors()
    assert shards(out) == ["train-00000.npy"]
    kept = (out / "train-00000.npy").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"^data = '.*cache': is not finished; run mvar tokenize again .*$"):
        TokenCache.open(out)

    both = processes.Ranks(2, processes.COMMAND, words, tmp_path)
    both.finish()
    assert both.output().splitlines()[0] == f"wrote {out}"
    assert (out / "train-00000.npy").stat().st_mtime_ns == kept
    assert contents(out) == contents(finished), "nothing else, and the same bytes"


def test_a_rank_that_does_not_come_is_not_waited_for_forever(finished, data, tokenizer, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    monkeypatch.setattr(job, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(job, "POLL_SECONDS", 0.0)
    for _ in range(2):  # the second time there is nothing left for rank 0 to write
        with pytest.raises(TimeoutError, match=r"2 of 5 shards are missing \(train-00001.npy, train-00003.npy\); .*"):
            write_cache(str(data), str(out), tokenizer, **SETTINGS, rank=0, ranks=2)
    assert write_cache(str(data), str(out), tokenizer, **SETTINGS, rank=1, ranks=2)
    assert not (out / "manifest.json").exists()
    assert write_cache(str(data), str(out), tokenizer, **SETTINGS, rank=0, ranks=2)
    assert contents(out) == contents(finished)


def test_files_that_are_not_whole_are_named_and_mended_alone(finished, command, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "cache")
    before = {name: (out / name).stat().st_ino for name in shards(out)}
    content = (out / "train-00001.npy").read_bytes()
    (out / "train-00001.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.truncate(out / "train-00003.npy", 100)
    (out / "val-00000.npy").unlink()
    broken = ["train-00001.npy", "train-00003.npy", "val-00000.npy"]
    told = f"missing or damaged: {', '.join(broken)}; run mvar tokenize again"
    with pytest.raises(ValueError, match=rf"^data = '.*cache': {told} [^\n]*$"):
        TokenCache.open(out)
    main(command(out))
    assert f"wrote {out}" in capsys.readouterr().out
    assert contents(out) == contents(finished)
    kept = [name for name in shards(out) if (out / name).stat().st_ino == before[name]]
    assert kept == ["train-00000.npy", "train-00002.npy"]


def test_a_finished_cache_is_left_alone(finished, command, capsys, monkeypatch):
    monkeypatch.setattr(token_writer, "open_splits", None)  # not even the images are read
    before = contents(finished)
    main(command(finished))
    said = f"nothing to do: {finished} is complete and whole; its images were not read again\n"
    assert capsys.readouterr().out == said
    assert contents(finished) == before


@pytest.mark.parametrize("state", ["finished", "begun"])
def test_other_settings_are_refused(finished, data, command, refused, tmp_path, state):
    out = shutil.copytree(finished, tmp_path / "cache")
    if state == "begun":
        (out / ".unfinished").mkdir()
        (out / "manifest.json").rename(out / ".unfinished" / "settings.json")
    changes = {"views": (2, 3), "augment": (["flip"], []), "seed": (9, 4)}
    assert refused(*command(out, views=2, augment="flip", seed=9)) == [
        f"mvar: {name} = {now}: out = '{out}' was started with {before}; give the same settings, or another out"
        for name, (now, before) in changes.items()
    ]
    if state == "begun":
        other = shutil.copytree(data, tmp_path / "another" / data.name)
        shutil.copy(other / "train" / "bag" / "0.png", other / "train" / "bag" / "1.png")
        assert refused(*command(out, data=other))[-1] == (
            f"mvar: data = '{other}': has 7 + 2 images, other ones than the cache '{out}' was started with (7 + 2); "
            "restore them, or give a new folder as out"
        )


def test_mistakes_are_refused_before_anything_is_written(refused, command, data, tmp_path):
    fix = "give 1, or augment, or resize_factor above 1"
    for changes, message in (
        ({"resize_factor": 1}, f"views = 3: all are the same where nothing is cropped or augmented; {fix}"),
        ({"resize_factor": 0.5}, "resize_factor = 0.5: must lie in [1, 4]"),
        ({"data": "nowhere"}, "data = 'nowhere': does not exist"),
    ):
        (line,) = refused(*command(tmp_path / "cache", **changes))
        assert line.startswith(f"mvar: {message}")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "mine.txt").touch()
    assert "already exists and is neither an empty folder nor a token cache" in refused(*command(tmp_path))[0]
    assert refused(*command(data / "cache"))[0].endswith("lies inside data; name another")


def test_a_cache_is_no_folder_of_images_and_no_model(refused, finished, bundle, data, tmp_path):
    cache = str(finished)
    assert refused("score", "--model", bundle, "--images", cache)[-1] == (
        f"mvar: images = {cache!r}: is a token cache, which only train generator takes, as --data; "
        "give the folder of images that it was made from"
    )
    for arguments, field in (
        (["info", cache], "model"),
        (["tokenize", "--data", str(data), "--tokenizer", cache, "--out", str(tmp_path / "out")], "tokenizer"),
    ):
        assert refused(*arguments) == [
            f"mvar: {field} = {cache!r}: is a token cache, which train generator takes as --data; "
            "give a bundle or run folder"
        ]


def test_a_full_disk_leaves_whole_shards_only(command, tmp_path, capsys):
    out = tmp_path / "cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = command(out, shard_images=6)  # 884 bytes of 6 images and 254 of the last
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (800, limits[1]))
        with pytest.raises(SystemExit) as exit_:
            main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert exit_.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"mvar: out = '{out}': cannot be written (File too large); fix it and run the same command again: it continues"
    )
    assert [path.name for path in out.iterdir()] == [".unfinished"]


def test_a_manifest_of_another_version(finished, command, refused, tmp_path):
    out = shutil.copytree(finished, tmp_path / "cache")
    (out / "manifest.json").write_text('{"format": "mvar-tokens", "version": 9}')
    said = r"manifest.json cannot be used \(version = 9, this mvar reads version 2\); delete the cache and"
    with pytest.raises(ValueError, match=f"^data = '.*cache': {said}"):
        TokenCache.open(out)
    assert "manifest.json cannot be used" in refused(*command(out))[0]

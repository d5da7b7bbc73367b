"""A generator trained from a token cache: the same run as from the images, without the tokenizer in memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvar.cli import main
from mvar.data.tokens.writer import write_cache
from mvar.model import load
from mvar.tokenizer.network import Tokenizer
from mvar.training.generator import task as generator
from mvar.training.generator import token_data
from mvar.training.generator.task import GeneratorTask
from mvar.training.generator.token_data import load_tokenizer

from .runs import checkpoint, metrics, same_bits, train_until


@pytest.fixture
def cache(photos, trained_tokenizer, tmp_path):
    """Make a cache of the photos."""

    def make(**settings) -> str:
        out = tmp_path / "cache"
        tokenizer = load_tokenizer(str(trained_tokenizer), "cpu")
        write_cache(str(photos), str(out), tokenizer, **{"shard_images": 8, **settings})
        return str(out)

    return make


def files(out):
    """What a run leaves, without times of day, the names of folders, and hashes, which are of images or of tokens."""
    previews = {path.name: path.read_bytes() for path in Path(out, "previews").iterdir()}
    weights = {name: Path(out, name).read_bytes() for name in ("tokenizer.safetensors", "generator.safetensors")}
    data = {
        name: value for name, value in json.loads(Path(out, "data.json").read_text()).items() if "content" not in name
    }
    return checkpoint(out), metrics(out), previews, weights, data


@pytest.mark.parametrize(("resize_factor", "augment"), [(1.0, ()), (1.5, ("shift", "scale", "flip"))])
def test_training_from_a_cache_equals_training_from_the_images(generator_run, cache, resize_factor, augment, tmp_path):
    # 6 steps of 5 are 30 of 21 images: two epochs.
    views = {"resize_factor": resize_factor, "augment": augment}
    made = cache(**views, views=1 if resize_factor == 1 and not augment else 2)
    config = generator_run(**views, val_images=2, validate_every=6, checkpoint_every=6)
    images, cached = (replace(config, out=str(tmp_path / name)) for name in ("images", "cached"))
    cached = replace(cached, data=made, resize_factor=1.0, augment=())  # the cache's own count
    model = generator.train(images)
    again = generator.train(cached)
    assert same_bits(files(images.out), files(cached.out))
    assert again.provenance == model.provenance
    loaded = load(cached.out, "cpu")
    assert torch.equal(loaded.sample("shoe").pixels, model.sample("shoe").pixels)


def test_training_images_are_encoded_as_they_come_up_and_by_no_start_again(
    generator_run, tmp_path, monkeypatch, capsys
):
    encode, encoded, loss, before = Tokenizer.encode, [0], GeneratorTask.loss, []
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, pixels: encoded.append(encoded.pop() + len(pixels)) or encode(self, pixels)
    )
    monkeypatch.setattr(GeneratorTask, "loss", lambda self, *args: before.append(*encoded) or loss(self, *args))
    config = generator_run(resize_factor=1.0, val_images=2, validate_every=6, out=str(tmp_path / "run"))
    train_until(3, generator.train, GeneratorTask, config)
    assert before == [2, 7, 12, 17], "the validation images first, then a batch with each step"
    assert f"when they first come up, and their tokens kept in {config.out}/tokens.npy" in capsys.readouterr().err
    assert encoded == [2 + 20]
    generator.train(replace(config, resume=True))
    assert encoded == [2 + 20 + 2 + 1], "21 training images in all"
    fresh = replace(config, out=str(tmp_path / "fresh"))
    monkeypatch.setattr(token_data, "MOST_EPOCHS", 1)  # 30 of 21 images
    with pytest.warns(UserWarning, match="^each image is seen 1 times, always the same: .* --augment shift,scale"):
        generator.train(fresh)
    assert encoded == [2 + 20 + 2 + 1 + 2 + 21]
    assert same_bits(files(fresh.out), files(config.out))


@pytest.mark.filterwarnings("ignore:the model was not trained at these scales")
def test_what_does_not_go_with_a_cache_is_refused(
    generator_run, cache, photos, trained_tokenizer, bundle, tmp_path, refused
):
    made, wide = cache(), str(tmp_path / "wide")
    main(["reschedule", "--model", str(trained_tokenizer), "--sides", "1,2,[4,8]", "--out", wide])
    for changes, message in (
        ({"val_data": str(photos)}, "val_data = .*: a token cache has its own validation images; leave"),
        ({"augment": ("shift", "flip")}, "augment = shift, flip: a token cache holds its views already; leave augment"),
        ({"tokenizer": bundle}, f"tokenizer = '{bundle}': did not make the cache '{made}'; give the one that did"),
        ({"tokenizer": wide}, f"tokenizer = '{wide}': did not make the cache '{made}'; give the one that did"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            generator.train(generator_run(data=made, **changes))
    Path(made, "train-00001.npy").unlink()
    config = generator_run()
    words = ["train", "generator", "--preset", "tiny32", "--data", made, "--tokenizer", config.tokenizer]
    assert f"data = '{made}': missing or damaged: train-00001.npy" in refused(*words, "--out", config.out)[-1]
    assert not Path(config.out).exists()

"""What a loaded model can do, for the models that are easily forgotten: bfloat16, without classes, of one scale."""

import pytest
import torch
from PIL import Image

from mvar.model import Model
from mvar.sampling.config import SamplingSettings


def model(build, **changes):
    classes = ["cat", "dog", "owl"] if changes.get("num_classes", 3) else []
    return Model(*build(**changes), classes)


def picture(model):
    h, w = model.tokenizer.config.image_shape
    pixels = torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("changes", [{"num_classes": 0}, {"sides": (4,)}, {"sides": ((1, 2), (2, 4), (4, 8))}])
def test_edit_vary_and_score_any_model(build, changes):
    some = model(build, **changes)
    h, w = some.tokenizer.config.image_shape
    image, label = picture(some), "dog" if some.classes else None
    edited = some.edit(image, box=(0, 0, w // 2, h), label=label, n=3, batch_size=2)
    assert edited.pixels.shape == (3, 3, h, w)
    varied = some.vary(image, label, from_scale=len(some.tokenizer.config.sides) - 1, n=3, batch_size=2)
    assert len(varied.images) == 3
    score = some.score([image, image], label)
    torch.testing.assert_close(score.log_prob[0], score.log_prob[1])
    assert score.bits_per_token_scales.shape == (2, len(some.tokenizer.config.sides))
    assert "FLOP of an image" in some.facts()
    if some.classes:
        assert some.classify([image]).labels[0] in some.classes
    else:
        with pytest.raises(ValueError, match="this model has 0 classes: classifying takes one with two or more"):
            some.classify([image])


def test_bfloat16_edits_varies_and_scores(build, tmp_path):
    exact = model(build)
    exact.save(tmp_path)
    half = Model.from_pretrained(tmp_path, dtype="bfloat16")
    image = picture(half)
    kept = half.edit(image, box=(0, 0, 2, 2), mode="own", n=2).tokens
    own = half.tokenizer.encode(torch.stack([torch.zeros(3, 8, 8)]))
    assert len(kept) == len(own)
    assert half.vary(image, 0, from_scale=2, n=2).pixels.isfinite().all()
    a, b = exact.score([image], 1).bits_per_token, half.score([image], 1).bits_per_token
    torch.testing.assert_close(a, b, rtol=0.05, atol=0)


def test_the_same_schedule_is_the_same_model_and_another_drops_settings_by_scale(build):
    some = model(build)
    assert some.rescheduled([1, 2, 3, 4]) is some
    some.defaults = SamplingSettings(guidance=[0, 1, 2, 3], top_k=7)
    with pytest.warns(UserWarning, match="the model was not trained at these scales: fine-tune it; its position"):
        other = some.rescheduled([1, 2, 4])
    assert other.defaults == SamplingSettings(top_k=7)
    assert len(other.sample(0).tokens) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.edit(torch.zeros(3, 8, 8), box=(0, 0, 2, 2)),
            "image: is a Tensor; give a file's name or an image",
        ),
        (lambda m: m.edit(picture(m), box=(0, 0, 2, 2), label=[0, 1]), "label has 2 classes: give one"),
        (lambda m: m.edit(picture(m), box=(0, 0, 2, 2), n=2, index=[1]), "index has 1 numbers for n = 2"),
        (lambda m: m.edit(picture(m), box=(0, 0, 2, 2), mode="best"), "mode = 'best': choose from reencode, own"),
        (lambda m: m.vary(m.sample([0, 1]).tokens, from_scale=1), "image: these are token maps of 2 images"),
        (lambda m: m.vary(m.sample(0).tokens[:1], from_scale=2), "from_scale = 2: 1 token maps are given"),
        (lambda m: m.score([], 0), "images is empty: give at least one"),
        (lambda m: m.score([picture(m)], [0, 1]), "labels has 2 for 1 images: give one for each, or one for all"),
        (lambda m: m.score(torch.zeros(1, 3, 9, 8)), r"pixels have shape \(1, 3, 9, 8\), expected \(batch, 3, 8, 8\)"),
        (lambda m: m.classify([picture(m)], [0.5, 0.5]), r"prior = \[0.5, 0.5\]: give 3 probabilities that sum to 1"),
        (lambda m: m.classify([picture(m)], [0.5, 0.6, -0.1]), "give 3 probabilities that sum to 1"),
    ],
)
def test_refused(build, call, message):
    with pytest.raises(ValueError, match=message):
        call(model(build))

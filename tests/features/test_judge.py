import pytest
import torch
from safetensors.torch import save_file

from mvar.features.judge import Judge, accuracy, train_judge


@pytest.fixture(scope="module")
def excerpt(fashion_arrays):
    """At half their size, which tells the classes well enough apart."""

    def flat(split):
        images = torch.from_numpy(fashion_arrays[split][..., ::2, ::2].copy())
        return images.flatten(0, 1)[:, None], torch.arange(10).repeat_interleave(images.shape[1])

    return {split: flat(split) for split in ("train", "val")}


@pytest.fixture(scope="module")
def judge(excerpt):
    pixels, labels = (tensor[::2] for tensor in excerpt["train"])
    return train_judge(pixels, labels, num_classes=10, epochs=2, batch_size=32, seed=3)


def test_learns_far_above_chance(judge, excerpt):
    assert accuracy(judge, *excerpt["val"]) > 0.6


def test_same_seed_same_judge_and_the_global_generator_is_left_alone(excerpt):
    pixels, labels = (tensor[::20] for tensor in excerpt["train"])
    before = torch.get_rng_state()
    once, again, other = (train_judge(pixels, labels, num_classes=10, epochs=1, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["head.weight"], other["head.weight"])


def test_round_trip_at_28_and_32_pixels(judge, tmp_path):
    judge.save(tmp_path / "judge.safetensors")
    loaded = Judge.load(tmp_path / "judge.safetensors")
    for side in (28, 32):
        pixels = torch.rand(3, 3, side, side)
        assert torch.equal(judge(pixels), loaded(pixels))
        assert judge.features(pixels).shape == (3, 128)
    assert not loaded.training


def test_colour_is_seen_only_by_a_colour_judge():
    pixels = torch.rand(4, 3, 28, 28)
    turned = pixels.roll(1, dims=1)  # same mean over the channels, other colours
    for channels, same in ((1, True), (3, False)):
        judge = Judge(2, channels).eval()
        assert torch.allclose(judge(pixels), judge(turned), atol=1e-5) is same


def test_mistakes_are_named(tmp_path):
    pixels = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected torch.uint8 \(N, 1 or 3, h, w\)"):
        train_judge(pixels.float(), torch.zeros(4), num_classes=2)
    with pytest.raises(ValueError, match=r"4 labels .* from 0 to 1"):
        train_judge(pixels, torch.tensor([0, 1, 2, 0]), num_classes=2)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    broken = Judge(3).state_dict()
    broken["head.bias"][1] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"judge = '.*broken.safetensors': head.bias holds NaN or infinity in 1 of 3 "):
        Judge.load(tmp_path / "broken.safetensors")
    for name in ("x.safetensors", "missing"):
        with pytest.raises(ValueError, match=f"judge = '.*{name}': not a judge's file"):
            Judge.load(tmp_path / name)


def test_larger_images_are_averaged_down():
    judge = Judge(3).eval()
    pixels = torch.rand(2, 3, 64, 64)
    small = pixels.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    with torch.no_grad():
        torch.testing.assert_close(judge(pixels), judge(small))

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mvar.features.inception import InceptionV3, resize_tensorflow

from . import naive_inception as naive


@pytest.fixture(scope="module")
def state():
    return naive.random_state()


@pytest.fixture(scope="module")
def network(state):
    before = torch.get_rng_state()
    found = InceptionV3(state)
    assert torch.equal(before, torch.get_rng_state())  # a run draws the same numbers whatever network it has
    return found


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- the network ---


@torch.inference_mode()
def test_every_block_and_output_is_as_published(network, state):
    batch = images(1, 3, 40, 52)
    maps = naive.Naive(dict(state)).run(network.prepared(batch))
    found = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda *call, name=name: found.update({name: call[2]}))
        for name in maps
        if name != "stem"
    ]
    outputs = network(batch)
    for hook in hooks:
        hook.remove()
    for name, expected in maps.items():
        if name != "stem":
            torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-4)

    pooled = maps["Mixed_7c"].mean((2, 3))
    torch.testing.assert_close(outputs.pooled_BF.double(), pooled, rtol=1e-4, atol=1e-5)
    # ADM's mixed_6/conv: the first branch of the seventh block from Mixed_5b, place by place.
    spatial = [maps["Mixed_6d"][:, c, i, j] for i in range(17) for j in range(17) for c in range(7)]
    assert outputs.spatial_BS.shape == (1, 2023)
    torch.testing.assert_close(outputs.spatial_BS.double(), torch.stack(spatial, 1), rtol=1e-4, atol=1e-4)
    exponentials = (pooled @ state["fc.weight"].double().T).exp()
    probabilities = exponentials / exponentials.sum(1, keepdim=True)
    assert outputs.probabilities_BK.shape == (1, 1008)
    torch.testing.assert_close(outputs.probabilities_BK.double(), probabilities, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(outputs.probabilities_BK.sum(1), torch.ones(1))
    assert {tensor.dtype for tensor in outputs} == {torch.float32}


# --- its input ---


def resized_by_loops(x, h, w):
    """TensorFlow 1's bilinear resizing, place by place."""
    H, W = x.shape
    out = np.empty((h, w))
    for i in range(h):
        for j in range(w):
            y, z = i * H / h, j * W / w
            top, left = int(y), int(z)
            bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
            upper = x[top, left] + (x[top, right] - x[top, left]) * (z - left)
            lower = x[bottom, left] + (x[bottom, right] - x[bottom, left]) * (z - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return out


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (23, 45)])
@pytest.mark.parametrize("source", [(7, 5), (1, 3)])
def test_resizing_is_tensorflows(source, size):
    x = images(2, 3, *source).float()
    found = resize_tensorflow(x, *size)
    assert found.shape == (2, 3, *size)
    for image, expected in zip(found.flatten(0, 1), x.flatten(0, 1), strict=True):
        np.testing.assert_allclose(image, resized_by_loops(expected.double().numpy(), *size), rtol=1e-5, atol=1e-3)
    if source != size and min(*source, *size) > 1:
        half_pixel = F.interpolate(x, size, mode="bilinear", align_corners=False)
        assert (found - half_pixel).abs().max() > 5


def test_both_pipelines_prepare_as_they_were_published(network, state):
    x = images(1, 3, 64, 48)
    channel = x[0, 1].double().numpy()
    adm = network.prepared(x)
    np.testing.assert_allclose(adm[0, 1], (resized_by_loops(channel, 299, 299) - 128) / 128, atol=1e-5)
    ported = InceptionV3(state, "pytorch-fid").prepared(x)
    assert adm.shape == ported.shape == (1, 3, 299, 299)
    for i, j in ((0, 0), (100, 7), (298, 298), (31, 200)):
        y, z = (max((i + 0.5) * 64 / 299 - 0.5, 0), max((j + 0.5) * 48 / 299 - 0.5, 0))
        top, left = int(y), int(z)
        patch = channel[np.ix_([top, min(top + 1, 63)], [left, min(left + 1, 47)])]
        expected = np.array([1 - y + top, y - top]) @ patch @ np.array([1 - z + left, z - left])
        assert float(ported[0, 1, i, j]) == pytest.approx(2 * expected / 255 - 1, abs=1e-5)

    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert network.prepared(ends).amax((1, 2, 3)).tolist() == pytest.approx([-1, 127 / 128])
    assert InceptionV3(state, "pytorch-fid").prepared(ends).amax((1, 2, 3)).tolist() == pytest.approx([-1, 1])


# --- its weights ---


def test_the_keys_are_the_published_ones(state):
    assert len(state) == 5 * 94 + 2  # 94 convolutions with four tensors of normalisation each, and the classifier
    ignored = {
        "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0),
        "Mixed_6e.branch1x1.bn.num_batches_tracked": torch.tensor(7),
        "AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1),
    }
    InceptionV3(state | ignored)
    InceptionV3({name: tensor for name, tensor in state.items() if name != "fc.bias"})


def test_other_weights_are_refused(state):
    norm = "Mixed_6c.branch7x7_2.bn.running_var"
    for tensors, message in (
        ({}, "Conv2d_1a_3x3.conv.weight is missing"),
        (state | {norm: torch.full((160,), torch.nan)}, f"{norm} holds NaN or infinity in 160 of 160 places: .*"),
        (state | {"Mixed_5b.branch1x1.conv.bias": torch.ones(64)}, "Mixed_5b.branch1x1.conv.bias is unknown to .*"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            InceptionV3(tensors)

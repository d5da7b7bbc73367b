"""VGG16, and LPIPS on top of it: the perceptual loss of most tokenizers in the field.

Shapes: B images, H W pixels, F channels of a stage, h w its sides.
Source: Simonyan & Zisserman 2015, configuration D, in torchvision's key names; Zhang et al. 2018 (LPIPS), section 3, in
its authors' key names.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mvar.features.base import FeatureNetwork, take_weights

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions; a pooling by 2 between stages
# LPIPS's own, on pixels in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

# Both torchvision's names and LPIPS's, which numbers layers across slices and may hold channel weights twice.
CONVOLUTION = re.compile(r"(?:features|net\.slice[1-5])\.(\d+\.(?:weight|bias))")
CHANNEL_WEIGHTS = re.compile(r"lin(?:s\.)?(\d)\.model\.1\.weight")
IGNORED = re.compile(r"classifier\..*|scaling_layer\.(?:shift|scale)")


class VGG16(FeatureNetwork):
    """The maps after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Args:
        tensors: the convolutions as `features.*` or LPIPS's `net.slice*`, and optionally LPIPS's channel weights
            `lin0.model.1.weight` to `lin4.model.1.weight` (1, F, 1, 1).

    Raises:
        ValueError: these are not VGG16's weights.
    """

    shift_3hw: Tensor
    scale_3hw: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift_3hw", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale_3hw", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        layers: list[nn.Module] = []
        fan_in = 3
        with torch.device("meta"):
            for F, convolutions in STAGES:
                layers += [nn.MaxPool2d(2)] if layers else []
                for _ in range(convolutions):
                    layers += [nn.Conv2d(fan_in, F, 3, padding=1), nn.ReLU(inplace=True)]
                    fan_in = F
            self.features = nn.Sequential(*layers)  # numbered as torchvision's are
            lpips = any(map(CHANNEL_WEIGHTS.fullmatch, tensors))
            self.lins = nn.ParameterList(torch.empty(F) for F, _ in STAGES) if lpips else None
        take_weights(self, _own_names(tensors))

    @property
    def channel_weights(self) -> list[Tensor] | None:
        """LPIPS's, where given."""
        return None if self.lins is None else list(self.lins)

    def maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Five maps (B, F, h, w); each has half the sides of the one before."""
        x_BFhw = (pixels_B3HW * 2 - 1 - self.shift_3hw) / self.scale_3hw
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x_BFhw)
            x_BFhw = layer(x_BFhw)
        return [*maps, x_BFhw]


def _own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {}
    for name, tensor in tensors.items():
        if convolution := CONVOLUTION.fullmatch(name):
            own[f"features.{convolution[1]}"] = tensor
        elif lin := CHANNEL_WEIGHTS.fullmatch(name):
            own[f"lins.{lin[1]}"] = tensor.flatten()
        elif not IGNORED.fullmatch(name):
            own[name] = tensor
    return own

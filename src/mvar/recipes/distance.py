"""FD-EffNetLite0: the Frechet distance between sets of small images in EfficientNet-Lite0's features.

Not FID: the network is another one, and sees enlarged images. Always told with the number of images and the distance of
as many real images, since both decide how low it can get.

Shapes: N images, F features, h w pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.data.progress import track
from mvar.evaluation.frechet import fit, frechet_distance
from mvar.features.effnet import EffNetLite0

NAME = "FD-EffNetLite0"
IMAGES = 2000  # that are compared with all real images of the other split
SIDE = 64
FRAME = 32  # images below are framed with black to this side first, as is customary for 28x28


class Distance:
    """Distances to one set of real images.

    Attributes:
        reference_NF: the set's features (N, 320), as `features` gives them.
    """

    def __init__(self, reference_Nchw: Tensor) -> None:
        """Args:
        reference_Nchw: uint8, grey or RGB, at most 64 pixels a side.
        """
        self._network = EffNetLite0()
        self.reference_NF = self.features(reference_Nchw)
        self._reference = fit(self.reference_NF)

    def of(self, images_Nchw: Tensor) -> float:
        """The distance of uint8 images (N, 1 or 3, h, w)."""
        return self.of_features(self.features(images_Nchw))

    def of_features(self, features_NF: Tensor) -> float:
        """The distance of images whose features (N, 320) are known."""
        return frechet_distance(fit(features_NF), self._reference)

    @torch.inference_mode()
    def features(self, images_Nchw: Tensor) -> Tensor:
        """Features (N, 320) of uint8 images (N, 1 or 3, h, w)."""
        parts = images_Nchw.split(250)
        return torch.cat([self._network(_seen(part)) for part in track(parts, len(parts), "features")])


def _seen(images_Nchw: Tensor) -> Tensor:
    """Pixels (N, 3, 64, 64) in [0, 1] as the network sees them."""
    pixels = images_Nchw.float() / 255
    h, w = pixels.shape[-2:]
    if max(h, w) < FRAME:
        top, left = (FRAME - h) // 2, (FRAME - w) // 2
        pixels = F.pad(pixels, (left, FRAME - w - left, top, FRAME - h - top))
    pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return pixels.expand(-1, 3, -1, -1)

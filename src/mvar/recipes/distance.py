"""FD-EffNetLite0: the Frechet distance between sets of small images in EfficientNet-Lite0's features.

Not FID: the network is another one, and sees enlarged images. Always told with the number of images and the distance of
as many real images, since both decide how low it can get.

Shapes: N images, h w pixels.
"""

import torch
from torch import Tensor

from mvar.data.progress import track
from mvar.evaluation.frechet import Gaussian, fit, frechet_distance
from mvar.features.extractors import find_extractor

NAME = "FD-EffNetLite0"
IMAGES = 2000  # that are compared with all real images of the other split
SIDE = 64


class Distance:
    """Distances to one set of real images."""

    def __init__(self, reference_Nchw: Tensor) -> None:
        """Args:
        reference_Nchw: uint8, grey or RGB, at most 64 pixels a side.
        """
        self._extractor = find_extractor("effnet-lite0", side=SIDE)
        self._reference = self._fit(reference_Nchw)

    def of(self, images_Nchw: Tensor) -> float:
        """The distance of uint8 images (N, 1 or 3, h, w)."""
        return frechet_distance(self._fit(images_Nchw), self._reference)

    def _fit(self, images_Nchw: Tensor) -> Gaussian:
        parts = images_Nchw.split(250)
        features = [
            self._extractor(part.expand(-1, 3, -1, -1)).pooled_BF for part in track(parts, len(parts), "features")
        ]
        return fit(torch.cat(features))

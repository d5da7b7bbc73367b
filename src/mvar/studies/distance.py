"""FD-EffNetLite0: the Frechet distance between sets of small images in EfficientNet-Lite0's features.

Not FID: the network is another one, and sees enlarged images. Always report it with the number of images and the
distance of the same number of real images, since both determine how low it can get.

Shapes: N images, h w pixels.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from mvar.data.order import evenly_spaced
from mvar.evaluation.frechet import bootstrap, fit, frechet_distance
from mvar.evaluation.manifold import overlap
from mvar.evaluation.report import Value
from mvar.features.extractors import Extractor, find_extractor
from mvar.progress import track

NAME = "FD-EffNetLite0"
IMAGES = 2000  # images to compare with all real images of the other split
SIDE = 64


class Distance:
    """Distances to one set of real images, uint8, grey or RGB."""

    def __init__(self, reference_Nchw: Tensor, extractor: Extractor | None = None) -> None:
        """`extractor` gives the features, by default EfficientNet-Lite0 of images at most 64 pixels per side."""
        self._extractor = extractor or find_extractor("effnet-lite0", side=SIDE)
        self.reference_NF = self.features(reference_Nchw)
        self._reference = fit(self.reference_NF)

    def of(self, images_Nchw: Tensor) -> float:
        """The distance of uint8 images (N, 1 or 3, h, w)."""
        return self.of_features(self.features(images_Nchw))

    def of_features(self, features_NF: Tensor) -> float:
        """The distance of images with these features (N, 320)."""
        return frechet_distance(fit(features_NF), self._reference)

    def with_interval(self, features_NF: Tensor) -> Value:
        """The distance of images with these features (N, 320), and its 90 % interval."""
        low, high = bootstrap(features_NF, self._reference)
        return Value(value=self.of_features(features_NF), low=low, high=high)

    def overlap(self, features_NF: Tensor) -> dict[str, float]:
        """Precision and recall of images with these features (N, 320).

        Manifolds grow with their number of images, so that they are compared with as many of the real images.
        """
        some = evenly_spaced(len(self.reference_NF), len(features_NF))
        found = overlap(self.reference_NF[some], features_NF)
        return {"precision": found.precision, "recall": found.recall}

    def describe(self) -> dict[str, Any]:
        """What determines the features: network, hash of its weights, resizing, dtype."""
        return self._extractor.describe()

    def features(self, images_Nchw: Tensor) -> Tensor:
        """Features (N, 320) of uint8 images (N, 1 or 3, h, w)."""
        parts = images_Nchw.split(250)
        found = [self._extractor(part.expand(-1, 3, -1, -1)) for part in track(parts, len(parts), "features")]
        return torch.cat([extracted.pooled_BF for extracted in found])


def fingerprint(*tensors: Tensor) -> str:
    """A hash that identifies weights or images."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]

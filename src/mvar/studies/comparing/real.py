"""What samples are compared with: features of real images, and a classifier of them.

Shapes: N images, F features, K classes.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.data.images.folders import ImageFolder
from mvar.features.extractors import Extractor
from mvar.studies import measuring
from mvar.studies.comparing.data import Prepared
from mvar.studies.comparing.plan import DataSet
from mvar.studies.distance import Distance, fingerprint
from mvar.studies.measuring import Form, Labelled
from mvar.training.generator.token_data import load_tokenizer

REFERENCE = 5000  # training images that samples are compared with, about
LARGEST_SIDE = 256
SHRINKAGE = 0.1  # of the covariance within classes towards its mean variance


class Real:
    """Real images of a data set, with what samples are measured by.

    Samples are compared with training images; as many held-out images as there are samples give the floor: what real
    images get. Reconstructions of these show how much of a sample's distance is the tokenizer's. The classifier is a
    linear discriminant analysis of the same features, fitted on the training images: a closed form, which needs no
    training of its own.
    """

    def __init__(self, data: DataSet, prepared: Prepared, extractor: Extractor | None = None) -> None:
        images = prepared.images
        self.form = Form(min(data.size, LARGEST_SIDE), data.framed, grey=data.grey)
        K = len(ImageFolder.scan(images / "train").classes)
        train = measuring.originals(str(images), "train", self.form, per_class=max(REFERENCE // max(K, 1), 2))
        held_out = measuring.originals(str(images), "val", self.form, train.classes, data.per_class, lacking=True)
        self.distance = Distance(train.images_Nchw, extractor)
        self.classifier = Discriminant(self.distance.reference_NF, train.labels_N)
        self.protocol = {
            "features": self.distance.describe(),
            "form": asdict(self.form),
            "reference": fingerprint(train.images_Nchw),
            "reference_images": len(train.labels_N),
            "samples": K * data.per_class,
        }
        self.floor = {"images": len(held_out.labels_N), **self.measure(held_out)}
        self.restored = self.measure(self._restored(held_out, prepared.tokenizer))

    def _restored(self, images: Labelled, tokenizer: str) -> Labelled:
        """Reconstructions of images whose frame is empty."""
        network = load_tokenizer(tokenizer, "cpu")
        parts = []
        for images_Bchw in images.images_Nchw.split(64):
            pixels_B3HW = F.pad((images_Bchw / 255).expand(-1, 3, -1, -1), [self.form.frame] * 4)
            if pixels_B3HW.shape[2:] != network.config.image_shape:
                pixels_B3HW = F.interpolate(pixels_B3HW, network.config.image_shape, mode="bicubic", antialias=True)
            parts.append(self.form.of(network.reconstruct(pixels_B3HW.clamp(0, 1))))
        return images._replace(images_Nchw=torch.cat(parts))

    def measure(self, images: Labelled) -> dict[str, Any]:
        """Frechet distance with its 90 % interval, class accuracy, precision and recall of a set of images."""
        features_NF = self.distance.features(images.images_Nchw)
        distance = self.distance.with_interval(features_NF)
        right = (self.classifier(features_NF) == images.labels_N).double().mean()
        return {
            "distance": distance.value,
            "distance_interval": [distance.low, distance.high],
            "accuracy": float(right),
            **self.distance.overlap(features_NF),
        }


class Discriminant:
    """Linear discriminant analysis with a shrunken covariance (Friedman 1989), all classes equally likely."""

    def __init__(self, features_NF: Tensor, labels_N: Tensor) -> None:
        features_NF = features_NF.double()
        K = int(labels_N.max()) + 1
        self.means_KF = torch.stack([features_NF[labels_N == k].mean(0) for k in range(K)])
        apart_NF = features_NF - self.means_KF[labels_N]
        covariance_FF = apart_NF.T @ apart_NF / len(features_NF)
        F = len(covariance_FF)
        towards_FF = covariance_FF.trace() / F * torch.eye(F, dtype=torch.float64)
        shrunk_FF = (1 - SHRINKAGE) * covariance_FF + SHRINKAGE * towards_FF
        self.weights_FK = torch.linalg.solve(shrunk_FF, self.means_KF.T)
        self.bias_K = -0.5 * (self.means_KF.T * self.weights_FK).sum(0)

    def __call__(self, features_NF: Tensor) -> Tensor:
        """The most likely class of each image, (N,)."""
        return (features_NF.double() @ self.weights_FK + self.bias_K).argmax(1)

"""Measurements on images: fidelity of a reconstruction, the class that a judge sees, and variety inside a class.

Shapes: N images, B images of a batch, D values of an image, C classes, h w pixels. Images are uint8 throughout, as
they would be in files, with any number of channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Pixels (B, 3, h, w) in [0, 1] to class logits (B, C).
Classifier = Callable[[Tensor], Tensor]
MOST_DB = 100.0  # the PSNR of equal images, which would be infinite


def psnr(images_N: Tensor, others_N: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of uint8 images (N, ...), float64 (N,); 100 dB at most.

    Raises:
        ValueError: the two sets are not uint8 or differ in shape.
    """
    for images in (images_N, others_N):
        _check_uint8(images)
    if images_N.shape != others_N.shape:
        raise ValueError(f"images have shapes {tuple(images_N.shape)} and {tuple(others_N.shape)}; they must be equal")
    error_ND = (images_N.double() - others_N.double()).flatten(1) / 255
    return (-10 * error_ND.square().mean(1).log10()).clamp(max=MOST_DB)


@torch.inference_mode()
def confusion(
    judge: Classifier, images_Nchw: Tensor, labels_N: Tensor, num_classes: int, batch_size: int = 500
) -> Tensor:
    """How many images of each class (rows) the judge takes for which class (columns), int64 (C, C).

    Args:
        judge: any classifier.
        images_Nchw: uint8, grey (N, 1, h, w) or RGB (N, 3, h, w).
        labels_N: the class of each image.

    Raises:
        ValueError: images are not uint8 (N, 1 or 3, h, w), labels do not fit them, or the judge knows another number
            of classes.
    """
    _check_uint8(images_Nchw)
    if images_Nchw.ndim != 4 or images_Nchw.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images_Nchw.shape)}, expected (N, 1 or 3, h, w)")
    _check_labels(labels_N, images_Nchw, num_classes)
    counts_CC = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for images_Bchw, labels_B in zip(images_Nchw.split(batch_size), labels_N.split(batch_size), strict=True):
        logits_BC = judge(images_Bchw.expand(-1, 3, -1, -1).float() / 255)
        if logits_BC.shape[1] != num_classes:
            raise ValueError(f"judge: knows {logits_BC.shape[1]} classes, the images have {num_classes}")
        counts_CC.index_put_((labels_B, logits_BC.argmax(1)), torch.ones_like(labels_B), accumulate=True)
    return counts_CC


def mean_distance(images_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Mean distance over all pairs of images of one class, float64 (C,): L2 between pixels in [0, 1].

    Args:
        images_N: uint8 (N, ...).
        labels_N: the class of each image.

    Raises:
        ValueError: images are not uint8, labels do not fit them, or a class has fewer than two images.
    """
    _check_uint8(images_N)
    _check_labels(labels_N, images_N, num_classes)
    pixels_ND = images_N.flatten(1).float() / 255
    means = []
    for c in range(num_classes):
        pixels_nD = pixels_ND[labels_N == c]
        if len(pixels_nD) < 2:
            raise ValueError(f"class {c} has {len(pixels_nD)} images: a distance needs at least 2 in each class")
        means.append(torch.pdist(pixels_nD).double().mean())
    return torch.stack(means)


def _check_uint8(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected torch.uint8")


def _check_labels(labels_N: Tensor, images_N: Tensor, num_classes: int) -> None:
    N = len(images_N)
    if not N or labels_N.shape != (N,) or labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise ValueError(f"labels = {tuple(labels_N.shape)}: give {N} labels (at least 1) from 0 to {num_classes - 1}")

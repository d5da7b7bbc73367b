"""Measurements on images: fidelity of a reconstruction, the class that a judge sees, and variety inside a class.

Shapes: N images, B images of a batch, D values of an image, C classes or channels, P planes (images times channels),
h w pixels. Images are uint8, with any number of channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Pixels (B, 3, h, w) in [0, 1] to class logits (B, C).
Classifier = Callable[[Tensor], Tensor]
MOST_DB = 100.0  # the PSNR of equal images, which would be infinite
WINDOW = 11  # of SSIM, pixels a side
SIGMA = 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(images_N: Tensor, others_N: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of uint8 images (N, ...), float64 (N,); 100 dB at most."""
    _check_pairs(images_N, others_N)
    error_ND = (images_N.double() - others_N.double()).flatten(1) / 255
    return (-10 * error_ND.square().mean(1).log10()).clamp(max=MOST_DB)


def ssim(images_NChw: Tensor, others_NChw: Tensor) -> Tensor:
    """Structural similarity of each pair of uint8 images, float64 (N,), at most 1, which equal images have.

    Wang et al. 2004, section III B: windows of 11 x 11 pixels with Gaussian weights of deviation 1.5, only those inside
    the image. Each channel by itself, and the mean over windows and channels. Sides have at least 11 pixels.

    Raises:
        ValueError: the two sets are not uint8 or differ in shape.
    """
    _check_pairs(images_NChw, others_NChw)
    a, b = (images.double().flatten(0, 1)[:, None] for images in (images_NChw, others_NChw))
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (_window_means(x) for x in (a, b, a * a, b * b, a * b))
    variances = (mean_aa - mean_a**2) + (mean_bb - mean_b**2)
    covariance = mean_ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    similarity = luminance * (2 * covariance + C2) / (variances + C2)
    return similarity.reshape(len(images_NChw), -1).mean(1)


def _window_means(planes_P1hw: Tensor) -> Tensor:
    """Weighted mean of each window, (P, 1, h - 10, w - 10): the Gaussian is a product of one along each side."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=planes_P1hw.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(planes_P1hw, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


@torch.inference_mode()
def confusion(
    judge: Classifier, images_Nchw: Tensor, labels_N: Tensor, num_classes: int, batch_size: int = 500
) -> Tensor:
    """How many uint8 images (N, 1 or 3, h, w) of each class (rows) the judge takes for which class (columns), int64."""
    counts_CC = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for images_Bchw, labels_B in zip(images_Nchw.split(batch_size), labels_N.split(batch_size), strict=True):
        logits_BC = judge(images_Bchw.expand(-1, 3, -1, -1).float() / 255)
        counts_CC.index_put_((labels_B, logits_BC.argmax(1)), torch.ones_like(labels_B), accumulate=True)
    return counts_CC


def mean_distance(images_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Mean distance over all pairs of uint8 images (N, ...) of one class, float64 (C,): L2 between pixels in [0, 1].

    Raises ValueError where a class has fewer than two images.
    """
    pixels_ND = images_N.flatten(1).float() / 255
    means = []
    for c in range(num_classes):
        pixels_nD = pixels_ND[labels_N == c]
        if len(pixels_nD) < 2:
            raise ValueError(f"class {c} has {len(pixels_nD)} images: a distance needs at least 2 in each class")
        means.append(torch.pdist(pixels_nD).double().mean())
    return torch.stack(means)


def _check_pairs(images_N: Tensor, others_N: Tensor) -> None:
    for images in (images_N, others_N):
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, expected torch.uint8")
    if images_N.shape != others_N.shape:
        raise ValueError(f"images have shapes {tuple(images_N.shape)} and {tuple(others_N.shape)}; they must be equal")

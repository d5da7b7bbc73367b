"""Perceptual loss: the distance between images in the maps of a frozen network.

Shapes: B images, H W pixels, F channels of a map, h w its sides.
Source: Zhang et al. 2018 (LPIPS), section 3.
"""

from torch import Tensor
from torch.nn import functional as F

from mvar.features.base import FeatureNetwork

LEAST_SIDE = 64  # smaller images are enlarged: the networks know photographs, whose small details are larger


def perceptual_loss(network: FeatureNetwork, restored_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Mean over the maps of the squared distance between unit feature vectors, averaged over places and images.

    Args:
        network: frozen; gradients pass through it to `restored_B3HW`. Its channel weights, where it has some, weigh
            the squared differences.
        restored_B3HW: in [0, 1], not clamped.
        target_B3HW: in [0, 1].
    """
    maps = network.maps(_enlarged(restored_B3HW))
    targets = network.maps(_enlarged(target_B3HW))
    weights = network.channel_weights or [restored_B3HW.new_ones(1)] * len(maps)
    total = restored_B3HW.new_zeros(())
    for found_BFhw, target_BFhw, weight_F in zip(maps, targets, weights, strict=True):
        squares_BFhw = (_unit(found_BFhw) - _unit(target_BFhw)).square() * weight_F.view(-1, 1, 1)
        total = total + squares_BFhw.sum(1).mean()
    return total / len(maps)


def _enlarged(pixels_B3HW: Tensor) -> Tensor:
    sides = pixels_B3HW.shape[-2:]
    if min(sides) >= LEAST_SIDE:
        return pixels_B3HW
    size = [round(side * LEAST_SIDE / min(sides)) for side in sides]
    return F.interpolate(pixels_B3HW, size, mode="bilinear", align_corners=False)


def _unit(map_BFhw: Tensor) -> Tensor:
    return F.normalize(map_BFhw.float(), dim=1, eps=1e-6)

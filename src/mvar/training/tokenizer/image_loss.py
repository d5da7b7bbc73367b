"""The losses of a tokenizer's reconstructions: pixels, perceptual distance, and a discriminator that joins later.

Shapes: B images, H W pixels; F channels of a feature map, h w its sides; U random numbers per image.
Sources: VQ-GAN (Esser et al. 2021), section 3.1: the adversarial loss gets the weight of the others at the decoder's
last layer (equation 7). Perceptual loss: Zhang et al. 2018 (LPIPS), section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from mvar.features.base import FeatureNetwork
from mvar.training.config import TokenizerTraining
from mvar.training.parallel import Ranks
from mvar.training.tokenizer.adversarial import augment, hinge

LEAST_SIDE = 64  # smaller images are enlarged: the networks know photographs, whose small details are larger
# Of the adversarial gradient. VQ-GAN's own limit of 1e4 lets the decoder chase the noise of a discriminator that has
# nothing to say, which then never recovers (docs/log.md).
LARGEST_WEIGHT = 5.0


class ImageLoss(NamedTuple):
    """The terms of the loss that depend on images; None as a network leaves its term out.

    `replica` is what is called to train the discriminator: itself, or its DDP wrapper.
    """

    config: TokenizerTraining
    network: FeatureNetwork | None
    discriminator: nn.Module | None
    replica: nn.Module | None
    ranks: Ranks

    def reconstruction(self, output_B3HW: Tensor, target_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of pixel and perceptual losses, and each of them.

        The output is in model space, about [-1, 1]; the target in [0, 1].
        """
        config = self.config
        error_B3HW = output_B3HW.float() - (2 * target_B3HW - 1)
        terms = {"l1": error_B3HW.abs().mean(), "l2": error_B3HW.square().mean()}
        loss = config.l1 * terms["l1"] + config.l2 * terms["l2"]
        if self.network is not None:
            terms["perceptual"] = perceptual_loss(self.network, (output_B3HW.float() + 1) / 2, target_B3HW)
            loss = loss + config.perceptual * terms["perceptual"]
        return loss, terms

    def adversarial(
        self, output_B3HW: Tensor, target_B3HW: Tensor, weight: float, last_layer: Tensor, noise_BU: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses, the decoder's and the discriminator's, in one sum with one backward pass; and each of them.

        Output and target are those of `reconstruction`. At the decoder's last layer the adversarial gradient gets
        `weight` times the norm of the others'. `noise_BU` augments what the discriminator sees.
        """
        if self.discriminator is None or self.replica is None:
            raise ValueError("adversarial = 0: there is no discriminator")
        image_B3HW = output_B3HW.detach().float().requires_grad_()
        main, terms = self.reconstruction(image_B3HW, target_B3HW)
        fake_B3HW = augment(image_B3HW, noise_BU)
        self.discriminator.requires_grad_(False)
        adversarial = -self.discriminator(fake_B3HW).mean()
        self.discriminator.requires_grad_(True)

        main_gradient, adversarial_gradient = grad(main, image_B3HW)[0], grad(adversarial, image_B3HW)[0]
        main_norm, adversarial_norm = (
            self._norm_at(last_layer, output_B3HW, gradient) for gradient in (main_gradient, adversarial_gradient)
        )
        adaptive = weight * (main_norm / (adversarial_norm + 1e-6)).clamp(max=LARGEST_WEIGHT)
        # A scalar of the loss's value whose gradient at the output is the one computed, rounded once it is scaled.
        gradient = main_gradient + adaptive * adversarial_gradient
        value = main.detach() + adaptive * adversarial.detach()
        loss = value + ((output_B3HW - output_B3HW.detach()).float() * gradient).sum()

        real_B3HW = augment(2 * target_B3HW - 1, noise_BU)
        real_B1hw, fake_B1hw = self.replica(torch.cat((real_B3HW, fake_B3HW.detach()))).chunk(2)
        discriminator_loss = hinge(real_B1hw, fake_B1hw)
        terms |= {
            "adversarial": adversarial, "adversarial_weight": adaptive, "discriminator": discriminator_loss,
            "score_real": real_B1hw.mean(), "score_fake": fake_B1hw.mean(),
        }  # fmt: skip
        return loss + (discriminator_loss - discriminator_loss.detach()), terms

    def _norm_at(self, layer: Tensor, output_B3HW: Tensor, gradient_B3HW: Tensor) -> Tensor:
        """Norm of the gradient at a weight, given the gradient at the output.

        The latter is propagated with unit length: a pixel's part of a mean is below what float16 can hold.
        """
        length = gradient_B3HW.norm()
        unit_B3HW = (gradient_B3HW / length.clamp(min=torch.finfo(length.dtype).tiny)).to(output_B3HW.dtype)
        return self.ranks.mean(grad(output_B3HW, layer, unit_B3HW, retain_graph=True)[0] * length).norm()


def perceptual_loss(network: FeatureNetwork, restored_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Squared distance between unit feature vectors, averaged over a network's maps, their pixels and the images.

    Images are in [0, 1], the restored ones not clamped; gradients pass through the frozen network to them. If it has
    channel weights, they weigh the squared differences.
    """
    maps, targets = network.maps(_enlarged(restored_B3HW)), network.maps(_enlarged(target_B3HW))
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

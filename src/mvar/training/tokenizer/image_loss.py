"""What a tokenizer's reconstruction costs: pixels, perceptual distance, and a discriminator that joins in later.

Shapes: B images, H W pixels; U random numbers of an image.
Source: VQ-GAN (Esser et al. 2021), section 3.1: the adversarial loss weighs as much as the others at the decoder's last
layer (equation 7).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import grad

from mvar.features.base import FeatureNetwork
from mvar.training.config import TokenizerTraining
from mvar.training.parallel import Ranks
from mvar.training.tokenizer.adversarial import augment, hinge
from mvar.training.tokenizer.perceptual import perceptual_loss

# Of the adversarial gradient. VQ-GAN's own limit of 1e4 lets the decoder chase the noise of a discriminator that has
# nothing to say, which then never recovers (docs/log.md).
LARGEST_WEIGHT = 5.0


class ImageLoss(NamedTuple):
    """The parts of the loss that see images.

    Attributes:
        config: their weights.
        network: of the perceptual distance; None leaves it out.
        discriminator: the network itself; None leaves the adversarial loss out.
        judge: what is called to train the discriminator: itself, or what spreads it over ranks.
        ranks: whose gradients weigh the adversarial loss.
    """

    config: TokenizerTraining
    network: FeatureNetwork | None
    discriminator: nn.Module | None
    judge: nn.Module | None
    ranks: Ranks

    def reconstruction(self, output_B3HW: Tensor, target_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixel and perceptual losses, weighted, and each part.

        Args:
            output_B3HW: in model space, about [-1, 1].
            target_B3HW: in [0, 1].
        """
        config = self.config
        error_B3HW = output_B3HW.float() - (2 * target_B3HW - 1)
        parts = {"l1": error_B3HW.abs().mean(), "l2": error_B3HW.square().mean()}
        loss = config.l1 * parts["l1"] + config.l2 * parts["l2"]
        if self.network is not None:
            parts["perceptual"] = perceptual_loss(self.network, (output_B3HW.float() + 1) / 2, target_B3HW)
            loss = loss + config.perceptual * parts["perceptual"]
        return loss, parts

    def adversarial(
        self, output_B3HW: Tensor, target_B3HW: Tensor, weight: float, last_layer: Tensor, noise_BU: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses: what decoder and discriminator each minimise, in one sum with one backward pass.

        Args:
            output_B3HW: in model space, with its graph.
            target_B3HW: in [0, 1].
            weight: of the adversarial gradient at the last layer, relative to that of the other losses.
            last_layer: the decoder's last weight, where the two gradients are compared.
            noise_BU: `AUGMENT_NUMBERS` an image, for what the discriminator sees.
        """
        if self.discriminator is None or self.judge is None:
            raise ValueError("adversarial = 0: there is no discriminator")
        image_B3HW = output_B3HW.detach().float().requires_grad_()
        main, parts = self.reconstruction(image_B3HW, target_B3HW)
        fake_B3HW = augment(image_B3HW, noise_BU)
        self.discriminator.requires_grad_(False)
        adversarial = -self.discriminator(fake_B3HW).mean()
        self.discriminator.requires_grad_(True)

        main_gradient, adversarial_gradient = grad(main, image_B3HW)[0], grad(adversarial, image_B3HW)[0]
        sizes = [self._norm_at(last_layer, output_B3HW, g) for g in (main_gradient, adversarial_gradient)]
        adaptive = weight * (sizes[0] / (sizes[1] + 1e-6)).clamp(max=LARGEST_WEIGHT)
        value = main.detach() + adaptive * adversarial.detach()
        loss = _with_gradient(value, output_B3HW, main_gradient + adaptive * adversarial_gradient)

        real_B3HW = augment(2 * target_B3HW - 1, noise_BU)
        scores = self.judge(torch.cat((real_B3HW, fake_B3HW.detach())))
        real_B1hw, fake_B1hw = scores.chunk(2)
        judged = hinge(real_B1hw, fake_B1hw)
        parts |= {
            "adversarial": adversarial, "adversarial_weight": adaptive, "discriminator": judged,
            "score_real": real_B1hw.mean(), "score_fake": fake_B1hw.mean(),
        }  # fmt: skip
        return loss + (judged - judged.detach()), parts

    def _norm_at(self, layer: Tensor, output_B3HW: Tensor, gradient_B3HW: Tensor) -> Tensor:
        """Norm of the gradient at a weight that follows from the one at the output.

        On its way it has the length 1: a pixel's share of a mean is below what float16 can hold.
        """
        length = gradient_B3HW.norm()
        unit_B3HW = (gradient_B3HW / length.clamp(min=torch.finfo(length.dtype).tiny)).to(output_B3HW.dtype)
        return self.ranks.mean(grad(output_B3HW, layer, unit_B3HW, retain_graph=True)[0] * length).norm()


def _with_gradient(value: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of this value whose gradient at `at` is the one given, rounded to its dtype once it is scaled."""
    return value + ((at - at.detach()).float() * gradient).sum()

"""The parts of a tokenizer's loss that see images, each against the same arithmetic written out."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mvar.features.base import FeatureNetwork
from mvar.training.config import TokenizerTraining
from mvar.training.parallel import Ranks
from mvar.training.tokenizer import image_loss
from mvar.training.tokenizer.adversarial import AUGMENT_NUMBERS, PatchDiscriminator, augment
from mvar.training.tokenizer.image_loss import ImageLoss, perceptual_loss


class TwoMaps(FeatureNetwork):
    """Frozen convolutions, quick enough for tests; notes the sizes that it sees."""

    def __init__(self, weights=None):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.kernels = [torch.randn(5, 3, 3, 3, generator=random), torch.randn(7, 3, 8, 8, generator=random)]
        self.weights, self.sizes = weights, []

    @property
    def channel_weights(self):
        return self.weights

    def maps(self, pixels_B3HW):
        self.sizes.append(tuple(pixels_B3HW.shape[2:]))
        return [F.conv2d(pixels_B3HW - 0.4, self.kernels[0]), F.conv2d(pixels_B3HW - 0.4, self.kernels[1], stride=8)]


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- perceptual ---


@pytest.mark.parametrize("weighted", [False, True])
def test_the_perceptual_loss_is_the_distance_of_unit_vectors(weighted):
    weights = [torch.arange(5.0), torch.tensor([0, 0, 1, 0, 2, 0, 0.5])]
    network = TwoMaps(weights if weighted else None)
    a, b = images(1, 3, 64, 72), images(1, 3, 64, 72, seed=1)
    expected = 0.0
    for map_a, map_b, weight in zip(network.maps(a), network.maps(b), weights, strict=True):
        (B, C, h, w), total = map_a.shape, 0.0
        u, v = (m.permute(0, 2, 3, 1).reshape(-1, C) for m in (map_a, map_b))
        for x, y in zip(u, v, strict=True):
            square = (x / x.norm() - y / y.norm()) ** 2
            total += float((square * weight if weighted else square).sum())
        expected += total / (B * h * w) / 2
    assert float(perceptual_loss(network, a, b)) == pytest.approx(expected, rel=1e-4)
    assert perceptual_loss(network, a, a) == 0


def test_small_images_are_enlarged_and_gradients_reach_every_pixel():
    for size, seen in (((8, 8), (64, 64)), ((16, 40), (64, 160)), ((64, 70), (64, 70)), ((90, 65), (90, 65))):
        network = TwoMaps()
        pixels = images(1, 3, *size).requires_grad_()
        perceptual_loss(network, pixels, images(1, 3, *size, seed=1)).backward()
        assert network.sizes == [seen, seen]
        assert pixels.grad.isfinite().all()
        assert (pixels.grad != 0).float().mean() > 0.99
    flat = torch.full((1, 3, 16, 16), 0.4, requires_grad=True)  # all its maps are zero
    perceptual_loss(TwoMaps(), flat, images(1, 3, 16, 16)).backward()
    assert flat.grad.isfinite().all()


# --- augmentation ---


def augmented(image, numbers):
    """The naive augmentation of one image, pixel by pixel."""
    H, W = image.shape[1:]
    bright, colour, contrast, down, right, top, left = numbers.tolist()
    x = image + bright - 0.5
    x = x.mean(0) + (x - x.mean(0)) * 2 * colour
    x = x.mean() + (x - x.mean()) * (0.5 + contrast)
    dy, dx, found = round((2 * down - 1) * H / 8), round((2 * right - 1) * W / 8), torch.zeros_like(x)
    for i in range(H):
        for j in range(W):
            cut_out = -H / 4 <= i - int(top * H) < H / 4 and -W / 4 <= j - int(left * W) < W / 4
            if not cut_out and 0 <= i + dy < H and 0 <= j + dx < W:
                found[:, i, j] = x[:, i + dy, j + dx]
    return found


def test_each_image_is_augmented_by_its_own_numbers():
    pixels, numbers = 2 * images(12, 3, 16, 24) - 1, images(12, AUGMENT_NUMBERS, seed=2)
    numbers[0] = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0])  # a cut-out in the corner alone
    found = augment(pixels, numbers)
    for image, original, own in zip(found, pixels, numbers, strict=True):
        torch.testing.assert_close(image, augmented(original, own), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0, :, 4:], pixels[0, :, 4:])
    assert not found[0, :, :4, :6].any()


# --- discriminator ---


@pytest.mark.parametrize("size", [(8, 8), (40, 72)])
def test_the_discriminator_scores_patches(size):
    network = PatchDiscriminator(4)
    scores = network(images(2, 3, *size))
    assert scores.shape == (2, 1, size[0] // 8, size[1] // 8)
    scores.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    for _ in range(60):  # the power iteration settles
        network(images(1, 3, 8, 8))
    for convolution in [*network.down, network.mix]:
        weight = convolution.weight.detach().flatten(1)
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.05)


# --- both in one backward pass ---

CONFIG = TokenizerTraining(data="x", out="y", l1=0.3, l2=1.5, perceptual=0.7, adversarial=0.4)
RANKS = Ranks(device=torch.device("cpu"))


@pytest.fixture
def players():
    """A decoder, its last layer, a discriminator and the input of the decoder."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 3, 3, padding=1))
    discriminator = PatchDiscriminator(4)
    with torch.no_grad():
        discriminator.head.weight.mul_(30)  # a verdict that matters
    return decoder, discriminator, torch.randn(3, 4, 16, 16)


def build(discriminator, network=None):
    return ImageLoss(CONFIG, network, discriminator, discriminator, RANKS)


def gradients(*modules):
    return [p.grad for module in modules for p in module.parameters()]


@pytest.mark.parametrize("largest", [5.0, 0.01])
def test_one_backward_pass_equals_three(players, largest, monkeypatch):
    monkeypatch.setattr(image_loss, "LARGEST_WEIGHT", largest)
    decoder, discriminator, z = players
    target, noise, network = images(3, 3, 16, 16, seed=1), images(3, AUGMENT_NUMBERS, seed=2), TwoMaps()
    own, judge = deepcopy(decoder), deepcopy(discriminator)

    last = decoder[2].weight
    loss, parts = build(discriminator, network).adversarial(decoder(z), target, 0.25, last, noise)
    loss.backward()

    # VQ-GAN as it is written: losses with graphs of their own, the decoder's norms at its last layer, equation 7.
    def reconstruction():
        out = own(z)
        pixel = 0.3 * (out - 2 * target + 1).abs().mean() + 1.5 * (out - 2 * target + 1).square().mean()
        return pixel + 0.7 * perceptual_loss(network, (out + 1) / 2, target)

    (main_gradient,) = torch.autograd.grad(reconstruction(), own[2].weight)
    verdict = -judge(augment(own(z), noise)).mean()
    (its_gradient,) = torch.autograd.grad(verdict, own[2].weight, retain_graph=True)
    factor = 0.25 * min(float(main_gradient.norm() / (its_gradient.norm() + 1e-6)), largest)
    main = reconstruction()
    main.backward()
    (factor * verdict).backward()
    judge.zero_grad()
    both = judge(torch.cat((augment(2 * target - 1, noise), augment(own(z).detach(), noise))))
    judged = F.relu(1 - both[:3]).mean() / 2 + F.relu(1 + both[3:]).mean() / 2
    judged.backward()

    torch.testing.assert_close(parts["adversarial_weight"], torch.tensor(factor), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradients(decoder), gradients(own), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(discriminator), gradients(judge), rtol=1e-4, atol=1e-6)
    assert all(g.any() for g in gradients(decoder, discriminator))
    torch.testing.assert_close(loss, main + factor * verdict)
    torch.testing.assert_close(
        {name: parts[name] for name in ("adversarial", "discriminator", "score_real", "score_fake")},
        {"adversarial": verdict, "discriminator": judged, "score_real": both[:3].mean(), "score_fake": both[3:].mean()},
    )
    assert all(p.requires_grad for p in discriminator.parameters())


def test_float16_holds_the_gradients_of_many_pixels(players):
    """A pixel's share of the mean over a large batch is below float16's smallest number."""
    decoder, discriminator, _ = players
    z, target = torch.randn(3, 4, 160, 160), images(3, 3, 160, 160, seed=1)
    noise, scale = images(3, AUGMENT_NUMBERS, seed=2), 2.0**16
    found = []
    for enabled in (False, True):
        own, judge = deepcopy(decoder), deepcopy(discriminator)
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            output = own(z)
        assert output.dtype == (torch.float16 if enabled else torch.float32)
        loss, parts = build(judge).adversarial(output, target, 0.25, own[2].weight, noise)
        (scale * loss).backward()
        found.append((parts["adversarial_weight"], gradients(own)))
    (weight, expected), (half_weight, half) = found
    torch.testing.assert_close(half_weight, weight, rtol=0.02, atol=0)
    for a, b in zip(half, expected, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()

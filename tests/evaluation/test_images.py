import math

import pytest
import torch

from mvar.evaluation.images import confusion, mean_distance, psnr


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_psnr_is_the_definition_for_each_image():
    a, b = random_images(3, 1, 5, 7), random_images(3, 1, 5, 7, seed=1)
    for value, x, y in zip(psnr(a, b).tolist(), a.tolist(), b.tolist(), strict=True):
        squares = [(p - q) ** 2 for rows in zip(x[0], y[0], strict=True) for p, q in zip(*rows, strict=True)]
        assert value == pytest.approx(20 * math.log10(255) - 10 * math.log10(sum(squares) / len(squares)), abs=1e-9)
    off_by_one = torch.full((1, 4, 4), 7, dtype=torch.uint8)
    assert psnr(off_by_one, off_by_one + 1).item() == pytest.approx(48.1308, abs=1e-4)
    assert psnr(a, a).tolist() == [100.0] * 3


def test_mean_distance_equals_the_double_loop():
    images, labels = random_images(9, 1, 4, 4), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    expected = []
    for c in (0, 1):
        chosen = [image.flatten().tolist() for image, label in zip(images, labels, strict=True) if label == c]
        pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[:i]]
        expected.append(sum(math.dist(a, b) / 255 for a, b in pairs) / len(pairs))
    torch.testing.assert_close(mean_distance(images, labels, 2), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_confusion_counts_asked_class_by_seen_class():
    def brightness(pixels):  # sees class 0 in dark images, 1 in grey, 2 in bright ones
        level = pixels.mean((1, 2, 3))
        return -(level[:, None] - torch.tensor([0.0, 0.5, 1.0])).abs()

    levels, labels = [0, 10, 120, 250, 255, 130, 5], [0, 0, 0, 1, 2, 1, 2]
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    expected = [[2, 1, 0], [0, 1, 1], [1, 0, 1]]
    for shape in ((-1, 1, 4, 4), (-1, 3, 4, 4)):
        counts = confusion(brightness, images.expand(shape), torch.tensor(labels), 3, batch_size=3)
        assert counts.tolist() == expected

"""The same numbers as torchmetrics on the same features, real images through a small network.

Each test imports what it needs: torchmetrics takes two seconds, which workers that run none of these are spared.
"""

import pytest
import torch
from torch import nn

from mvar.evaluation.frechet import fit, frechet_distance
from mvar.evaluation.images import ssim
from mvar.evaluation.scores import inception_score, kid


class Features(nn.Module):
    """Means of random filters after a rectifier: uint8 images (N, 1, 28, 28) to (N, 24)."""

    num_features = 24

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.register_buffer("filters", torch.randn(24, 1, 5, 5, generator=random, dtype=torch.float64))

    def forward(self, images):
        return nn.functional.conv2d(images.double() / 255, self.filters, stride=3).relu().mean((2, 3))


@pytest.fixture(scope="module")
def sets(fashion_arrays):
    """Real images, and as many others of fewer classes."""
    images = torch.tensor(fashion_arrays["train"])[:, :, None]
    return images[:, :30].flatten(0, 1), images[:6, 100:150].flatten(0, 1)


@pytest.mark.parametrize("n", [300, 10])
def test_frechet_distance(sets, n):
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = (x[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:n]] for x in sets)
    theirs, ours = FrechetInceptionDistance(feature=Features()), (Features()(real), Features()(fake))
    for i, images in enumerate((real, fake)):
        for block in images.split(64):
            theirs.update(block, real=i == 0)
    expected = theirs.compute().item()
    assert frechet_distance(*map(fit, ours)) == pytest.approx(expected, rel=1e-6)
    assert expected > 1e-4


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kid(sets):
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = sets
    theirs = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=300)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    assert kid(Features()(real), Features()(fake), subsets=1).mean == pytest.approx(
        theirs.compute()[0].item(), rel=1e-9
    )


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save")
def test_inception_score(sets):
    from torchmetrics.image.inception import InceptionScore

    logits = 20 * Features()(sets[0])
    theirs = InceptionScore(feature=nn.Identity(), splits=1)  # more parts would be of a random order
    theirs.update(logits)
    with pytest.warns(UserWarning, match="degrees of freedom"):  # theirs divides by parts less one
        expected = theirs.compute()[0].item()
    assert inception_score(logits.softmax(1), 1)[0] == pytest.approx(expected, rel=1e-12)
    assert expected > 1.01


@pytest.mark.parametrize(("C", "h", "w"), [(3, 28, 25), (1, 11, 14)])
def test_ssim(sets, C, h, w):
    """Theirs also has windows that lie over the border, in a mirrored image; the map without them is comparable."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim_map

    a = sets[0][: 4 * C].reshape(4, C, 28, 28)[..., :h, :w]
    noise = torch.randint(-40, 40, a.shape, generator=torch.Generator().manual_seed(1))
    b = (a + noise).clamp(0, 255).byte()
    _, map_NChw = ssim_map(
        a.double(), b.double(), sigma=1.5, data_range=255.0, reduction="none", return_full_image=True
    )
    expected = map_NChw[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(a, b), expected, rtol=1e-9, atol=1e-9)
    assert (expected < 0.95).all()
    torch.testing.assert_close(ssim(a, a), torch.ones(4).double())
    torch.testing.assert_close(ssim(b, a), ssim(a, b))

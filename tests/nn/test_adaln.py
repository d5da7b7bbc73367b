import pytest
import torch
from torch.nn import functional as F

from mvar.nn import adaln


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_is_the_definition_for_few_images_and_for_many(monkeypatch, few, dtype):
    monkeypatch.setattr(adaln, "FEW", few)
    x, scale, shift = torch.randn(3, 5, 16), torch.randn(3, 1, 16), torch.randn(3, 1, 16)
    expected = F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift
    with torch.no_grad():
        y = adaln.adaln(x, scale, shift, dtype)
    assert y.dtype == (dtype or torch.float32)
    torch.testing.assert_close(y, expected.to(y.dtype), rtol=1e-2 if dtype else 1e-5, atol=1e-5)

import pytest
import torch

from mvar.ops.numerics import all_finite, damage


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 999])
def test_one_bad_number_is_found_wherever_it_is(dtype, bad, place):
    x = torch.full((10, 100), -torch.finfo(dtype).max, dtype=dtype)
    x[3:] *= -1
    assert all_finite(x)
    x.view(-1)[place] = bad
    assert not all_finite(x)
    assert not all_finite(x.mT.requires_grad_())
    assert all_finite(x[:0])


def test_damage_names_the_first_tensor_and_counts():
    weights = {
        "steps": torch.tensor(7),
        "a": torch.ones(2),
        "b.weight": torch.ones(4, 4),
        "c": torch.full((3,), torch.inf),
    }
    weights["b.weight"][1, 2:] = torch.nan
    assert damage(weights) == (
        "b.weight holds NaN or infinity in 2 of 16 places: the file is damaged, or training diverged; get it again, "
        "or take an earlier checkpoint"
    )
    assert damage({"a": weights["a"]}) is None

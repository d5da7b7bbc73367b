import pytest
import torch

from mvar.data.order import evenly_spaced
from mvar.data.source import PixelSource
from mvar.data.tokens.cache import TokenSource
from mvar.data.views import Views


def test_places_are_evenly_spaced_and_none_comes_twice():
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    for most in (3, 7, 100):
        assert evenly_spaced(3, most) == [0, 1, 2]
    assert evenly_spaced(0, 5) == []


@pytest.mark.parametrize(("most", "expected"), [(2, [0, 2]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_sources_give_at_most_so_many(most, expected):
    shared = {"labels": torch.arange(5), "classes": list("abcde")}
    paths = [f"{i}.png" for i in range(5)]
    options = {"views": Views(image_shape=(8, 8), resize_factor=1.0, seed=0)}
    options |= {"bad": [], "marks": list("abcde"), "cache": None}
    pixels = PixelSource(paths=paths, **shared, **options)
    tokens = TokenSource(shards=[torch.arange(10).view(5, 2, 1).numpy()], names=paths, **shared)
    for source in (pixels.at_most(most), tokens.at_most(most)):
        assert source.labels.tolist() == expected
        assert [source.name(i) for i in range(len(source))] == [f"{i}.png" for i in expected]
    assert tokens.at_most(most).batch(range(len(expected)))[0].flatten().tolist() == [2 * i for i in expected]

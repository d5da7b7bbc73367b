import pytest

from mvar.tokenizer.config import TokenizerConfig


@pytest.mark.parametrize("value", [32.0, "32", True, None])
@pytest.mark.parametrize("name", ["channels", "res_blocks", "latent_channels", "vocab_size", "phis"])
def test_what_is_no_integer_is_named(name, value):
    assert TokenizerConfig(**{name: value}).problems() == [f"tokenizer.{name} = {value!r}: must be an integer"]


@pytest.mark.parametrize("multipliers", [(1, 2.0), ("1", 2), (True, 2), (1, 0), ()])
def test_multipliers_are_integers(multipliers):
    (line,) = TokenizerConfig(multipliers=multipliers).problems()
    assert line == f"tokenizer.multipliers = {multipliers}: give one integer >= 1 for each level"


@pytest.mark.parametrize("sides", [[1, 2.0], ["1", 2], [True, 2], [1, [2, 3.5]]])
def test_sides_are_integers(sides):
    (line,) = TokenizerConfig(sides=sides).problems()
    assert line.startswith(f"tokenizer.sides = {sides}: sides has ")

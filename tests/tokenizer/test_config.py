import pytest

from mvar.tokenizer.config import TokenizerConfig


@pytest.mark.parametrize("value", [32.0, "32", True, None])
@pytest.mark.parametrize("name", ["channels", "res_blocks", "latent_channels", "vocab_size", "phis"])
def test_what_is_no_integer_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} = {value!r}: must be an integer$"):
        TokenizerConfig(**{name: value})


@pytest.mark.parametrize(
    ("multipliers", "problem"),
    [
        ((1, 2.0), "2.0: must be an integer"),
        (("1", 2), "'1': must be an integer"),
        ((True, 2), "True: must be an integer"),
        ((1, 0), "0: must lie in 1 to 64"),
        ((), "(): give 1 to 8, one for each level"),
        ((1,) * 9, f"{(1,) * 9}: give 1 to 8, one for each level"),
    ],
)
def test_multipliers_are_integers(multipliers, problem):
    with pytest.raises(ValueError) as caught:
        TokenizerConfig(multipliers=multipliers)
    assert str(caught.value) == f"multipliers = {problem}"


@pytest.mark.parametrize(
    ("sides", "wrong"), [([1, 2.0], "2.0"), (["1", 2], "'1'"), ([True, 2], "True"), ([1, [2, 3.5]], "3.5")]
)
def test_sides_are_integers(sides, wrong):
    with pytest.raises(ValueError, match=f"^sides = {wrong}: must be an integer$"):
        TokenizerConfig(sides=sides)


def test_images_beyond_all_sense_are_refused():
    with pytest.raises(ValueError) as caught:
        TokenizerConfig(multipliers=(1,) * 6, sides=[1, [257, 8]])
    expected = "sides, multipliers: are for images of 256x8224 pixels, more than 8192 along a side; give fewer"
    assert str(caught.value) == expected

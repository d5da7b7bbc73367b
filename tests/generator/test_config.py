import pytest
import torch

from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Generator(config).parameters())


def test_parameter_counts_are_the_official_ones():
    """Those of the official code exactly, those that are published rounded nearly."""
    exact = {
        "var-d16": 310_283_520, "d16": 464_157_440, "var-d24": 1_033_399_360, "d24": 1_550_067_136,
        "var-d36-s": 2_353_893_904,
    }  # fmt: skip
    assert {preset: parameters(PRESETS[preset]) for preset in exact} == exact
    assert parameters(GeneratorConfig(depth=16, qk_norm=False)) == 464_157_184
    published = {"var-d20": 600, "var-d30": 2000, "d12": 198, "d20": 900, "m-var-w": 260, "m-var-d": 340, "d30": 3000}
    between = (parameters(PRESETS["d16"]) + parameters(GeneratorConfig(depth=16, mamba=False))) / 2
    assert parameters(PRESETS["m-var-half"]) == between
    assert parameters(PRESETS["recent-d16"]) == exact["var-d16"]
    for preset, millions in published.items():
        assert parameters(PRESETS[preset]) == pytest.approx(millions * 1e6, rel=0.04)


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError) as error:
        GeneratorConfig(depth=2, width="64", vocab_size=0, mamba="yes", attention="all", qk_norm=1, rope=True)
    assert str(error.value).splitlines() == [
        "width = '64': must be an integer",
        "attention = 'all': choose from intra, recent, global or none",
        "mamba = 'yes': must be true or false",
        "qk_norm = 1: must be true or false",
        "vocab_size = 0: must lie in 1 to 1,048,576",
        "rope: no such setting",
    ]
    with pytest.raises(ValueError) as error:  # then what is wrong with several together
        GeneratorConfig(depth=2, width=130, heads=4, attention=["intra"], sides=[2, 1])
    starts = ("heads = 4: must divide", "attention has 1 entries", "width = 130: Mamba-2", "sides = [2, 1]")
    lines = str(error.value).splitlines()
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 4


def test_blocks_of_different_kinds_cannot_share_adaln():
    with pytest.raises(ValueError, match="shared_adaln = True"):
        GeneratorConfig(depth=2, mamba=[True, False], shared_adaln=True)
    GeneratorConfig(depth=2, attention=["intra", "none"], mamba=[False, True], shared_adaln=True)

"""Official files: what is read, what is refused and in which words, and the way back."""

import argparse
import dataclasses
import os

import pytest
import torch
from safetensors.torch import save_file

from mvar.checkpoint import official
from mvar.checkpoint.bundle import read_bundle, write_bundle
from mvar.generator.config import SIDES_256, GeneratorConfig
from mvar.generator.network import Generator
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer


def trainer_file(case, args, **config):
    """What the official trainers save; optimizer states and counters are there too."""
    name = "mvar_wo_ddp" if "mvar" in case.name else "var_wo_ddp"
    networks = {name: case.generator, "vae_local": case.tokenizer}
    return {"epoch": 3, "iter": 7, "trainer": {"config": config, **networks, "var_opt": {"state": {}}}, "args": args}


def test_every_hyperparameter_is_read_from_the_tensors(parity):
    case, said = parity, parity.settings
    config = official.read_generator(case.generator).config
    m_var = said["kind"] == "mvar"
    assert config == GeneratorConfig(
        depth=said["depth"],
        width=said["width"],
        heads=said["heads"],
        attention="intra" if m_var else "global",
        mamba=m_var,
        shared_adaln=said["shared_aln"],
        qk_norm=said["attn_l2_norm"],
        num_classes=said["num_classes"],
        vocab_size=said["vocab_size"],
        latent_channels=said["z_channels"],
        sides=said["scales"],
    )
    expected = TokenizerConfig(
        channels=said["ch"], latent_channels=said["z_channels"], vocab_size=said["vocab_size"], sides=said["scales"]
    )
    assert official.read_tokenizer(case.tokenizer, config.sides).config == expected
    # The file alone does not tell its token maps; a count of code use for another number of scales does no harm.
    assert official.read_tokenizer(case.tokenizer).config == dataclasses.replace(expected, sides=list(SIDES_256))


def test_round_trip_is_bit_equal(parity):
    generator = official.read_generator(parity.generator)
    tokenizer = official.read_tokenizer(parity.tokenizer, parity.settings["scales"])
    for back, state in (
        (official.generator_to_official(generator), parity.generator),
        (official.tokenizer_to_official(tokenizer), parity.tokenizer),
    ):
        assert back.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "none"},
        {"attention": "global", "qk_norm": False, "state_size": 16, "mlp_ratio": 2},
        {"attention": ["none", "intra", "intra"], "mamba": [True, False, False], "shared_adaln": True},
        {"attention": ["none", "intra", "intra"], "mamba": [True, False, True]},
        {"attention": "global", "mamba": [False, True, True], "num_classes": 0},
        {"width": 96, "heads": 3, "sides": [2, 4, 6]},
    ],
    ids=str,
)
def test_every_mixer_survives_the_round_trip(changes):
    config = GeneratorConfig(**{"depth": 3, "width": 64, "num_classes": 5, "vocab_size": 40, "sides": [1, 2]} | changes)
    torch.manual_seed(0)
    generator = Generator(config)
    # Whatever a network leaves to its initialisation.
    generator.load_state_dict({name: torch.randn_like(t) for name, t in generator.state_dict().items()})
    network = official.read_generator(official.generator_to_official(generator))
    alike = {"attention": "intra", "mamba": True}
    assert dataclasses.replace(network.config, **alike) == dataclasses.replace(config, **alike)
    assert network.config.mixers == config.mixers
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in generator.state_dict().items())


@pytest.mark.parametrize(("phis", "key"), [(0, "2"), (1, "qresi"), (3, "qresi_ls.2")])
def test_phis_of_every_kind(phis, key):
    config = TokenizerConfig(
        channels=32, multipliers=(1, 3), res_blocks=1, latent_channels=4, vocab_size=8, phis=phis, sides=[1, 2, 3]
    )
    tokenizer = Tokenizer(config)
    there = official.tokenizer_to_official(tokenizer)
    assert f"quantize.quant_resi.{key}.weight" in there
    read = official.read_tokenizer(there, config.sides)
    assert read.config == config
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in tokenizer.state_dict().items())


def test_misfits_come_in_one_error(load_parity):
    state = dict(load_parity("mvar").generator)
    del state["head.bias"]
    state |= {
        "blocks.1.mamba.D": torch.zeros(7),
        "start_pos": torch.zeros(1, 1, 128),
        "blocks.0.attn.zero_k_bias": torch.ones(128),
        "blocks.1.attn.patch_nums": torch.tensor([1, 2, 3, 4], dtype=torch.int32),
    }
    with pytest.raises(ValueError) as caught:
        official.read_generator(state)
    header, misfits, *buffers = str(caught.value).splitlines()
    assert "state dict does not fit the official generator" in header
    for wrong in (
        "blocks.1.mamba.D is (7,), expected (4,)",
        "head.bias is absent, expected (128,)",
        "start_pos is (1, 1, 128), expected absent",
    ):
        assert wrong in misfits
    assert {line.split(":")[0] for line in buffers} == {"blocks.0.attn.zero_k_bias", "blocks.1.attn.patch_nums"}


def test_weights_that_are_not_finite_are_refused_by_their_official_name(load_parity, tmp_path):
    case = load_parity("mvar")
    bad = case.generator["lvl_embed.weight"].double()
    bad[1, 3] = 1e300  # not finite in the dtype it will run in
    torch.save(case.generator | {"lvl_embed.weight": bad}, tmp_path / "generator.pth")
    with pytest.raises(
        ValueError, match=rf"^generator\.pth: lvl_embed\.weight holds NaN or infinity in 1 of {bad.numel()} "
    ):
        official.read_generator(tmp_path / "generator.pth")


def test_the_wrong_file_is_named(load_parity):
    with pytest.raises(ValueError, match=r"^state dict is no official generator: no word_embed\.weight .*encoder\."):
        official.read_generator(load_parity("var").tokenizer)


@pytest.mark.parametrize("make_args", [dict, argparse.Namespace])
def test_trainer_files_hold_both_networks(load_parity, tmp_path, make_args):
    for name, pn in (("var_shared_adaln", "1_2_3_5"), ("mvar", "1_2_3_4")):
        case = load_parity(name)
        args = make_args(pn=pn, saln=case.settings["shared_aln"], anorm=True, tblr=1e-4)
        torch.save(trainer_file(case, args, patch_nums=tuple(case.settings["scales"])), tmp_path / "ar-ckpt-last.pth")
        bundle = official.load(generator=tmp_path / "ar-ckpt-last.pth")
        assert bundle.generator.config == official.read_generator(case.generator).config
        assert bundle.tokenizer.config.sides == case.settings["scales"]
        assert official.read_tokenizer(tmp_path / "ar-ckpt-last.pth").config == bundle.tokenizer.config
        assert torch.equal(bundle.tokenizer.quantizer.codebook, case.tokenizer["quantize.embedding.weight"])


def test_a_trainers_settings_must_agree(load_parity):
    case = load_parity("mvar")
    content = trainer_file(case, {"pn": "256", "saln": 1, "anorm": False})
    with pytest.raises(ValueError) as caught:
        official.read_generator(content)
    assert str(caught.value).splitlines()[1:] == [
        "shared_adaln = True in the trainer's settings: the tensors say False",
        "qk_norm = False in the trainer's settings: the tensors say True",
        f"sides = {list(SIDES_256)} in the trainer's settings: the tensors say [1, 2, 3, 4]",
    ]
    del content["trainer"]["vae_local"]
    with pytest.raises(ValueError, match=r"^state dict is a trainer's file without tokenizer: no vae_local in it$"):
        official.read_tokenizer(content)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_convert_to_a_bundle(load_parity, tmp_path, suffix):
    case = load_parity("mvar_no_qk_norm")
    save = torch.save if suffix == ".pth" else save_file
    save(case.tokenizer, tmp_path / f"vae{suffix}")
    save(case.generator, tmp_path / f"any name{suffix}")
    folder = write_bundle(tmp_path / "bundle", official.load(tmp_path / f"vae{suffix}", tmp_path / f"any name{suffix}"))
    bundle = read_bundle(folder)
    assert bundle.provenance == {
        "Official tokenizer file": f"vae{suffix}",
        "Official generator file": f"any name{suffix}",
    }
    assert bundle.classes == [str(i) for i in range(10)]
    assert all(torch.equal(t, case.generator[n]) for n, t in official.generator_to_official(bundle.generator).items())

    assert official.load(tmp_path / f"vae{suffix}").generator is None
    with pytest.raises(ValueError, match="give at least the tokenizer"):
        official.load()


def test_half_precision_is_read_as_float32_and_never_aliased(load_parity):
    state = load_parity("var").generator
    halves = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    generator = official.read_generator(halves)
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    ours = official.read_generator(state)
    assert not {t.data_ptr() for t in ours.parameters()} & {t.data_ptr() for t in state.values()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.999])
def test_a_truncated_file_is_one_line(load_parity, tmp_path, suffix, fraction):
    path = tmp_path / f"d16{suffix}"
    (torch.save if suffix == ".pth" else save_file)(load_parity("var").generator, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(ValueError, match=f"^d16{suffix} .*$"):
        official.read_generator(path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_pickled_code_is_never_run(load_parity, tmp_path):
    torch.save(load_parity("var").generator | {"payload": Payload(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"^bad.pth holds \w+.system, and pickled code is never run.*$"):
        official.read_generator(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()
    # The payload is live: only the reader keeps it from running.
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_what_the_official_format_cannot_hold():
    config = GeneratorConfig(
        depth=2, width=64, attention=["intra", "global"], sides=[1, [2, 3]], num_classes=2, vocab_size=8
    )
    with pytest.raises(ValueError, match=r"(?s)generator.sides = .*square.*\n.*generator.attention = "):
        official.generator_to_official(Generator(config))
    config = dataclasses.replace(config, attention="intra", sides=[1, 2], order="parallel", scan="snake")
    with pytest.raises(
        ValueError,
        match=r"^generator\.order = parallel: .* has attention-first only\n.*\.scan = snake: .* raster only$",
    ):
        official.generator_to_official(Generator(config))
    official.generator_to_official(Generator(dataclasses.replace(config, mamba=False)))  # the same in any order
    config = dataclasses.replace(config, attention="recent", mamba=False)
    with pytest.raises(
        ValueError, match=r"^generator\.attention = recent: the official format has intra and global only$"
    ):
        official.generator_to_official(Generator(config))
    tokenizer = Tokenizer(TokenizerConfig(channels=16, multipliers=(1, 3), norm_groups=8, sides=[1, 2]))
    with pytest.raises(ValueError, match=r"^tokenizer\.norm_groups = 8: the official code has 32 groups only; train "):
        official.tokenizer_to_official(tokenizer)


def test_imagenet_names_ship():
    names = official.class_names(1000)
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert [names[i] for i in (0, 207, 517, 999)] == ["tench", "golden retriever", "crane (machine)", "toilet tissue"]
    assert not any("," in name for name in names)  # the command line separates labels by commas
    assert official.class_names(2) == ["0", "1"]

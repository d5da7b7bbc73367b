import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvar.checkpoint.bundle import Bundle, is_bundle, read_bundle, write_bundle
from mvar.checkpoint.placement import to_device
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

SHARED = {"vocab_size": 48, "latent_channels": 8, "sides": [1, 2, [3, 4]]}
CLASSES = ["tench, Tinca tinca", "T-shirt/top", "Zürich"]


def build():
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **SHARED))
    generator = Generator(
        GeneratorConfig(
            depth=2,
            width=64,
            heads=2,
            attention=["recent", "none"],
            mamba=[False, True],
            order="mamba-first",
            scan="snake",
            num_classes=3,
            **SHARED,
        )
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.1)
    return Bundle(
        tokenizer=tokenizer.eval(),
        generator=generator.eval(),
        classes=CLASSES,
        defaults={"guidance": 2.0},
        provenance={"data": "made up"},
    )


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle", build())


def test_round_trip_is_exact(folder):
    before, after = build(), read_bundle(folder)
    assert (after.classes, after.defaults, after.provenance) == (CLASSES, {"guidance": 2.0}, {"data": "made up"})
    assert is_bundle(folder)
    for name in ("tokenizer", "generator"):
        old, new = getattr(before, name), getattr(after, name)
        assert new.config == old.config
        assert not new.training
        assert new.state_dict().keys() == old.state_dict().keys()
        for key, tensor in old.state_dict().items():
            torch.testing.assert_close(new.state_dict()[key], tensor, rtol=0, atol=0, msg=key)
        assert all(p.requires_grad and p.is_leaf for p in new.parameters())  # fit for training on


def test_configs_of_before_order_and_scan_load(folder):
    """What older bundles do not say had one value."""
    edit_config(folder, lambda config: [config["generator"].pop(name) for name in ("order", "scan")])
    old = replace(build().generator.config, order="attention-first", scan="raster")
    assert read_bundle(folder).generator.config == old


def test_bfloat16_rounds_matrices_only(tmp_path):
    before = build()
    after = read_bundle(write_bundle(tmp_path, before, dtype="bfloat16"))
    stored = load_file(tmp_path / "generator.safetensors")
    assert stored["head.weight"].dtype == torch.bfloat16
    assert stored["head.bias"].dtype == torch.float32
    assert after.generator.head.weight.dtype == torch.float32
    assert torch.equal(after.generator.head.weight, before.generator.head.weight.bfloat16().float())
    for name, tensor in before.tokenizer.quantizer.state_dict().items():
        assert torch.equal(after.tokenizer.quantizer.state_dict()[name], tensor), name


def test_tokenizer_alone_and_over_an_older_bundle(folder):
    (folder / "metrics.jsonl").write_text("kept")
    write_bundle(folder, Bundle(tokenizer=build().tokenizer))
    bundle = read_bundle(folder)
    assert bundle.generator is None
    assert not (folder / "generator.safetensors").exists()
    assert (folder / "metrics.jsonl").read_text() == "kept"


def test_card_tells_the_facts(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    for fact in (
        "# bundle",
        "8 × 6 pixels",
        "1 2 [3, 4]",
        "depth 2, width 64",
        "1 of 2 blocks, mamba-first, snake scan",
        "T-shirt/top",
        "made up",
    ):
        assert fact in card


def test_a_failed_write_leaves_the_old_bundle(folder, monkeypatch):
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > 1:
            path.write_bytes(b"half")
            raise OSError("disk full")
        save_file(tensors, path)

    monkeypatch.setattr("mvar.checkpoint.bundle.write_tensors", full)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(folder, build())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old


@pytest.mark.parametrize("moves", [0, 4])
def test_an_interrupted_move_leaves_nothing_that_loads(folder, monkeypatch, moves):
    bundle, done = build(), []

    def replace(source, target):
        if target.parent == folder:
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        source.rename(target)

    monkeypatch.setattr("mvar.checkpoint.bundle.os.replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(folder, bundle)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_bundle(folder)


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, edit):
    state = load_file(folder / "generator.safetensors")
    edit(state)
    save_file(state, folder / "generator.safetensors")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; give a bundle or run folder"),
    "no weights": (lambda f: (f / "tokenizer.safetensors").unlink(), "tokenizer.safetensors: no such file"),
    "not JSON": (lambda f: truncate(f / "config.json"), "config.json: not valid JSON"),
    "format": (lambda f: edit_config(f, lambda c: c.update(format="x")), "format = 'x': expected 'mvar-bundle'"),
    "version": (lambda f: edit_config(f, lambda c: c.update(version=2)), "version = 2: this mvar reads version 1"),
    "unknown key": (
        lambda f: edit_config(f, lambda c: c["generator"].update(deepness=3)),
        "generator.deepness: no such setting",
    ),
    "parts differ": (
        lambda f: edit_config(f, lambda c: c["generator"].update(vocab_size=9)),
        "tokenizer.vocab_size = 48 but generator.vocab_size = 9",
    ),
    "class count": (
        lambda f: (f / "classes.json").write_text('["a"]'),
        "classes.json has 1 names but generator.num_classes = 3",
    ),
    "truncated": (lambda f: truncate(f / "generator.safetensors"), "generator.safetensors: cannot be read"),
    "shape": (
        lambda f: edit_weights(f, lambda s: s.update({"head.bias": torch.zeros(5), "extra": torch.zeros(2)})),
        r"does not fit config.json: head.bias is \(5,\), expected \(48,\); extra is \(2,\), expected absent$",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(folder, damage):
    hurt, message = DAMAGE[damage]
    hurt(folder)
    with pytest.raises(ValueError, match=message) as error:
        read_bundle(folder)
    assert len(str(error.value).splitlines()) == 1
    assert str(folder) in str(error.value)


def test_refuses_to_write_parts_that_do_not_fit(tmp_path):
    bundle = build()
    with pytest.raises(ValueError, match=r"classes.json has 0 names but generator.num_classes = 3"):
        write_bundle(tmp_path, Bundle(tokenizer=bundle.tokenizer, generator=bundle.generator))
    with pytest.raises(ValueError, match="dtype = 'int8'"):
        write_bundle(tmp_path, bundle, dtype="int8")
    assert not list(tmp_path.iterdir())


def test_weights_are_read_in_the_dtype_they_run_in(folder):
    """Never in another: a large model would not fit twice."""
    bundle = read_bundle(folder, "cpu", "bfloat16")
    expected = read_bundle(folder)
    to_device(expected.tokenizer, expected.generator, "cpu", "bfloat16")
    for network, like in ((bundle.tokenizer, expected.tokenizer), (bundle.generator, expected.generator)):
        state = network.state_dict()
        for name, tensor in like.state_dict().items():
            assert state[name].dtype == tensor.dtype, name
            assert torch.equal(state[name], tensor), name


def test_weights_that_do_not_fit_are_refused_with_numbers(folder, monkeypatch):
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    with pytest.raises(
        ValueError, match=r"its weights take about \d.\d MB, 0.0 MB of memory are free; free some, or give bf"
    ):
        read_bundle(folder)


PEAK = """
import resource, sys
import mvar.model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[1:]:
    model = None
    model = mvar.load(folder, "cpu", "bfloat16")
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_loading_takes_no_second_copy(processes, tmp_path):
    shared = {"vocab_size": 32, "latent_channels": 8, "sides": [1, 2, 3]}
    generator = Generator(GeneratorConfig(depth=5, width=768, num_classes=2, **shared))
    tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared))
    bundle = Bundle(tokenizer=tokenizer, generator=generator, classes=["a", "b"])
    folders = [write_bundle(tmp_path / stored, bundle, stored) for stored in ("bfloat16", "float32")]
    loading = processes.Processes(PEAK, folders, tmp_path)
    loading.finish()
    weights = 2 * sum(p.numel() for p in generator.parameters())
    assert weights > 90e6
    assert int(loading.output()) < weights + 100e6  # half of a second copy


def test_weights_that_are_not_finite_in_their_dtype_are_refused_by_name(folder):
    largest = torch.finfo(torch.float32).max
    edit_weights(folder, lambda state: state["word_embed.weight"][0].fill_(largest))
    assert read_bundle(folder).generator.word_embed.weight[0, 0] == largest
    with pytest.raises(ValueError, match=r"generator\.safetensors: word_embed\.weight holds NaN or infinity in 8 of "):
        read_bundle(folder, dtype="bfloat16")

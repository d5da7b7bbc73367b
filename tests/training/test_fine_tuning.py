import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from mvar.cli import main
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.model import load
from mvar.training.generator.fine_tuning import PARTS, belongs, freeze
from mvar.training.generator.task import train


@pytest.fixture
def start(trained_generator, tmp_path) -> str:
    """The folder of a model that knows bag, coat and shoe; it may be deleted."""
    return str(shutil.copytree(trained_generator, tmp_path / "start"))


@pytest.fixture
def fine_tuned(generator_run, start):
    """Fine-tune with a rate so small that float32 weights hardly move; gives the generators before and after."""

    def run(**changes) -> tuple[Generator, Generator]:
        config = generator_run(**{"steps": 1, "init_from": start, "base_lr": 1e-20, "weight_decay": 0.0, **changes})
        return load(start, "cpu", "float32").generator, train(config).generator

    return run


def weights(generator, without=()):
    return {name: t for name, t in generator.state_dict().items() if name not in without}


def test_classes_keep_their_embedding_by_name(fine_tuned, photos, tmp_path, capsys):
    data = shutil.copytree(photos, tmp_path / "data")
    (data / "bag").rename(data / "ankle-boot")  # new, and now the first
    (data / "coat").rename(data / "Coat ")
    before, after = fine_tuned(data=str(data))
    assert "fine-tuning: 2 of 3 classes known by name; new: ankle-boot" in capsys.readouterr().err
    old, new = before.class_embed.weight, after.class_embed.weight
    assert torch.equal(new[1:], old[1:])  # coat, shoe and the null class
    likeness = torch.cosine_similarity(new[0], old, dim=1)
    assert (likeness.abs() < 0.5).all(), "a row of its own, unlike those that the start began with"
    assert 0.3 < new[0].std() / (1 / (3 * 64)) ** 0.5 < 3
    rest = ("class_embed.weight",)
    torch.testing.assert_close(weights(after, rest), weights(before, rest), rtol=0, atol=0)


def test_other_scales_are_interpolated(fine_tuned, start, tmp_path):
    with pytest.warns(UserWarning, match="was not trained at these scales"):
        other = load(start, "cpu", "float32").rescheduled([1, 2, [4, 6]])
    other.save(tmp_path / "wide")
    _, after = fine_tuned(tokenizer=str(tmp_path / "wide"))
    assert after.config.sides == [1, 2, [4, 6]]
    torch.testing.assert_close(weights(after), weights(other.generator), rtol=0, atol=0)


def test_it_resumes_without_the_model_it_started_from(generator_run, start):
    config = generator_run(steps=2, init_from=start, freeze=("mlp",))
    train(config)
    shutil.rmtree(start)
    with pytest.warns(UserWarning, match="steps = 4"):
        model = train(replace(config, steps=4, resume=True))
    assert model.provenance["fine_tuned_from"] == "start"
    # By the command too, which takes the model's shape from the run.
    values = {name: value for name, value in asdict(config).items() if value is not None}
    options = Path(config.out, "again.yaml")
    del values["model"]
    options.write_text(
        yaml.safe_dump(json.loads(json.dumps({**values, "preset": "tiny32", "steps": 4, "resume": True})))
    )
    main(["train", "generator", "--config", str(options)])


def test_what_cannot_be_started_from_is_refused(generator_run, start, trained_tokenizer, tmp_path):
    other = replace(generator_run().model, depth=3, mlp_ratio=2)
    for changes, message in (
        ({"init_from": str(trained_tokenizer)}, "^init_from = .*: is a tokenizer without a generator"),
        ({"tokenizer": "fashion-mnist"}, "^init_from = .*: its generator was trained on another tokenizer's"),
        ({"model": other}, r"^model.depth = 3: the generator of .* has 2, and keeps it; .*\nmodel.mlp_ratio = 2: "),
    ):
        with pytest.raises(ValueError, match=message):
            train(generator_run(**{"init_from": start, **changes}))
    assert not (tmp_path / "generator").exists()


def test_the_command_takes_the_model_from_the_bundle(start, photos, trained_tokenizer, tmp_path, refused):
    arguments = f"train generator --preset tiny32 --data {photos} --tokenizer {trained_tokenizer} --init-from {start}"
    small = f"--steps 1 --batch-size 2 --val-images 2 --device cpu --dtype float32 --out {tmp_path / 'tuned'}"
    assert refused(*arguments.split(), *small.split(), "--model.depth", "5")[0].startswith("mvar: model.depth = 5: the")
    main([*arguments.split(), *small.split(), "--freeze", '["blocks", "head"]'])
    tuned = load(tmp_path / "tuned", "cpu").generator.config
    assert (tuned.depth, tuned.width, tuned.state_size) == (2, 64, 16)


# --- freezing ---


def test_frozen_parts_stay_and_the_others_learn(generator_run, start):
    parts = ("attention", "embeddings", "head")
    before = load(start, "cpu", "float32").generator
    after = train(generator_run(steps=2, init_from=start, freeze=parts)).generator.state_dict()
    moved = {name for name, t in before.state_dict().items() if not torch.equal(t, after[name])}
    frozen = {name for name in after if any(belongs(name, part) for part in parts)}
    assert frozen
    assert moved == after.keys() - frozen


@pytest.mark.parametrize("shared", [False, True])
def test_the_parts_cover_the_generator(shared):
    generator = Generator(GeneratorConfig(depth=1, width=64, num_classes=2, vocab_size=8, shared_adaln=shared))
    parts = {part: {n for n, _ in generator.named_parameters() if belongs(n, part)} for part in PARTS}
    assert parts["blocks"] == parts["attention"] | parts["mamba"] | parts["mlp"] | parts["adaln"]
    apart = [parts[name] for name in PARTS if name != "blocks"]
    assert sum(map(len, apart)) == len(set().union(*apart)) == len(list(generator.parameters()))


@pytest.mark.parametrize(
    ("parts", "new", "message"),
    [
        (["classes", "embeddings", "blocks", "head"], [], "freeze = classes, embeddings, blocks, head: nothing is"),
        (["mamba"], [], "freeze = 'mamba': the generator has no such part; leave it out"),
        (["classes"], ["hat"], "freeze = 'classes': hat must be learnt first; leave it out"),
    ],
)
def test_freezing_too_much_is_refused(parts, new, message):
    generator = Generator(GeneratorConfig(depth=1, width=64, num_classes=2, vocab_size=8, mamba=False))
    with pytest.raises(ValueError, match=f"^{message}"):
        freeze(generator, parts, new)

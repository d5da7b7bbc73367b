import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvar.model import load
from mvar.training.finite import FiniteCheck
from mvar.training.generator import task as generator
from mvar.training.generator.task import GeneratorTask
from mvar.training.optim import lr_factor
from mvar.training.parallel import Ranks
from mvar.training.run.folder import RunFolder
from mvar.training.task import open_images
from mvar.training.tokenizer import task as tokenizer
from mvar.training.tokenizer.task import TokenizerTask

from .runs import checkpoint, metrics, poison, same_bits, train_until

TASKS = {"tokenizer": (tokenizer.train, TokenizerTask), "generator": (generator.train, GeneratorTask)}
ALONE = Ranks(device=torch.device("cpu"))


@pytest.fixture(params=TASKS)
def kind(request, tokenizer_run, generator_run):
    """(train, task class, config with changes) of each kind of run."""
    return *TASKS[request.param], {"tokenizer": tokenizer_run, "generator": generator_run}[request.param]


def scalars(out, name):
    """What TensorBoard shows of a metric: (step, value)."""
    events = EventAccumulator(str(out))
    events.Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(name)]


def test_an_interrupted_run_equals_the_unbroken_one_bit_for_bit(kind, tmp_path):
    train, task, config = kind
    config = config(steps=4, resize_factor=1.5, augment=("shift", "scale", "flip"))
    whole, broken = replace(config, out=str(tmp_path / "whole")), replace(config, out=str(tmp_path / "broken"))
    unbroken = train(whole)
    train_until(3, train, task, broken)
    assert checkpoint(broken.out)["step"] == 2
    assert metrics(broken.out)[-1]["step"] == 3
    with open(Path(broken.out, "metrics.jsonl"), "a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    torch.manual_seed(123)
    resumed = train(replace(broken, resume=True))

    assert same_bits(checkpoint(whole.out), checkpoint(broken.out))
    assert metrics(whole.out) == metrics(broken.out)
    for part in ("tokenizer", "generator"):
        a, b = getattr(unbroken, part), getattr(resumed, part)
        assert (a is None and b is None) or same_bits(a.state_dict(), b.state_dict())
    for path in Path(whole.out, "previews").iterdir():
        assert path.read_bytes() == Path(broken.out, "previews", path.name).read_bytes()
    assert scalars(broken.out, "loss") == scalars(whole.out, "loss"), "events after the checkpoint are hidden"


def test_training_changes_every_weight_and_lowers_the_loss(kind):
    train, _, config = kind
    config = config(steps=24, validate_every=24, checkpoint_every=24, batch_size=12)
    train(config)
    losses = [line["loss"] for line in metrics(config.out) if "loss" in line]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    state = checkpoint(config.out)
    moments = {name: t for name, t in state["tensors"].items() if name.startswith("optimizer.model.")}
    weights = {name for name in state["tensors"] if name.startswith("model.")}
    assert {f"optimizer.{name}.exp_avg_sq" for name in weights} <= moments.keys()
    assert all(moment.any() for moment in moments.values())


def test_the_run_folder_is_complete_and_loads_as_the_model(kind):
    train, _, config = kind
    config = config(steps=4)
    model = train(config)
    out = Path(config.out)
    assert sorted(path.name for path in (out / "previews").iterdir()) == ["0000002.png", "0000004.png"]
    with Image.open(out / "previews" / "0000004.png") as image:
        assert min(image.size) > 96
    loaded = load(out, device="cpu")
    assert loaded.classes == model.classes == ["bag", "coat", "shoe"]
    assert same_bits(loaded.tokenizer.state_dict(), model.tokenizer.state_dict())
    assert model.provenance == loaded.provenance
    assert loaded.provenance["steps"] == 4
    assert not list((out / "checkpoints").glob(".*")), "nothing half-written is left"
    assert (out / "curves.png").is_file()
    starts = json.loads((out / "environment.json").read_text())["starts"]
    assert [(start["from_step"], start["device"]) for start in starts] == [(0, "cpu")]

    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    assert scalars(out, "loss") == [(line["step"], pytest.approx(line["loss"])) for line in lines if "loss" in line]
    per_scale = "used" if loaded.generator is None else "val_loss_scales"
    assert len(lines[-1][per_scale]) == 3
    assert scalars(out, f"{per_scale}/scale_2")[-1] == (4, pytest.approx(lines[-1][per_scale][2]))
    if model.generator is not None:
        assert not any(module.training for module in model.generator.modules())
        a, b = model.sample([0, "shoe", -1]), loaded.sample([0, "shoe", -1])
        assert torch.equal(a.pixels, b.pixels)
        assert a.pixels.shape == (3, 3, 8, 8)


def test_a_folder_without_classes_trains_without_classes(photos, tokenizer_run, generator_run):
    short = {"data": str(photos / "bag"), "steps": 1}
    coded = tokenizer_run(**short)
    tokenizer.train(coded)
    model = generator.train(generator_run(**short, tokenizer=coded.out))
    assert model.classes == []
    assert model.generator.config.num_classes == 0
    assert model.sample(None).pixels.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("late", [False, True])  # as on a GPU, where numbers are read a step later
@pytest.mark.parametrize(("kind", "what"), [("tokenizer", "grad_norm"), ("generator", "loss")], indirect=["kind"])
def test_a_loss_that_is_not_finite_stops_before_the_update(kind, what, late, monkeypatch):
    train, task, config = kind
    made_check = FiniteCheck.__init__
    monkeypatch.setattr(
        FiniteCheck, "__init__", lambda self, *given: (made_check(self, *given), setattr(self, "late", late))[0]
    )
    config, seen = config(steps=4), []

    def spoil(loss):
        # The square root's slope at zero: a finite loss with gradients that are not.
        return loss * torch.nan if what == "loss" else loss + (loss - loss).sqrt()

    made = task.__init__
    monkeypatch.setattr(task, "__init__", lambda self, *args: (made(self, *args), seen.append(self))[0])
    poison(monkeypatch, task, 2, spoil)
    with pytest.raises(
        FloatingPointError, match=rf"{what} = nan at step 3, images .*: stopped before the update; resume from the"
    ):
        train(config)
    state = checkpoint(config.out)
    assert state["step"] == 2
    for name, value in seen[0].model.state_dict().items():
        assert same_bits(state["tensors"][f"model.{name}"], value)

    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"base_lr = 0.01: the run in .* has 0.1; it goes on with the new value"):
        train(replace(config, resume=True, base_lr=0.01))
    assert checkpoint(config.out)["step"] == 4


def test_the_first_step_has_no_checkpoint_to_resume_from(tokenizer_run, monkeypatch):
    poison(monkeypatch, TokenizerTask, 0, lambda loss: loss * torch.inf)
    config = tokenizer_run(batch_size=12)
    said = r"loss = inf at step 1, images (.*) and 4 more: .*; start again, with a lower base_lr"
    with pytest.raises(FloatingPointError, match=said) as caught:
        tokenizer.train(config)
    names = re.search(said, str(caught.value))[1].split(", ")
    assert len(names) == 8
    assert all(Path(name).is_file() for name in names)
    monkeypatch.undo()
    Path(config.out, "metrics.jsonl").write_text('{"step": 1, "loss": 1e9}\n')  # as if it had logged
    tokenizer.train(replace(config, steps=1))
    assert [line["step"] for line in metrics(config.out)] == [1, 1]
    assert metrics(config.out)[0]["loss"] < 1e9


# --- the folder of an earlier run ---


def test_a_folder_with_a_run_is_not_overwritten(finished):
    before, lines = checkpoint(finished.out), metrics(finished.out)
    with pytest.raises(ValueError, match=r"^out = .*: holds a run; give --resume to go on with it, or a new folder$"):
        tokenizer.train(finished)
    tokenizer.train(replace(finished, resume=True))  # nothing is left to do
    assert same_bits(checkpoint(finished.out), before)
    assert metrics(finished.out) == lines


def test_resuming_with_other_settings_names_them_all(finished, generator_run):
    settings = Path(finished.out, "run.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        tokenizer.train(replace(finished, resume=True, batch_size=9, l1=3.0, log_every=7))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["batch_size = 9", "l1 = 3"]
    assert lines[1].endswith("has 0.2; resume with its settings, or start a new run")
    with pytest.raises(ValueError, match=r"model = .*: the run in .* has .*; resume with its settings"):
        generator.train(generator_run(steps=2, out=finished.out, resume=True))
    assert Path(finished.out, "run.json").read_bytes() == settings


def test_a_run_of_an_older_version_is_prolonged_with_its_schedule_stretched(finished):
    path = Path(finished.out, "run.json")
    settings = json.loads(path.read_text())
    assert settings.pop("augment") == []  # settings that the version did not have yet
    assert settings["model"].pop("norm_groups") == finished.model.norm_groups
    path.write_text(json.dumps(settings))
    more = replace(finished, resume=True, steps=4)
    with pytest.warns(UserWarning, match=r"steps = 4: the run in .* has 2; it goes on with the new value"):
        tokenizer.train(more)
    lr = {line["step"]: line["lr"] for line in metrics(finished.out) if "lr" in line}
    assert list(lr) == [1, 2, 3, 4]
    assert lr[3] == more.peak_lr * lr_factor(2, 4, more.warmup, more.lr_end) > lr[2]
    with pytest.raises(ValueError, match=r"^steps = 3: the run in .* has done 4; give at least as many$"):
        tokenizer.train(replace(more, steps=3))


def test_a_tokenizer_that_changed_is_noticed_and_one_that_moved_is_not(
    generator_run, trained_generator, trained_tokenizer, tmp_path
):
    moved = shutil.copytree(trained_tokenizer, tmp_path / "moved")
    out = shutil.copytree(trained_generator, tmp_path / "generator")
    config = generator_run(steps=2, tokenizer=str(moved), out=str(out), resume=True)
    generator.train(config)
    weights = load_file(moved / "tokenizer.safetensors")
    weights["quantizer.codebook"][0] += 1
    save_file(weights, moved / "tokenizer.safetensors")
    with pytest.raises(ValueError, match="tokenizer: has other weights than the one the run began with"):
        generator.train(config)


def test_resuming_with_other_data(finished, photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")  # the folder may move

    def check():
        config = replace(finished, data=str(data), resume=True)
        images, held_out = open_images(config, config.model.image_shape)
        with RunFolder(config, ALONE) as folder:
            folder.check(images, held_out.at_most(config.val_images))

    check()
    for path in (data / "coat").glob("*.png"):
        shutil.copy(data / "bag" / path.name, path)
    said = "other training images .*; the result will not be that"
    held_out = "other validation images than the run had; losses"
    with pytest.warns(UserWarning, match=said), pytest.warns(UserWarning, match=held_out):
        check()
    (data / "bag").rename(data / "sack")
    with pytest.raises(ValueError, match=r"has classes \['coat', 'sack', 'shoe'\], the run began with \['bag',"):
        check()

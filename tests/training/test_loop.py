import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvar.model import load
from mvar.training.generator import task as generator
from mvar.training.generator.task import GeneratorTask
from mvar.training.optim import lr_factor
from mvar.training.tokenizer import task as tokenizer
from mvar.training.tokenizer.task import TokenizerTask

from .runs import Killed, checkpoint, kill, metrics, poison, same_bits

TASKS = {"tokenizer": (tokenizer.train, TokenizerTask), "generator": (generator.train, GeneratorTask)}


@pytest.fixture(params=TASKS)
def kind(request, tokenizer_run, generator_run):
    """(train, task class, config with changes) of each kind of run."""
    return *TASKS[request.param], {"tokenizer": tokenizer_run, "generator": generator_run}[request.param]


@pytest.mark.parametrize(("resize_factor", "augment"), [(1.0, ()), (1.5, ("shift", "scale", "flip"))])
def test_an_interrupted_run_equals_the_unbroken_one_bit_for_bit(kind, resize_factor, augment, tmp_path, monkeypatch):
    train, task, config = kind
    config = config(steps=4, resize_factor=resize_factor, augment=augment)
    whole, broken = replace(config, out=str(tmp_path / "whole")), replace(config, out=str(tmp_path / "broken"))
    unbroken = train(whole)
    poison(monkeypatch, task, 3, kill)
    with pytest.raises(Killed):
        train(broken)
    monkeypatch.undo()
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
    config = config()
    model = train(config)
    out = Path(config.out)
    assert sorted(path.name for path in (out / "previews").iterdir()) == [f"000000{i}.png" for i in (2, 4, 6)]
    with Image.open(out / "previews" / "0000006.png") as image:
        assert min(image.size) > 96
    loaded = load(out, device="cpu")
    assert loaded.classes == model.classes == ["bag", "coat", "shoe"]
    assert same_bits(loaded.tokenizer.state_dict(), model.tokenizer.state_dict())
    assert model.provenance == loaded.provenance
    assert loaded.provenance["steps"] == 6
    assert not list(out.glob(".*")), "nothing half-written is left"
    assert (out / "curves.png").is_file()
    environment = json.loads((out / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in environment] == [0]

    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    events = EventAccumulator(str(out))
    events.Reload()
    logged = {scalar.step: scalar.value for scalar in events.Scalars("loss")}
    assert logged == pytest.approx({line["step"]: line["loss"] for line in lines if "loss" in line})
    per_scale = "used" if loaded.generator is None else "val_loss_scales"
    assert len(lines[-1][per_scale]) == 3
    assert [s.value for s in events.Scalars(f"{per_scale}/scale_2")][-1] == pytest.approx(lines[-1][per_scale][2])


def test_train_returns_a_model_that_samples_as_the_loaded_one(generator_run):
    config = generator_run()
    model = generator.train(config)
    assert not any(module.training for module in model.generator.modules())
    a, b = model.sample([0, "shoe", -1]), load(config.out, device="cpu").sample([0, "shoe", -1])
    assert torch.equal(a.pixels, b.pixels)
    assert a.pixels.shape == (3, 3, 8, 8)


@pytest.mark.parametrize("layout", ["flat", "one class"])
def test_folders_without_classes_train_without_classes(layout, photos, tokenizer_run, generator_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(photos / "bag", data if layout == "flat" else data / "bag")
    short = {"data": str(data), "steps": 2}
    tokenizer_config = tokenizer_run(**short)
    tokenizer.train(tokenizer_config)
    model = generator.train(generator_run(**short, tokenizer=tokenizer_config.out))
    assert model.classes == []
    assert model.generator.config.num_classes == 0
    assert model.sample(None).pixels.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("kind", "what"), [("tokenizer", "grad_norm"), ("generator", "loss")], indirect=["kind"])
def test_a_loss_that_is_not_finite_stops_before_the_update(kind, what, monkeypatch):
    train, task, config = kind
    config, seen = config(steps=3), []

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
    assert checkpoint(config.out)["step"] == 3


def test_the_first_step_has_no_checkpoint_to_resume_from(tokenizer_run, monkeypatch):
    poison(monkeypatch, TokenizerTask, 0, lambda loss: loss * torch.inf)
    config = tokenizer_run()
    with pytest.raises(FloatingPointError, match=r"loss = inf at step 1, images .*; start again, with a lower base_lr"):
        tokenizer.train(config)
    monkeypatch.undo()
    Path(config.out, "metrics.jsonl").write_text('{"step": 1, "loss": 1e9}\n')  # as if it had logged
    tokenizer.train(replace(config, steps=1))
    assert [line["step"] for line in metrics(config.out)] == [1, 1]
    assert metrics(config.out)[0]["loss"] < 1e9


def test_a_folder_with_a_run_is_not_overwritten(kind):
    train, _, config = kind
    config = config(steps=1)
    train(config)
    before = checkpoint(config.out)
    with pytest.raises(ValueError, match=r"^out = .*: holds a run; give --resume to go on with it, or a new folder$"):
        train(config)
    assert same_bits(checkpoint(config.out), before)
    train(replace(config, resume=True))  # nothing is left to do
    assert [line["step"] for line in metrics(config.out)] == [1, 1]


def test_a_folder_with_a_model_is_not_overwritten(tokenizer_run, generator_run, trained_tokenizer):
    bundle = Path(load(trained_tokenizer, device="cpu").save(tokenizer_run().out))
    for train, config in ((tokenizer.train, tokenizer_run()), (generator.train, generator_run(out=str(bundle)))):
        with pytest.raises(ValueError, match=r"^out = .*: holds a model, which this run would replace"):
            train(config)
    assert not (bundle / "run.json").exists()


def test_resuming_needs_a_run(kind):
    train, _, config = kind
    with pytest.raises(ValueError, match=r"^out = .*: holds no checkpoint to resume; leave --resume out to start$"):
        train(config(resume=True))


def test_resuming_with_other_settings_names_them_all(tokenizer_run):
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    settings = Path(config.out, "run.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        tokenizer.train(replace(config, resume=True, batch_size=9, l1=3.0, log_every=7))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["batch_size = 9", "l1 = 3"]
    assert lines[1].endswith("has 0.2; resume with its settings, or start a new run")
    assert Path(config.out, "run.json").read_bytes() == settings


def test_a_run_of_a_version_with_fewer_settings_goes_on(tokenizer_run):
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    path = Path(config.out, "run.json")
    settings = json.loads(path.read_text())
    assert settings.pop("augment") == []
    assert settings["model"].pop("norm_groups") == config.model.norm_groups
    path.write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="steps = 2"):
        tokenizer.train(replace(config, steps=2, resume=True))
    assert metrics(config.out)[-1]["step"] == 2


def test_a_run_is_prolonged_with_its_schedule_stretched(kind):
    train, _, config = kind
    config = config(steps=2, log_every=1)
    train(config)
    more = replace(config, resume=True, steps=4)
    with pytest.warns(UserWarning, match=r"steps = 4: the run in .* has 2; it goes on with the new value"):
        train(more)
    lr = {line["step"]: line["lr"] for line in metrics(config.out) if "lr" in line}
    assert list(lr) == list(range(1, 5))
    assert lr[3] == more.peak_lr * lr_factor(2, 4, more.warmup, more.lr_end) > lr[2]
    with pytest.raises(ValueError, match=r"^steps = 3: the run in .* has done 4; give at least as many$"):
        train(replace(config, resume=True, steps=3))


def test_a_run_of_the_other_kind_is_not_resumed(generator_run, tokenizer_run):
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    with pytest.raises(ValueError, match=r"model = .*: the run in .* has .*; resume with its settings"):
        generator.train(generator_run(steps=1, out=config.out, resume=True))


def test_a_tokenizer_that_changed_is_noticed_and_one_that_moved_is_not(generator_run, tokenizer_run, tmp_path):
    trained = tokenizer_run(steps=1)
    tokenizer.train(trained)
    config = generator_run(steps=1, tokenizer=trained.out)
    generator.train(config)
    moved = shutil.copytree(trained.out, tmp_path / "moved")
    generator.train(replace(config, tokenizer=str(moved), resume=True))
    weights = load_file(moved / "tokenizer.safetensors")
    weights["quantizer.codebook"][0] += 1
    save_file(weights, moved / "tokenizer.safetensors")
    with pytest.raises(ValueError, match="tokenizer: has other weights than the one the run began with"):
        generator.train(replace(config, tokenizer=str(moved), resume=True))


@pytest.mark.parametrize("content", ["half", b"", b"[1]"])
def test_a_damaged_file_of_settings_is_named(tokenizer_run, content):
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    path = Path(config.out, "run.json")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=r"run.json: cannot be read \(.*\); the file is damaged, start a new run$"):
        tokenizer.train(replace(config, resume=True))


def test_resuming_with_other_data(generator_run, photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    config = generator_run(data=str(data), steps=2)
    generator.train(config)
    moved = data.rename(tmp_path / "moved")
    again = replace(config, data=str(moved), resume=True)
    generator.train(again)  # the folder may move
    for path in (moved / "coat").glob("*.png"):
        shutil.copy(moved / "bag" / path.name, path)
    trained = pytest.warns(UserWarning, match="other training images .*, though as many; the result will not be that")
    with trained, pytest.warns(UserWarning, match="other validation images than the run had; losses"):
        generator.train(again)
    shutil.copy(moved / "bag" / "0.png", moved / "bag" / "new.png")
    with pytest.warns(UserWarning, match="has 22 training images, the run had 21"):
        generator.train(again)
    (moved / "bag").rename(moved / "sack")
    with pytest.raises(ValueError, match=r"has classes \['coat', 'sack', 'shoe'\], the run began with \['bag',"):
        generator.train(again)


def test_bad_settings_are_refused_before_anything_is_written(kind):
    train, _, config = kind
    for changes in ({"steps": 0}, {"device": "warp"}):
        with pytest.raises(ValueError, match=r"steps = 0|device = 'warp': not available here"):
            train(config(**changes))
        assert not Path(config().out).exists()


def test_an_unknown_tokenizer_is_named(generator_run):
    with pytest.raises(ValueError, match=r"^tokenizer = './nowhere': no such model"):
        generator.train(generator_run(tokenizer="./nowhere"))


def test_a_run_starts_where_there_is_no_git(tokenizer_run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    start = json.loads(Path(config.out, "environment.json").read_text())["starts"][0]
    assert start["git"] is None
    assert start["device"] == "cpu"


def test_events_after_the_checkpoint_are_hidden_when_the_run_goes_on(tokenizer_run, monkeypatch):
    config = tokenizer_run(steps=4)
    poison(monkeypatch, TokenizerTask, 3, kill)
    with pytest.raises(Killed):
        tokenizer.train(config)
    monkeypatch.undo()
    tokenizer.train(replace(config, resume=True))
    lines = [line for line in metrics(config.out) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    events = EventAccumulator(config.out)
    events.Reload()
    logged = [(scalar.step, scalar.value) for scalar in events.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"])) for line in lines]

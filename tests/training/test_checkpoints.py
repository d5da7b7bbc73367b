"""Runs that are killed, stopped, out of disk space or left with damaged files."""

import json
import os
import random
import shutil
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mvar.data.splits import open_splits
from mvar.model import load
from mvar.training.generator import task as generator
from mvar.training.parallel import Ranks
from mvar.training.run import checkpoints, curves
from mvar.training.run.checkpoints import Checkpoints
from mvar.training.run.folder import RunFolder
from mvar.training.stopping import Stopped
from mvar.training.tokenizer import task as tokenizer

from .runs import WORK, checkpoint, metrics, same_bits

ALONE = Ranks(device=torch.device("cpu"))
DRAW = curves.draw_curves  # before other tests replace it


@pytest.fixture
def start(processes, tmp_path):
    """Start a tokenizer's run in a process of its own."""

    def start(config, **options):
        job = {"kind": "tokenizer", "config": asdict(config), **options}
        (tmp_path / "jobs.json").write_text(json.dumps([job]))
        return processes.Processes(WORK, [tmp_path / "jobs.json"], tmp_path)

    return start


def logged(out):
    path = Path(out, "metrics.jsonl")
    return path.read_text().count("\n") if path.is_file() else 0


def assert_equal_runs(a, b):
    assert same_bits(checkpoint(a)["tensors"], checkpoint(b)["tensors"])
    assert checkpoint(a)["notes"] == checkpoint(b)["notes"]
    assert metrics(a) == metrics(b)
    one, other = load(a, device="cpu"), load(b, device="cpu")
    assert same_bits(one.tokenizer.state_dict(), other.tokenizer.state_dict())


def test_a_killed_run_equals_the_unbroken_one_bit_for_bit(tokenizer_run, start, tmp_path):
    """Killed at a random step, then in the middle of writing a checkpoint."""
    run = tokenizer_run(steps=12, checkpoint_every=3, validate_every=6)
    whole, broken = replace(run, out=str(tmp_path / "whole")), replace(run, out=str(tmp_path / "broken"))
    tokenizer.train(whole)

    lines = random.Random().randint(4, 7)
    first = start(broken, slow_steps=True)
    first.wait_for(lambda: logged(broken.out) >= lines and checkpoints.complete(Path(broken.out)))
    first.kill()
    assert 3 <= checkpoints.latest(Path(broken.out)).step < 12

    again = replace(broken, resume=True)
    second = start(again, slow_checkpoints=True)
    folder = Path(broken.out, "checkpoints")
    done = checkpoints.latest(Path(broken.out)).step
    second.wait_for(lambda: any(int(p.name.split(".")[1]) > done and any(p.iterdir()) for p in folder.glob(".*")))
    second.kill()
    assert list(folder.glob(".*.partial"))
    (folder / ".0000007.partial").mkdir()  # as a run leaves that was stopped at any step
    assert checkpoints.latest(Path(broken.out)).step == done

    tokenizer.train(again)
    assert_equal_runs(whole.out, broken.out)
    assert not list(folder.glob(".*")), "what the kills left behind is cleared"


def test_sigterm_stops_after_a_step_with_a_checkpoint(tokenizer_run, start, tmp_path):
    run = tokenizer_run(steps=20, checkpoint_every=18, validate_every=20)
    whole, stopped = replace(run, out=str(tmp_path / "whole")), replace(run, out=str(tmp_path / "stopped"))
    process = start(stopped, slow_steps=True)
    process.wait_for(lambda: logged(stopped.out) >= 4)
    process.send(signal.SIGTERM)
    assert process.wait() == [1]
    assert "Stopped: stopped after step" in process.errors()
    assert 4 <= checkpoints.latest(Path(stopped.out)).step < 18
    tokenizer.train(whole)
    tokenizer.train(replace(stopped, resume=True))
    assert_equal_runs(whole.out, stopped.out)


def test_a_signal_before_the_first_line_of_metrics(tokenizer_run, tmp_path, monkeypatch):
    """The run stops as at any other time: there is nothing to draw yet."""
    loss, steps = tokenizer.TokenizerTask.loss, []
    seldom = tokenizer_run(steps=4, log_every=100, validate_every=100, checkpoint_every=100)
    whole = replace(seldom, out=str(tmp_path / "whole"))
    tokenizer.train(whole)
    for number in (signal.SIGTERM, signal.SIGINT):
        steps.clear()

        def interrupted(self, step, part, number=number):
            steps.append(step)
            if steps == [0, 1]:
                os.kill(os.getpid(), number)
            return loss(self, step, part)

        stopped = replace(seldom, out=str(tmp_path / number.name))
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer.TokenizerTask, "loss", interrupted)
            patch.setattr(curves, "draw_curves", DRAW)
            with pytest.raises(Stopped, match="stopped after step 2 with a checkpoint; --resume goes on") as caught:
                tokenizer.train(stopped)
        assert caught.value.code == 128 + number
        assert checkpoint(stopped.out)["step"] == 2
        assert not (Path(stopped.out) / "curves.png").exists()
        tokenizer.train(replace(stopped, resume=True))
        assert_equal_runs(whole.out, stopped.out)
        assert [record["step"] for record in metrics(stopped.out)] == [4, 4]
        assert (Path(stopped.out) / "curves.png").is_file()


def test_a_callback_sees_the_records_and_may_stop_the_run(tokenizer_run):
    seen = []

    def enough(step, record):
        seen.append((step, record))
        return step == 3

    config = tokenizer_run(checkpoint_every=100)
    with pytest.raises(Stopped, match="stopped after step 4 with a checkpoint") as caught:
        tokenizer.train(config, [enough])
    assert caught.value.code == 0
    assert [step for step, _ in seen] == [1, 2, 2, 3, 4, 4]
    assert {"psnr", "grad_norm"} < seen[0][1].keys()
    assert "val_loss" in seen[2][1]
    assert checkpoint(config.out)["step"] == 4


def test_a_damaged_checkpoint_falls_back_to_the_one_before(generator_run, tmp_path):
    config = generator_run()
    generator.train(config)
    whole, logged = checkpoint(config.out), metrics(config.out)
    assert whole["step"] == 6
    for damage in ("flipped bit", "cut", "missing", "manifest"):
        damaged = replace(config, out=str(shutil.copytree(config.out, tmp_path / damage)), resume=True)
        folder = checkpoints.latest(Path(damaged.out)).path
        shard = next(folder.glob("*.safetensors"))
        content = shard.read_bytes()
        if damage == "flipped bit":
            shard.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        elif damage == "cut":
            shard.write_bytes(content[: len(content) // 2])
        elif damage == "missing":
            shard.unlink()
        else:
            (folder / "manifest.json").write_text("{")
        with pytest.warns(UserWarning, match=r"checkpoint '.*0000006' is damaged \(.*\); going back to step 4"):
            generator.train(damaged)
        assert same_bits(checkpoint(damaged.out)["tensors"], whole["tensors"])
        assert metrics(damaged.out) == logged
        assert folder.with_name(".0000006.damaged").is_dir(), "it is put aside, not deleted"


def test_a_damaged_checkpoint_does_not_count_among_those_kept(generator_run):
    config = generator_run(keep_checkpoints=1, validate_every=100)
    generator.train(config)
    (checkpoints.latest(Path(config.out)).path / "manifest.json").write_text("{}")
    shutil.copytree(Path(config.out, "checkpoints", "0000006"), Path(config.out, "checkpoints", "0000009"))
    healthy = replace(config, out=f"{config.out}-healthy", steps=3)
    generator.train(healthy)
    shutil.copytree(Path(healthy.out, "checkpoints", "0000003"), Path(config.out, "checkpoints", "0000003"))
    with pytest.warns(UserWarning, match="going back to step 3"):
        generator.train(replace(config, resume=True))
    assert checkpoints.latest(Path(config.out)).step == 6


def test_a_run_killed_before_its_first_checkpoint_starts_again(tokenizer_run):
    config = tokenizer_run(steps=2)
    tokenizer.train(config)
    whole = checkpoint(config.out)
    shutil.rmtree(Path(config.out, "checkpoints"))  # the bundle is written first
    log = Path(config.out, "metrics.jsonl")
    log.write_text(log.read_text().splitlines(keepends=True)[0])  # of step 1
    tokenizer.train(config)
    assert same_bits(checkpoint(config.out)["tensors"], whole["tensors"])


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_without_its_checkpoints_is_not_overwritten(tokenizer_run, steps):
    config = tokenizer_run(steps=steps)
    tokenizer.train(config)
    model, log = Path(config.out, "tokenizer.safetensors"), Path(config.out, "metrics.jsonl")
    before = model.read_bytes(), log.read_bytes()
    shutil.rmtree(Path(config.out, "checkpoints"))
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds a run whose checkpoints are gone; give a new folder"):
            tokenizer.train(replace(config, seed=5, steps=3, resume=resume))
    assert (model.read_bytes(), log.read_bytes()) == before


def test_two_processes_do_not_train_in_one_folder(tokenizer_run, start):
    config = tokenizer_run(steps=100_000, validate_every=50_000, checkpoint_every=2)
    process = start(config)
    process.wait_for(lambda: checkpoints.exist(Path(config.out)))
    with pytest.raises(ValueError, match=r"another process trains in this folder; wait for it, or stop it"):
        tokenizer.train(replace(config, resume=True))
    process.kill()
    done = checkpoint(config.out)["step"]
    with pytest.warns(UserWarning, match="steps = "):
        tokenizer.train(replace(config, steps=done + 1, resume=True))


def test_of_two_runs_that_wait_for_one_new_folder_the_first_to_begin_has_it(tokenizer_run, photos):
    config = tokenizer_run()
    train_images, val_images = open_splits(photos, (8, 8))
    with RunFolder(config, ALONE) as first, RunFolder(config, ALONE) as second:
        for folder in (first, second):
            assert folder.check(train_images, val_images) == 6
        assert not Path(config.out).exists(), "nothing is made before all is checked"
        first.begin()
        held = sorted(path.name for path in Path(config.out).iterdir())
        with pytest.raises(ValueError, match=r"another process trains in this folder; wait for it, or stop it"):
            second.begin()
        assert sorted(path.name for path in Path(config.out).iterdir()) == held


def test_without_a_whole_checkpoint_nothing_is_resumed(tokenizer_run):
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    (next(Path(config.out, "checkpoints").iterdir()) / "manifest.json").write_text("[1]")
    with pytest.raises(
        ValueError, match=r"is damaged \(no readable manifest\), and there is no complete one before: start"
    ):
        tokenizer.train(replace(config, resume=True))


def test_a_checkpoint_of_another_model_is_refused(tokenizer_run):
    config = tokenizer_run(steps=1)
    tokenizer.train(config)
    settings = Path(config.out, "run.json")
    settings.write_text(settings.read_text().replace('"vocab_size": 32', '"vocab_size": 64'))
    other = replace(config, resume=True, model=replace(config.model, vocab_size=64))
    with pytest.raises(
        ValueError, match=r"does not fit the model to be trained \(.*quantizer.codebook is \(32, 8\), the"
    ):
        tokenizer.train(other)


def test_the_last_and_the_best_are_kept(tmp_path):
    keeper = Checkpoints(tmp_path, ALONE, keep=2)
    for step, score in enumerate([5.0, 2.0, 4.0, 3.0, 6.0], start=1):
        keeper.save(step, {"x": torch.full((3,), float(step)), "n": torch.tensor(step)}, {"score": score})
    keeper.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0000002", "0000004", "0000005"]
    x, n = torch.zeros(3), torch.tensor(0)
    checkpoints.read(checkpoints.latest(tmp_path), {"x": x, "n": n}, ALONE)
    assert x.tolist() == [5, 5, 5]
    assert n == 5
    keeper.close()


def test_what_is_saved_is_the_value_of_that_moment(tmp_path):
    keeper, x = Checkpoints(tmp_path, ALONE, keep=1), torch.zeros(1000, 1000)
    keeper.save(1, {"x": x}, {})
    x += 1  # as training goes on while it is being written
    keeper.wait()
    y = torch.ones(1000, 1000)
    checkpoints.read(checkpoints.latest(tmp_path), {"x": y}, ALONE)
    assert not y.any()
    keeper.close()


def test_a_full_disk_leaves_the_checkpoint_before(tokenizer_run, monkeypatch, tmp_path):
    """A disk of its own where that is allowed, else one whose writes fail."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True).returncode == 0
    )
    if not mounted:
        sync = os.fsync
        full = OSError(28, "No space left on device")

        def fail(handle):
            if "partial" in os.readlink(f"/proc/self/fd/{handle}") and "0000004" in os.readlink(
                f"/proc/self/fd/{handle}"
            ):
                raise full
            sync(handle)

        monkeypatch.setattr(os, "fsync", fail)
    try:
        config = tokenizer_run(out=str(disk / "run"), keep_checkpoints=10, steps=40)
        with pytest.raises(OSError, match=r"No space left on device|not be written"):
            tokenizer.train(config)
        step = checkpoints.latest(Path(config.out)).step
        assert step >= 2
        assert load(config.out, device="cpu").tokenizer is not None
        monkeypatch.undo()
        if mounted:
            for old in sorted(Path(config.out, "checkpoints").iterdir())[:-1]:
                shutil.rmtree(old)
        with pytest.warns(UserWarning, match="steps = "):
            tokenizer.train(replace(config, resume=True, keep_checkpoints=1, steps=step + 4))
        assert checkpoints.latest(Path(config.out)).step == step + 4
    finally:
        if mounted:
            subprocess.run(["umount", "-l", disk], check=True)

"""Runs that are killed, stopped, out of disk space or left with damaged files."""

import json
import os
import random
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mvar.data.splits import open_splits
from mvar.model import load
from mvar.training.generator import task as generator
from mvar.training.parallel import Ranks
from mvar.training.run import checkpoints
from mvar.training.run.checkpoints import Checkpoints
from mvar.training.run.folder import RunFolder
from mvar.training.stopping import Stopped
from mvar.training.tokenizer import task as tokenizer

from .runs import WORK, checkpoint, metrics, same_bits

ALONE = Ranks(device=torch.device("cpu"))


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


def test_killed_and_stopped_runs_equal_the_unbroken_one_bit_for_bit(tokenizer_run, start, tmp_path):
    """Killed at a random step, then in the middle of writing a checkpoint; another one is stopped by SIGTERM."""
    run = tokenizer_run(steps=10, checkpoint_every=3, validate_every=5)
    whole, broken, stopped = (replace(run, out=str(tmp_path / name)) for name in ("whole", "broken", "stopped"))
    tokenizer.train(whole)

    lines = random.Random().randint(4, 6)
    first = start(broken, slow_steps=True)
    first.wait_for(lambda: logged(broken.out) >= lines and checkpoints.complete(Path(broken.out)))
    first.kill()
    done = checkpoints.latest(Path(broken.out)).step
    assert 3 <= done < 10

    again = replace(broken, resume=True)
    second = start(again, slow_checkpoints=True)
    folder = Path(broken.out, "checkpoints")
    second.wait_for(lambda: any(int(p.name.split(".")[1]) > done and any(p.iterdir()) for p in folder.glob(".*")))
    second.kill()
    assert list(folder.glob(".*.partial"))
    (folder / ".0000007.partial").mkdir()  # as a run leaves that was stopped at any step
    assert checkpoints.latest(Path(broken.out)).step == done
    tokenizer.train(again)
    assert_equal_runs(whole.out, broken.out)
    assert not list(folder.glob(".*")), "what the kills left behind is deleted"

    third = start(stopped, slow_steps=True)
    third.wait_for(lambda: logged(stopped.out) >= 4)
    third.send(signal.SIGTERM)
    assert third.wait() == [1]
    assert "Stopped: stopped after step" in third.errors()
    assert 4 <= checkpoints.latest(Path(stopped.out)).step < 10
    tokenizer.train(replace(stopped, resume=True))
    assert_equal_runs(whole.out, stopped.out)


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


def test_damaged_checkpoints_fall_back_to_the_one_before(generator_run):
    config = generator_run()
    generator.train(config)
    whole, lines, run = checkpoint(config.out), metrics(config.out), Path(config.out)
    assert whole["step"] == 6
    shard = next(checkpoints.latest(run).path.glob("*.safetensors"))
    content = shard.read_bytes()
    fallen = pytest.warns(UserWarning, match=r"checkpoint '.*0000006' is damaged \(.*\); going back to step 4")
    shard.unlink()
    with fallen:
        assert checkpoints.latest(run).step == 4
    shard.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with fallen:
        generator.train(replace(config, resume=True, keep_checkpoints=1))
    assert same_bits(checkpoint(config.out)["tensors"], whole["tensors"])
    assert metrics(config.out) == lines


def test_a_run_without_its_checkpoints_is_not_overwritten(finished):
    model, log = Path(finished.out, "tokenizer.safetensors"), Path(finished.out, "metrics.jsonl")
    before = model.read_bytes(), log.read_bytes()
    shutil.rmtree(Path(finished.out, "checkpoints"))
    for resume, said in ((False, "holds a model, which this run would replace"), (True, "holds no checkpoint to")):
        with pytest.raises(ValueError, match=said):
            tokenizer.train(replace(finished, seed=5, steps=3, resume=resume))
    assert (model.read_bytes(), log.read_bytes()) == before


def test_two_processes_do_not_train_in_one_folder(tokenizer_run, photos):
    config = tokenizer_run()
    train_images, val_images = open_splits(photos, (8, 8))
    with RunFolder(config, ALONE) as first, RunFolder(config, ALONE) as second:
        for folder in (first, second):
            assert folder.check(train_images, val_images) == 6
        assert not Path(config.out).exists(), "nothing is made before all is checked"
        first.begin()
        held = {path: path.read_bytes() for path in Path(config.out).iterdir() if path.is_file()}
        with pytest.raises(ValueError, match=r"another process trains in this folder; wait for it, or stop it"):
            second.begin()
        assert {path: path.read_bytes() for path in Path(config.out).iterdir() if path.is_file()} == held
    tokenizer.train(config)


def test_checkpoints_that_cannot_be_resumed_are_refused(finished):
    settings = Path(finished.out, "run.json")
    settings.write_text(settings.read_text().replace('"vocab_size": 32', '"vocab_size": 64'))
    other = replace(finished, resume=True, model=replace(finished.model, vocab_size=64))
    with pytest.raises(
        ValueError, match=r"does not fit the model to be trained \(.*quantizer.codebook is \(32, 8\), the"
    ):
        tokenizer.train(other)
    (next(Path(finished.out, "checkpoints").iterdir()) / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"is damaged \(.*\), and there is no complete one before: start"):
        tokenizer.train(other)


def test_the_last_and_the_best_are_kept_with_the_values_of_their_moment(tmp_path):
    keeper, x, n = Checkpoints(tmp_path, ALONE, keep=2), torch.zeros(1000, 1000), torch.tensor(0)
    for step, score in enumerate([5.0, 2.0, 4.0, 3.0, 6.0], start=1):
        x += 1  # while the one before is being written
        n += 1
        keeper.save(step, {"x": x, "n": n}, {"score": score})
    x += 1
    keeper.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0000002", "0000004", "0000005"]
    for found in checkpoints.complete(tmp_path):
        checkpoints.read(found, {"x": x, "n": n}, ALONE)
        assert x.unique().tolist() == [n] == [found.step]
    keeper.close()


def test_a_full_disk_leaves_the_checkpoint_before(tokenizer_run, monkeypatch):
    sync = os.fsync

    def fail(handle):
        if "0000004.partial" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    config = tokenizer_run()
    with pytest.raises(OSError, match=r"^checkpoint of step 4 could not be written to .* \(.*No space left on device"):
        tokenizer.train(config)
    assert checkpoints.latest(Path(config.out)).step == 2
    assert load(config.out, device="cpu").tokenizer is not None
    monkeypatch.undo()
    tokenizer.train(replace(config, resume=True))
    assert checkpoints.latest(Path(config.out)).step == 6

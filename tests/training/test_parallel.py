"""Several ranks: the same numbers as one process, resuming, and ranks that die or are asked to stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch

from mvar.model import load
from mvar.training.config import GeneratorTraining
from mvar.training.generator import task as generator
from mvar.training.parallel import Ranks
from mvar.training.run import checkpoints
from mvar.training.tokenizer import task as tokenizer

from .runs import WORK, WORKER, checkpoint, metrics
from .worker import first_gradients

KINDS = ("ddp", "fsdp")


def job(config, **options):
    kind = "generator" if isinstance(config, GeneratorTraining) else "tokenizer"
    return {"kind": kind, "config": asdict(config), **options}


@pytest.fixture(scope="module")
def launch(processes):
    """Run jobs on so many ranks."""

    def launch(ranks, jobs, scratch):
        (scratch / "jobs.json").write_text(json.dumps(jobs))
        return processes.Ranks(ranks, WORK, [scratch / "jobs.json"], scratch)

    return launch


@pytest.fixture(scope="module")
def runs(launch, photos, trained_tokenizer, tmp_path_factory):
    """What two ranks gave, by DDP and by FSDP: gradients of the first step, and runs of four steps."""
    from .conftest import GENERATOR, RUN, TOKENIZER, TOKENIZER_RUN, GeneratorTraining, TokenizerTraining

    root = tmp_path_factory.mktemp("parallel")
    run = {**RUN, "batch_size": 12, "steps": 4, "base_lr": 1e-2, "data": str(photos)}
    drawn = GeneratorTraining(
        **run, tokenizer=str(trained_tokenizer), out=str(root / "one"), model=GENERATOR, preview_per_class=1
    )
    coded = TokenizerTraining(**{**run, **TOKENIZER_RUN}, out=str(root / "tokenizer-one"), model=TOKENIZER)
    jobs = []
    for kind in KINDS:
        config = replace(drawn, parallel=kind, out=str(root / kind))
        jobs += [job(config, gradients=str(root / f"{kind}.pt")), job(config)]
    jobs.append(job(replace(coded, parallel="ddp", out=str(root / "tokenizer-ddp"))))
    launched = launch(2, jobs, root)
    generator.train(drawn)
    tokenizer.train(coded)
    launched.finish()
    return root, drawn


def test_two_ranks_and_micro_batches_have_the_gradients_of_one_process(runs):
    root, drawn = runs
    expected = first_gradients(drawn)
    for kind in KINDS:
        found = torch.load(root / f"{kind}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            error = (found[name] - gradient).norm() / gradient.norm()
            assert error < 1e-5, (kind, name, error)
    accumulated = first_gradients(replace(drawn, accumulate=3))
    for name, gradient in expected.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "alone", "least"),
    # A residual may change its code, and scores lie around zero.
    [("ddp", "one", 1e-7), ("fsdp", "one", 1e-7), ("tokenizer-ddp", "tokenizer-one", 1e-4)],
)
def test_two_ranks_have_the_losses_of_one_process(runs, kind, alone, least):
    one, two = metrics(runs[0] / alone), metrics(runs[0] / kind)
    assert len(one) == len(two) == 6  # four steps, two validations
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"used", "perplexity"}:  # these jump with a single token
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=least), (a["step"], name)


@pytest.mark.parametrize(("kind", "ranks"), [("fsdp", 3), ("ddp", 1)])
def test_a_checkpoint_of_two_ranks_resumes_on_another_number(runs, launch, kind, ranks, tmp_path):
    root, drawn = runs
    out = shutil.copytree(root / kind, tmp_path / "run")
    last = checkpoints.latest(out)
    assert last.step == 4
    shutil.rmtree(last.path)
    config = replace(drawn, out=str(out), resume=True)
    if ranks == 1:
        generator.train(config)
    else:
        launch(ranks, [job(replace(config, parallel=kind))], tmp_path).finish()
    before, after = all_tensors(root / kind), all_tensors(out)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert load(out, device="cpu").sample([0]).pixels.shape == (1, 3, 8, 8)


def all_tensors(out):
    """The last checkpoint's tensors, unsharded."""
    found = checkpoints.latest(Path(out))
    tensors = {name: torch.zeros(shape) for name, shape in checkpoints.stored(found).items()}
    checkpoints.read(found, tensors, Ranks(device=torch.device("cpu")))
    return tensors


@pytest.mark.parametrize(("n", "size", "ranks"), [(1, 4, 3), (7, 2, 3), (12, 2, 2)])
def test_validation_is_shared_in_as_many_batches_on_each_rank(n, size, ranks):
    shares = [list(Ranks(rank=rank, size=ranks, device=torch.device("cpu")).batches(n, size)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = torch.cat([indices[real] for share in shares for indices, real in share])
    assert sorted(seen.tolist()) == list(range(n))


EVERY = {"validate_every": 50_000, "checkpoint_every": 3}


def begun(config):
    """Whether a run is past its first checkpoint."""
    return checkpoints.complete(Path(config.out))


def test_a_rank_that_dies_is_named_and_torchrun_ends_the_others(runs, tmp_path):
    """Under torchrun itself, the only test that starts it; others fork ranks from a process that has imported torch."""
    config = replace(runs[1], parallel="ddp", steps=100_000, out=str(tmp_path / "run"), **EVERY)
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([job(config)]))
    # torchrun looks every 2 s, so that the other rank has time to say what it misses.
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "2"]
    command = [sys.executable, "-m", *torchrun, WORKER, jobs]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        try:
            end = time.monotonic() + 100
            while not begun(config):
                assert run.poll() is None, run.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.05)
            psutil.Process(run.pid).children()[1].kill()
            errors = run.communicate(timeout=60)[1]
        finally:
            run.kill()
    assert run.returncode != 0
    assert "another rank does not answer; go on from the last checkpoint with --resume" in errors
    assert checkpoint(config.out)["step"] >= 3


def test_one_rank_that_is_asked_stops_all_with_a_checkpoint(runs, launch, tmp_path):
    config = replace(runs[1], parallel="fsdp", steps=100_000, out=str(tmp_path / "run"), **EVERY)
    launched = launch(2, [job(config)], tmp_path)
    try:
        launched.wait_for(lambda: begun(config))
        launched.send(signal.SIGTERM, 1)
        launched.wait()
    finally:
        launched.kill()
    step = int(re.search(r"stopped after step (\d+) with a checkpoint", launched.errors())[1])
    assert checkpoint(config.out)["step"] == step
    model = load(config.out, device="cpu")
    assert model.provenance["steps"] == step
    assert model.sample([0]).pixels.shape == (1, 3, 8, 8)
    assert Path(config.out, "curves.png").is_file()
    assert not list(Path(config.out, "checkpoints").glob(".*"))

"""A training run in a process of its own: `python worker.py JOBS.json`, each job a kind and its config's values.

Under torch.distributed.run each rank runs this. "gradients" saves those of the first step
instead of training; with "slow_steps" a test has time to interrupt the run.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist

from mvar.generator.config import GeneratorConfig
from mvar.tokenizer.config import TokenizerConfig
from mvar.training.config import GeneratorTraining, TokenizerTraining
from mvar.training.generator import task as generator
from mvar.training.generator.token_data import TokenData, load_tokenizer
from mvar.training.loop import backward
from mvar.training.parallel import full_state, process_group
from mvar.training.run import checkpoints, curves
from mvar.training.tokenizer import task as tokenizer

KINDS = {
    "tokenizer": (tokenizer.train, TokenizerTraining, TokenizerConfig),
    "generator": (generator.train, GeneratorTraining, GeneratorConfig),
}


def first_gradients(config: GeneratorTraining) -> dict[str, torch.Tensor]:
    """Whole gradients of a generator's first step, on every rank."""
    with process_group(config.parallel, config.device, config.rank_timeout) as ranks:
        data = TokenData.open(config, ranks, load_tokenizer(config.tokenizer, ranks.device)).ready(config.val_images)
        task = generator.GeneratorTask(config, ranks, data)
        backward(task, ranks, torch.amp.GradScaler("cpu", enabled=False), config.accumulate, 0)
        return full_state({name: p.grad for name, p in task.model.named_parameters()})


def slowly(function):
    return lambda *args: (time.sleep(0.5), function(*args))[1]


def pause(step, record):
    time.sleep(0.05)


def main(path: str) -> None:
    torch.set_num_threads(1)
    curves.plot_curves = lambda records, path: path.touch()  # as in the tests of one process
    with open(path, encoding="utf-8") as file:
        jobs = json.load(file)
    if "RANK" in os.environ and len(jobs) > 1:
        dist.init_process_group("gloo")  # once, for all of them
    for job in jobs:
        train, training, model = KINDS[job["kind"]]
        if job.get("slow_checkpoints"):
            checkpoints._digest = slowly(checkpoints._digest)
        config = training(**{**job["config"], "model": model(**job["config"]["model"])})
        if job.get("gradients"):
            found = first_gradients(config)
            if os.environ.get("RANK", "0") == "0":
                torch.save(found, job["gradients"])
        else:
            train(config, [pause] if job.get("slow_steps") else [])


if __name__ == "__main__":
    main(sys.argv[1])

"""Fine-tuning: a trained generator's weights as the start for other images, classes or scales; frozen parts.

Shapes: C classes of the new data, W width.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import fields

import torch

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.generator.reschedule import rescheduled
from mvar.model import Model, load
from mvar.settings import raise_problems
from mvar.text import Names
from mvar.training.config import FreezablePart

Start = tuple[Generator, list[str]]
# What the data and the tokenizer decide, and what matters in training only.
MAY_DIFFER = {"num_classes", "vocab_size", "latent_channels", "sides", "stochastic_depth", "class_dropout"}
# Which parameters belong to a part, by pieces of their names with a dot before them.
PARTS: dict[FreezablePart, tuple[str, ...]] = {
    "classes": (".class_embed.",),
    "embeddings": (".word_embed.", ".pos_embed", ".level_embed.", ".start_pos"),
    "attention": (".attention.",),
    "mamba": (".mamba.",),
    "mlp": (".mlp.",),
    "adaln": (".adaln.", ".adaln_offset", ".shared_adaln."),
    "blocks": (".blocks.", ".shared_adaln."),
    "head": (".head.", ".head_adaln."),
}


def load_named(field: str, source: str, device: str | torch.device | None = "cpu") -> Model:
    """A model in float32; a ValueError begins with the option `field` that it comes from."""
    try:
        return load(source, device, "float32")
    except ValueError as error:
        reason = str(error).removeprefix(f"model = {source!r}: ")
        raise ValueError(f"{field} = {source!r}: {reason}") from error


def load_start(source: str, config: GeneratorConfig, fingerprint: str) -> Start:
    """The generator to start from, on the CPU, and the names of its classes.

    Raises ValueError if there is none, or one of another shape than `config` or for another tokenizer.
    """
    model = load_named("init_from", source)
    if model.generator is None:
        raise ValueError(f"init_from = {source!r}: is a tokenizer without a generator; give a model that has one")
    if model.tokenizer.fingerprint() != fingerprint:
        raise ValueError(
            f"init_from = {source!r}: its generator was trained on another tokenizer's token maps; "
            f"give --tokenizer {source}, or train a new generator"
        )
    there = model.generator.config
    raise_problems(
        f"model.{f.name} = {getattr(config, f.name)}: the generator of {source!r} has {getattr(there, f.name)}, "
        "and keeps it; leave the option out"
        for f in fields(config)
        if f.name not in MAY_DIFFER and getattr(config, f.name) != getattr(there, f.name)
    )
    return model.generator, model.classes


def take_weights(generator: Generator, start: Start, classes: Sequence[str], seed: int) -> list[str]:
    """Give an initialised generator the weights to start from; returns the names of the new classes.

    Embeddings of positions and levels are interpolated where the scales differ. A class takes the row of the same name,
    or one drawn by seed and name. The null class keeps its own.
    """
    start_generator, start_classes = start
    state = dict(rescheduled(start_generator, generator.config.sides).state_dict())
    known, new = Names(start_classes), []
    rows_CW = generator.class_embed.weight.detach().clone()
    std = rows_CW.std()
    for row, name in enumerate(classes):
        if len(same := known.find(name)) == 1:
            rows_CW[row] = state["class_embed.weight"][same[0]]
        else:
            new.append(name)
            number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8])
            rows_CW[row] = std * torch.randn(rows_CW.shape[1], generator=torch.Generator().manual_seed(number))
    rows_CW[-1] = state["class_embed.weight"][-1]
    generator.load_state_dict({**state, "class_embed.weight": rows_CW})
    text = f"; new: {', '.join(new)}" if new else ""
    print(f"fine-tuning: {len(classes) - len(new)} of {len(classes)} classes known by name{text}", file=sys.stderr)
    return new


def belongs(name: str, part: FreezablePart) -> bool:
    """Whether the parameter of this name is in a part."""
    return any(piece in f".{name}" for piece in PARTS[part])


def freeze(generator: Generator, parts: Sequence[FreezablePart], new_classes: Sequence[str] = ()) -> None:
    """Exclude the parameters of some parts from training.

    Raises ValueError for a part that this generator lacks, new classes in a frozen part, or nothing left to train.
    """
    problems = []
    for part in parts:
        chosen = [p for name, p in generator.named_parameters() if belongs(name, part)]
        if not chosen:
            problems.append(f"freeze = {part!r}: the generator has no such part; leave it out")
        for parameter in chosen:
            parameter.requires_grad_(False)
    if "classes" in parts and new_classes:
        problems.append(f"freeze = 'classes': {', '.join(new_classes)} must be learnt first; leave it out")
    if not any(p.requires_grad for p in generator.parameters()):
        problems.append(f"freeze = {', '.join(parts)}: nothing is left to train; name fewer parts")
    raise_problems(problems)

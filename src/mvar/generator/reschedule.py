"""A trained generator at another schedule of scales: position and level embeddings are interpolated, all else stays.

Scales are compared by the logarithm of their area: one between two of the trained ones is a weighted mean of both.

Shapes: C width, h w a scale's sides, P its tokens.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.generator.network import Generator
from mvar.scales import ScaleSchedule, Side


def rescheduled(generator: Generator, sides: list[Side]) -> Generator:
    """The same weights at other scales; scales of a trained shape keep its embeddings exactly."""
    old, new = generator.schedule, ScaleSchedule(sides)
    with torch.device("meta"):
        network = Generator(replace(generator.config, sides=list(new.sides)))
    state = dict(generator.state_dict())
    dtype = state["pos_embed"].dtype
    maps = [state["pos_embed"][0, old.slice(k)].float() for k in range(len(old))]
    levels = state["level_embed.weight"].float()
    positions, level_rows = [], []
    for k, shape in enumerate(new.shapes):
        mixture = [(k, 1.0)] if old.shapes[k : k + 1] == (shape,) else _neighbours(old, shape)
        resized = [weight * _resized(maps[i], old.shapes[i], shape) for i, weight in mixture]
        positions.append(torch.stack(resized).sum(0))
        level_rows.append(torch.stack([weight * levels[i] for i, weight in mixture]).sum(0))
    start_PC = _resized(state["start_pos"][0].float(), old.shapes[0], new.shapes[0])
    state["pos_embed"] = torch.cat(positions)[None].to(dtype)
    state["level_embed.weight"] = torch.stack(level_rows).to(dtype)
    state["start_pos"] = start_PC[None].to(dtype)
    network.load_state_dict(state, assign=True)
    return network.train(generator.training)


def _neighbours(old: ScaleSchedule, shape: tuple[int, int]) -> list[tuple[int, float]]:
    """The trained scales around one of this shape, with their weights."""
    if shape in old.shapes:
        return [(old.shapes.index(shape), 1.0)]
    place = float(np.interp(math.log(math.prod(shape)), np.log(old.areas), range(len(old))))
    below, share = int(place), place % 1
    return [(below, 1 - share), (below + 1, share)] if share else [(below, 1.0)]


def _resized(map_PC: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A map of embeddings at other sides, bilinearly."""
    if old == new:
        return map_PC
    map_1Chw = map_PC.T.unflatten(1, old)[None]
    return F.interpolate(map_1Chw, size=new, mode="bilinear", align_corners=False)[0].flatten(1).T

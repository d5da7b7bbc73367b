"""Inception-v3 of the FID papers written out plainly: names, shapes and steps as published, in float64.

Every convolution that it meets without weights gets random ones, so that a run on an empty state lists all of them.
"""

import torch
from torch.nn import functional as F


class Naive:
    def __init__(self, state, seed=0):
        self.state = state
        self.random = torch.Generator().manual_seed(seed)

    def unit(self, x, name, out, kernel, stride=1, padding=(0, 0)):
        state = self.state
        if f"{name}.conv.weight" not in state:
            fan_in = x.shape[1] * kernel[0] * kernel[1]
            weight = torch.randn(out, x.shape[1], *kernel, generator=self.random) * (1.5 / fan_in) ** 0.5
            state[f"{name}.conv.weight"] = weight
            for part, low, high in (("weight", 0.7, 1.3), ("bias", -0.3, 0.3), ("running_mean", -0.3, 0.3),
                                    ("running_var", 0.5, 1.5)):  # fmt: skip
                state[f"{name}.bn.{part}"] = low + (high - low) * torch.rand(out, generator=self.random)
        y = F.conv2d(x, state[f"{name}.conv.weight"].double(), stride=stride, padding=padding)
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (state[f"{name}.bn.{part}"].double().view(-1, 1, 1) for part in parts)
        return ((y - mean) / (variance + 0.001) ** 0.5 * gamma + beta).clamp(min=0)

    def chain(self, x, block, *steps):
        """Units one after the other: (name, channels, kernel), which keep the sides."""
        for name, out, kernel in steps:
            x = self.unit(x, f"{block}.{name}", out, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        return x

    def fine(self, x, block, pooled):
        double = self.chain(x, block, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)))
        return torch.cat([
            self.chain(x, block, ("branch1x1", 64, (1, 1))),
            self.chain(x, block, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            self.chain(double, block, ("branch3x3dbl_3", 96, (3, 3))),
            self.chain(mean_of_what_is_there(x), block, ("branch_pool", pooled, (1, 1))),
        ], 1)  # fmt: skip

    def to_middle(self, x, block):
        double = self.chain(x, block, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)))
        three = self.unit(x, f"{block}.branch3x3", 384, (3, 3), stride=2)
        double = self.unit(double, f"{block}.branch3x3dbl_3", 96, (3, 3), stride=2)
        return torch.cat([three, double, F.max_pool2d(x, 3, 2)], 1)

    def middle(self, x, block, c):
        row, column = (1, 7), (7, 1)
        double = self.chain(x, block, ("branch7x7dbl_1", c, (1, 1)), ("branch7x7dbl_2", c, column))
        double = self.chain(double, block, ("branch7x7dbl_3", c, row), ("branch7x7dbl_4", c, column))
        return torch.cat([
            self.chain(x, block, ("branch1x1", 192, (1, 1))),
            self.chain(x, block, ("branch7x7_1", c, (1, 1)), ("branch7x7_2", c, row), ("branch7x7_3", 192, column)),
            self.chain(double, block, ("branch7x7dbl_5", 192, row)),
            self.chain(mean_of_what_is_there(x), block, ("branch_pool", 192, (1, 1))),
        ], 1)  # fmt: skip

    def to_coarse(self, x, block):
        three = self.chain(x, block, ("branch3x3_1", 192, (1, 1)))
        seven = self.chain(x, block, ("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)))
        seven = self.chain(seven, block, ("branch7x7x3_3", 192, (7, 1)))
        three = self.unit(three, f"{block}.branch3x3_2", 320, (3, 3), stride=2)
        seven = self.unit(seven, f"{block}.branch7x7x3_4", 192, (3, 3), stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def coarse(self, x, block, pool):
        ends = (("a", (1, 3)), ("b", (3, 1)))
        three = self.chain(x, block, ("branch3x3_1", 384, (1, 1)))
        double = self.chain(x, block, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
        return torch.cat([
            self.chain(x, block, ("branch1x1", 320, (1, 1))),
            *(self.chain(three, block, (f"branch3x3_2{end}", 384, size)) for end, size in ends),
            *(self.chain(double, block, (f"branch3x3dbl_3{end}", 384, size)) for end, size in ends),
            self.chain(pool(x), block, ("branch_pool", 192, (1, 1))),
        ], 1)  # fmt: skip

    def stem(self, x):
        x = self.unit(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
        x = self.unit(x, "Conv2d_2a_3x3", 32, (3, 3))
        x = F.max_pool2d(self.unit(x, "Conv2d_2b_3x3", 64, (3, 3), padding=(1, 1)), 3, 2)
        x = self.unit(x, "Conv2d_3b_1x1", 80, (1, 1))
        return F.max_pool2d(self.unit(x, "Conv2d_4a_3x3", 192, (3, 3)), 3, 2)

    def run(self, x):
        """Every block's map by its name, the stem's as `stem`, of pixels as the network sees them."""
        maps = {"stem": self.stem(x.double())}
        blocks = {
            "Mixed_5b": lambda x, name: self.fine(x, name, 32),
            "Mixed_5c": lambda x, name: self.fine(x, name, 64),
            "Mixed_5d": lambda x, name: self.fine(x, name, 64),
            "Mixed_6a": self.to_middle,
            "Mixed_6b": lambda x, name: self.middle(x, name, 128),
            "Mixed_6c": lambda x, name: self.middle(x, name, 160),
            "Mixed_6d": lambda x, name: self.middle(x, name, 160),
            "Mixed_6e": lambda x, name: self.middle(x, name, 192),
            "Mixed_7a": self.to_coarse,
            "Mixed_7b": lambda x, name: self.coarse(x, name, mean_of_what_is_there),
            "Mixed_7c": lambda x, name: self.coarse(x, name, largest_around),
        }
        x = maps["stem"]
        for name, block in blocks.items():
            x = maps[name] = block(x, name)
        return maps


def around(x, fill):
    """The nine neighbours of every place (..., 9), `fill` beyond the border."""
    padded = F.pad(x, (1, 1, 1, 1), value=fill)
    h, w = x.shape[2:]
    return torch.stack([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


def mean_of_what_is_there(x):
    return around(x, 0).sum(-1) / around(torch.ones_like(x), 0).sum(-1)


def largest_around(x):
    return around(x, float("-inf")).amax(-1)


def random_state(seed=0):
    """A state dict with the published keys and shapes."""
    state = {}
    Naive(state, seed).run(torch.zeros(1, 3, 75, 75))
    random = torch.Generator().manual_seed(seed + 1)
    state["fc.weight"] = torch.randn(1008, 2048, generator=random) / 2048**0.5
    state["fc.bias"] = torch.randn(1008, generator=random)
    return state

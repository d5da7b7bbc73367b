"""Opening an official file: its state dict, and what the trainer's settings in it claim.

Source: the checkpoints of VAR (Tian et al. 2024): {epoch, iter, trainer: {config, var_wo_ddp, vae_local, *_opt}, args},
or a flat state dict.
"""

import argparse
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mvar.generator.config import MOST_BLOCKS, SIDES_256, SIDES_512
from mvar.tensor_files import read_tensors

Source = str | Path | Mapping[str, Any]  # a file, or what it holds: a flat state dict or a trainer's dict
PATCH_NUMS = {"256": SIDES_256, "512": SIDES_512}  # abbreviations of the official --pn
TRAINER_KEYS = {"tokenizer": ("vae_local",), "generator": ("mvar_wo_ddp", "var_wo_ddp")}
OWN_PREFIX = {"tokenizer": "quantize.", "generator": "blocks."}


@dataclass
class OfficialFile:
    """An official state dict, and what the trainer's settings claim about it: (where, config field, value)."""

    name: str
    state: dict[str, Any]
    claims: list[tuple[str, str, Any]] = field(default_factory=list)

    @property
    def claimed_sides(self) -> list[int] | None:
        """Sides of the token maps in the trainer's settings."""
        return next((value for _, name, value in self.claims if name == "sides"), None)

    def has(self, *patterns: str) -> bool:
        """Whether any key matches any of the patterns."""
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in self.state)

    def count(self, prefix: str) -> int:
        """How many numbered modules there are: one more than the greatest number after the prefix."""
        numbers = (re.match(r"\d+(?=\.)", name.removeprefix(prefix)) for name in self.state if name.startswith(prefix))
        count = max((int(number[0]) + 1 for number in numbers if number), default=0)
        if count > MOST_BLOCKS:
            raise ValueError(
                f"{self.name} has {prefix}{count - 1}: no network of this kind is so deep; the file is damaged"
            )
        return count

    def size(self, default: int, *dims: tuple[int, str]) -> int:
        """The length that most tensors have, given (dimension, name pattern): so a misshapen one stands out."""
        votes = Counter(
            tensor.shape[dim]
            for dim, pattern in dims
            for name, tensor in self.state.items()
            if fnmatchcase(name, pattern) and isinstance(tensor, Tensor) and tensor.dim() > dim
        )
        return max(votes.most_common(1)[0][0], 1) if votes else default


def open_official(source: Source, kind: Literal["tokenizer", "generator"]) -> OfficialFile:
    """The state dict of one network: the source itself, or the one inside a trainer's file."""
    if isinstance(source, Mapping):
        name, content = "state dict", source
    else:
        name, content = Path(source).name, read_tensors(Path(source))
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}; expected a state dict or a trainer's dict")
    state: Mapping[str, Any] = content
    claims: list[tuple[str, str, Any]] = []
    if isinstance(trainer := content.get("trainer"), Mapping):
        held = [trainer[key] for key in TRAINER_KEYS[kind] if isinstance(trainer.get(key), Mapping)]
        if not held:
            raise ValueError(f"{name} is a trainer's file without {kind}: no {' or '.join(TRAINER_KEYS[kind])} in it")
        state, args = held[0], content.get("args")
        claims = _claims(trainer.get("config"), vars(args) if isinstance(args, argparse.Namespace) else args)
    if not any(str(key).startswith(OWN_PREFIX[kind]) for key in state):
        first = ", ".join(map(str, [*state][:3])) or "nothing"
        raise ValueError(f"{name} is no official {kind}: it has no key {OWN_PREFIX[kind]}*, but {first}, ...")
    return OfficialFile(name, {str(key): value for key, value in state.items()}, claims)


def _claims(config: Any, args: Any) -> list[tuple[str, str, Any]]:
    config, args = (settings if isinstance(settings, Mapping) else {} for settings in (config, args))
    claims: list[tuple[str, str, Any]] = []
    if config.get("patch_nums"):
        claims.append(("config.patch_nums", "sides", list(config["patch_nums"])))
    pn = str(args.get("pn", ""))
    if pn in PATCH_NUMS or re.fullmatch(r"\d+(_\d+)+", pn):
        claims.append(("args.pn", "sides", list(PATCH_NUMS.get(pn, map(int, pn.split("_"))))))
    names = {"saln": "shared_adaln", "anorm": "qk_norm"}
    return claims + [(f"args.{short}", name, bool(args[short])) for short, name in names.items() if short in args]

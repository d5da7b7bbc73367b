"""The files of the official VAR and M-VAR code: read, checked against the network they describe, and written.

A file is a flat state dict, or a trainer's checkpoint {trainer: {config, var_wo_ddp, vae_local, ...}, args, ...}. Every
hyperparameter is read from the tensors.

Shapes: C width, Z latent channels, V codes, K scales, L tokens; N Mamba's state, D its convolved channels, W its kernel
width.
"""

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from mvar.checkpoint.bundle import Bundle, misfit
from mvar.files import atomic_folder
from mvar.generator.config import Attention, GeneratorConfig
from mvar.generator.network import Generator
from mvar.machine import check_memory
from mvar.ops.numerics import damage
from mvar.scales import SIDES_256, SIDES_512, Side
from mvar.settings import raise_problems
from mvar.tensor_files import read_tensors
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

Network = TypeVar("Network", Tokenizer, Generator)
Source = str | Path | Mapping[str, Any]  # a file, or what it holds: a flat state dict or a trainer's dict

# (ours, official) fragments of parameter names: the first that matches is replaced; reading inverts the result.
NAMES: tuple[tuple[str, str], ...] = (
    ("quantizer.codebook", "quantize.embedding.weight"),
    ("quantizer.phi.", "quantize.quant_resi.qresi_ls."),
    ("start_pos", "pos_start"),
    ("pos_embed", "pos_1LC"),
    ("class_embed.", "class_emb."),
    ("level_embed.", "lvl_embed."),
    ("head_adaln.", "head_nm.ada_lin.1."),
    ("shared_adaln.", "shared_ada_lin.1."),
    (".adaln_offset", ".ada_gss"),
    (".adaln.", ".ada_lin.1."),
    (".attention.qkv.", ".attn.mat_qkv."),
    (".attention.log_scale", ".attn.scale_mul_1H11"),
    (".attention.", ".attn."),
    (".mamba.conv_", ".mamba.conv1d."),
    (".mamba.norm_", ".mamba.norm."),
    (".mlp.", ".ffn."),
)
# The official code names the phis differently if there is one per scale (0 here) or one for all (1).
PHI_NAMES = {
    0: ("quantizer.phi.", "quantize.quant_resi."),
    1: ("quantizer.phi.0.", "quantize.quant_resi.qresi."),
}
USAGE = "quantize.ema_vocab_hit_SV"  # training's counts of code use, (K, V); sampling never needs them
PATCH_NUMS = {"256": SIDES_256, "512": SIDES_512}  # abbreviations of the official --pn
TRAINER_KEYS = {"tokenizer": ("vae_local",), "generator": ("mvar_wo_ddp", "var_wo_ddp")}


def read_tokenizer(source: Source, sides: Sequence[Side] | None = None) -> Tokenizer:
    """The tokenizer of an official file, in float32 on the CPU, in eval mode.

    No tensor shows the sides of its token maps: None takes those in a trainer's settings, else those of 256 pixels.
    """
    file = _open(source, "tokenizer")
    V, Z = file.shape("quantize.embedding.weight", 2)
    channels = file.shape("encoder.conv_in.weight", 4)[0]
    levels = range(file.count("encoder.down."))
    claimed = file.claims.get("sides", SIDES_256)
    file.claims.clear()  # they are about the generator
    config = TokenizerConfig(
        channels=channels,
        multipliers=tuple(file.shape(f"encoder.down.{i}.block.0.conv2.weight", 4)[0] // channels for i in levels),
        res_blocks=file.count("encoder.down.0.block."),
        latent_channels=Z,
        vocab_size=V,
        phis=file.count("quantize.quant_resi.qresi_ls.") or int(file.has("quantize.quant_resi.qresi.")),
        sides=list(sides or claimed),
    )
    file.state.pop(USAGE, None)
    return _filled(Tokenizer, config, file, {})


def read_generator(source: Source) -> Generator:
    """The generator of an official file; as `read_tokenizer`.

    Masks, level ids and other buffers, and a trainer's settings, are checked against the tensors and dropped.
    """
    file = _open(source, "generator")
    C, Z = file.shape("word_embed.weight", 2)
    areas = Counter(file.state["lvl_1L"].flatten().tolist()) if file.shape("lvl_1L", 2) else {}
    depth = file.count("blocks.")
    kind = _attention(file)
    attention: list[Attention] = [kind if file.has(f"blocks.{i}.attn.") else "none" for i in range(depth)]
    mamba = [file.has(f"blocks.{i}.mamba.") for i in range(depth)]
    temperatures, convolved = file.shape_of_first(".attn.scale_mul_1H11"), file.shape_of_first(".mamba.conv1d.bias")
    hidden = file.shape_of_first(".ffn.fc1.bias")
    config = GeneratorConfig(
        depth=depth,
        width=C,
        heads=temperatures[1] if len(temperatures) == 4 else 0,
        attention=attention[0] if len(set(attention)) == 1 else attention,
        mamba=mamba[0] if len(set(mamba)) == 1 else mamba,
        shared_adaln=file.has("shared_ada_lin."),
        qk_norm=bool(temperatures) or set(attention) == {"none"},
        mlp_ratio=hidden[0] // C if hidden else GeneratorConfig.mlp_ratio,
        state_size=(convolved[0] - 2 * C) // 2 if convolved else GeneratorConfig.state_size,  # D = 2 C + 2 N
        num_classes=file.shape("class_emb.weight", 2)[0] - 1,
        vocab_size=file.shape("head.weight", 2)[0],
        latent_channels=Z,
        sides=[math.isqrt(area) for _, area in sorted(areas.items())],
    )
    return _filled(Generator, config, file, _buffers(config))


def load(tokenizer: Source | None = None, generator: Source | None = None) -> Bundle:
    """A model from official files, in eval mode on the CPU; arguments and errors as for `mvar.load_official`."""
    source = generator if tokenizer is None else tokenizer
    if source is None:
        raise ValueError("tokenizer = None and generator = None: give at least the tokenizer's file")
    provenance = {
        f"Official {kind} file": Path(file).name
        for kind, file in (("tokenizer", tokenizer), ("generator", generator))
        if isinstance(file, (str, Path))
    }
    if generator is None:
        return Bundle(tokenizer=read_tokenizer(source), provenance=provenance)
    network = read_generator(generator)
    return Bundle(
        tokenizer=read_tokenizer(source, network.config.sides),
        generator=network,
        classes=class_names(network.config.num_classes),
        provenance=provenance,
    )


def export(tokenizer: Tokenizer, generator: Generator | None, out: str | Path) -> list[Path]:
    """Write networks as tokenizer.pth and generator.pth in the official format into the new folder `out`."""
    states = {"tokenizer.pth": tokenizer_to_official(tokenizer)}
    if generator is not None:
        states["generator.pth"] = generator_to_official(generator)

    def write(folder: Path) -> None:
        for name, state in states.items():
            torch.save(state, folder / name)

    atomic_folder(out, write)
    return [Path(out) / name for name in states]


def class_names(num_classes: int) -> list[str]:
    """Class names of an official model: ImageNet's if there are 1000, else numbers."""
    if num_classes == 1000:
        return (resources.files("mvar") / "data" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [str(i) for i in range(num_classes)]


def tokenizer_to_official(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The official state dict of a tokenizer, in float32 on the CPU; the counts of code use are zeros."""
    config = tokenizer.config
    if config.norm_groups != TokenizerConfig.norm_groups:
        only = f"the official code has {TokenizerConfig.norm_groups} groups only; train one with that many"
        raise ValueError(f"tokenizer.norm_groups = {config.norm_groups}: {only}")
    usage_KV = torch.zeros(len(config.schedule), config.vocab_size)
    return {official: tensor for official, (_, tensor) in _named(tokenizer).items()} | {USAGE: usage_KV}


def generator_to_official(generator: Generator) -> dict[str, Tensor]:
    """The official state dict of a generator with its buffers, in float32 on the CPU."""
    config = generator.config
    problems = []
    if any(h != w for h, w in config.schedule.shapes):
        problems.append(f"generator.sides = {config.sides}: the official format holds square maps only")
    kinds = {mixer.attention for mixer in config.mixers}
    if "recent" in kinds:
        problems.append(f"generator.attention = {config.attention}: the official format has intra and global only")
    elif {"intra", "global"} <= kinds:
        problems.append(f"generator.attention = {config.attention}: the official format has one mask for all blocks")
    if config.order != "attention-first" and any(mixer.branches == 3 for mixer in config.mixers):
        problems.append(f"generator.order = {config.order}: the official format has attention-first only")
    if config.scan != "raster" and any(mixer.mamba for mixer in config.mixers):
        problems.append(f"generator.scan = {config.scan}: the official format has raster only")
    raise_problems(problems)
    return {official: tensor for official, (_, tensor) in _named(generator).items()} | _buffers(config)


# --- a file ---


@dataclass
class _File:
    """An official state dict, and what the trainer's settings say about the generator's config."""

    name: str
    kind: str
    state: dict[str, Tensor]
    claims: dict[str, Any]

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.state)

    def count(self, prefix: str) -> int:
        """How many numbered modules follow the prefix."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.state if name.startswith(prefix)})

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor that every such file has."""
        if name not in self.state or self.state[name].dim() != dims:
            first = ", ".join([*self.state][:3]) or "no tensors"
            raise ValueError(f"{self.name} is no official {self.kind}: no {name} of {dims} dimensions, but {first}")
        return tuple(self.state[name].shape)

    def shape_of_first(self, ending: str) -> tuple[int, ...]:
        """The shape of the first tensor whose name ends like this; () if there is none."""
        return next((tuple(tensor.shape) for name, tensor in self.state.items() if name.endswith(ending)), ())


def _open(source: Source, kind: Literal["tokenizer", "generator"]) -> _File:
    """The state dict of one network: the source itself, or the one inside a trainer's file."""
    if isinstance(source, Mapping):
        name, content = "state dict", source
    else:
        name, content = Path(source).name, read_tensors(Path(source))
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}; expected a state dict or a trainer's dict")
    state: Mapping[str, Any] = content
    claims: dict[str, Any] = {}
    if "trainer" in content:
        trainer, args = content["trainer"], content.get("args") or {}
        held = [trainer[key] for key in TRAINER_KEYS[kind] if key in trainer]
        if not held:
            raise ValueError(f"{name} is a trainer's file without {kind}: no {' or '.join(TRAINER_KEYS[kind])} in it")
        state = held[0]
        claims = _claims(trainer.get("config") or {}, vars(args) if isinstance(args, argparse.Namespace) else args)
    return _File(name, kind, {key: value for key, value in state.items() if isinstance(value, Tensor)}, claims)


def _claims(config: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    names = {"saln": "shared_adaln", "anorm": "qk_norm"}
    claims: dict[str, Any] = {name: bool(args[short]) for short, name in names.items() if short in args}
    if sides := config.get("patch_nums"):
        claims["sides"] = list(sides)
    elif pn := args.get("pn"):
        claims["sides"] = list(PATCH_NUMS.get(pn) or map(int, pn.split("_")))
    return claims


def _attention(file: _File) -> Attention:
    """Which attention the mask allows: does the last token see the first? Without a mask, M-VAR's is intra-scale."""
    mask = file.state.get("attn_bias_for_masking")
    if mask is None or mask.dim() != 4:
        return "intra" if file.shape_of_first(".mamba.D") else "global"
    return "intra" if mask[0, 0, -1, 0] else "global"


# --- a network and its official names ---


def _buffers(config: GeneratorConfig) -> dict[str, Tensor]:
    """The buffers of the official generator."""
    level_L = torch.tensor(config.schedule.level_ids)
    inside = "intra" in {mixer.attention for mixer in config.mixers}
    visible_LL = level_L[:, None] == level_L if inside else level_L[:, None] >= level_L
    buffers = {
        "lvl_1L": level_L[None],
        "attn_bias_for_masking": torch.zeros(visible_LL.shape).masked_fill(~visible_LL, -torch.inf)[None, None],
    }
    for i, mixer in enumerate(config.mixers):
        if mixer.attention != "none":
            buffers[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(config.width)
        if mixer.attention == "intra" or (mixer.attention == "global" and mixer.mamba):
            buffers[f"blocks.{i}.attn.patch_nums"] = torch.tensor(config.schedule.areas, dtype=torch.int32)
    return buffers


def _named(network: Tokenizer | Generator) -> dict[str, tuple[str, Tensor]]:
    """Official name: our name, and the tensor in its official shape."""
    table = NAMES
    if isinstance(network, Tokenizer) and network.config.phis in PHI_NAMES:
        table = (PHI_NAMES[network.config.phis], *NAMES)
    named = {}
    for name, tensor in network.state_dict().items():
        ours, official = next((pair for pair in table if pair[0] in name), ("", ""))
        if name.endswith("mamba.conv_weight"):
            tensor = tensor[:, None]  # (D, 1, W) officially, (D, W) here
        device = tensor.device if tensor.is_meta else "cpu"
        named[name.replace(ours, official, 1)] = name, tensor.detach().to(device, torch.float32).contiguous()
    return named


def _filled(kind: type[Network], config: Any, file: _File, buffers: Mapping[str, Tensor]) -> Network:
    """The network with the file's weights, once every tensor, buffer and claim fits the config."""
    with torch.device("meta"):
        network = kind(config)
    expected = _named(network)
    problems: list[str] = [
        f"{name} = {value} in the trainer's settings: the tensors say {getattr(config, name)}"
        for name, value in file.claims.items()
        if getattr(config, name) != value
    ]
    found = {name: tuple(tensor.shape) for name, tensor in file.state.items() if name not in buffers}
    if wrong := misfit(found, {name: tuple(tensor.shape) for name, (_, tensor) in expected.items()}):
        problems.append(wrong)
    for name, buffer in buffers.items():
        if name in file.state and not torch.equal(file.state[name].float().cpu(), buffer.float()):
            problems.append(f"{name}: contradicts the tensors; expected what the schedule {config.sides} gives")
    if problems:
        raise ValueError("\n".join([f"{file.name} does not fit the official {file.kind} it describes:", *problems]))
    needed = 4 * sum(tensor.numel() for _, tensor in expected.values())
    check_memory(needed, f"{file.name}: its weights in float32", "free some")
    # Copies, so that training changes neither the caller's dict nor a mapped file.
    state = {name: file.state[name].to("cpu", torch.float32, copy=True) for name in expected}
    if problem := damage(state):
        raise ValueError(f"{file.name}: {problem}")
    own = network.state_dict()
    network.load_state_dict({n: state[name].view(own[n].shape) for name, (n, _) in expected.items()}, assign=True)
    return network.eval()

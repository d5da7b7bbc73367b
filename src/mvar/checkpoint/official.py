"""The files of the official VAR and M-VAR code: read, checked against the network they describe, and written.

A file is a flat state dict (`.pth` or `.safetensors`), or a trainer's checkpoint that holds one of the tokenizer and
one of the generator. Every hyperparameter is read from the tensors, never from a file's name.

Shapes: C width, Z latent channels, V codes, K scales, L tokens; N Mamba's state, D its convolved channels, W its kernel
width.
Source: the state dicts of VAR (Tian et al. 2024) and M-VAR (Ren et al. 2024).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mvar.checkpoint.bundle import Bundle, write_bundle
from mvar.checkpoint.official_file import PATCH_NUMS, OfficialFile, Source, open_official
from mvar.files import atomic_folder, new_folder
from mvar.generator.config import Attention, GeneratorConfig
from mvar.generator.network import Generator
from mvar.machine import check_memory
from mvar.ops.numerics import damage
from mvar.scales import SIDES_256, ScaleSchedule, Side
from mvar.settings import raise_problems
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

Network = TypeVar("Network", Tokenizer, Generator)

# (ours, official) fragments of parameter names: the first that matches is replaced; reading inverts the result.
GENERATOR_NAMES = (
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
TOKENIZER_NAMES = (
    ("quantizer.codebook", "quantize.embedding.weight"),
    ("quantizer.phi.", "quantize.quant_resi.qresi_ls."),
)
# The official code names the phis differently if there is one per scale (0 here) or one for all (1).
PHI_NAMES = {
    0: ("quantizer.phi.", "quantize.quant_resi."),
    1: ("quantizer.phi.0.", "quantize.quant_resi.qresi."),
}
USAGE = "quantize.ema_vocab_hit_SV"  # training's counts of code use, (K, V); sampling never needs them


def read_tokenizer(source: Source, sides: Sequence[Side] | None = None) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    """The tokenizer of an official file: its config and its state dict under our names, in float32.

    Args:
        source: path of a `.pth` or `.safetensors` file, or the flat or trainer's dict that such a file holds.
        sides: of the token maps, which no tensor of a tokenizer shows; None takes those in the trainer's settings, else
            the schedule of 256 pixels.

    Raises:
        ValueError: the file is damaged or holds code; keys are unknown, missing or misshapen, a line for each; or
            weights are not finite.
    """
    file = open_official(source, "tokenizer")
    channels = file.size(TokenizerConfig.channels, (0, "encoder.conv_in.*"), (0, "encoder.down.0.block.0.norm1.*"))
    widths = [
        file.size(channels, (0, f"encoder.down.{i}.block.*.conv2.*"), (0, f"decoder.up.{i}.block.*.conv2.*"))
        for i in range(file.count("encoder.down."))
    ]
    phis = file.count("quantize.quant_resi.qresi_ls.") or int(any(".quant_resi.qresi." in name for name in file.state))
    config: TokenizerConfig = _described(
        file,
        Tokenizer,
        TokenizerConfig,
        channels=channels,
        multipliers=tuple(width // channels for width in widths) or (1,),
        res_blocks=file.count("encoder.down.0.block.") or 1,
        latent_channels=file.size(
            TokenizerConfig.latent_channels,
            (1, "quantize.embedding.weight"),
            (0, "*quant_conv.*"),
            (0, "*.quant_resi.*"),
        ),
        vocab_size=file.size(TokenizerConfig.vocab_size, (0, "quantize.embedding.weight")),
        phis=phis,
        sides=list(sides or file.claimed_sides or SIDES_256),
    )
    return config, _checked(file, Tokenizer, config, {USAGE: None})


def read_generator(source: Source, sides: Sequence[Side] | None = None) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """The generator of an official file: its config and its state dict under our names, in float32.

    Masks, level ids and other buffers, and a trainer's settings, are checked against the config and dropped.

    Args:
        source: as for `read_tokenizer`.
        sides: of the token maps; needed only for a file that was stripped of its buffers and has its own schedule.

    Raises:
        ValueError: as for `read_tokenizer`; or buffers or settings contradict the tensors, a line for each.
    """
    file = open_official(source, "generator")
    C = file.size(1, (0, "word_embed.*"), (1, "class_emb.*"), (1, "lvl_embed.*"), (2, "pos_*"), (1, "head.weight"))
    convolved = file.size(2 * C + 2 * GeneratorConfig.state_size, (0, "blocks.*.mamba.conv1d.*"))  # D = 2 C + 2 N
    depth = file.count("blocks.") or 1
    kind = _attention(file)
    attention: list[Attention] = [kind if file.has(f"blocks.{i}.attn.*") else "none" for i in range(depth)]
    mamba = [file.has(f"blocks.{i}.mamba.*") for i in range(depth)]
    config: GeneratorConfig = _described(
        file,
        Generator,
        GeneratorConfig,
        depth=depth,
        width=C,
        heads=file.size(0, (1, "blocks.*.attn.scale_mul_1H11")),
        attention=attention[0] if len(set(attention)) == 1 else attention,
        mamba=mamba[0] if len(set(mamba)) == 1 else mamba,
        shared_adaln=file.has("shared_ada_lin.*", "blocks.*.ada_gss"),
        qk_norm=file.has("blocks.*.attn.scale_mul_1H11") or not file.has("blocks.*.attn.*"),
        mlp_ratio=file.size(4 * C, (0, "blocks.*.ffn.fc1.*"), (1, "blocks.*.ffn.fc2.weight")) // C,
        state_size=(convolved - 2 * C) // 2,
        num_classes=file.size(GeneratorConfig.num_classes + 1, (0, "class_emb.weight")) - 1,
        vocab_size=file.size(GeneratorConfig.vocab_size, (0, "head.weight"), (0, "head.bias")),
        latent_channels=file.size(GeneratorConfig.latent_channels, (1, "word_embed.weight")),
        sides=list(sides or _sides(file)),
    )
    return config, _checked(file, Generator, config, _buffers(config), file.claims)


def load(tokenizer: Source | None = None, generator: Source | None = None) -> Bundle:
    """A model from official files: networks in eval mode on the CPU, class names, provenance.

    Args:
        tokenizer: the tokenizer's file; None where the generator's is a trainer's file, which holds both.
        generator: the generator's file, whose token maps the tokenizer takes; None for the tokenizer alone.

    Raises:
        ValueError: no file given, or as for `read_tokenizer` and `read_generator`.
    """
    source = generator if tokenizer is None else tokenizer
    if source is None:
        raise ValueError("tokenizer = None and generator = None: give at least the tokenizer's file")
    provenance = {
        f"Official {kind} file": Path(file).name
        for kind, file in (("tokenizer", tokenizer), ("generator", generator))
        if isinstance(file, (str, Path))
    }
    if generator is None:
        return Bundle(tokenizer=build(Tokenizer, *read_tokenizer(source)), provenance=provenance)
    generator_config, generator_state = read_generator(generator)
    return Bundle(
        tokenizer=build(Tokenizer, *read_tokenizer(source, generator_config.sides)),
        generator=build(Generator, generator_config, generator_state),
        classes=class_names(generator_config.num_classes),
        provenance=provenance,
    )


def convert(tokenizer: Source | None, generator: Source | None, out: str | Path) -> Path:
    """Write official files as a bundle into the folder `out`, and return it.

    Raises:
        ValueError: as for `load`; or the networks do not belong together, or the folder cannot be written.
    """
    new_folder(out, "out")
    return write_bundle(out, load(tokenizer, generator))


def export(tokenizer: Tokenizer, generator: Generator | None, out: str | Path) -> list[Path]:
    """Write networks as tokenizer.pth and generator.pth in the official format into the folder `out`; return the paths.

    Raises:
        ValueError: as for `tokenizer_to_official` and `generator_to_official`, or the folder cannot be written.
    """
    new_folder(out, "out")
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


def build(network: type[Network], config: Any, state: Mapping[str, Tensor]) -> Network:
    """The network with these weights, in eval mode; the tensors are not copied."""
    with torch.device("meta"):
        built = network(config)
    built.load_state_dict(state, assign=True)
    return built.eval()


def tokenizer_to_official(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The official state dict of a tokenizer: float32 on the CPU, sharing memory where nothing had to change.

    The counts of code use (`quantize.ema_vocab_hit_SV`) are unknown here and written as zeros.

    Raises:
        ValueError: its normalisation has other groups than the official code's.
    """
    config = tokenizer.config
    if config.norm_groups != TokenizerConfig.norm_groups:
        only = f"the official code has {TokenizerConfig.norm_groups} groups only; train one with that many"
        raise ValueError(f"tokenizer.norm_groups = {config.norm_groups}: {only}")
    usage_KV = torch.zeros(len(config.schedule), config.vocab_size)
    return {official: tensor for official, (_, tensor) in _named(tokenizer).items()} | {USAGE: usage_KV}


def generator_to_official(generator: Generator) -> dict[str, Tensor]:
    """The official state dict of a generator with its buffers: float32 on the CPU, sharing unchanged memory.

    Raises:
        ValueError: what the official format cannot hold: maps that are not square, or intra-scale attention in some
            blocks and global attention in others.
    """
    config = generator.config
    problems = []
    if any(h != w for h, w in config.schedule.shapes):
        problems.append(f"generator.sides = {config.sides}: the official format holds square maps only")
    if {"intra", "global"} <= {mixer.attention for mixer in config.mixers}:
        problems.append(f"generator.attention = {config.attention}: the official format has one mask for all blocks")
    raise_problems(problems)
    of_var = {
        f"blocks.{i}.attn.patch_nums" for i, m in enumerate(config.mixers) if m.attention != "intra" and not m.mamba
    }
    buffers = {name: buffer for name, buffer in _buffers(config).items() if name not in of_var}
    return {official: tensor for official, (_, tensor) in _named(generator).items()} | buffers


# --- hyperparameters that are more than a size ---


def _sides(file: OfficialFile) -> Iterable[int]:
    """Sides of the token maps: from the level ids, else from what else shows them."""
    levels, areas = file.state.get("lvl_1L"), file.state.get("blocks.0.attn.patch_nums")
    if isinstance(levels, Tensor):
        return [math.isqrt(count) for _, count in sorted(Counter(levels.flatten().tolist()).items())]
    if isinstance(areas, Tensor):
        return [math.isqrt(int(area)) for area in areas.flatten().tolist()]
    if file.claimed_sides:
        return file.claimed_sides
    L, K = file.size(0, (1, "pos_1LC")), file.size(0, (0, "lvl_embed.weight"))
    for sides in PATCH_NUMS.values():
        if (ScaleSchedule(sides).length, len(sides)) == (L, K):
            return sides
    raise ValueError(f"{file.name} has no lvl_1L, and no published schedule has {K} scales and {L} tokens: give sides")


def _attention(file: OfficialFile) -> Attention:
    """Which attention the mask allows: does the last token see the first? Without a mask, M-VAR's is intra-scale."""
    mask = file.state.get("attn_bias_for_masking")
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.numel() and file.size(1, (0, "lvl_embed.weight")) > 1:
        return "global" if mask[0, 0, -1, 0] == 0 else "intra"
    return "intra" if file.has("blocks.*.mamba.*", "blocks.*.attn.patch_nums") else "global"


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
            buffers[f"blocks.{i}.attn.patch_nums"] = torch.tensor(config.schedule.areas, dtype=torch.int32)
    return buffers


def _named(network: Tokenizer | Generator) -> dict[str, tuple[str, Tensor]]:
    """Official name: our name, and the tensor in its official shape."""
    if isinstance(network, Generator):
        table: Sequence[tuple[str, str]] = GENERATOR_NAMES
    else:
        phi = PHI_NAMES.get(network.config.phis)
        table = ((phi,) if phi else ()) + TOKENIZER_NAMES
    named = {}
    for name, tensor in network.state_dict().items():
        ours, official = next((pair for pair in table if pair[0] in name), ("", ""))
        if name.endswith("mamba.conv_weight"):
            tensor = tensor[:, None]  # (D, 1, W) officially, (D, W) here
        device = tensor.device if tensor.is_meta else "cpu"
        named[name.replace(ours, official, 1)] = name, tensor.detach().to(device, torch.float32).contiguous()
    return named


def _described(file: OfficialFile, network: type[Tokenizer] | type[Generator], kind: type, **values: Any) -> Any:
    """The config of what the file's tensors describe."""
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{_misfit(file, network)}\n{error}") from error


def _misfit(file: OfficialFile, network: type[Tokenizer] | type[Generator]) -> str:
    return f"{file.name} does not fit the official {network.__name__.lower()} that its tensors describe:"


def _checked(
    file: OfficialFile,
    network: type[Tokenizer] | type[Generator],
    config: Any,
    buffers: Mapping[str, Tensor | None],
    claims: Iterable[tuple[str, str, Any]] = (),
) -> dict[str, Tensor]:
    """The file's parameters under our names, once every key fits the network that the config describes.

    `buffers` may be in the file and must then be equal (None: anything goes); so must the trainer's `claims`.
    """
    problems = [_misfit(file, network)]
    for where, name, value in claims:
        if (actual := getattr(config, name)) != value:
            problems.append(f"{where} = {value}: the tensors say {name} = {actual}")
    with torch.device("meta"):
        expected = _named(network(config))
    for name, value in file.state.items():
        if name in expected:
            shape = tuple(expected[name][1].shape)
            if not isinstance(value, Tensor):
                problems.append(f"{name}: is a {type(value).__name__}, expected a tensor {shape}")
            elif tuple(value.shape) != shape:
                problems.append(f"{name}: has shape {tuple(value.shape)}, expected {shape}")
        elif name not in buffers:
            problems.append(f"{name}: unknown")
        elif (buffer := buffers[name]) is not None and not _equal(value, buffer):
            problems.append(f"{name}: contradicts the tensors; expected what the schedule {config.sides} gives")
    problems += [f"{name}: missing" for name in expected if name not in file.state]
    if len(problems) > 1:
        raise_problems(problems)
    needed = 4 * sum(tensor.numel() for _, tensor in expected.values())
    check_memory(needed, f"{file.name}: its weights in float32", "free some")
    # Copies, so that neither the caller's dict nor a mapped file is changed by training.
    state = {ours: file.state[name].to("cpu", torch.float32, copy=True) for name, (ours, _) in expected.items()}
    if problem := damage({name: state[ours] for name, (ours, _) in expected.items()}):
        raise ValueError(f"{file.name}: {problem}")
    return {ours: t.squeeze(1) if ours.endswith("mamba.conv_weight") else t for ours, t in state.items()}


def _equal(value: Any, buffer: Tensor) -> bool:
    return (
        isinstance(value, Tensor) and value.shape == buffer.shape and torch.equal(value.float().cpu(), buffer.float())
    )

"""The bundle: the folder in which a model is passed around.

    config.json              format, version, the configs, sampling defaults, provenance
    tokenizer.safetensors    weights
    generator.safetensors    weights; absent where the bundle is a tokenizer only
    classes.json             class names in order of their index
    README.md                model card

An interrupted write leaves the old bundle, the new one, or none.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mvar.checkpoint.placement import Dtype, cast_to_bfloat16, dtype_for, find_device
from mvar.files import atomic_write, made_folder, writable_folder, write_text
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.machine import check_memory
from mvar.ops.numerics import damage
from mvar.tensor_files import write_tensors
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

FORMAT, VERSION = "mvar-bundle", 1
CONFIG, TOKENIZER, GENERATOR = "config.json", "tokenizer.safetensors", "generator.safetensors"
CLASSES, CARD = "classes.json", "README.md"
TAGS = ["image-generation", "autoregressive", "m-var", "vq-vae"]  # by which the hub finds models
HELD = 2**24  # bytes of weights that are read before their file is opened again
MOST_MISFITS = 5  # that an error names
MOST_CLASSES = 20  # that a card names; classes.json has them all

StoredDtype = Literal["float32", "bfloat16"]
Config = TypeVar("Config", TokenizerConfig, GeneratorConfig)
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle folder holds.

    Attributes:
        generator: None in a tokenizer-only bundle.
        classes: names in order of their index; empty for a model without classes.
        defaults: sampling settings that suit the model, by name; the library's where one is left out.
        provenance: where the weights come from, free text by key; shown on the card.
    """

    tokenizer: Tokenizer
    generator: Generator | None = None
    classes: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": asdict(self.tokenizer.config),
            "generator": None if self.generator is None else asdict(self.generator.config),
            "defaults": self.defaults,
            "provenance": self.provenance,
        }

    def facts(self) -> dict[str, str]:
        """What the model is, by name: sizes, classes, sampling defaults, origin."""
        tokenizer = self.tokenizer.config
        h, w = tokenizer.image_shape
        facts = {
            "Images": f"{w} × {h} pixels",
            "Token maps": " ".join(map(str, tokenizer.sides)),
            "Codebook": f"{tokenizer.vocab_size} codes of {tokenizer.latent_channels} channels",
        }
        if self.generator is not None:
            generator = self.generator.config
            mamba = sum(mixer.mamba for mixer in generator.mixers)
            facts["Generator"] = f"depth {generator.depth}, width {generator.width}, {generator.heads} heads"
            facts["Mixers"] = f"attention {generator.attention}, Mamba-2 in {mamba} of {generator.depth} blocks"
            if generator.order != GeneratorConfig.order:
                facts["Mixers"] += f", {generator.order}"
            if generator.scan != GeneratorConfig.scan:
                facts["Mixers"] += f", {generator.scan} scan"
            more = ", ..." if len(self.classes) > MOST_CLASSES else ""
            names = f"{len(self.classes)}: {', '.join(self.classes[:MOST_CLASSES])}{more}"
            facts["Classes"] = names if self.classes else "none (unconditional)"
        facts |= {f"Sampling: {key.replace('_', '-')}": str(value) for key, value in self.defaults.items()}
        return facts | {key.replace("_", " ").capitalize(): str(value) for key, value in self.provenance.items()}

    def card(self, name: str) -> str:
        """The text of README.md for a model of this name, headed by what the Hugging Face hub wants to know."""
        if self.generator is None:
            what = "A multi-scale image tokenizer (VQ-VAE), without a generator."
            usage = f'tokens = mvar.load("{name}").tokenizer.encode(pixels)  # RGB, (B, 3, H, W) in [0, 1]'
        else:
            what = "A scale-wise autoregressive image generator (M-VAR) with its tokenizer."
            label = 0 if self.classes else -1
            usage = f'model = mvar.load("{name}")\nmodel.sample(labels=[{label}]).images[0]'
        cells = {key: value.replace("|", "\\|").replace("\n", " ") for key, value in self.facts().items()}
        table = "\n".join(f"| {key} | {cell} |" for key, cell in cells.items())
        tags = "\n".join(f"- {tag}" for tag in TAGS)
        header = f"---\nlibrary_name: mvar\npipeline_tag: unconditional-image-generation\ntags:\n{tags}\n---"
        code = f"```python\nimport mvar\n\n{usage}\n```"
        return f"{header}\n\n# {name}\n\n{what}\n\n| | |\n|---|---|\n{table}\n\n{code}\n"


def write_bundle(folder: str | Path, bundle: Bundle, dtype: StoredDtype = "float32") -> Path:
    """Write a bundle into a folder, which may hold other files, and return it.

    `dtype` is that of the stored matrices; the quantiser and all vectors are always stored in float32.
    """
    if dtype not in get_args(StoredDtype):
        raise ValueError(f"dtype = {dtype!r}: store a bundle in float32 or bfloat16")
    generator = bundle.generator
    networks = [network for network in (bundle.tokenizer, generator) if network is not None]
    if dtype == "float32" and any(p.dtype == torch.bfloat16 for network in networks for p in network.parameters()):
        fix = "load the model with dtype='float32' to save it exactly, or save it as bfloat16"
        raise ValueError(f"dtype = 'float32': the weights in use are rounded to bfloat16; {fix}")
    if generator and (problem := _mismatch(bundle.tokenizer.config, generator.config, bundle.classes)):
        raise ValueError(problem)
    folder = writable_folder(folder, "out")
    with made_folder(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".bundle-") as scratch:
        new = Path(scratch)
        atomic_write(new / TOKENIZER, partial(write_tensors, _stored(bundle.tokenizer, dtype)))
        if generator is not None:
            atomic_write(new / GENERATOR, partial(write_tensors, _stored(generator, dtype)))
        write_text(new / CLASSES, _json(bundle.classes))
        write_text(new / CARD, bundle.card(folder.resolve().name))
        write_text(new / CONFIG, _json(bundle.config()))
        # Until the last move the folder is no bundle: a mixture of two must not load.
        (folder / CONFIG).unlink(missing_ok=True)
        for name in (TOKENIZER, GENERATOR, CLASSES, CARD, CONFIG):
            if (new / name).exists():
                os.replace(new / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # the generator of an older bundle
    return folder


def is_bundle(folder: str | Path) -> bool:
    """Whether a folder has a config.json of a bundle, of whatever version."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def read_bundle(
    folder: str | Path, device: str | torch.device | None = "cpu", dtype: Dtype | None = "float32"
) -> Bundle:
    """Read a bundle: networks in eval mode, on the CPU, each weight directly in the dtype that it will run in.

    Device and dtype are those that `mvar.checkpoint.placement.to_device` will be given.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tokenizer_config = _config(TokenizerConfig, "tokenizer", config, folder)
    generator_config = read_generator_config(folder)
    classes = _read_json(folder / CLASSES)
    if generator_config and (problem := _mismatch(tokenizer_config, generator_config, classes)):
        raise ValueError(f"{folder}: {problem}")
    with torch.device("meta"):
        tokenizer = Tokenizer(tokenizer_config)
        generator = Generator(generator_config) if generator_config else None
    if dtype_for(generator, find_device(device), dtype) == "bfloat16":
        cast_to_bfloat16(tokenizer, generator)
    needed = sum(p.nbytes for network in (tokenizer, generator) if network for p in network.parameters())
    check_memory(needed, f"{folder}: its weights", "free some, or give bfloat16 as dtype where it is not")
    _fill(tokenizer, folder / TOKENIZER)
    if generator is not None:
        _fill(generator, folder / GENERATOR)
    return Bundle(
        tokenizer=tokenizer,
        generator=generator,
        classes=[str(name) for name in classes],
        defaults=config.get("defaults", {}),
        provenance=config.get("provenance", {}),
    )


def read_generator_config(folder: str | Path) -> GeneratorConfig | None:
    """The config of a bundle's generator, without reading weights."""
    config = _read_config(Path(folder))
    return _config(GeneratorConfig, "generator", config, Path(folder)) if config.get("generator") else None


# --- writing ---


def _stored(network: Tokenizer | Generator, dtype: StoredDtype) -> dict[str, Tensor]:
    """A network's tensors as they are stored."""
    stored = {}
    for name, tensor in network.state_dict().items():
        is_matrix = sum(n > 1 for n in tensor.shape) > 1 and not name.startswith("quantizer.")
        kind = torch.bfloat16 if is_matrix and dtype == "bfloat16" else torch.float32
        stored[name] = tensor.detach().to(kind).contiguous().cpu()
    return stored


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# --- reading ---


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); a bundle needs this file") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); the file is damaged") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if folder.is_dir() and not path.exists():
        raise ValueError(f"{folder}: has no {CONFIG}; give a bundle or run folder")
    config: dict[str, Any] = _read_json(path)
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format = {found!r}: expected {FORMAT!r}; not a bundle")
    if config.get("version") != VERSION:
        reads = f"this mvar reads version {VERSION}; install the one that wrote the bundle, or write it again"
        raise ValueError(f"{path}: version = {config.get('version')!r}: {reads}")
    return config


def _config(kind: type[Config], name: str, config: Mapping[str, Any], folder: Path) -> Config:
    """One network's config from config.json."""
    try:
        return kind(**config.get(name, {}))
    except ValueError as error:
        lines = "; ".join(f"{name}.{line}" for line in str(error).splitlines())
        raise ValueError(f"{folder / CONFIG}: {lines}") from error


def _mismatch(tokenizer: TokenizerConfig, generator: GeneratorConfig, classes: list[str]) -> str | None:
    """Why these parts are not one model, in one line; None if they are."""
    for name in ("vocab_size", "latent_channels"):
        if getattr(tokenizer, name) != getattr(generator, name):
            return f"tokenizer.{name} = {getattr(tokenizer, name)} but generator.{name} = {getattr(generator, name)}"
    if tokenizer.schedule != generator.schedule:
        return f"tokenizer.sides = {tokenizer.sides} but generator.sides = {generator.sides}"
    if len(classes) != generator.num_classes:
        return f"{CLASSES} has {len(classes)} names but generator.num_classes = {generator.num_classes}"
    return None


def _fill(network: Tokenizer | Generator, path: Path) -> None:
    """Give a network on the meta device the file's tensors, each in the dtype that the network has for it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the bundle is incomplete")
    tensors: dict[str, Tensor] = network.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if wrong := misfit(found, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
            raise ValueError(f"{path}: does not fit {CONFIG}: {wrong}")
        state = _read(path, tensors)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); the file is damaged or incomplete") from error
    if problem := damage(state):
        raise ValueError(f"{path}: {problem}")
    network.load_state_dict(state, assign=True)
    network.eval()


def _read(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, in the dtypes of these.

    The file is opened again after some megabytes, as what was read from an open file counts as memory in use.
    """
    state: dict[str, Tensor] = {}
    names = list(tensors)
    while names:
        with safe_open(path, framework="pt") as file:
            read = 0
            while names and read < HELD:
                name = names.pop(0)
                stored = file.get_tensor(name)
                state[name] = stored.to(tensors[name].dtype, copy=True)
                read += stored.nbytes
    return state


def misfit(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str | None:
    """In one line, which tensors of a file are not as expected; None if all are."""
    wrong = [
        f"{name} is {found.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    if not wrong:
        return None
    more = f"; and {len(wrong) - MOST_MISFITS} more" if len(wrong) > MOST_MISFITS else ""
    return "; ".join(wrong[:MOST_MISFITS]) + more

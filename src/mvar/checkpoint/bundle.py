"""The bundle: the folder in which a model is passed around.

    config.json              format, version, the configs, sampling defaults, provenance
    tokenizer.safetensors    weights
    generator.safetensors    weights; absent where the bundle is a tokenizer only
    classes.json             class names in order of their index
    README.md                model card

All files are written aside and then moved to their places, config.json last and the old one taken away first: what an
interruption leaves is the old bundle, the new one, or none.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mvar.checkpoint.card import model_card
from mvar.checkpoint.placement import Dtype, dtype_for, find_device, halve
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
REOPENED = 16 << 20  # bytes

StoredDtype = Literal["float32", "bfloat16"]
Config = TypeVar("Config", TokenizerConfig, GeneratorConfig)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle folder holds.

    Attributes:
        tokenizer, generator: networks; no generator in a tokenizer-only bundle.
        classes: names in order of their index; empty for a model without classes.
        defaults: sampling settings that suit the model, by name; those left out are the library's.
        provenance: where the weights come from: free text by key, shown on the card.
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


def write_bundle(folder: str | Path, bundle: Bundle, dtype: StoredDtype = "float32") -> Path:
    """Write a bundle into a folder, which may exist and hold other files; what is no part of a bundle stays.

    Args:
        folder: made where it is missing.
        bundle: what to write.
        dtype: of the stored matrices; the quantiser and all vectors are always stored in float32.

    Returns:
        The folder.

    Raises:
        ValueError: unknown dtype, parts that do not fit one another, or a folder that cannot be written.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype = {dtype!r}: store a bundle in float32 or bfloat16")
    generator = bundle.generator
    generator_config = None if generator is None else generator.config
    if problem := _mismatch(bundle.tokenizer.config, generator_config, bundle.classes):
        raise ValueError(problem)
    folder = writable_folder(folder, "out")
    config = bundle.config()
    with made_folder(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".bundle-") as scratch:
        new = Path(scratch)
        atomic_write(new / TOKENIZER, _saver(bundle.tokenizer, dtype))
        if generator is not None:
            atomic_write(new / GENERATOR, _saver(generator, dtype))
        write_text(new / CLASSES, _json(bundle.classes))
        write_text(new / CARD, model_card(folder.resolve().name, config, bundle.classes))
        write_text(new / CONFIG, _json(config))
        # From here to the last line the folder is no bundle: a mixture of two must not load.
        (folder / CONFIG).unlink(missing_ok=True)
        for name in (TOKENIZER, GENERATOR, CLASSES, CARD, CONFIG):
            if (new / name).exists():
                os.replace(new / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # the generator of an older bundle
    return folder


def is_bundle(folder: str | Path) -> bool:
    """Whether a folder looks like a bundle: it has a config.json of our format, of whatever version."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def read_bundle(
    folder: str | Path, device: str | torch.device | None = "cpu", dtype: Dtype | None = "float32"
) -> Bundle:
    """Read a bundle: networks in eval mode, on the CPU, each weight in the dtype it will run in and in no other.

    Args:
        device, dtype: where and how the networks will run; as of `mvar.checkpoint.placement.place`.

    Raises:
        ValueError: one line that names the file and what is wrong: missing, damaged, of another format or version,
            an unknown or unsound setting, weights or classes that do not fit the config, weights that are not finite
            in the dtype they will run in; or more weights than there is memory for.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tokenizer_config = _config(TokenizerConfig, "tokenizer", config, folder)
    generator_config = read_generator_config(folder)
    classes = _read_json(folder / CLASSES, list)
    if problem := _mismatch(tokenizer_config, generator_config, classes):
        raise ValueError(f"{folder}: {problem}")
    with torch.device("meta"):
        tokenizer = Tokenizer(tokenizer_config)
        generator = Generator(generator_config) if generator_config else None
    if dtype_for(generator, find_device(device), dtype) == "bfloat16":
        halve(tokenizer, generator)
    _check_room(folder, [network for network in (tokenizer, generator) if network is not None])
    _fill(tokenizer, folder / TOKENIZER)
    if generator is not None:
        _fill(generator, folder / GENERATOR)
    return Bundle(
        tokenizer=tokenizer,
        generator=generator,
        classes=[str(name) for name in classes],
        defaults=_section(config, "defaults", folder),
        provenance=_section(config, "provenance", folder),
    )


def read_generator_config(folder: str | Path) -> GeneratorConfig | None:
    """The config of a bundle's generator, without reading weights; raises as `read_bundle`."""
    config = _read_config(Path(folder))
    return _config(GeneratorConfig, "generator", config, Path(folder)) if config.get("generator") else None


# --- writing ---


def _saver(network: Tokenizer | Generator, dtype: StoredDtype) -> Callable[[Path], None]:
    """The function that writes a network's weights to a path."""
    tensors = {
        name: _stored(name, tensor.detach(), dtype).contiguous().cpu() for name, tensor in network.state_dict().items()
    }
    return partial(write_tensors, tensors)


def _stored(name: str, tensor: Tensor, dtype: StoredDtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    is_matrix = sum(n > 1 for n in tensor.shape) > 1 and not name.startswith("quantizer.")
    return tensor.to(torch.bfloat16 if is_matrix and dtype == "bfloat16" else torch.float32)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# --- reading ---


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); a bundle needs this file") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); the file is damaged") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _section(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"{folder / CONFIG}: {name} = {section!r}: expected settings by name")
    return section


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_dir() and not (folder / CONFIG).exists():
        raise ValueError(f"{folder}: has no {CONFIG}; give a bundle or run folder")
    config: dict[str, Any] = _read_json(folder / CONFIG, dict)
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: format = {config.get('format')!r}: expected {FORMAT!r}; not a bundle")
    if config.get("version") != VERSION:
        raise ValueError(
            f"{folder / CONFIG}: version = {config.get('version')!r}: this mvar reads version {VERSION}; "
            "install the mvar that wrote the bundle, or write it anew"
        )
    return config


def _config(kind: type[Config], name: str, config: Mapping[str, Any], folder: Path) -> Config:
    """One network's config out of config.json."""
    try:
        return kind(**_section(config, name, folder))
    except ValueError as error:
        raise ValueError(
            f"{folder / CONFIG}: {'; '.join(f'{name}.{line}' for line in str(error).splitlines())}"
        ) from error


def _mismatch(tokenizer: TokenizerConfig, generator: GeneratorConfig | None, classes: list[str]) -> str | None:
    """Why these parts are not one model, in one line; None where they are."""
    if generator is None:
        return None
    for name in ("vocab_size", "latent_channels"):
        if getattr(tokenizer, name) != getattr(generator, name):
            return f"tokenizer.{name} = {getattr(tokenizer, name)} but generator.{name} = {getattr(generator, name)}"
    if tokenizer.schedule != generator.schedule:
        return f"tokenizer.sides = {tokenizer.sides} but generator.sides = {generator.sides}"
    if len(classes) != generator.num_classes:
        return f"{CLASSES} has {len(classes)} names but generator.num_classes = {generator.num_classes}"
    return None


def _check_room(folder: Path, networks: Sequence[nn.Module]) -> None:
    needed = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    check_memory(needed, f"{folder}: its weights", "free some, or give bfloat16 as dtype where it is not")


def _fill(network: Tokenizer | Generator, path: Path) -> None:
    """Give a network without memory the file's tensors, each in the dtype that the network has for it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the bundle is not complete")
    expected: dict[str, Tensor] = network.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wrong = [
            f"{name} is {shapes.get(name, 'absent')}, expected {_shape(expected.get(name))}"
            for name in [*expected, *(name for name in shapes if name not in expected)]
            if str(shapes.get(name, "absent")) != _shape(expected.get(name))
        ]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(f"{path}: does not fit {CONFIG}: {wrong[0]}{more}")
        state = _read(path, {name: like.dtype for name, like in expected.items()})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); the file is damaged or not complete") from error
    if problem := damage(state):
        raise ValueError(f"{path}: {problem}")
    network.load_state_dict(state, assign=True)
    network.eval()


def _read(path: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Tensors of a file by name. It is opened again every few megabytes: what an open file has read counts as memory of
    this process."""
    state: dict[str, Tensor] = {}
    names = iter(dtypes)
    while len(state) < len(dtypes):
        with safe_open(path, framework="pt") as file:
            read = 0
            for name in names:
                state[name] = file.get_tensor(name).to(dtypes[name], copy=True)
                read += state[name].nbytes
                if read > REOPENED:
                    break
    return state


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))

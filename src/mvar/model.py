"""What `mvar.load` returns: a tokenizer, a generator, class names and sampling defaults, thinly tied together.

Shapes: B images, P_k tokens of scale k, H W pixels.
"""

import operator
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from mvar.checkpoint import official
from mvar.checkpoint.bundle import Bundle, StoredDtype, read_bundle, write_bundle
from mvar.checkpoint.card import model_facts
from mvar.generator.network import Generator
from mvar.sampling import engine
from mvar.sampling.config import SamplingSettings
from mvar.tokenizer.network import Tokenizer
from mvar.validation import raise_problems

Dtype = Literal["float32", "bfloat16"]
Label = int | str | None
LARGE = 100_000_000  # parameters from which bfloat16 is the default: reading weights then takes most of the time


@dataclass
class Model:
    """A tokenizer, the generator of its token maps, and what belongs to them.

    Attributes:
        tokenizer: pixels to token maps and back.
        generator: token maps from a class; None in a tokenizer-only model.
        classes: names in order of their index; empty for a model without classes.
        defaults: sampling settings used where `sample` is given none.
        provenance: where the weights come from.
    """

    tokenizer: Tokenizer
    generator: Generator | None = None
    classes: list[str] = field(default_factory=list)
    defaults: SamplingSettings = field(default_factory=SamplingSettings)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.quantizer.codebook.device

    def sample(
        self,
        labels: Label | Sequence[Label],
        *,
        guidance: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        smooth: bool | None = None,
        seed: int = 0,
        index: Sequence[int] | None = None,
        on_scale: engine.OnScale | None = None,
        batch_size: int | None = None,
    ) -> engine.SampleOutput:
        """Draw one image for each label; settings left None are the model's defaults.

        Args:
            labels: class indices or names; -1 or None for no class. One label alone gives one image.
            guidance: strength of classifier-free guidance; 0 switches it off.
            top_k: sample from the k most likely codes; 0 switches it off, 1 is greedy.
            top_p: sample from the most likely codes that hold this much probability; 1 switches it off.
            temperature: divides the guided logits before the filters.
            smooth: mix code vectors instead of choosing one; prettier, but not for metrics.
            seed: of the run.
            index: each image's number, 0 and up by default; image i depends on (seed, index[i], label, settings) only.
            on_scale: called as on_scale(k, K, preview) after each scale; preview() decodes what there is, (B, 3, H, W).
            batch_size: at most so many images at once (`on_scale` then sees each batch); None takes all at once.

        Raises:
            ValueError: a field, its value and the fix, a line for each problem.
        """
        if self.generator is None:
            raise ValueError(
                "this model is a tokenizer without a generator: load a bundle that has generator.safetensors"
            )
        changes: dict[str, Any] = {
            "guidance": guidance,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "smooth": smooth,
        }
        settings = replace(self.defaults, **{name: value for name, value in changes.items() if value is not None})
        settings.validate()
        ids = self.label_ids(labels)
        index = list(range(len(ids)) if index is None else index)
        if len(index) != len(ids):
            raise ValueError(f"index has {len(index)} numbers for {len(ids)} labels: give one for each image")
        size = len(ids) if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")

        parts = [
            engine.sample(
                self.tokenizer,
                self.generator,
                torch.tensor(ids[start : start + size]),
                index[start : start + size],
                seed,
                settings,
                on_scale,
            )
            for start in range(0, len(ids), size)
        ]
        return engine.join(parts)

    def label_ids(self, labels: Label | Sequence[Label]) -> list[int]:
        """Class indices of labels given as indices or names; the null class is len(classes).

        Raises:
            ValueError: no label, an index out of range, or a name that is unknown (close ones are listed) or ambiguous.
        """
        labels = [labels] if labels is None or isinstance(labels, (str, int)) else list(labels)
        if not labels:
            raise ValueError("labels is empty: give at least one class index or name, or -1 for no class")
        ids, problems = [], []
        for label in labels:
            try:
                ids.append(self._label_id(label))
            except ValueError as error:
                problems.append(str(error))
        raise_problems(dict.fromkeys(problems))
        return ids

    def class_name(self, class_id: int) -> str:
        """The name of a class index, "no class" for the null class."""
        return "no class" if class_id == self._null else self.classes[class_id]

    @property
    def _null(self) -> int:
        """The null class's index."""
        return self.generator.config.num_classes if self.generator else len(self.classes)

    def _label_id(self, label: Label) -> int:
        null = self._null
        if label is None:
            return null
        if isinstance(label, str):
            return self._named(label)
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"labels has {label!r}: give a class index, a class name, or -1 for no class") from None
        if not -1 <= number < null:
            choices = (
                f"an index from 0 to {null - 1}, or -1 for no class" if null else "-1, as this model has no classes"
            )
            raise ValueError(f"labels has {number}: give {choices}")
        return null if number == -1 else number

    def _named(self, name: str) -> int:
        """The class of this name: exactly, else without regard to case."""
        folded = [known.casefold() for known in self.classes]
        found = [i for i, known in enumerate(self.classes) if known == name]
        found = found or [i for i, known in enumerate(folded) if known == name.casefold()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"labels has {name!r}: {len(found)} classes have this name; give an index of {found}")
        close = [known for known in self.classes if name.casefold() in known.casefold()][:5]
        close += [self.classes[folded.index(match)] for match in get_close_matches(name.casefold(), folded, n=5)]
        hint = ", ".join(dict.fromkeys(close)) or ", ".join(self.classes[:10]) or "none, give -1"
        raise ValueError(f"labels has {name!r}: no class of this name; {'close' if close else 'classes'}: {hint}")

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.tokenizer] if self.generator is None else [self.tokenizer, self.generator]

    def facts(self) -> dict[str, str]:
        """What this model is, by name: sizes, parameters, classes, sampling defaults, origin."""
        found = model_facts(self._bundle().config(), self.classes)
        for name, network in (("Tokenizer", self.tokenizer), ("Generator", self.generator)):
            if network is not None:
                found[f"{name} parameters"] = f"{sum(p.numel() for p in network.parameters()):,}"
        return found

    def _bundle(self) -> Bundle:
        return Bundle(
            tokenizer=self.tokenizer,
            generator=self.generator,
            classes=self.classes,
            defaults=asdict(self.defaults),
            provenance=self.provenance,
        )

    def save(self, folder: str | Path, dtype: StoredDtype = "float32") -> Path:
        """Write the model as a bundle and return its folder; see `mvar.checkpoint.bundle.write_bundle`."""
        rounded = any(p.dtype == torch.bfloat16 for network in self._networks for p in network.parameters())
        if rounded and dtype == "float32":
            raise ValueError(
                "dtype = 'float32': the weights in use are rounded to bfloat16; "
                "load the model with dtype='float32' to save it whole, or save it as bfloat16"
            )
        return write_bundle(folder, self._bundle(), dtype)


def load(source: str | Path, device: str | torch.device | None = None, dtype: Dtype | None = None) -> Model:
    """Load a model.

    Args:
        source: the name of a packaged model, a bundle or run folder, or a "owner/name" of the Hugging Face hub. A
            packaged name wins over a folder of that name: write "./name" for the folder.
        device: where to run; None takes CUDA where there is one, else the CPU.
        dtype: "float32" or "bfloat16"; None takes float32, and for a generator of 100 M parameters or more
            bfloat16 where the processor is quick at it.

    Raises:
        ValueError: nothing is found there (packaged names are listed), or the bundle is not sound.
    """
    return from_bundle(read_bundle(_find(source)), device, dtype)


def load_official(
    tokenizer: str | Path | None = None,
    generator: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
) -> Model:
    """Load files of the official VAR, M-VAR and VQ-VAE code, every hyperparameter read from their tensors.

    Args:
        tokenizer: a .pth or .safetensors file; None where the generator's is a trainer's checkpoint, which holds both.
        generator: likewise; None for the tokenizer alone.
        device, dtype: as of `load`.

    Raises:
        ValueError: no file given, a damaged one, or unknown, missing or misshapen keys, a line for each.
    """
    return from_bundle(official.load(tokenizer, generator), device, dtype)


def find_dtype(dtype: Dtype | None, device: torch.device) -> Dtype:
    """The dtype of matrix products: as asked, else bfloat16 where the processor multiplies it faster than float32."""
    if dtype is not None:
        return dtype
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def from_bundle(bundle: Bundle, device: str | torch.device | None = None, dtype: Dtype | None = None) -> Model:
    """A model of the networks in a bundle, moved to where and how they shall run; see `load`."""
    if dtype is not None and dtype not in get_args(Dtype):
        later = "int8 is not available yet; " if dtype == "int8" else ""
        raise ValueError(f"dtype = {dtype!r}: {later}give float32 or bfloat16")
    if unknown := sorted(set(bundle.defaults) - {f.name for f in fields(SamplingSettings)}):
        raise ValueError(f"defaults.{unknown[0]}: no sampling setting of this name; remove it from config.json")
    defaults = SamplingSettings(**bundle.defaults)
    defaults.validate()
    tokenizer, generator = bundle.tokenizer, bundle.generator
    place = find_device(device)
    if dtype is None:
        large = generator is not None and sum(p.numel() for p in generator.parameters()) >= LARGE
        dtype = find_dtype(None, place) if large else "float32"
    for network in (tokenizer, generator):
        if network is not None:
            network.to(place).eval()  # networks that come from training too
    if dtype == "bfloat16":
        _to_bfloat16(tokenizer, generator)
    return Model(tokenizer, generator, bundle.classes, defaults, bundle.provenance)


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; None takes CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise ValueError(f"device = {str(device)!r}: not available here ({_first_line(error)})") from error
    return place


def _to_bfloat16(tokenizer: Tokenizer, generator: Generator | None) -> None:
    """Put the generator's projections and the decoder in bfloat16; what makes tokens of an image stays in float32."""
    head = generator.head if generator else None  # logits are computed in float32
    for module in generator.modules() if generator else ():
        if isinstance(module, nn.Linear) and module is not head:
            module.to(torch.bfloat16)
    tokenizer.decoder.to(torch.bfloat16)


def packaged_models() -> list[str]:
    """Names of the models that ship with the package."""
    root = _packaged_root()
    return sorted(path.name for path in root.iterdir() if (path / "config.json").is_file()) if root.is_dir() else []


def _packaged_root() -> Path:
    return Path(str(resources.files("mvar"))) / "models"


def _find(source: str | Path) -> Path:
    """The folder of a bundle."""
    packaged = packaged_models()
    if source in packaged:
        return _packaged_root() / source
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"model = {str(source)!r}: is a file; give a bundle folder, or use load_official for .pth files"
        )
    if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        parent, name = source.split("/")
        if Path(parent).is_dir():  # a mistyped path, no hub id
            raise ValueError(
                f"model = {source!r}: the folder {parent!r} here has no {name!r} in it; correct the path, "
                "or run in another folder if it is an id of the Hugging Face hub"
            )
        return _download(source)
    raise ValueError(
        f"model = {str(source)!r}: no such model; give a packaged name ({', '.join(packaged) or 'none here'}), "
        "a bundle or run folder, or owner/name of the Hugging Face hub"
    )


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except Exception as error:  # the hub client raises errors of a dozen libraries
        raise ValueError(
            f"model = {repo!r}: no local folder of this name, and not fetched from the Hugging Face hub "
            f"({_first_line(error)}); packaged models: {', '.join(packaged_models()) or 'none here'}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

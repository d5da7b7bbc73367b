"""M-VAR: scale-wise autoregressive image generation. The public names are loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvar.evaluation.runner import evaluate
    from mvar.model import Model, load, load_official
    from mvar.training.config import GeneratorTraining, TokenizerTraining
    from mvar.training.generator.task import train as train_generator
    from mvar.training.tokenizer.task import train as train_tokenizer

    __version__: str

# Public name -> where it is defined; nothing here imports torch until a name is used.
_PUBLIC = {
    "GeneratorTraining": "mvar.training.config:GeneratorTraining",
    "Model": "mvar.model:Model",
    "TokenizerTraining": "mvar.training.config:TokenizerTraining",
    "evaluate": "mvar.evaluation.runner:evaluate",
    "load": "mvar.model:load",
    "load_official": "mvar.model:load_official",
    "train_generator": "mvar.training.generator.task:train",
    "train_tokenizer": "mvar.training.tokenizer.task:train",
}

__all__ = [
    "GeneratorTraining",
    "Model",
    "TokenizerTraining",
    "__version__",
    "evaluate",
    "load",
    "load_official",
    "train_generator",
    "train_tokenizer",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name].split(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'mvar' has no attribute {name!r}; public names: {', '.join(__all__)}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mvar-torch")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return "0"


def __dir__() -> list[str]:
    return __all__

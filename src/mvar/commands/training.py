"""Commands that get data and train on it.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from mvar.generator.config import GeneratorConfig
from mvar.training.config import GeneratorTraining, TokenizerTraining


def data_fashion_mnist(out: str, source: str | None = None) -> None:
    """Write Fashion-MNIST as image folders: 60,000 training and 10,000 validation images of 10 classes.

    Args:
        out: a new or empty folder; gets train/<class>/*.png and val/<class>/*.png.
        source: folder with the four original .gz files; by default the installed Debian package
            dataset-fashion-mnist is used, or fetched by apt-get.
    """
    from mvar.data.fashion_mnist import fashion_mnist

    fashion_mnist(out, source)
    print(f"wrote {out}/train and {out}/val")


def data_emoji(out: str, size: int = 64, source: str | None = None) -> None:
    """Write emoji in colour as image folders: about 10,600 images of 9 classes, drawn from sets of many vendors.

    Args:
        out: a new or empty folder; gets train/<class>/*.png, val/<class>/*.png and LICENCES.md.
        size: side of the square images in pixels.
        source: folder of the unpacked npm package @iconify/json; fetched by npm by default.
    """
    from mvar.data.emoji import emoji

    counts = emoji(out, size, source)
    for part in ("train", "val"):
        print(f"wrote {out}/{part}: {sum(n for (_, split, _), n in counts.items() if split == part)} images")
    print(f"wrote {out}/LICENCES.md: whose they are")


def train_tokenizer(config: TokenizerTraining) -> None:
    """Train a tokenizer on a folder of images."""
    from mvar.training.tokenizer import train

    train(config)
    print(f"wrote {config.out}: use it as --tokenizer {config.out}")


def train_generator(config: GeneratorTraining) -> None:
    """Train a generator on a folder of images, with a trained tokenizer."""
    from mvar.training.generator import train

    model = train(config)
    if model is not None:  # the main rank speaks for all
        print(f"wrote {config.out}: try  mvar sample --model {config.out}{' --per-class 8' if model.classes else ''}")


def generator_of(source: str) -> GeneratorConfig | dict[str, object]:
    """The config of a model's generator: what --model's options start from with --init-from.

    Nothing where there is none: training says what is wrong with it.
    """
    from mvar.checkpoint import hub
    from mvar.checkpoint.bundle import read_generator_config

    try:
        return read_generator_config(hub.find(source)) or {}
    except ValueError:
        return {}

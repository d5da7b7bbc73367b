"""What the runs of a study are trained on: images and their token maps, which its processes make once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mvar.checkpoint import hub
from mvar.checkpoint.bundle import is_bundle, read_bundle
from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.data.sets.fashion_mnist import fashion_mnist
from mvar.data.sets.icon_drawing import resvg
from mvar.data.sets.icons import icons
from mvar.data.tokens.cache import UNFINISHED, TokenCache, is_cache
from mvar.data.tokens.writer import write_cache
from mvar.files import atomic_folder
from mvar.job import Job, check_same
from mvar.model import Model
from mvar.studies import page
from mvar.studies.comparing.place import Place
from mvar.studies.comparing.plan import DataSet
from mvar.training.generator.token_data import load_tokenizer

DECIDING = ("command", "size", "most", "concepts", "sides", "views")  # fields that decide images and token maps
CROPPED = 1.125  # a shorter side's size, relative to the model's, of which crops are taken


@dataclass(frozen=True)
class Prepared:
    """A data set as files."""

    images: Path  # train/<class> and val/<class>
    tokenizer: str
    tokens: Path  # a token cache
    contents: Mapping[str, str]  # hashes of the tokenizer's weights, and of the images where they are the user's own


def prepare(data: DataSet, folder: Path, place: Place, images: str | None = None) -> Prepared:
    """Get the images, and write their token maps; what is there already is kept.

    Args:
        folder: to write into; shared by all processes.
        images: the user's own, in place of the data set's command.

    Raises:
        ValueError: the folder has the images or token maps of another data set, or of an earlier version of it; or
            `images` is no folder.
    """
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"data = {images!r}: is no folder; give one with train/<class> and val/<class>")
    folder.mkdir(parents=True, exist_ok=True)
    model = _tokenizer(data)
    _check_folder(data, model, folder, place)
    own = Path(images) if images is not None else folder / "images"
    tokenizer, tokens = folder / "tokenizer", folder / "tokens"

    def make(part: str) -> None:
        if part == "images":
            _write_images(data, own)
        else:
            model.save(tokenizer)

    def is_complete(part: str) -> bool:
        return own.is_dir() if part == "images" else is_bundle(tokenizer)

    noun = "parts of the data"
    job = Job(folder=folder, pieces=["images", "tokenizer"], noun=noun, name=str, is_complete=is_complete)
    if place.rank == 0:
        job.make_missing(make)
    job.wait()
    with torch.inference_mode():
        loaded = load_tokenizer(str(tokenizer), place.device)
    factor = CROPPED if data.views > 1 else 1.0
    rank, ranks = place.rank, place.ranks
    write_cache(str(own), str(tokens), loaded, rank=rank, ranks=ranks, views=data.views, resize_factor=factor)
    cached = Job(
        folder=tokens,
        pieces=["token cache"],
        noun=noun,
        name=str,
        is_complete=lambda _: is_cache(tokens) and not (tokens / UNFINISHED).exists(),
    )
    cached.wait()
    contents = {"tokenizer": loaded.fingerprint()}
    if data.command is None:
        contents["images"] = TokenCache.read(tokens, f"out = {str(folder)!r}").settings.listing
    return Prepared(own, str(tokenizer), tokens, contents)


def require(data: DataSet, folder: Path) -> None:
    """Raise ValueError where a package is missing that `prepare` will need."""
    if data.command == "icons" and not (folder / "images").is_dir():
        resvg()


def _check_folder(data: DataSet, model: Model, folder: Path, place: Place) -> None:
    """Write what decides the folder's content, or compare it with what was written before anything else was."""
    facts = {
        **{name: value for name, value in asdict(data).items() if name in DECIDING},
        "tokenizer": data.tokenizer,
        "tokenizer_weights": model.tokenizer.fingerprint(),
    }
    path = folder / "data.json"
    begun = any(
        (folder / name).exists() for name in ("images", "tokenizer", "tokens")
    )  # by any process, after the file
    if path.exists():
        check_same(page.read_json(path, "out"), facts, "out", folder, free=["tokenizer"])
    elif begun:
        raise ValueError(f"out = {str(folder)!r}: no {path.name} says how it was made; delete it, or give another out")
    elif place.rank == 0:
        page.write_json(path, facts)


def _write_images(data: DataSet, out: Path) -> None:
    """Write the data set's images, or evenly spaced ones of them where it takes only some."""

    def write(folder: Path) -> None:
        if data.command == "fashion-mnist":
            fashion_mnist(str(folder))
        else:
            names = read_bundle(hub.find("icons")).classes
            icons(str(folder), data.size, ",".join(names[:: data.concepts]))
        for split, most in data.most.items():
            paths = ImageFolder.scan(folder / split).paths
            for path in {*paths} - {paths[i] for i in evenly_spaced(len(paths), most)}:
                path.unlink()

    if data.command is None:
        raise ValueError(f"data = None: {data.name} is not packaged; give a folder with train/<class> and val/<class>")
    atomic_folder(out, write)


def _tokenizer(data: DataSet) -> Model:
    """The data set's tokenizer at its scales, without a generator."""
    return Model(tokenizer=load_tokenizer(data.tokenizer, "cpu").rescheduled(list(data.sides)))

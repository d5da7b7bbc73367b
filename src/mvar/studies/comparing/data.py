"""What the runs of a study share: images, their token maps, and the features that samples are compared with.

Shapes: N images, F features, K classes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.checkpoint import hub
from mvar.checkpoint.bundle import is_bundle, read_bundle
from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.data.sets.fashion_mnist import fashion_mnist
from mvar.data.sets.icons import icons
from mvar.data.tokens.cache import UNFINISHED, TokenCache, is_cache
from mvar.data.tokens.writer import write_cache
from mvar.evaluation.manifold import overlap
from mvar.features.extractors import Extractor
from mvar.files import atomic_folder
from mvar.job import Job, check_same
from mvar.model import Model
from mvar.studies import measuring, page
from mvar.studies.comparing.plan import DataSet
from mvar.studies.distance import Distance, fingerprint
from mvar.studies.measuring import Form, Labelled
from mvar.training.generator.token_data import load_tokenizer

DECIDING = ("command", "size", "most", "concepts", "sides", "views")  # fields that decide images and token maps
REFERENCE = 5000  # training images that samples are compared with, about
LARGEST_SIDE = 256
CROPPED = 1.125  # a shorter side's size, relative to the model's, of which crops are taken
SHRINKAGE = 0.1  # of the covariance within classes towards its mean variance


@dataclass(frozen=True)
class Place:
    """Which process of how many works on a study, and on which device."""

    rank: int = 0
    ranks: int = 1
    device: str | None = None

    @classmethod
    def of_torchrun(cls, device: str | None) -> "Place":
        """By torchrun's variables; alone without them. Each process of a machine with GPUs takes its own."""
        rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device in (None, "cuda") and ranks > 1 and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return cls(rank, ranks, device)


@contextmanager
def by_itself() -> Iterator[None]:
    """Within it, this process trains by itself, even if torchrun has started several."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


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


# --- what samples are compared with ---


class Real:
    """Real images of a data set, with what samples are measured by.

    Samples are compared with training images; as many held-out images as there are samples give the floor: what real
    images get. Reconstructions of these show how much of a sample's distance is the tokenizer's. The classifier is a
    linear discriminant analysis of the same features, fitted on the training images: a closed form, which needs no
    training of its own.
    """

    def __init__(self, data: DataSet, prepared: Prepared, extractor: Extractor | None = None) -> None:
        images = prepared.images
        self.form = Form(min(data.size, LARGEST_SIDE), data.framed, grey=data.grey)
        K = len(ImageFolder.scan(images / "train").classes)
        train = measuring.originals(str(images), "train", self.form, per_class=max(REFERENCE // max(K, 1), 2))
        held_out = measuring.originals(str(images), "val", self.form, train.classes, data.per_class, lacking=True)
        self.distance = Distance(train.images_Nchw, extractor)
        self.classes, self.per_class = train.classes, data.per_class
        self.classifier = Discriminant(self.distance.reference_NF, train.labels_N)
        self.protocol = {
            "features": self.distance.describe(),
            "form": asdict(self.form),
            "reference": fingerprint(train.images_Nchw),
            "reference_images": len(train.labels_N),
            "samples": K * data.per_class,
        }
        self.floor = {"images": len(held_out.labels_N), **self.measure(held_out)}
        self.restored = self.measure(self._restored(held_out, prepared.tokenizer))

    def _restored(self, images: Labelled, tokenizer: str) -> Labelled:
        """Reconstructions of images whose frame is empty."""
        network = load_tokenizer(tokenizer, "cpu")
        parts = []
        for images_Bchw in images.images_Nchw.split(64):
            pixels_B3HW = F.pad((images_Bchw / 255).expand(-1, 3, -1, -1), [self.form.frame] * 4)
            if pixels_B3HW.shape[2:] != network.config.image_shape:
                pixels_B3HW = F.interpolate(pixels_B3HW, network.config.image_shape, mode="bicubic", antialias=True)
            parts.append(self.form.of(network.reconstruct(pixels_B3HW.clamp(0, 1))))
        return images._replace(images_Nchw=torch.cat(parts))

    def measure(self, images: Labelled) -> dict[str, Any]:
        """Frechet distance with its 90 % interval, class accuracy, precision and recall of a set of images."""
        features_NF = self.distance.features(images.images_Nchw)
        distance = self.distance.with_interval(features_NF)
        right = (self.classifier(features_NF) == images.labels_N).double().mean()
        some = evenly_spaced(len(self.distance.reference_NF), len(features_NF))  # manifolds need equal numbers
        both = overlap(self.distance.reference_NF[some], features_NF)
        return {
            "distance": distance.value,
            "distance_interval": [distance.low, distance.high],
            "accuracy": float(right),
            "precision": both.precision,
            "recall": both.recall,
        }


class Discriminant:
    """Linear discriminant analysis with a shrunken covariance (Friedman 1989), all classes equally likely."""

    def __init__(self, features_NF: Tensor, labels_N: Tensor) -> None:
        features_NF = features_NF.double()
        K = int(labels_N.max()) + 1
        self.means_KF = torch.stack([features_NF[labels_N == k].mean(0) for k in range(K)])
        apart_NF = features_NF - self.means_KF[labels_N]
        covariance_FF = apart_NF.T @ apart_NF / len(features_NF)
        F = len(covariance_FF)
        towards_FF = covariance_FF.trace() / F * torch.eye(F, dtype=torch.float64)
        shrunk_FF = (1 - SHRINKAGE) * covariance_FF + SHRINKAGE * towards_FF
        self.weights_FK = torch.linalg.solve(shrunk_FF, self.means_KF.T)
        self.bias_K = -0.5 * (self.means_KF.T * self.weights_FK).sum(0)

    def __call__(self, features_NF: Tensor) -> Tensor:
        """The most likely class of each image, (N,)."""
        return (features_NF.double() @ self.weights_FK + self.bias_K).argmax(1)

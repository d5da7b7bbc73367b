"""What `mvar.load` returns: a tokenizer, a generator, class names and sampling defaults in one object.

Shapes: B images, P_k tokens of scale k, H W pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mvar.checkpoint import hub, official
from mvar.checkpoint.bundle import CONFIG, GENERATOR, Bundle, StoredDtype, is_bundle, read_bundle, write_bundle
from mvar.checkpoint.placement import Dtype, find_device, find_dtype, to_device, weight_bytes
from mvar.data.images.decoding import as_image, as_stored
from mvar.data.tokens.cache import is_cache
from mvar.data.views import scaled
from mvar.generator.network import Generator
from mvar.generator.reschedule import rescheduled
from mvar.ops import dispatch
from mvar.sampling import editing, likelihood, rejection
from mvar.sampling.concurrency import turn
from mvar.sampling.config import EDIT_MODE, EditMode, SamplingSettings
from mvar.sampling.cost import check_batch, check_images, cost_facts, fitting_batch
from mvar.sampling.engine import OnScale, SampleOutput, Sampler
from mvar.sampling.graphs import Graphs
from mvar.sampling.labels import Label, label_ids
from mvar.sampling.likelihood import ImageLike, Images
from mvar.sampling.masks import FEATHER, MaskLike, pasted, read_hole
from mvar.scales import Side
from mvar.settings import Count, Feather, check
from mvar.tokenizer.network import Tokenizer


@dataclass
class Model(hub.HubModel):
    """A tokenizer, the generator of its token maps, and what belongs to them.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are huggingface_hub's; they write and read bundles.

    What draws takes the fields of `SamplingSettings` as keywords (guidance, top_p, ...): one left out or None is the
    model's default, an unknown name is a TypeError that suggests a known one. All methods raise ValueError with a line
    per problem: field, value and fix.

    Attributes:
        tokenizer: pixels to token maps and back.
        generator: token maps from a class; None in a tokenizer-only model.
        classes: names in order of their index; empty for a model without classes.
        defaults: sampling settings used where a call gives none.
        provenance: where the weights come from.
    """

    tokenizer: Tokenizer
    generator: Generator | None = None
    classes: list[str] = field(default_factory=list)
    defaults: SamplingSettings = field(default_factory=SamplingSettings)
    provenance: dict[str, Any] = field(default_factory=dict)
    _graphs: Graphs = field(default_factory=Graphs, init=False, repr=False, compare=False)
    _fits: int = field(default=0, init=False, repr=False, compare=False)  # most images at once that were found to fit

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.quantizer.codebook.device

    # --- drawing ---

    def sample(
        self,
        labels: Label | Sequence[Label],
        *,
        seed: int = 0,
        index: Sequence[int] | None = None,
        on_scale: OnScale | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> SampleOutput:
        """Draw one image per label.

        Args:
            labels: class indices or names; -1 or None for no class. One label alone gives one image.
            seed: of the run.
            index: each image's number, 0 and up by default; image i depends on (seed, index[i], label, settings) only.
            on_scale: called as on_scale(k, K, preview) after each scale of each batch; preview() decodes what is drawn
                so far, (B, 3, H, W).
            batch_size: most images at once; None takes what memory allows.
        """
        sampler = self.sampler(seed, **settings)
        labels_B, index = self._numbered(labels, index)
        size = self.fitting_batch_size(batch_size, len(index))
        if len(index) > size:  # else one batch is all
            check_images(len(index), self.tokenizer.config.image_shape, "labels")
        return sampler.in_batches(len(index), size, lambda part: sampler.start(labels_B[part], index[part]), on_scale)

    def sample_best(
        self,
        labels: Label | Sequence[Label],
        judge: rejection.JudgeLike = rejection.SELF,
        *,
        keep: int = 1,
        of: int = 8,
        fork_at: int = 0,
        seed: int = 0,
        index: Sequence[int] | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> rejection.BestOutput:
        """Draw several candidates per label and keep those that a judge scores highest: rejection sampling.

        Args:
            labels: one per group of candidates.
            judge: "self" takes the model's own log p(x | class) - log p(x), see `mvar.sampling.rejection.own_scores`; a
                classifier (`mvar.features.judge.Judge` or its file) its log-probability of the class; or a function of
                pixels (B, 3, H, W) in [0, 1] and class indices (B,) to scores (B,), the higher the better.
            keep: how many of a group are kept; they come group by group, the best first.
            of: candidates per group.
            fork_at: how many coarse maps the candidates of a group have in common; these are drawn once.
            index: each group's number. The candidates of group g are those that `sample` draws with index g * of to
                g * of + of - 1 (with `fork_at`, the common maps are the first one's).
            seed, batch_size, settings: as for `sample`; a batch is of candidates.
        """
        sampler = self.sampler(seed, **settings)
        labels_G, index = self._numbered(labels, index)
        scorer = rejection.find_scorer(judge, sampler, labels_G)
        quota = rejection.Quota(keep=keep, of=of, fork_at=fork_at)
        quota.check(sampler.scales)
        check_images(of + keep * len(index), self.tokenizer.config.image_shape, "of, keep, labels")
        size = self.fitting_batch_size(batch_size, of * len(index))
        return rejection.best(sampler, scorer, labels_G, index, quota, size)

    def sampler(self, seed: int = 0, **settings: Any) -> Sampler:
        """What `sample` draws with, to stop between scales or fork what is drawn; see `mvar.sampling.engine`."""
        return Sampler(self.tokenizer, self._generator(), seed, self.defaults.changed(**settings), self._graphs)

    def fitting_batch_size(self, asked: int | None = None, images: int | None = None) -> int:
        """How many of `images` to draw at once: as asked (refused if they do not fit into memory), else at most 64."""
        configs = self.tokenizer.config, self._generator().config
        if asked is None:
            size = wanted = fitting_batch(*configs, self.device)
        else:
            check("batch_size", asked, Count)
            size, wanted = asked, asked if images is None else min(asked, images)
            if wanted > self._fits:  # a run of many batches is not refused half-way
                check_batch(*configs, wanted, self.device)
        self._fits = max(self._fits, wanted)
        return size

    def edit(
        self,
        image: ImageLike,
        mask: MaskLike | None = None,
        *,
        box: Sequence[int] | None = None,
        keep_box: Sequence[int] | None = None,
        label: Label = None,
        n: int = 1,
        mode: EditMode = EDIT_MODE,
        paste: bool = False,
        feather: int | None = None,
        seed: int = 0,
        index: Sequence[int] | None = None,
        on_scale: OnScale | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> editing.EditOutput:
        """Repaint a part of an image: in-painting, out-painting, and with a label class-conditional editing.

        Args:
            image: a file or Pillow image, of the model's aspect; resized to the model's size.
            mask: a file, Pillow image or array of the image's size; white (true) marks what to repaint.
            box, keep_box: instead of a mask, (left, top, right, bottom) in pixels: repaint what is inside, or outside.
            label: class index or name of what is painted; None leaves it to the surroundings.
            n: how many results.
            mode: what the kept cells hold, see `mvar.sampling.editing.edit`.
            paste: `images` of the result are the image in its own size, mode and colour profile, painted only in the
                hole; `pixels` stay what the model drew.
            feather: with `paste`, pixels around the hole over which the two are blended; None takes 4.
            seed, index, on_scale, batch_size, settings: as for `sample`; result i depends on (seed, index[i], image,
                hole, label, mode, settings) only.
        """
        sampler = self.sampler(seed, **settings)
        check("n", n, Count)
        index = _numbers(n, index, f"n = {n}")
        check("feather", feather, Feather)
        if feather is not None and not paste:
            raise ValueError(f"feather = {feather}: blends what paste puts back; give --paste (paste=True) too")
        original = as_stored(image)
        pixels_3HW = scaled(as_image(original), self.tokenizer.config.image_shape)
        hole_HW = read_hole((original.height, original.width), mask, box, keep_box)
        labels_B = self._one_label(label).expand(n)
        check_images(n, (original.height, original.width) if paste else self.tokenizer.config.image_shape, "n")
        size = self.fitting_batch_size(batch_size, n)
        out = editing.edit(sampler, pixels_3HW[None], hole_HW, labels_B, index, mode, size, on_scale)
        if paste:
            out = replace(out, pasted=pasted(out.pixels, original, hole_HW, FEATHER if feather is None else feather))
        return out

    def vary(
        self,
        image: ImageLike | Sequence[Tensor],
        label: Label = None,
        *,
        from_scale: int,
        n: int = 8,
        seed: int = 0,
        index: Sequence[int] | None = None,
        on_scale: OnScale | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> SampleOutput:
        """Keep the first `from_scale` maps of an image and draw the finer ones again, n times.

        Args:
            image: a file or Pillow image, of the model's aspect; or one image's token maps, (1, P_k) or (P_k,) each.
            label: its class index or name; None for no class.
            from_scale: how many maps are kept, 0 (none) to K - 1 (all but the finest).
            n: how many variations.
            seed, index, on_scale, batch_size, settings: as for `sample`.
        """
        sampler = self.sampler(seed, **settings)
        check("n", n, Count)
        index = _numbers(n, index, f"n = {n}")
        check_images(n, self.tokenizer.config.image_shape, "n")
        if isinstance(image, (str, Path, Image.Image)):
            pixels_3HW = scaled(as_image(image), self.tokenizer.config.image_shape)
            with turn():
                image = self.tokenizer.encode(pixels_3HW[None].to(self.device))
        size = self.fitting_batch_size(batch_size, n)
        return editing.vary(sampler, image, self._one_label(label), index, from_scale, size, on_scale)

    # --- likelihood ---

    def score(self, images: Images, labels: Label | Sequence[Label] = None) -> likelihood.Score:
        """Exact log p(tokens | class) and bits per token of images, by scale.

        Args:
            images: files or Pillow images, resized and cropped as in training; or pixels (B, 3, H, W) in [0, 1].
            labels: one per image, or one for all; None for no class.
        """
        generator, maps = self._generator(), likelihood.token_maps(self.tokenizer, images)
        B, labels_B = len(maps[0]), torch.tensor(self.label_ids(labels))
        if len(labels_B) not in (1, B):
            raise ValueError(f"labels has {len(labels_B)} for {B} images: give one for each, or one for all")
        return likelihood.score(self.tokenizer, generator, maps, labels_B.expand(B))

    def classify(
        self, images: Images, prior: Sequence[float] | None = None, scales: int | None = None
    ) -> likelihood.Classification:
        """The class of images, as for `score`, by Bayes' rule: p(class | tokens) ~ p(tokens | class) p(class).

        `prior` is p(class) of each class, in order; None for a uniform one. `scales` is how many token maps are looked
        at, from the coarsest; None for all. Few are quick, but say less.
        """
        maps = likelihood.first_maps(likelihood.token_maps(self.tokenizer, images), scales)
        return likelihood.classify(self.tokenizer, self._generator(), maps, self.classes, prior)

    # --- labels and facts ---

    def label_ids(self, labels: Label | Sequence[Label]) -> list[int]:
        """Class indices of labels given as indices or names; see `mvar.sampling.labels.label_ids`."""
        return label_ids(labels, self.classes, self._null)

    def class_name(self, class_id: int) -> str:
        """The name of a class index, "no class" for the null class."""
        return "no class" if class_id == self._null else self.classes[class_id]

    def facts(self) -> dict[str, str]:
        """What this model is, by name: sizes, parameters, memory, arithmetic, classes, defaults, origin."""
        found = self.bundle().facts()
        for name, network in (("Tokenizer", self.tokenizer), ("Generator", self.generator)):
            if network is not None:
                found[f"{name} parameters"] = f"{sum(p.numel() for p in network.parameters()):,}"
        float32, bfloat16 = weight_bytes(self.tokenizer, self.generator)
        found["Weights in memory"] = f"{float32 / 1e6:,.1f} MB in float32, {bfloat16 / 1e6:,.1f} MB in bfloat16"
        if self.generator is not None:
            found |= cost_facts(self.tokenizer.config, self.generator.config)
            device = find_device(None)
            found["Between products here"] = dispatch.describe(device, getattr(torch, find_dtype(None, device)))
        return found

    # --- files ---

    def save(self, folder: str | Path, dtype: StoredDtype = "float32") -> Path:
        """Write the model as a bundle and return its folder; see `mvar.checkpoint.bundle.write_bundle`."""
        return write_bundle(folder, self.bundle(), dtype)

    def bundle(self) -> Bundle:
        """The model as what a bundle holds."""
        parts = {name: getattr(self, name) for name in ("tokenizer", "generator", "classes", "provenance")}
        return Bundle(**parts, defaults=asdict(self.defaults))

    def rescheduled(self, sides: list[Side]) -> "Model":
        """The model at other scales, and so for another image size; its weights are shared.

        `sides` are those of the token maps from coarse to fine, p for p x p or (h, w). Embeddings of positions and
        levels are interpolated: the result needs fine-tuning, as a warning says.
        """
        tokenizer = self.tokenizer.rescheduled(sides)
        if tokenizer.config.schedule == self.tokenizer.config.schedule:
            return self
        generator = None if self.generator is None else rescheduled(self.generator, sides)
        interpolated = "" if generator is None else "; its position and level embeddings are interpolated"
        warnings.warn(f"the model was not trained at these scales: fine-tune it{interpolated}", stacklevel=2)
        provenance = {**self.provenance, "rescheduled": f"from {self.tokenizer.config.sides}; not fine-tuned"}
        usual = asdict(SamplingSettings())
        defaults = replace(self.defaults, **{name: usual[name] for name in self.defaults.per_scale()})
        return replace(self, tokenizer=tokenizer, generator=generator, defaults=defaults, provenance=provenance)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Model":
        """Load a model; options are those of `mvar.load`."""
        return load(pretrained_model_name_or_path, **options)

    # --- parts ---

    @property
    def _null(self) -> int:
        """Index of the null class."""
        return self.generator.config.num_classes if self.generator else len(self.classes)

    def _generator(self) -> Generator:
        if self.generator is None:
            raise ValueError(f"this model is a tokenizer without a generator: load a bundle that has {GENERATOR}")
        return self.generator

    def _numbered(self, labels: Label | Sequence[Label], index: Sequence[int] | None) -> tuple[Tensor, Sequence[int]]:
        """Class indices of labels, and the number of each image."""
        labels_B = torch.tensor(self.label_ids(labels))
        return labels_B, _numbers(len(labels_B), index, f"{len(labels_B)} labels")

    def _one_label(self, label: Label) -> Tensor:
        """The class index of one label, (1,)."""
        if len(ids := self.label_ids(label)) != 1:
            raise ValueError(f"label has {len(ids)} classes: give one")
        return torch.tensor(ids)


def _numbers(count: int, index: Sequence[int] | None, what: str) -> Sequence[int]:
    if index is not None and len(index) != count:
        raise ValueError(f"index has {len(index)} numbers for {what}: give one for each image")
    return range(count) if index is None else list(index)


def load(
    source: str | Path, device: str | torch.device | None = None, dtype: Dtype | None = None, **download: Any
) -> Model:
    """Load a model.

    Args:
        source: the name of a packaged model, a bundle or run folder, or an "owner/name" of the Hugging Face hub. A
            packaged name wins over a folder of that name: write "./name" for the folder.
        device: where to run; None takes CUDA where there is one, else the CPU.
        dtype: "float32" or "bfloat16"; None takes float32, and for a generator of 100 M parameters or more
            bfloat16 on processors that multiply it fast.
        download: how to fetch from the hub (revision, token, ...), as huggingface_hub's `snapshot_download` takes it.

    Raises:
        ValueError: nothing is found there (packaged names are listed), it is a token cache, or the bundle is damaged.
    """
    folder = hub.find(source, **download)
    if not is_bundle(folder) and is_cache(folder):
        raise ValueError(
            f"model = {str(source)!r}: is a token cache, which train generator takes as --data; "
            "give a bundle or run folder"
        )
    return from_bundle(read_bundle(folder, device, dtype), device, dtype)


def load_official(
    tokenizer: str | Path | None = None,
    generator: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
) -> Model:
    """Load files of the official VAR, M-VAR and VQ-VAE code; every hyperparameter is read from their tensors.

    Args:
        tokenizer: a .pth or .safetensors file; None where the generator's is a trainer's checkpoint, which holds both.
        generator: likewise; None for the tokenizer alone.
        device, dtype: as for `load`.

    Raises:
        ValueError: no file given, a damaged one, or unknown, missing or misshapen keys.
    """
    return from_bundle(official.load(tokenizer, generator), device, dtype)


def from_bundle(bundle: Bundle, device: str | torch.device | None = None, dtype: Dtype | None = None) -> Model:
    """A model of a bundle's networks, moved to where and how they are to run; see `load`."""
    try:
        defaults = SamplingSettings(**bundle.defaults)
        defaults.check(len(bundle.tokenizer.config.sides))
    except ValueError as error:
        raise ValueError("\n".join(f"{CONFIG}: defaults.{line}" for line in str(error).splitlines())) from None
    to_device(bundle.tokenizer, bundle.generator, device, dtype)
    return Model(bundle.tokenizer, bundle.generator, bundle.classes, defaults, bundle.provenance)

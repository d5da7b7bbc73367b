"""What `mvar.load` returns: a tokenizer, a generator, class names and sampling defaults, thinly tied together.

Shapes: B images, P_k tokens of scale k, H W pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from torch import Tensor

from mvar.checkpoint import hub, official
from mvar.checkpoint.bundle import CARD, Bundle, StoredDtype, is_bundle, read_bundle, write_bundle
from mvar.checkpoint.card import TAGS, model_card, model_facts
from mvar.checkpoint.placement import Dtype, find_device, place, weight_bytes
from mvar.data.images.decoding import as_image, as_stored
from mvar.data.tokens.cache import is_cache
from mvar.data.views import whole
from mvar.files import write_text
from mvar.generator.network import Generator
from mvar.generator.reschedule import rescheduled
from mvar.ops import dispatch
from mvar.sampling import editing, likelihood, rejection
from mvar.sampling.config import EDIT_MODE, PER_SCALE, EditMode, GuidanceSchedule, SamplingSettings
from mvar.sampling.cost import check_batch, check_images, cost, fitting_batch
from mvar.sampling.encoding import ImageLike, token_maps
from mvar.sampling.engine import OnScale, SampleOutput, Sampler
from mvar.sampling.labels import Label, label_ids
from mvar.sampling.masks import FEATHER, MaskLike, pasted, read_hole, resized
from mvar.scales import Side
from mvar.settings import Count, Feather, check, given
from mvar.tokenizer.network import Tokenizer


@dataclass
class Model(ModelHubMixin, library_name="mvar", tags=list(TAGS)):
    """A tokenizer, the generator of its token maps, and what belongs to them.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are huggingface_hub's; what they write is a bundle.

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
    _fits: int = field(default=0, init=False, repr=False, compare=False)  # images at once that memory was enough for

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.quantizer.codebook.device

    # --- drawing ---

    def sample(
        self,
        labels: Label | Sequence[Label],
        *,
        guidance: float | list[float] | None = None,
        guidance_schedule: GuidanceSchedule | None = None,
        top_k: int | list[int] | None = None,
        top_p: float | list[float] | None = None,
        temperature: float | list[float] | None = None,
        smooth: bool | None = None,
        seed: int = 0,
        index: Sequence[int] | None = None,
        on_scale: OnScale | None = None,
        batch_size: int | None = None,
    ) -> SampleOutput:
        """Draw one image for each label; settings left None are the model's defaults.

        Args:
            labels: class indices or names; -1 or None for no class. One label alone gives one image.
            guidance: strength of classifier-free guidance, 0 switches it off; a list has a value for each scale.
            guidance_schedule: "linear" (from 0 at the first scale to the full strength at the last) or "constant".
            top_k: sample from the k most likely codes, 0 switches it off, 1 is greedy; or a list.
            top_p: sample from the most likely codes that hold this much probability, 1 switches it off; or a list.
            temperature: divides the guided logits before the filters; or a list.
            smooth: mix code vectors instead of choosing one; prettier, but not for metrics.
            seed: of the run.
            index: each image's number, 0 and up by default; image i depends on (seed, index[i], label, settings) only.
            on_scale: called as on_scale(k, K, preview) after each scale; preview() decodes what there is, (B, 3, H, W).
            batch_size: at most so many images at once (`on_scale` then sees each batch); None takes what memory allows.

        Raises:
            ValueError: a field, its value and the fix, a line for each problem.
        """
        sampler = self.sampler(
            seed,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            smooth=smooth,
        )
        labels_B, index = self._numbered(labels, index)
        size = self.fitting_batch_size(batch_size, len(index))
        if len(index) > size:  # else a batch is all there is
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
        """Draw several candidates for each label and keep those that a judge likes best: rejection sampling.

        Args:
            labels: one for each group of candidates, as of `sample`.
            judge: "self" takes the model's own log p(x | class) - log p(x), see `mvar.sampling.rejection.own_scores`; a
                classifier (`mvar.features.judge.Judge` or its file) its log-probability of the class; or a function of
                pixels (B, 3, H, W) in [0, 1] and class indices (B,) that gives scores (B,), the higher the better.
            keep: how many of a group are kept; the result has them group by group, the best first.
            of: candidates of a group.
            fork_at: coarse maps that the candidates of a group share, which are then drawn once; 0 shares none.
            seed, settings: as of `sample`.
            index: each group's number, 0 and up by default. The candidates of group g are those that `sample` draws
                with index g * of to g * of + of - 1 (with `fork_at`, the shared maps are the first one's).
            batch_size: at most so many candidates at once; None takes what memory allows.

        Raises:
            ValueError: a field, its value and the fix, a line for each problem.
        """
        sampler = self.sampler(seed, **settings)
        labels_G, index = self._numbered(labels, index)
        scorer = rejection.find_scorer(judge, sampler, labels_G)
        choice = rejection.Choice(keep=keep, of=of, fork_at=fork_at)
        choice.check(sampler.scales)
        check_images(of + keep * len(index), self.tokenizer.config.image_shape, "of, keep, labels")
        size = self.fitting_batch_size(batch_size, of * len(index))
        return rejection.best(sampler, scorer, labels_G, index, choice, size)

    def sampler(self, seed: int = 0, **settings: Any) -> Sampler:
        """What `sample` draws with: start it, stop it between scales, fork what there is; see `mvar.sampling.engine`.

        Args:
            seed: of the run.
            settings: guidance, top_k, ... as of `sample`; those left out or None are the model's defaults.

        Raises:
            ValueError: a setting out of range, or a model without a generator.
        """
        settings = given(settings)
        if unknown := sorted(set(settings) - {f.name for f in fields(SamplingSettings)}):
            raise TypeError(f"no sampling setting is named {unknown[0]!r}")
        return Sampler(self.tokenizer, self._generator(), seed, replace(self.defaults, **settings))

    def fitting_batch_size(self, asked: int | None = None, images: int | None = None) -> int:
        """How many images to draw at once: as asked, else what memory allows, at most 64.

        Args:
            asked: batch_size; see `sample`.
            images: how many there are, of which a batch has no more; None for enough.

        Raises:
            ValueError: out of bounds, or more than fit into memory.
        """
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
            image: a file or Pillow's image, of the model's aspect; resized to the model's size.
            mask: a file, Pillow's image or an array of the image's size; white (true) marks what to repaint.
            box: instead of a mask, (left, top, right, bottom) in the image's pixels: repaint what is inside.
            keep_box: likewise: repaint what is outside.
            label: a class index or name for what is painted; None leaves it to the surroundings.
            n: how many results.
            mode: what the kept cells hold, see `mvar.sampling.editing.edit`.
            paste: `images` of the result are the image in its own size, mode and colour profile, painted in the hole
                alone; `pixels` stay what the model drew.
            feather: with `paste`, pixels around the hole over which the two are blended; None takes 4.
            seed, index, on_scale, batch_size: as of `sample`; result i depends on (seed, index[i], image, hole, label,
                mode, settings) only.
            settings: guidance, top_k, ... as of `sample`.

        Raises:
            ValueError: a field, its value and the fix, a line for each problem.
        """
        sampler = self.sampler(seed, **settings)
        index = self._index(n, index)
        check("feather", feather, Feather)
        if feather is not None and not paste:
            raise ValueError(f"feather = {feather}: blends what paste puts back; give --paste (paste=True) too")
        original = as_stored(image)
        pixels_3HW = whole(as_image(original), self.tokenizer.config.image_shape)
        hole_HW = read_hole((original.height, original.width), mask, box, keep_box)
        labels_B = self._one_label(label).expand(n)
        shape = (original.height, original.width) if paste else self.tokenizer.config.image_shape
        check_images(n, shape, "n")
        size = self.fitting_batch_size(batch_size, n)
        hole_hw = resized(hole_HW, self.tokenizer.config.image_shape)
        out = editing.edit(sampler, pixels_3HW[None], hole_hw, labels_B, index, mode, size, on_scale)
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
            image: a file or Pillow's image, of the model's aspect; or one image's token maps, (1, P_k) or (P_k,) each.
            label: its class index or name; None for no class.
            from_scale: how many maps are kept, 0 (none) to K - 1 (all but the finest).
            n: how many variations.
            seed, index, on_scale, batch_size: as of `sample`.
            settings: guidance, top_k, ... as of `sample`.

        Raises:
            ValueError: a field, its value and the fix, a line for each problem.
        """
        sampler = self.sampler(seed, **settings)
        index = self._index(n, index)
        check_images(n, self.tokenizer.config.image_shape, "n")
        if not 0 <= from_scale < sampler.scales:
            raise ValueError(f"from_scale = {from_scale}: give 0 (keep nothing) to {sampler.scales - 1}")
        if isinstance(image, (str, Path, Image.Image)):
            pixels_3HW = whole(as_image(image), self.tokenizer.config.image_shape)
            maps = self.tokenizer.encode(pixels_3HW[None].to(self.device))
        else:
            maps = [tokens_P.to(self.device).unsqueeze(0) if tokens_P.dim() == 1 else tokens_P for tokens_P in image]
            if len(maps) < from_scale:
                raise ValueError(f"from_scale = {from_scale}: {len(maps)} token maps are given")
        size = self.fitting_batch_size(batch_size, n)
        return editing.vary(sampler, maps, self._one_label(label), index, from_scale, size, on_scale)

    # --- likelihood ---

    def score(self, images: Sequence[ImageLike] | Tensor, labels: Label | Sequence[Label] = None) -> likelihood.Score:
        """Exact log p(tokens | class) and bits per token of images, for each scale.

        Args:
            images: files or Pillow's images, resized and cropped as in training; or pixels (B, 3, H, W) in [0, 1].
            labels: one for each image, or one for all; None for no class.

        Raises:
            ValueError: an image that cannot be used, an unknown label, or not as many labels as images.
        """
        generator, maps = self._generator(), token_maps(self.tokenizer, images)
        B, ids = len(maps[0]), self.label_ids(labels)
        if len(ids) not in (1, B):
            raise ValueError(f"labels has {len(ids)} for {B} images: give one for each, or one for all")
        return likelihood.score(self.tokenizer, generator, maps, torch.tensor(ids).expand(B))

    def classify(
        self, images: Sequence[ImageLike] | Tensor, prior: Sequence[float] | None = None
    ) -> likelihood.Classification:
        """The class of images by Bayes' rule: p(class | tokens) proportional to p(tokens | class) p(class).

        Args:
            images: as of `score`.
            prior: p(class) for each class, in order; None for a uniform one.

        Raises:
            ValueError: an image that cannot be used, a prior that is none, or a model without classes.
        """
        generator, C = self._generator(), len(self.classes)
        if C < 2:
            raise ValueError(f"this model has {C} classes: classifying takes one with two or more")
        prior_C = torch.full((C,), 1 / C) if prior is None else torch.tensor([float(p) for p in prior])
        prior_C = prior_C.double()
        if len(prior_C) != C or not bool((prior_C >= 0).all()) or abs(float(prior_C.sum()) - 1) > 1e-3:
            raise ValueError(f"prior = {prior}: give {C} probabilities that sum to 1")
        log_prob_BCK = likelihood.class_log_probs(self.tokenizer, generator, token_maps(self.tokenizer, images))
        return likelihood.Classification(likelihood.bayes(log_prob_BCK.sum(2), prior_C), self.classes)

    # --- labels and facts ---

    def label_ids(self, labels: Label | Sequence[Label]) -> list[int]:
        """Class indices of labels given as indices or names; see `mvar.sampling.labels.label_ids`."""
        return label_ids(labels, self.classes, self._null)

    def class_name(self, class_id: int) -> str:
        """The name of a class index, "no class" for the null class."""
        return "no class" if class_id == self._null else self.classes[class_id]

    def facts(self) -> dict[str, str]:
        """What this model is, by name: sizes, parameters, memory, arithmetic, classes, defaults, origin."""
        found = model_facts(self._bundle().config(), self.classes)
        for name, network in (("Tokenizer", self.tokenizer), ("Generator", self.generator)):
            if network is not None:
                found[f"{name} parameters"] = f"{sum(p.numel() for p in network.parameters()):,}"
        float32, bfloat16 = weight_bytes(self.tokenizer, self.generator)
        found["Weights in memory"] = f"{float32 / 1e6:,.1f} MB in float32, {bfloat16 / 1e6:,.1f} MB in bfloat16"
        if self.generator is not None:
            spent = cost(self.tokenizer.config, self.generator.config)
            gflop = [flop / 1e9 for flop in (spent.generator_flop, spent.decoder_flop)]
            guided = " with guidance" if self.classes else ""
            found["FLOP of an image"] = f"{gflop[0]:,.2f} G generator{guided}, {gflop[1]:,.2f} G decoder"
            found["State between scales"] = f"{spent.state_bytes / 1e6:,.2f} MB a branch, float32"
            found["Between products here"] = dispatch.describe(find_device(None))
        return found

    # --- files ---

    def save(self, folder: str | Path, dtype: StoredDtype = "float32") -> Path:
        """Write the model as a bundle and return its folder; see `mvar.checkpoint.bundle.write_bundle`."""
        if self._rounded and dtype == "float32":
            raise ValueError(
                "dtype = 'float32': the weights in use are rounded to bfloat16; "
                "load the model with dtype='float32' to save it whole, or save it as bfloat16"
            )
        return write_bundle(folder, self._bundle(), dtype)

    def rescheduled(self, sides: list[Side]) -> "Model":
        """The model at other scales, and so for other image sizes; its weights are shared.

        Embeddings of positions and levels are interpolated: the result needs fine-tuning, as a warning says.

        Args:
            sides: token maps from coarse to fine, p for p x p or (h, w).

        Raises:
            ValueError: sides that are no schedule, or that this tokenizer cannot take.
        """
        tokenizer = self.tokenizer.rescheduled(sides)
        if tokenizer.config.schedule == self.tokenizer.config.schedule:
            return self
        generator = None if self.generator is None else rescheduled(self.generator, sides)
        interpolated = "" if generator is None else "; its position and level embeddings are interpolated"
        warnings.warn(f"the model was not trained at these scales: fine-tune it{interpolated}", stacklevel=2)
        provenance = {**self.provenance, "rescheduled": f"from {self.tokenizer.config.sides}; not fine-tuned"}
        by_scale = [name for name in PER_SCALE if isinstance(getattr(self.defaults, name), list)]
        library = SamplingSettings()
        defaults = replace(self.defaults, **{name: getattr(library, name) for name in by_scale})
        return replace(self, tokenizer=tokenizer, generator=generator, defaults=defaults, provenance=provenance)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model as huggingface_hub's `push_to_hub` does, with a card that names the repository."""
        return super().push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options)

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> str | None:
        """Write the model as a bundle, as `save` does; arguments are those of huggingface_hub's `save_pretrained`."""
        result = super().save_pretrained(save_directory, model_card_kwargs=model_card_kwargs, **options)
        if name := (model_card_kwargs or {}).get("name"):
            write_text(Path(save_directory) / CARD, model_card(name, self._bundle().config(), self.classes))
        return result

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: Dtype | None = None,
        **download: Any,
    ) -> "Model":
        """Load a model as `mvar.load` does.

        Args:
            pretrained_model_name_or_path: packaged name, folder, or owner/name of the hub.
            device, dtype: as of `mvar.load`.
            download: revision, token, cache_dir, ... as huggingface_hub's `snapshot_download` takes them.
        """
        return from_bundle(
            read_bundle(hub.find(pretrained_model_name_or_path, **download), device, dtype), device, dtype
        )

    # --- parts ---

    @property
    def _null(self) -> int:
        """The null class's index."""
        return self.generator.config.num_classes if self.generator else len(self.classes)

    @property
    def _rounded(self) -> bool:
        return any(
            p.dtype == torch.bfloat16 for net in (self.tokenizer, self.generator) if net for p in net.parameters()
        )

    def _generator(self) -> Generator:
        if self.generator is None:
            raise ValueError(
                "this model is a tokenizer without a generator: load a bundle that has generator.safetensors"
            )
        return self.generator

    def _bundle(self) -> Bundle:
        return Bundle(
            tokenizer=self.tokenizer,
            generator=self.generator,
            classes=self.classes,
            defaults=asdict(self.defaults),
            provenance=self.provenance,
        )

    def _numbered(self, labels: Label | Sequence[Label], index: Sequence[int] | None) -> tuple[Tensor, list[int]]:
        """Class indices of labels, and the number of each."""
        labels_B = torch.tensor(self.label_ids(labels))
        numbers = list(range(len(labels_B)) if index is None else index)
        if len(numbers) != len(labels_B):
            raise ValueError(f"index has {len(numbers)} numbers for {len(labels_B)} labels: give one for each image")
        return labels_B, numbers

    def _index(self, n: int, index: Sequence[int] | None) -> Sequence[int]:
        check("n", n, Count)
        if index is not None and len(index) != n:
            raise ValueError(f"index has {len(index)} numbers for n = {n}: give one for each image")
        return range(n) if index is None else list(index)

    def _one_label(self, label: Label) -> Tensor:
        """The class index of one label, (1,)."""
        ids = self.label_ids(label)
        if len(ids) != 1:
            raise ValueError(f"label has {len(ids)} classes: give one")
        return torch.tensor(ids)


def load(source: str | Path, device: str | torch.device | None = None, dtype: Dtype | None = None) -> Model:
    """Load a model.

    Args:
        source: the name of a packaged model, a bundle or run folder, or a "owner/name" of the Hugging Face hub. A
            packaged name wins over a folder of that name: write "./name" for the folder.
        device: where to run; None takes CUDA where there is one, else the CPU.
        dtype: "float32" or "bfloat16"; None takes float32, and for a generator of 100 M parameters or more
            bfloat16 on processors that multiply it fast.

    Raises:
        ValueError: nothing is found there (packaged names are listed), it is a token cache, or the bundle is not sound.
    """
    folder = hub.find(source)
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
    """Load files of the official VAR, M-VAR and VQ-VAE code, every hyperparameter read from their tensors.

    Args:
        tokenizer: a .pth or .safetensors file; None where the generator's is a trainer's checkpoint, which holds both.
        generator: likewise; None for the tokenizer alone.
        device, dtype: as of `load`.

    Raises:
        ValueError: no file given, a damaged one, or unknown, missing or misshapen keys, a line for each.
    """
    return from_bundle(official.load(tokenizer, generator), device, dtype)


def from_bundle(bundle: Bundle, device: str | torch.device | None = None, dtype: Dtype | None = None) -> Model:
    """A model of the networks in a bundle, moved to where and how they shall run; see `load`."""
    if unknown := sorted(set(bundle.defaults) - {f.name for f in fields(SamplingSettings)}):
        raise ValueError(f"defaults.{unknown[0]}: no sampling setting of this name; remove it from config.json")
    defaults = SamplingSettings(**bundle.defaults)
    defaults.check(len(bundle.tokenizer.config.sides))
    place(bundle.tokenizer, bundle.generator, device, dtype)
    return Model(bundle.tokenizer, bundle.generator, bundle.classes, defaults, bundle.provenance)

"""The settings of a training run, and presets, which give the values for one image size; without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from mvar.generator.config import PRESETS as GENERATORS
from mvar.generator.config import GeneratorConfig
from mvar.settings import (
    Augmentation,
    Count,
    Many,
    PartialShare,
    Positive,
    Real,
    ResizeFactor,
    Seed,
    Share,
    Switch,
    Weight,
    Whole,
    ordered,
    raise_problems,
    settings,
)
from mvar.tokenizer.config import PRESETS as TOKENIZERS
from mvar.tokenizer.config import TokenizerConfig

# How long a run lasts, or ranks wait for each other: at most two years.
Minutes = Annotated[float, Real(0, 1_000_000, open="(", text="must be above 0 and at most 1,000,000 minutes")]
# What follows from `minutes` where it is given, and its value otherwise.
LAID = {"steps": 10_000, "val_images": 5000, "validate_every": 1000, "checkpoint_every": 1000}
MOST_TIMED_IMAGES = 2000  # validation images of a run of minutes, before its speed is known
QUICK_BELOW = 60  # minutes below which the quick presets are better
FreezablePart = Literal["classes", "embeddings", "attention", "mamba", "mlp", "adaln", "blocks", "head"]


@settings
class RunConfig:
    """What every training run has.

    Attributes:
        data: folder of images, one sub-folder per class or none; may hold train/ and val/. Or webdataset shards: a
            folder of .tar files, train-{000..099}.tar, or a stream (http://, https://, pipe:), which needs val_data.
        out: run folder: checkpoints, metrics.jsonl, TensorBoard events, previews; a loadable bundle.
        steps: optimizer steps of the whole run; by default 10,000, or as many as fit into `minutes`.
        minutes: how long the run lasts, in place of `steps`: from the start of the command until all is written. Steps,
            validations and checkpoints follow from the measured speed.
        batch_size: images per optimizer step across all ranks.
        accumulate: gradient accumulation steps: micro-batches per optimizer step on each rank, to save memory.
        base_lr: learning rate for 256 images; the peak is base_lr * batch_size / 256.
        lr_end: last learning rate as a fraction of the peak.
        warmup: fraction of the steps that warm up, from 0.005 of the peak.
        weight_decay: AdamW's decay at the start.
        weight_decay_end: the same at the end (cosine between).
        betas: AdamW's moment decays.
        grad_clip: largest gradient norm.
        ema: decay of the moving average of the weights, which validation, previews and the bundle use; 0 for none.
        resize_factor: the shorter side is resized to this times the model's, then cropped at random;
            1 keeps whole (square) images.
        augment: what else changes at random in each epoch: shift by up to 4 % of the side, scale to 0.84 to 1.06 of
            the size, flip left to right; validation images stay as they are.
        on_bad_image: what an unreadable image does: "skip" it with a report, or "error".
        val_data: folder or shards for validation, if data does not hold them; by default a part is held out.
        val_images: largest number of validation images; by default 5,000, or what takes 1 % of `minutes`.
        workers: batches that are read ahead in parallel, 0 for none; results do not depend on it.
        seed: of everything random; step i depends on (seed, i) only.
        device: "cpu", "cuda", ...; None takes a GPU if there is one.
        dtype: of the matrix products, weights stay in float32; None takes bfloat16 on processors that multiply it
            fast, else float32; float16 scales the loss.
        parallel: how torchrun's processes divide the work: "ddp" copies the model, "fsdp" shards it (generators only).
        rank_timeout: minutes without an answer from another rank after which the run fails.
        log_every: steps between lines of metrics.
        validate_every: steps between validations, each with a preview; by default 1,000, or a tenth of `minutes`.
        checkpoint_every: steps between checkpoints; by default 1,000, or a tenth of `minutes` and five at most.
        keep_checkpoints: how many of the last to keep, beside the best one.
        resume: continue the run in `out` from its checkpoint; `steps` or `minutes` may then be more than before.
    """

    data: str
    out: str
    steps: Many | None = None
    minutes: Minutes | None = None
    batch_size: Count = 64
    accumulate: Count = 1
    base_lr: Positive = 1e-4
    lr_end: Share = 0.1
    warmup: Share = 0.02
    weight_decay: Weight = 0.05
    weight_decay_end: Weight = 0.05
    betas: tuple[PartialShare, PartialShare] = (0.9, 0.95)
    grad_clip: Positive = 2.0
    ema: PartialShare = 0.9999
    resize_factor: ResizeFactor = 1.125
    augment: tuple[Augmentation, ...] = ()
    on_bad_image: Literal["skip", "error"] = "skip"
    val_data: str | None = None
    val_images: Many | None = None
    workers: Annotated[int, Whole(0, 256)] = 2
    seed: Seed = 0
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    parallel: Literal["ddp", "fsdp"] | None = None
    rank_timeout: Minutes = 10.0
    log_every: Many = 50
    validate_every: Many | None = None
    checkpoint_every: Many | None = None
    keep_checkpoints: Count = 2
    resume: Switch = False

    def __post_init__(self) -> None:
        if self.minutes is None:
            for name, value in LAID.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
        object.__setattr__(self, "augment", ordered(self.augment))
        raise_problems(self._problems())

    @classmethod
    def preset(cls, name: str | None = None, **changes: Any) -> Self:
        """A run with a preset's values and these changes, such as data and out; with `minutes` no name is needed."""
        presets = GENERATOR_PRESETS if issubclass(cls, GeneratorTraining) else TOKENIZER_PRESETS
        return cls(**{**preset_values(presets, name, changes.get("minutes")), **changes})

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.base_lr * self.batch_size / 256

    def _problems(self) -> Iterator[str]:
        if self.minutes is not None and self.steps is not None:
            yield f"steps = {self.steps}: minutes = {self.minutes:g} decides how many; leave one of them out"
        for name in ("data", "out"):
            if not getattr(self, name):
                yield f"{name} = '': give a folder"
        if self.data and self.out and Path(self.out).resolve().is_relative_to(Path(self.data).resolve()):
            yield f"out = {self.out!r}: lies inside data, whose images its previews would join; name another"
        if self.batch_size % (n := self.accumulate):
            fix = f"cannot be cut into accumulate = {n} equal parts; give a multiple of {n}"
            yield f"batch_size = {self.batch_size}: {fix}"


@settings
class TokenizerTraining(RunConfig):
    """A tokenizer's training run.

    Attributes:
        model: the tokenizer.
        l1: weight of the absolute pixel error (model space, [-1, 1]).
        l2: weight of the squared pixel error.
        perceptual: weight of the distance in the maps of `perceptual_network`; 0 leaves it out.
        perceptual_network: effnet-lite0 (needs the extra "perceptual"), or a file with the weights of another.
        adversarial: weight of the adversarial loss relative to the other losses; 0 leaves it out.
        adversarial_start: fraction of the run after which the discriminator joins.
        discriminator_channels: width of its first level.
        discriminator_lr: its learning rate as a fraction of the model's.
        scale_dropout: chance that an image keeps only its first few scales (quantiser dropout).
        start_from_data: fill the codebook with the first images' residuals; else with random numbers.
        init_from: bundle, run folder or packaged name of the tokenizer to start from; its settings replace those of
            `model`.
        decoder_only: keep encoder and codes, and so all token maps, as they are in `init_from`; a generator trained on
            them stays valid.
        revive_every: steps between revivals of dead codes.
        revive_until: fraction of the run after which no code is revived.
        dead_below: a code is dead when used less than this fraction of the mean usage since the last revival.
    """

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    l1: Weight = 0.2
    l2: Weight = 1.0
    perceptual: Weight = 0.5
    perceptual_network: str = "effnet-lite0"
    adversarial: Weight = 0.4
    adversarial_start: Share = 0.2
    discriminator_channels: Annotated[int, Whole(1, 1024)] = 64
    discriminator_lr: Weight = 1.0
    scale_dropout: Share = 0.1
    start_from_data: Switch = True
    init_from: str | None = None
    decoder_only: Switch = False
    revive_every: Many = 100
    revive_until: Share = 0.7
    dead_below: Weight = 0.03

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.parallel == "fsdp":
            yield "parallel = 'fsdp': a tokenizer fits every rank; give ddp"
        if self.decoder_only and self.init_from is None:
            yield "decoder_only = True: needs a trained encoder; give --init-from"


@settings
class GeneratorTraining(RunConfig):
    """A generator's training run.

    Attributes:
        tokenizer: a bundle or run folder, or a packaged model's name; its schedule, codes and latent channels
            and the data's classes override those of `model`.
        model: the generator.
        label_smoothing: of the cross-entropy.
        progressive: fraction of the run in which the finer scales are added one after the other; 0 trains all from the
            start.
        progressive_from: the finest scale (from 0) that is trained from the start even so.
        init_from: bundle, run folder or packaged name of the generator to start from; classes keep their embedding by
            name. Without effect when a run is resumed.
        freeze: parts that keep their initial weights: classes, embeddings (of tokens, positions and levels),
            attention, mamba, mlp, adaln, blocks (the four before) or head.
        activation_checkpointing: compute each block's activations again in the backward pass instead of keeping
            them: less memory, about a third more arithmetic.
        compile: run the blocks through torch.compile: the first step takes a minute or more, the others save 0 to 11 %.
        preview_per_class: samples per class (at most 16 classes) in each preview sheet.
    """

    tokenizer: str
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    label_smoothing: PartialShare = 0.0
    progressive: Share = 0.0
    progressive_from: Annotated[int, Whole(1, 63)] = 4
    init_from: str | None = None
    freeze: tuple[FreezablePart, ...] = ()
    activation_checkpointing: Switch = False
    compile: Switch = False
    preview_per_class: Annotated[int, Whole(1, 100)] = 4

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not self.tokenizer:
            yield "tokenizer = '': give a bundle or run folder"
        if self.freeze and self.init_from is None:
            yield f"freeze = {', '.join(self.freeze)}: weights that stay need init_from; give a model"


IMAGENET_TRAIN = 1_281_167

# What a preset changes besides the model.
_TINY_TOKENIZER = {
    "steps": 10_000, "batch_size": 32, "base_lr": 8e-3, "lr_end": 0.01, "weight_decay": 0.0, "weight_decay_end": 0.0,
    "grad_clip": 1.0, "resize_factor": 1.0, "val_images": 2000, "betas": (0.5, 0.9), "ema": 0.999, "perceptual": 1.0,
    "discriminator_channels": 32,
}  # fmt: skip
_TINY_GENERATOR = {
    "steps": 15_000, "batch_size": 32, "base_lr": 8e-3, "lr_end": 0.01, "resize_factor": 1.0, "val_images": 2000,
    "checkpoint_every": 500, "ema": 0.999,
}  # fmt: skip
# For short runs, see `preset_for`: what gains most from some ten thousand images (figures in docs/log.md).
_QUICK = {"batch_size": 16, "ema": 0.99}
_QUICK_TOKENIZER = {**_TINY_TOKENIZER, **_QUICK, "base_lr": 3.2e-2, "adversarial": 0.0}
_QUICK_GENERATOR = {**_TINY_GENERATOR, **_QUICK, "base_lr": 8e-2}


def _generator_recipe(name: str, depth: int) -> dict[str, Any]:
    """The official recipe for ImageNet by depth; ours for small images."""
    if name.startswith("tiny"):
        return _TINY_GENERATOR
    if name.startswith("quick"):
        return _QUICK_GENERATOR
    batch_size = 1024 if depth >= 30 and not name.endswith("-s") else 768
    epochs = next(epochs for limit, epochs in ((16, 200), (20, 250), (99, 350)) if depth <= limit)
    return {
        "ema": 0.0,
        "steps": epochs * IMAGENET_TRAIN // batch_size,
        "batch_size": batch_size,
        "base_lr": 8e-5 if depth >= 24 else 1e-4,
        "lr_end": 0.01 if depth >= 24 else 0.1,
        "weight_decay_end": 0.08 if depth >= 30 else 0.05,
    }


TOKENIZER_PRESETS: dict[str, dict[str, Any]] = {
    "f16-256": {"model": TOKENIZERS["f16-256"], "base_lr": 1.2e-3, "betas": (0.5, 0.9), "steps": 250_000},
    "f16-512": {"model": TOKENIZERS["f16-512"], "base_lr": 1.2e-3, "betas": (0.5, 0.9), "steps": 250_000},
    "tiny32": {"model": TOKENIZERS["tiny32"], **_TINY_TOKENIZER},
    # In colour, where pixel errors must weigh more: perceptual networks hardly notice a wrong hue.
    "tiny64": {"model": TOKENIZERS["tiny64"], **_TINY_TOKENIZER, "perceptual": 0.3, "l1": 0.5, "l2": 2.0},
    "quick32": {"model": TOKENIZERS["quick32"], **_QUICK_TOKENIZER},
}

GENERATOR_PRESETS: dict[str, dict[str, Any]] = {
    name: {"model": model, **_generator_recipe(name, model.depth)} for name, model in GENERATORS.items()
}


def preset_for(minutes: float) -> str:
    """The preset of a run of minutes for which none is named."""
    return "quick32" if minutes < QUICK_BELOW else "tiny32"


def preset_values(
    presets: Mapping[str, dict[str, Any]], name: str | None, minutes: Minutes | None = None
) -> dict[str, Any]:
    """The values of a preset, without those that `minutes` decides; ValueError where there is no such preset."""
    if name is None and minutes is not None:
        name = preset_for(minutes)
    if name is None or name not in presets:
        raise ValueError(f"preset = {name!r}: choose from {', '.join(presets)}")
    return {key: value for key, value in presets[name].items() if minutes is None or key not in LAID}

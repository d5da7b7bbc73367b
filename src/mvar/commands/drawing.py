"""Commands that draw images: sample, sample-best.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mvar.options.fields import Given
from mvar.sampling.config import SamplingSettings
from mvar.sampling.labels import parse_labels
from mvar.settings import Candidates, Count, Place, Seed, raise_problems
from mvar.text import counted

Sampling = Annotated[dict[str, Any], Given(SamplingSettings)]  # options that are left out are the model's own

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from mvar.model import Model
    from mvar.sampling.engine import SampleOutput
    from mvar.sampling.labels import Label
    from mvar.sampling.rejection import BestOutput, JudgeLike
    from mvar.sampling.report import Samples


def sample(
    model: str,
    sampling: Sampling,
    labels: str | None = None,
    per_class: Count = 1,
    out: str | None = None,
    out_dir: str | None = None,
    npz: str | None = None,
    show_scales: bool = False,
    seed: Seed = 0,
    batch_size: Count | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Draw images and write them as a sheet, as single files, or as an .npz.

    Sampling options that are left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        sampling: guidance and filters.
        labels: classes to draw, indices or names between commas, a name with a comma in double quotes; -1 for no class.
            The first ten by default.
        per_class: images for each of the labels.
        out: sheet with a row for each class, .png or .webp; samples.png by default.
        out_dir: folder for one PNG per image, named by class and number, and a samples.json that records what drew
            them. Images of an earlier run there are replaced.
        npz: file for all images in a mixed order, as evaluation suites read it; beside it a NAME.samples.json.
        show_scales: below the sheet, how the first image grows scale by scale.
        seed: of the run; image i depends on (seed, i, its label, the settings) only.
        batch_size: images at once; as many as fit into memory, at most 64, by default.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.model import load

    targets = Targets(out, out_dir, npz, sheet=show_scales)
    loaded = load(model, device, dtype)
    asked = parse_labels(labels, loaded.classes)
    size, samples = _begin(loaded, asked, per_class, batch_size, targets)
    if targets.recorded:
        samples = replace(samples, facts=drawn_with(loaded, model, dtype, seed, sampling))

    def draw(index: range) -> "SampleOutput":
        batch = [asked[i // per_class] for i in index]
        return loaded.sample(batch, **sampling, seed=seed, index=index, batch_size=size)

    pixels_NHW3 = _draw(draw, samples, size, targets, loaded)
    below = _growth(loaded, asked[0], sampling | {"seed": seed}) if show_scales else None
    _write(pixels_NHW3, samples, per_class, targets, seed, below)


def sample_best(
    model: str,
    sampling: Sampling,
    judge: str = "self",
    labels: str | None = None,
    per_class: Count = 1,
    keep: Candidates = 1,
    of: Candidates = 8,
    fork_at: Place = 0,
    out: str | None = None,
    out_dir: str | None = None,
    npz: str | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Draw several candidates for each image and keep those that a judge likes best (rejection sampling).

    Sampling options that are left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        sampling: guidance and filters.
        judge: self, the model's own log p(image | class) - log p(image), or the file of a classifier of its classes.
        labels: classes to draw, as in sample.
        per_class: images to keep for each of the labels, a multiple of --keep.
        keep: images to keep from each group of candidates.
        of: candidates in a group.
        fork_at: coarse maps that a group's candidates share, drawn once.
        out: sheet with a row for each class, .png or .webp; samples.png by default.
        out_dir: folder for one PNG per image, and a samples.json with the scores. Images of an earlier run there are
            replaced.
        npz: file for all images in a mixed order; beside it a NAME.samples.json with the scores.
        seed: of the run.
        batch_size: candidates at once; as many as fit into memory, at most 64, by default.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.features.judge import Judge
    from mvar.files import file_sha256
    from mvar.model import load
    from mvar.sampling.rejection import SELF, Quota

    quota = Quota(keep=keep, of=of, fork_at=fork_at)
    network: JudgeLike = judge if judge == SELF else Judge.load(judge)
    if per_class % keep:
        raise ValueError(f"per_class = {per_class}: a group gives keep = {keep} images; give a multiple of {keep}")
    targets = Targets(out, out_dir, npz)
    loaded = load(model, device, dtype)
    asked = parse_labels(labels, loaded.classes)
    size, samples = _begin(loaded, asked, per_class, batch_size, targets, of)
    if targets.recorded:
        weights = {} if judge == SELF else {"judge_sha256": file_sha256(judge)}
        chosen_by = {"judge": judge, **weights, **asdict(quota)}
        samples = replace(samples, facts=drawn_with(loaded, model, dtype, seed, sampling) | chosen_by)
    parts: list[BestOutput] = []

    def draw(index: range) -> "SampleOutput":
        groups = range(index.start // keep, index.stop // keep)
        batch = [asked[i // per_class] for i in index[::keep]]
        best = loaded.sample_best(batch, network, **asdict(quota), **sampling, seed=seed, index=groups, batch_size=size)
        parts.append(replace(best, pixels=best.pixels.new_empty(0), tokens=None))  # its images need not stay in memory
        return best

    pixels_NHW3 = _draw(draw, samples, keep * max(1, size // of), targets, loaded)
    samples = _with_scores(samples, parts, judge)
    if out_dir is not None:
        samples.write(out_dir)
    _write(pixels_NHW3, samples, per_class, targets, seed)


# --- parts ---


def _with_scores(samples: "Samples", parts: "Sequence[BestOutput]", judge: str) -> "Samples":
    """Print what was accepted and what it cost; the images with that, and with what each one scored."""
    import torch

    index, seconds = [g for part in parts for g in part.index], sum(part.seconds for part in parts)
    best = replace(parts[0], index=index, scores_Gn=torch.cat([part.scores_Gn for part in parts]), seconds=seconds)
    found = best.report
    print(
        f"kept {found['kept']} of {found['candidates']} candidates ({100 * found['acceptance']:.3g} %) by judge "
        f"{judge}: mean score {found['mean_score_kept']:.3f}, of all {found['mean_score_all']:.3f}; "
        f"{found['candidates_per_kept']:g} candidates and {found['seconds_per_kept']:.3f} s for an image"
    )
    chosen = zip(best.candidates, best.scores.tolist(), strict=True)
    details = [{"candidate": number, "score": score} for number, score in chosen]
    return replace(samples, facts=samples.facts | found, details=details)


class Targets:
    """Where images go: a sheet, samples.png unless another target is given, single files, an .npz."""

    def __init__(self, out: str | None, out_dir: str | None, npz: str | None = None, sheet: bool = False) -> None:
        """Refuse what cannot be written, before anything is drawn; `sheet` asks for one whatever else is given."""
        from mvar.files import writable_folder
        from mvar.sampling.export import IMAGE_SUFFIXES, NPZ_SUFFIXES, target
        from mvar.sampling.report import target_problems

        self.recorded = out_dir is not None or npz is not None  # what drew the images is written beside them
        self.out = out or ("samples.png" if sheet or not self.recorded else None)
        self.out_dir, self.npz = out_dir, npz
        raise_problems(target_problems(self.out, out_dir, npz))
        if self.out is not None:
            target(self.out, IMAGE_SUFFIXES, "out")
        if npz is not None:
            target(npz, NPZ_SUFFIXES, "npz")
        if out_dir is not None:
            writable_folder(out_dir, "out_dir")


def _begin(
    loaded: "Model", asked: "Sequence[Label]", per_class: int, batch_size: int | None, targets: Targets, of: int = 1
) -> "tuple[int, Samples]":
    """How many images to draw at once, and which images there will be; refuses more than memory or a sheet holds."""
    from mvar.sampling.cost import check_images
    from mvar.sampling.export import check_count
    from mvar.sampling.report import Samples
    from mvar.sampling.sheet import check_size

    ids, shape = loaded.label_ids(asked), loaded.tokenizer.config.image_shape
    count = len(ids) * per_class
    check_count(count)
    size = loaded.fitting_batch_size(batch_size, count * of)
    if targets.out is not None:
        check_size(len(asked), per_class, shape)
    if targets.out is not None or targets.npz is not None:
        check_images(count, shape, "per_class", each=1)
    return size, Samples.of([ids[i // per_class] for i in range(count)], loaded.class_name, {})


def _draw(
    draw: "Callable[[range], SampleOutput]", samples: "Samples", step: int, targets: Targets, loaded: "Model"
) -> "np.ndarray":
    """Draw all images, so many at once, and write files as they come.

    Returns:
        All pixels, uint8 (N, H, W, 3), where they are written together in the end; else none.
    """
    import numpy as np

    from mvar.progress import track
    from mvar.sampling.engine import batches, to_uint8
    from mvar.sampling.export import writing

    every = range(len(samples.labels))
    kept = 0 if targets.out is None and targets.npz is None else len(every)
    pixels_NHW3 = np.empty((kept, *loaded.tokenizer.config.image_shape, 3), np.uint8)
    parts = list(batches(len(every), step))

    def keep(drawn: "SampleOutput", part: slice) -> None:
        if targets.out_dir is not None:
            samples.save(drawn, targets.out_dir, part.start)
        if kept:
            pixels_NHW3[part] = to_uint8(drawn.pixels)

    with writing(loaded.device) as write:
        for part in track(parts, len(parts), "batches"):
            write(partial(keep, draw(every[part]), part))
    return pixels_NHW3


def _write(
    pixels_NHW3: "np.ndarray",
    samples: "Samples",
    per_class: int,
    targets: Targets,
    seed: int,
    below: "Image.Image | None" = None,
) -> None:
    """Write the .npz and the sheet, with another one below it, and say what was written."""
    from PIL import Image

    from mvar.sampling.export import save_image
    from mvar.sampling.sheet import class_sheet, stack

    if targets.npz is not None:
        samples.save_npz(pixels_NHW3, targets.npz, seed)
    if targets.out is not None:
        images = [Image.fromarray(pixels_HW3) for pixels_HW3 in pixels_NHW3]
        starts = range(0, len(images), per_class)
        rows = [(samples.classes[samples.labels[i]], images[i : i + per_class]) for i in starts]
        sheet = class_sheet(rows)
        save_image(sheet if below is None else stack(sheet, below), targets.out)
    written = ", ".join(path for path in (targets.out_dir, targets.npz, targets.out) if path is not None)
    print(f"wrote {counted(len(samples.labels), 'image')}: {written}")


def _growth(model: "Model", label: "Label", settings: dict[str, Any]) -> "Image.Image":
    """How the first image grows scale by scale: drawn again, which gives the same image."""
    from mvar.sampling.engine import to_images
    from mvar.sampling.sheet import strip

    previews: list[Image.Image] = []
    model.sample(label, **settings, on_scale=lambda k, K, preview: previews.append(to_images(preview())[0]))
    return strip([previews], [f"{h}x{w}" for h, w in model.tokenizer.config.schedule.shapes])


def drawn_with(
    loaded: "Model", model: str, dtype: Literal["float32", "bfloat16"] | None, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """What decides the images besides their numbers and classes, for their report."""
    from mvar.checkpoint import hub
    from mvar.checkpoint.placement import dtype_for
    from mvar.sampling.protocol import hashes

    return {
        "model": model,
        "sha256": hashes(hub.find(model)),
        "dtype": dtype_for(loaded.generator, loaded.device, dtype),
        "seed": seed,
        **asdict(loaded.sampler(seed, **settings).settings),
    }

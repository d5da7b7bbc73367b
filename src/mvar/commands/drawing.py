"""Commands that draw images: sample, edit, vary.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvar.commands.labels import parse_label, parse_labels
from mvar.commands.protocol import draw_protocol, unsuitable
from mvar.commands.rejection import BestOf, choice_problems
from mvar.commands.sheets import class_rows, with_growth
from mvar.sampling.config import EDIT_MODE, EditMode, GuidanceSchedule, SamplingSettings, TopK
from mvar.settings import Candidates, Count, Feather, Pixels, Place, Places, Seed, raise_problems
from mvar.text import counted

ORIGINAL = 2**63  # the number of the sample that is varied: none of its variations'

if TYPE_CHECKING:
    from PIL import Image

    from mvar.model import Model


def settings_of(
    guidance: float | list[float] | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    top_k: TopK | None = None,
    top_p: float | list[float] | None = None,
    temperature: float | list[float] | None = None,
    smooth: bool | None = None,
) -> dict[str, Any]:
    """The sampling options that were given; those left out are the model's own.

    Args:
        guidance: strength of classifier-free guidance, 0 switches it off; a,b,... gives each scale its own.
        guidance_schedule: a single strength grows from 0 at the first scale (linear) or holds at each (constant).
        top_k: sample from the k most likely codes, 0 switches it off, 1 is greedy; or a list as above.
        top_p: sample from the most likely codes that hold this much probability, 1 switches it off; or a list as above.
        temperature: divides the guided logits before the filters; or a list as above.
        smooth: mix code vectors instead of choosing one; prettier, but not for metrics.
    """
    given: dict[str, Any] = {
        "guidance": guidance,
        "guidance_schedule": guidance_schedule,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "smooth": smooth,
    }
    return {name: value for name, value in given.items() if value is not None}


def sample(
    model: str,
    labels: str | None = None,
    per_class: Count | None = None,
    protocol: Literal["imagenet-50k"] | None = None,
    counts_of: str | None = None,
    out: str | None = None,
    out_dir: str | None = None,
    npz: str | None = None,
    show_scales: bool = False,
    seed: Seed = 0,
    batch_size: Count | None = None,
    judge: str | None = None,
    keep: Candidates | None = None,
    of: Candidates | None = None,
    fork_at: Place | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    **options: Any,
) -> None:
    """Draw images and write them as a sheet, as single files, or as an .npz.

    Sampling options left out are the model's own. With --protocol, a second call goes on where the first was stopped,
    and under torchrun, or wherever RANK and WORLD_SIZE are set, several processes share the work.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        labels: classes to draw, indices or names between commas, a name with a comma in double quotes; -1 for no class.
            The first ten by default.
        per_class: images for each of the labels; 1 by default, with a protocol its own number.
        protocol: samples for an evaluation, as --out-dir or --npz: 50 images of every class, whatever their number.
        counts_of: with --protocol, a folder with a folder for each class: as many images of each as it holds.
        out: sheet with a row for each class, .png or .webp; samples.png by default.
        out_dir: folder for one PNG an image, named by class and number, and a samples.json that says what drew them.
            Images of an earlier run there are replaced.
        npz: file for all images in a mixed order, as evaluation suites read it; beside it a NAME.samples.json.
        show_scales: below the sheet, how the first image grows scale by scale.
        seed: the run's; image i depends on (seed, i, its label, the settings) only.
        batch_size: images at once; as many as fit into memory, at most 64, by default.
        judge: draws several candidates for an image and keeps those that this judge likes best: self, the model's own
            log p(image | class) - log p(image), or the file of a classifier of its classes.
        keep: with --judge, how many of a group of candidates are kept; 1 by default.
        of: with --judge, candidates of a group; 8 by default.
        fork_at: with --judge, coarse maps that a group's candidates share, drawn once; 0, none, by default.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.files import writable_folder
    from mvar.model import load
    from mvar.progress import track
    from mvar.sampling.cost import check_images
    from mvar.sampling.engine import to_uint8
    from mvar.sampling.export import IMAGE_SUFFIXES, NPZ_SUFFIXES, check_count, save_image, target
    from mvar.sampling.report import Samples, target_problems
    from mvar.sampling.sheet import check_size

    settings = settings_of(**options)
    SamplingSettings(**settings)
    if protocol is not None:
        raise_problems(unsuitable(labels, per_class, counts_of, out, out_dir, npz, show_scales, judge))
        draw_protocol(protocol, model, per_class, counts_of, out_dir, npz, seed, batch_size, device, dtype, settings)
        return
    if out is None and out_dir is None and npz is None:
        out = "samples.png"
    per_class = per_class or 1
    problems = []
    if counts_of is not None:
        problems.append(f"counts_of = {counts_of!r}: belongs to --protocol; give it too, or --per-class instead")
    if show_scales and out is None:
        problems.append("show_scales = True: the strip is part of the sheet; give --out as well")
    numbers = {"keep": keep, "of": of, "fork_at": fork_at}
    problems += choice_problems(judge, numbers, per_class, show_scales)
    problems += target_problems(out, out_dir, npz)
    raise_problems(problems)
    best = None if judge is None else BestOf(judge, numbers)
    if out is not None:
        target(out, IMAGE_SUFFIXES, "out")
    if npz is not None:
        target(npz, NPZ_SUFFIXES, "npz")
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")

    loaded = load(model, device, dtype)
    asked = parse_labels(labels, loaded)
    ids = loaded.label_ids(asked)
    count, shape = len(ids) * per_class, loaded.tokenizer.config.image_shape
    check_count(count)
    size = loaded.fitting_batch_size(batch_size, count * (of or 1))
    if out is not None:
        check_size(len(asked), per_class, shape)
    kept = 0 if out is None and npz is None else count  # images are in memory until they are written together
    check_images(kept, shape, "per_class", each=1)

    step = size if best is None else best.at_once(size)
    draw = loaded.sample if best is None else partial(best.draw, loaded)
    facts = {} if out_dir is None and npz is None else _drawn_with(loaded, model, dtype, seed, settings)
    own = [ids[i // per_class] for i in range(count)]
    samples = Samples.of(own, loaded.class_name, facts | (best.facts() if best else {}))
    starts = range(0, count, step)
    pixels_NHW3 = np.empty((kept, *shape, 3), np.uint8)
    for start in track(starts, len(starts), "batches"):
        index = range(start, min(start + step, count))
        drawn = draw([asked[i // per_class] for i in index], **settings, seed=seed, index=index, batch_size=size)
        if out_dir is not None:
            samples.save(drawn, out_dir, start)
        if len(pixels_NHW3):
            pixels_NHW3[start : index.stop] = to_uint8(drawn.pixels)

    written = [path for path in (out_dir, npz) if path is not None]
    if best is not None:
        samples = best.told(samples)
        if out_dir is not None:
            samples.write(out_dir)
    if npz is not None:
        samples.save_npz(pixels_NHW3, npz, seed)
    if out is not None:
        sheet = class_rows([loaded.class_name(i) for i in ids], pixels_NHW3)
        if show_scales:
            sheet = with_growth(sheet, loaded, asked[0], {**settings, "seed": seed})
        written.append(str(save_image(sheet, out)))
    print(f"wrote {counted(count, 'image')}: {', '.join(written)}")


def edit(
    model: str,
    image: str,
    out: str | None = None,
    out_dir: str | None = None,
    mask: str | None = None,
    box: Pixels | None = None,
    keep_box: Pixels | None = None,
    label: str | None = None,
    n: Count = 1,
    mode: EditMode = EDIT_MODE,
    paste: bool = False,
    feather: Feather | None = None,
    compare: bool = False,
    seed: Seed = 0,
    batch_size: Count | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    **options: Any,
) -> None:
    """Repaint a part of an image: in-painting, out-painting, or another class.

    Says how far the pixels outside the hole moved, by distance from it. Sampling options left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        image: file of the model's aspect; it is resized to the model's size.
        out: the result, .png or .webp, without loss; several stand side by side. edited.png by default.
        out_dir: folder for one PNG a result, and a samples.json; results of an earlier run there are replaced.
        mask: image of the same size, white where to repaint.
        box: instead of a mask, left,top,right,bottom in pixels: repaint what is inside.
        keep_box: likewise: repaint what is outside.
        label: class of what is painted, index or name; left to the surroundings by default.
        n: how many results.
        mode: kept cells hold the image's codes as re-encoded against what is painted so far, or its own tokens.
        paste: put the original pixels back outside the hole, in the image's own size; its mode and colour profile stay
            where the written file can hold them.
        feather: with --paste, pixels around the hole over which the two are blended; 4 by default.
        compare: before the results, the image and its hole.
        seed: the run's; result i depends on (seed, i, image, hole, label, mode, settings) only.
        batch_size: results at once; as many as fit into memory, at most 64, by default.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.data.images.decoding import as_image, as_stored
    from mvar.files import file_sha256, writable_folder
    from mvar.model import load
    from mvar.sampling.export import IMAGE_SUFFIXES, save_image, target
    from mvar.sampling.masks import FEATHER, read_hole
    from mvar.sampling.report import Samples, target_problems
    from mvar.sampling.sheet import check_size, with_hole

    if out is None and out_dir is None:
        out = "edited.png"
    settings = settings_of(**options)
    SamplingSettings(**settings)
    raise_problems(target_problems(out, out_dir, None))
    original = as_stored(image)
    hole_HW = read_hole((original.height, original.width), mask, box, keep_box)
    facts: dict[str, Any] = {"image": image, "image_sha256": file_sha256(image)}
    facts |= {"mask": mask, "mask_sha256": mask and file_sha256(mask), "box": box, "keep_box": keep_box, "mode": mode}
    facts |= {"paste": paste, "feather": FEATHER if paste and feather is None else feather}
    if out is not None:
        target(out, IMAGE_SUFFIXES, "out", original.size if paste else None)
    if out_dir is not None:
        writable_folder(out_dir, "out_dir")
    loaded = load(model, device, dtype)
    if out is not None and (n > 1 or compare):
        shape = (original.height, original.width) if paste else loaded.tokenizer.config.image_shape
        check_size(1, n + 2 * compare, shape)
    result = loaded.edit(
        original,
        hole_HW,
        label=parse_label(label, loaded),
        n=n,
        mode=mode,
        paste=paste,
        feather=feather,
        seed=seed,
        batch_size=batch_size,
        **settings,
    )
    if not result.kept[-1].any():
        print("the hole touches every cell of the finest map: only coarser ones keep something", file=sys.stderr)
    print("change outside the hole, of 255" + (", before pasting:" if paste else ":"))
    for ring in result.drift:
        many = ring.nearest != ring.farthest
        where = f"{ring.nearest}-{ring.farthest} pixels" if many else counted(ring.nearest, "pixel")
        print(f"{where:>16} from it: {ring.edited:.1f}, by the tokenizer alone {ring.tokenizer:.1f}")
    if out_dir is not None:
        facts = _drawn_with(loaded, model, dtype, seed, settings) | facts
        labels = loaded.label_ids(parse_label(label, loaded)) * n
        Samples.of(labels, loaded.class_name, facts, "edited").save(result, out_dir, 0)
    if out is not None:
        images = result.images
        if n > 1 or compare:  # a sheet, which is in sRGB
            shown = as_image(original).resize(images[0].size)
            before = [shown, with_hole(shown, hole_HW)] if compare else []
            images = [_rows([("", [*before, *map(as_image, images)])])]
        save_image(images[0], out)
    print(f"wrote {', '.join(name for name in (out, out_dir) if name is not None)}")


def vary(
    model: str,
    out: str,
    from_scale: Places,
    image: str | None = None,
    label: str | None = None,
    n: Count = 8,
    seed: Seed = 0,
    batch_size: Count | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    **options: Any,
) -> None:
    """Keep the coarse maps of an image and draw the finer ones again.

    Sampling options left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        out: sheet with the image and its variations, .png or .webp.
        from_scale: how many maps are kept, 0 (none) to all but the finest; a,b,... gives a row for each.
        image: file of the model's aspect; a sample of the label by default.
        label: the image's class, index or name; no class by default.
        n: how many variations.
        seed: the run's; variation i depends on (seed, i, image, label, from_scale, settings) only.
        batch_size: variations at once; as many as fit into memory, at most 64, by default.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.data.images.decoding import as_image
    from mvar.model import load
    from mvar.sampling.export import IMAGE_SUFFIXES, save_image, target
    from mvar.sampling.sheet import check_size

    settings = settings_of(**options)
    SamplingSettings(**settings)
    target(out, IMAGE_SUFFIXES, "out")
    source: Any = None if image is None else as_image(image)
    loaded = load(model, device, dtype)
    asked = parse_label(label, loaded)
    shapes = loaded.tokenizer.config.schedule.shapes
    prefixes = from_scale if isinstance(from_scale, list) else [from_scale]
    if wrong := [k for k in prefixes if not 0 <= k < len(shapes)]:
        raise ValueError(f"from_scale = {wrong[0]}: give 0 (keep nothing) to {len(shapes) - 1}")
    check_size(len(prefixes), n + 1, loaded.tokenizer.config.image_shape)
    if source is None:
        drawn = loaded.sample(asked, **{**settings, "smooth": False}, seed=seed, index=[ORIGINAL])
        source, shown = drawn.tokens, drawn.images[0]
    else:
        shown = source
    rows = []
    for k in prefixes:
        varied = loaded.vary(source, asked, from_scale=k, n=n, seed=seed, batch_size=batch_size, **settings)
        h, w = shapes[k - 1]
        name = f"{k} kept, to {h}x{w}" if k else "none kept"
        rows.append((name, [shown.resize(varied.images[0].size), *varied.images]))
    save_image(_rows(rows), out)
    print(f"wrote {out}: the image, then {counted(n, 'variation')}")


# --- parts ---


def _drawn_with(
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


def _rows(rows: "Sequence[tuple[str, Sequence[Image.Image]]]") -> "Image.Image":
    from mvar.sampling.sheet import class_sheet

    return class_sheet(rows)

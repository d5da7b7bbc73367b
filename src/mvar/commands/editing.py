"""Commands that start from an image: edit, vary.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import sys
from typing import TYPE_CHECKING, Any, Literal

from mvar.commands.drawing import Sampling, Targets, drawn_with
from mvar.sampling.config import EDIT_MODE, EditMode
from mvar.sampling.labels import parse_label
from mvar.settings import Count, Feather, Pixels, Places, Seed
from mvar.text import counted

if TYPE_CHECKING:
    from mvar.sampling.editing import EditOutput

ORIGINAL = 2**63  # the number of the sample that is varied: none of its variations'


def edit(
    model: str,
    image: str,
    sampling: Sampling,
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
) -> None:
    """Repaint a part of an image: in-painting, out-painting, or another class.

    Says how far the pixels outside the hole moved, by distance from it. Sampling options left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        image: file of the model's aspect; it is resized to the model's size.
        sampling: guidance and filters.
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
    from mvar.files import file_sha256
    from mvar.model import load
    from mvar.sampling.export import IMAGE_SUFFIXES, save_image, target
    from mvar.sampling.masks import FEATHER, read_hole
    from mvar.sampling.report import Samples
    from mvar.sampling.sheet import check_size, class_sheet, with_hole

    out = out or ("edited.png" if out_dir is None else None)
    Targets(out, out_dir)
    original = as_stored(image)
    hole_HW = read_hole((original.height, original.width), mask, box, keep_box)
    facts: dict[str, Any] = {"image": image, "image_sha256": file_sha256(image)}
    facts |= {"mask": mask, "mask_sha256": mask and file_sha256(mask), "box": box, "keep_box": keep_box, "mode": mode}
    facts |= {"paste": paste, "feather": FEATHER if paste and feather is None else feather}
    if out is not None:
        target(out, IMAGE_SUFFIXES, "out", original.size if paste else None)
    loaded = load(model, device, dtype)
    if out is not None and (n > 1 or compare):
        shape = (original.height, original.width) if paste else loaded.tokenizer.config.image_shape
        check_size(1, n + 2 * compare, shape)
    result = loaded.edit(
        original,
        hole_HW,
        label=parse_label(label, loaded.classes),
        n=n,
        mode=mode,
        paste=paste,
        feather=feather,
        seed=seed,
        batch_size=batch_size,
        **sampling,
    )
    _print_changes(result, paste)
    if out_dir is not None:
        facts = drawn_with(loaded, model, dtype, seed, sampling) | facts
        labels = loaded.label_ids(parse_label(label, loaded.classes)) * n
        Samples.of(labels, loaded.class_name, facts, "edited").save(result, out_dir, 0)
    if out is not None:
        images = result.images
        if n > 1 or compare:  # a sheet, which is in sRGB
            shown = as_image(original).resize(images[0].size)
            before = [shown, with_hole(shown, hole_HW)] if compare else []
            images = [class_sheet([("", [*before, *map(as_image, images)])])]
        save_image(images[0], out)
    print(f"wrote {', '.join(name for name in (out, out_dir) if name is not None)}")


def _print_changes(result: "EditOutput", paste: bool) -> None:
    """Say how far pixels outside the hole moved."""
    if not result.kept[-1].any():
        print("the hole touches every cell of the finest map: only coarser ones keep something", file=sys.stderr)
    print("change outside the hole, of 255" + (", before pasting:" if paste else ":"))
    for ring in result.drift:
        many = ring.nearest != ring.farthest
        where = f"{ring.nearest}-{ring.farthest} pixels" if many else counted(ring.nearest, "pixel")
        print(f"{where:>16} from it: {ring.edited:.1f}, by the tokenizer alone {ring.tokenizer:.1f}")


def vary(
    model: str,
    out: str,
    from_scale: Places,
    sampling: Sampling,
    image: str | None = None,
    label: str | None = None,
    n: Count = 8,
    seed: Seed = 0,
    batch_size: Count | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Keep the coarse maps of an image and draw the finer ones again.

    Sampling options left out are the model's own.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        out: sheet with the image and its variations, .png or .webp.
        from_scale: how many maps are kept, 0 (none) to all but the finest; a,b,... gives a row for each.
        sampling: guidance and filters.
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
    from mvar.sampling.sheet import check_size, class_sheet

    target(out, IMAGE_SUFFIXES, "out")
    source: Any = None if image is None else as_image(image)
    loaded = load(model, device, dtype)
    asked = parse_label(label, loaded.classes)
    shapes = loaded.tokenizer.config.schedule.shapes
    prefixes = from_scale if isinstance(from_scale, list) else [from_scale]
    if wrong := [k for k in prefixes if not 0 <= k < len(shapes)]:
        raise ValueError(f"from_scale = {wrong[0]}: give 0 (keep nothing) to {len(shapes) - 1}")
    check_size(len(prefixes), n + 1, loaded.tokenizer.config.image_shape)
    if source is None:
        drawn = loaded.sample(asked, **{**sampling, "smooth": False}, seed=seed, index=[ORIGINAL])
        source, shown = drawn.tokens, drawn.images[0]
    else:
        shown = source
    rows = []
    for k in prefixes:
        varied = loaded.vary(source, asked, from_scale=k, n=n, seed=seed, batch_size=batch_size, **sampling)
        h, w = shapes[k - 1]
        name = f"{k} kept, to {h}x{w}" if k else "none kept"
        rows.append((name, [shown.resize(varied.images[0].size), *varied.images]))
    save_image(class_sheet(rows), out)
    print(f"wrote {out}: the image, then {counted(n, 'variation')}")

"""The sheet of `mvar sample`.

Pillow and what needs torch are imported inside the functions, so that `mvar --help` is quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from mvar.model import Model
    from mvar.sampling.labels import Label


def class_rows(names: list[str], pixels_NHW3: "np.ndarray") -> "Image.Image":
    """A row for each name, with its share of the images."""
    from PIL import Image

    from mvar.sampling.sheet import class_sheet

    images = [Image.fromarray(pixels_HW3) for pixels_HW3 in pixels_NHW3]
    columns = len(images) // len(names)
    return class_sheet([(name, images[r * columns : (r + 1) * columns]) for r, name in enumerate(names)])


def with_growth(sheet: "Image.Image", model: "Model", label: "Label", settings: dict[str, Any]) -> "Image.Image":
    """The sheet, and below it how its first image grows scale by scale: drawn again, which gives the same image."""
    from mvar.sampling.engine import to_images
    from mvar.sampling.sheet import stack, strip

    previews = []
    model.sample(label, **settings, on_scale=lambda k, K, preview: previews.append(to_images(preview())[0]))
    shapes = model.tokenizer.config.schedule.shapes
    return stack(sheet, strip([previews], [f"{h}x{w}" for h, w in shapes]))

"""What the emoji data set holds: a table of its classes and sets, and a sheet to look at.

    python -m mvar.recipes.emoji --data data/emoji --page-file docs/data.md --sheet docs/images/emoji-data.png

Expect: 10,603 images of 9 classes in 8 sets, 1,021 of them for validation (@iconify/json 2.2.535).
"""

from pathlib import Path

from PIL import Image

from mvar.data.images import ImageFolder, decode
from mvar.recipes import page
from mvar.recipes.cli import run_cli
from mvar.sampling.export import save_image
from mvar.sampling.sheet import class_sheet

SHOWN = 12  # images of a class
COLOURS = 256  # of the sheet, which would be a much larger file in full colour


def describe(data: str, page_file: str, sheet: str) -> None:
    """Count the images and draw some of each class, evenly spread over the sets.

    Args:
        data: folder that `mvar data emoji` wrote.
        page_file: documentation page whose table is filled in.
        sheet: .png or .webp to write.
    """
    train, val = (ImageFolder.scan(Path(data) / split) for split in ("train", "val"))
    counts = [
        [name, *(f"{folder.labels.count(label):,}" for folder in (train, val))]
        for label, name in enumerate(train.classes)
    ]
    counts.append(["together", f"{len(train.paths):,}", f"{len(val.paths):,}"])
    origin = (Path(data) / "LICENCES.md").read_text(encoding="utf-8").split("\n\n", 1)[1]
    page.fill(page_file, f"{page.table(['Class', 'Training', 'Validation'], counts)}\n\n{origin}")

    rows = []
    for label, name in enumerate(train.classes):
        paths = [path for path, own in zip(train.paths, train.labels, strict=True) if own == label]
        chosen = [paths[(2 * i + 1) * len(paths) // (2 * SHOWN)] for i in range(SHOWN)]
        rows.append((name, [decode(path) for path in chosen]))
    save_image(class_sheet(rows).quantize(COLOURS, dither=Image.Dither.NONE), sheet, "sheet")


if __name__ == "__main__":
    run_cli(describe, "python -m mvar.recipes.emoji")

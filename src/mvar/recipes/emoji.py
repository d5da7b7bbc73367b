"""The packaged emoji model: all commands from the icon sets to the figures in its documentation.

    mvar data emoji --out data/emoji
    mvar train tokenizer --preset tiny64 --data data/emoji --batch-size 16 --adversarial 0 --out runs/emoji-tokenizer
    mvar train generator --preset tiny64 --data data/emoji --tokenizer runs/emoji-tokenizer --steps 2600 \
        --out runs/emoji
    python -m mvar.recipes.emoji judge --data data/emoji --out runs/emoji-judge.safetensors
    mvar study run sweep --recipe emoji --model runs/emoji --data data/emoji --judge runs/emoji-judge.safetensors \
        --out docs/images/emoji
    python -m mvar.recipes.emoji package --model runs/emoji --tokenizer-run runs/emoji-tokenizer \
        --sweep docs/images/emoji/sweep.json --out src/mvar/models/emoji
    python -m mvar.recipes.emoji measure --model emoji --data data/emoji --judge runs/emoji-judge.safetensors \
        --tokenizer-run runs/emoji-tokenizer --generator-run runs/emoji --samples-per-class 200 \
        --out docs/images/emoji --sheet docs/images/emoji-samples.png
    python -m mvar.recipes.emoji page

`describe` makes the table and the picture of docs/data.md.
"""

from pathlib import Path

from PIL import Image

from mvar.data.decoding import decode
from mvar.data.images import ImageFolder
from mvar.recipes import page
from mvar.recipes.cli import run_cli
from mvar.recipes.measuring import Form
from mvar.recipes.packaged import Recipe
from mvar.recipes.sweep import Grid
from mvar.sampling.export import save_image
from mvar.sampling.sheet import class_sheet

SHOWN = 12  # images of a class
COLOURS = 256  # of the sheet, which would be a much larger file in full colour


class Emoji(Recipe):
    """The packaged model `emoji`."""

    name = "emoji"
    form = Form(64)
    data = "emoji of the icon sets of the npm package @iconify/json that have permissive licences (see docs/data.md)"
    most_bytes = 20_000_000
    grid = Grid(
        guidance=(2.0, 4.0, 6.0),
        temperature=(0.9, 1.0, 1.1),
        last_temperature=0.8,
        top_k=(900, 600, 300),
        top_p=(0.99, 0.97, 0.94),
        least_accuracy=0.7,  # as often as the judge is right about real images
        spread_band=(0.8, 1.2),
    )
    judge_epochs = 20

    def describe(self, data: str, page_file: str, sheet: str) -> None:
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
    run_cli(Emoji, "python -m mvar.recipes.emoji")

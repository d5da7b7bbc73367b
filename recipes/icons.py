"""The icon data set, and the packaged model trained on it; docs/models/icons.md has the model's commands.

    python -m recipes.icons describe --data data/icons --page-file docs/data.md \
        --credits src/mvar/models/icons/LICENCES.md --sheet docs/images/icons-data.png
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.files import writable_folder, write_text
from mvar.machine import machine
from mvar.sampling.export import save_image
from mvar.sampling.sheet import class_sheet
from mvar.settings import Several, check
from mvar.studies import measuring
from mvar.studies.grid import Grid
from mvar.studies.measuring import Form
from mvar.studies.page import fill, table
from recipes import concepts
from recipes.measures import facts
from recipes.packaged import Recipe
from recipes.shared import publish, run_cli

TIERS = {"25 or more": 25, "15 to 24": 15, "fewer": 0}  # number of sets that draw a concept, and its lower bound
SHOWN = 12  # concepts on the sheet, and images of each


class Icons(Recipe):
    """The packaged model `icons`."""

    name = "icons"
    form = Form(64, grey=True)
    data = "icons of the sets of the npm package @iconify/json that have permissive licences (see docs/data.md)"
    most_bytes = 40_000_000
    grid = Grid(
        guidance=[1.5, 2.5, 4.0, 6.0],
        unguided=[0, 2],  # the two finest maps hold 400 of 447 tokens
        temperature=[1.0],
        top_k=[900, 300],
        top_p=[0.96, 0.9, 0.8, 0.7],
    )
    judge_epochs = 20
    results = staticmethod(concepts.results)

    def commands(self) -> list[Callable[..., Any]]:
        return [*super().commands(), self.describe]

    def describe(self, data: str, page_file: str, credits: str, sheet: str) -> None:
        """Count concepts and images, draw the first images of some concepts, and copy the credits.

        Args:
            data: folder that `mvar data icons` wrote.
            page_file: documentation page to fill in.
            credits: Markdown file to write: the authors of the icons.
            sheet: .png or .webp to write.
        """
        train = ImageFolder.scan(Path(data) / "train")
        val = ImageFolder.scan(Path(data) / "val", classes=train.classes)
        sets: dict[int, set[str]] = {label: set() for label in range(len(train.classes))}
        for folder in (train, val):
            for path, label in zip(folder.paths, folder.labels, strict=True):
                sets[label].add(path.name.split("_")[0])
        tier_of = {label: next(tier for tier, n in TIERS.items() if len(own) >= n) for label, own in sets.items()}
        members = {tier: [name for label, name in enumerate(train.classes) if tier_of[label] == tier] for tier in TIERS}
        images = [Counter(tier_of[label] for label in folder.labels) for folder in (train, val)]
        rows = [[tier, f"{len(members[tier]):,}", *(f"{n[tier]:,}" for n in images)] for tier in TIERS]
        rows.append(["together", f"{len(train.classes):,}", *(f"{n.total():,}" for n in images)])
        counts = table(["Sets that draw a concept", "Concepts", "Training", "Validation"], rows)
        names = [f"Drawn by {tier}: {', '.join(members[tier])}." for tier in TIERS]
        without = [name for label, name in enumerate(train.classes) if label not in {*val.labels}]
        names.append(f"Without images for validation: {', '.join(without) or 'none'}.")
        fill(page_file, "\n\n".join([counts, *names]))
        write_text(credits, (Path(data) / "LICENCES.md").read_text(encoding="utf-8"))

        shown = []
        for label in evenly_spaced(len(train.classes), SHOWN):
            first = [path for path, own in zip(train.paths, train.labels, strict=True) if own == label][:SHOWN]
            shown.append((train.classes[label], [decode(path) for path in first]))
        save_image(class_sheet(shown).convert("L"), sheet, "sheet")

    def measure(  # type: ignore[override]  # hundreds of classes, some without test images
        self, model: str, data: str, judge: str, out: str, samples_per_class: int = 4, seed: int = 0
    ) -> dict[str, Any]:
        """Classify samples and held-out icons with the judge, and find the nearest training icon of each.

        Writes report.json, novelty.png, and nearest.png with the samples nearest to a training icon.

        Args:
            model: packaged name, bundle or run folder.
            data: folder that `mvar data icons` wrote.
            judge: its file.
            out: folder to write into.
            samples_per_class: number of samples, drawn with the model's own settings.
            seed: of the samples.

        Raises:
            ValueError: too few samples, or an unusable file or folder.
        """
        check("samples_per_class", samples_per_class, Several)
        start = time.perf_counter()
        folder = writable_folder(out, "out")
        loaded = measuring.load_with_generator(model)
        critic = measuring.load_judge(judge, loaded.classes)
        train = measuring.originals(data, "train", self.form, loaded.classes)
        held_out = measuring.originals(data, "val", self.form, loaded.classes, lacking=True)
        drawn = measuring.draw(loaded, self.form, samples_per_class, seed, loaded.defaults)
        seen = {
            name: concepts.recognised(critic, part)
            for name, part in (("samples", drawn.images), ("held_out", held_out))
        }
        shapes = concepts.shapes(train.images_Nchw)
        nearest_N, distances = concepts.novelty(drawn.images.images_Nchw, shapes)
        others = concepts.novelty(held_out.images_Nchw, shapes)[1]
        report = {
            "machine": machine(),
            "model": facts(loaded),
            "settings": asdict(loaded.defaults),
            "seed": seed,
            "seconds_per_image": drawn.seconds,
            "classes": loaded.classes,
            "recognised": seen,
            "novelty": concepts.novelty_report(distances, others),
            "minutes": (time.perf_counter() - start) / 60,
        }
        concepts.plot_novelty(distances, others, folder / "novelty.png")
        save_image(concepts.nearest_pairs(drawn.images, train, nearest_N, distances), folder / "nearest.png")
        publish(report, folder, self.results(report), None)
        return report


if __name__ == "__main__":
    run_cli("python -m recipes.icons", *Icons().commands())

"""Icons: what the data set holds, and the packaged model of them (docs/models/icons.md has its commands).

    python -m recipes.icons describe --data data/icons --page-file docs/data.md \
        --credits src/mvar/models/icons/LICENCES.md --sheet docs/images/icons-data.png
"""

import time
from collections import Counter
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
from mvar.studies import measuring, page
from mvar.studies.measuring import Form
from mvar.studies.sweep import Grid
from recipes import concepts
from recipes.cli import run_cli
from recipes.packaged import Recipe

TIERS = {"25 or more": 25, "15 to 24": 15, "fewer": 0}  # sets that draw a concept, and the least of them
SHOWN = 12  # concepts of the sheet, and images of each


class Icons(Recipe):
    """The packaged model `icons`."""

    name = "icons"
    form = Form(64, grey=True)
    data = "icons of the sets of the npm package @iconify/json that have permissive licences (see docs/data.md)"
    most_bytes = 40_000_000
    grid = Grid(
        guidance=(1.5, 2.5, 4.0, 6.0),
        unguided=(0, 2),  # the two finest maps hold 400 of 447 tokens
        temperature=(1.0,),
        top_k=(900, 300),
        top_p=(0.96, 0.9, 0.8, 0.7),
    )
    judge_epochs = 20
    _results = staticmethod(concepts.results)

    def describe(self, data: str, page_file: str, credits: str, sheet: str) -> None:
        """Count concepts and images, draw the first images of some concepts, and copy the credits.

        Args:
            data: folder that `mvar data icons` wrote.
            page_file: documentation page whose table is filled in.
            credits: Markdown file to write: whose icons they are.
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
        table = page.table(["Sets that draw a concept", "Concepts", "Training", "Validation"], rows)
        names = [f"Drawn by {tier}: {', '.join(members[tier])}." for tier in TIERS]
        without = [name for label, name in enumerate(train.classes) if label not in {*val.labels}]
        names.append(f"Without images for validation: {', '.join(without) or 'none'}.")
        page.fill(page_file, "\n\n".join([table, *names]))
        write_text(credits, (Path(data) / "LICENCES.md").read_text(encoding="utf-8"))

        shown = []
        for label in evenly_spaced(len(train.classes), SHOWN):
            first = [path for path, own in zip(train.paths, train.labels, strict=True) if own == label][:SHOWN]
            shown.append((train.classes[label], [decode(path) for path in first]))
        save_image(class_sheet(shown).convert("L"), sheet, "sheet")

    def measure(  # type: ignore[override]  # hundreds of classes, some without test images
        self, model: str, data: str, judge: str, out: str, samples_per_class: int = 4, seed: int = 0
    ) -> dict[str, Any]:
        """Ask the judge about samples and held-out icons, and look for each one's nearest training icon.

        Writes report.json, novelty.png, and nearest.png with the samples nearest to a training icon.

        Args:
            model: packaged name, bundle or run folder.
            data: folder that `mvar data icons` wrote.
            judge: its file.
            out: folder to write into.
            samples_per_class: drawn with the model's own settings.
            seed: of the samples.

        Returns:
            What report.json holds.

        Raises:
            ValueError: too few samples, or a file or folder that cannot be used.
        """
        check("samples_per_class", samples_per_class, Several)
        start = time.perf_counter()
        folder = writable_folder(out, "out")
        loaded = measuring.load_whole(model, None)
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
            "model": measuring.facts(loaded),
            "settings": measuring.settings_of(loaded),
            "seed": seed,
            "seconds_per_image": drawn.seconds,
            "classes": loaded.classes,
            "recognised": seen,
            "novelty": concepts.novelty_report(distances, others),
            "minutes": (time.perf_counter() - start) / 60,
        }
        page.write_json(folder / "report.json", report)
        concepts.draw_novelty(distances, others, folder / "novelty.png")
        save_image(concepts.nearest_pairs(drawn.images, train, nearest_N, distances), folder / "nearest.png")
        print(self._results(report))
        return report


if __name__ == "__main__":
    run_cli(Icons, "python -m recipes.icons")

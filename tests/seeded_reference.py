"""What must not change by a bit when code is rearranged: `python tests/seeded_reference.py OUT.json`.

Losses of 30 steps of both trainings, tokens of 64 samples, an edit and a score, all from fixed seeds. Run it before and
after on one machine, and compare the files: other processors add up in another order.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import mvar

EXCERPT = Path(__file__).parent / "data" / "fashion-excerpt"


def images(root: Path) -> np.ndarray:
    """Folders of 20 training and 5 validation images of each of 10 classes; returns the first validation image."""
    for split, most in (("train", 20), ("val", 5)):
        with Image.open(EXCERPT / f"{split}.png") as image:
            sheet = np.asarray(image).reshape(10, 28, -1, 28).swapaxes(1, 2)
        for label, row in enumerate(sheet):
            folder = root / split / f"class-{label}"
            folder.mkdir(parents=True)
            for i, pixels in enumerate(row[:most]):
                Image.fromarray(np.pad(pixels, 2)).save(folder / f"{i:02d}.png")
    return np.pad(sheet[0, 0], 2)


def losses(out: Path) -> list[str]:
    """Every loss of a run's metrics, to the last bit."""
    records = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [float(record[name]).hex() for record in records for name in ("loss", "val_loss") if name in record]


def sha256(tensors: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def reference(root: Path) -> dict[str, object]:
    image = images(root / "data")
    run = {"data": str(root / "data"), "steps": 30, "log_every": 1, "validate_every": 30, "device": "cpu"}
    tokenizer, generator = root / "tokenizer", root / "generator"
    mvar.train_tokenizer(mvar.TokenizerTraining.preset("tiny32", out=str(tokenizer), dtype="float32", **run))
    mvar.train_generator(
        mvar.GeneratorTraining.preset(
            "tiny32", tokenizer=str(tokenizer), out=str(generator), dtype="float32", augment=("shift",), **run
        )
    )
    model = mvar.load("fashion-mnist", device="cpu", dtype="float32")
    drawn = model.sample(labels=[i % 10 for i in range(64)], seed=3)
    edited = model.edit(Image.fromarray(image), box=(8, 8, 24, 24), label=2, n=2, seed=4)
    pixels = torch.from_numpy(image).float().expand(1, 3, -1, -1) / 255
    return {
        "tokenizer": losses(tokenizer),
        "generator": losses(generator),
        "samples": sha256(drawn.tokens),
        "pixels": sha256([drawn.pixels]),
        "edit": sha256(edited.tokens),
        "score": sha256([model.score(pixels, [2]).log_prob]),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        Path(sys.argv[1]).write_text(json.dumps(reference(Path(scratch)), indent=1), encoding="utf-8")

"""Whether samples of many classes are recognised, and how near they are to what was trained on."""

import numpy as np
import pytest
import torch

from mvar.data.sets.icon_drawing import nearest, shape_of_ink
from mvar.studies.measuring import Labelled
from recipes import concepts


def test_recognised_counts_first_guesses_and_first_fives_by_class():
    logits = torch.arange(8.0).repeat(6, 1)  # the last class is likeliest, then the one before it, ...
    images = Labelled(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([7, 7, 3, 2, 2, 6]), list("abcdefgh"))
    found = concepts.recognised(lambda pixels: logits[: len(pixels)], images)
    assert (found["top1"], found["top5"]) == (pytest.approx(2 / 6), pytest.approx(4 / 6))
    assert found["class_images"] == [0, 0, 2, 1, 0, 0, 1, 2]
    assert found["class_top1"] == [None, None, 0, 0, None, None, 0, 1]
    assert found["class_top5"] == [None, None, 0, 1, None, None, 1, 1]
    assert found["classes_mostly_recognised"] == pytest.approx(3 / 4)
    drawn = found | {name: [share or 0 for share in found[name]] for name in ("class_top1", "class_top5")}
    rows = concepts.by_concept(images.classes, drawn, found)
    assert (rows[0], rows[-1]) == (["h", "100 %", "100 %", "100 %"], ["f", "0 %", "0 %", "none"])


def test_the_nearest_picture_is_that_of_all_distances():
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 4080, (40, 1024)).astype(np.int16)
    shapes[:20] //= rng.integers(1, 30, (20, 1), dtype=np.int16)
    others = np.concatenate([rng.integers(0, 4080, (60, 1024)).astype(np.int16), shapes[3:4], 0 * shapes[:1]])
    found, distances = nearest(shapes, others)
    difference = np.abs(shapes[:, None].astype(int) - others).sum(-1)
    whole = difference / ((shapes.sum(1, dtype=int)[:, None] + others.sum(1, dtype=int)) / 2)
    assert np.allclose(distances, whole.min(1))
    assert (found == whole.argmin(1)).all()
    assert (found[3], distances[3]) == (60, 0)


def test_a_picture_is_the_same_wherever_and_however_large_and_none_without_ink():
    drawn = np.zeros((64, 64), np.uint8)
    drawn[10:26, 8:40] = 255
    drawn[14:22, 16:32] = 0
    moved = np.roll(drawn, (20, 12), (0, 1))
    larger = np.kron(drawn[:32, :48], np.ones((2, 2), np.uint8))
    ours, others = shape_of_ink(drawn), np.stack([shape_of_ink(moved), shape_of_ink(larger)])
    assert (nearest(others, ours[None])[1] < 0.02).all()
    blank = shape_of_ink(np.zeros((64, 64), np.uint8))
    assert not blank.any()
    assert nearest(blank[None], ours[None])[1] == 2

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


def test_a_picture_without_ink_is_near_nothing():
    drawn, blank = np.zeros((2, 64, 64), np.uint8)
    drawn[10:26, 8:40] = 255
    assert not shape_of_ink(blank).any()
    assert nearest(shape_of_ink(blank)[None], shape_of_ink(drawn)[None])[1] == 2

"""Which two sets `mvar evaluate` compares, and how it matches their classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mvar.evaluation.pairs import aligned, check_pair
from mvar.evaluation.sets import open_set

from .test_sets import archive, fill, gaussian, noise, opened


def pair(tmp_path, samples, reference):
    """Open two sets, each given as images, names of files or labels."""
    found = []
    for name, (pixels, classes) in {"a": samples, "b": reference}.items():
        if classes is None or isinstance(classes[0], str):
            path = fill(tmp_path / name, pixels, classes)
        else:
            path = archive(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=np.array(classes))
        found.append(open_set(path, name, allow_jpeg=False))
    return found


FOUR = ["b/1.png", "b/2.png", "c/1.png", "d/1.png"]
FOLDERS = ["x y/1.png", "z/1.png"]


def test_pairs_that_fit_and_pairs_that_do_not(tmp_path):
    two, turned = noise(2), noise(2, 10, 12)
    for i, (samples, reference, problem) in enumerate(
        (
            ((noise(3), None), (two, None), None),
            ((two, FOLDERS), (two, None), None),
            ((two, FOLDERS), (two, ["x_y/1.png", "z/1.png"]), None),
            ((two, [0, 1]), (two, FOLDERS), None),
            ((two, None), (turned, None), "'b': samples and reference have 10x12 and 12x10 pixels; give a reference"),
            ((two, [0, 1]), (noise(3), [0, 1, 2]), "'b.npz': samples and reference have 2 and 3 classes; give a"),
            ((two, FOLDERS), (two, ["x y/1.png", "w/1.png"]), "'b': the classes .* differ, first 'z' and 'w'; give a"),
        )
    ):
        (tmp_path / str(i)).mkdir()
        sets = pair(tmp_path / str(i), samples, reference)
        if problem is None:
            check_pair(*sets)
            continue
        with pytest.raises(ValueError, match=rf"^reference = {problem}[^\n]*$"):
            check_pair(*sets)


def test_pairs_are_matched_by_the_names_of_classes(tmp_path):
    """A model's order need not be that of folders."""
    samples, reference = pair(tmp_path, (noise(3), ["b/1.png", "c/1.png", "d/1.png"]), (noise(4), FOUR))
    drawn = replace(samples, classes=["d", "b", "c"], ordered=False)
    check_pair(drawn, reference)
    matched = aligned(reference, drawn)
    assert (matched.classes, matched.labels_N.tolist()) == (["d", "b", "c"], [1, 1, 2, 0])
    numbered = replace(reference, classes=["0", "1", "2"])
    assert aligned(numbered, drawn) is numbered
    message = r"^reference = 'b': one set has classes by number, the other only some of its model's; give"
    with pytest.raises(ValueError, match=message):
        check_pair(drawn, numbered)
    for ours, theirs in ((["b", "c", "c"], ["c", "b", "c"]), (["b", "c", "e"], ["b", "c", "d"])):  # or which is which?
        with pytest.raises(ValueError, match=r"^reference = 'b': the classes of samples and reference differ"):
            check_pair(replace(drawn, classes=ours), replace(reference, classes=theirs))


def test_statistics_fit_any_samples_with_an_image_a_class(tmp_path):
    mu, sigma = gaussian(6)
    reference = opened(archive(tmp_path / "a.npz", mu=mu, sigma=sigma))
    images = opened(fill(tmp_path / "flat", noise(2)))
    check_pair(images, reference)
    few = replace(images, classes=["a", "b", "c"], labels_N=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"^samples = 'flat': 2 images of 3 classes; give more images$"):
        check_pair(few, reference)

"""What training sees of an image: its values on small pictures, and that seed, epoch and image alone decide it."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.data.images.folders import ImageFolder
from mvar.data.source import PixelSource
from mvar.data.views import Views, view_noise
from mvar.ops.noise import uniform

ALL = ("shift", "scale", "flip")
MIDDLE = [0.5, 0.5, 0.5, 0.5, (1 - 0.84) / 0.22, 0.9]  # no shift, the same size, no mirror image


def rows(tensor_B3hw):
    return np.asarray(tensor_B3hw.permute(0, 2, 3, 1))


@pytest.fixture
def view(monkeypatch):
    """One view of an image under given numbers: crop, shift, size, flip."""

    def make(image_HW3, augment, shape=None, resize_factor=1.0, **numbers):
        noise = dict(zip(("top", "left", "down", "right", "size", "flip"), MIDDLE, strict=True)) | numbers
        monkeypatch.setattr("mvar.data.views.view_noise", lambda *_: torch.tensor([[*noise.values()]]))
        views = Views(image_shape=shape or image_HW3.shape[:2], resize_factor=resize_factor, augment=augment, seed=0)
        return rows(views.batch([image_HW3], torch.tensor([0]), torch.tensor([0])))[0]

    return make


def random_image(H, W, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


@pytest.mark.parametrize(("numbers", "moved"), [((1.0, 0.5), (2, 0)), ((0.25, 0.0), (-1, -2)), ((0.6, 0.4), (0, 0))])
def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge(view, numbers, moved):
    image = random_image(50, 50)  # 4 % of 50 are two pixels
    rows_h, columns_w = ((np.arange(50) - by).clip(0, 49) for by in moved)
    expected = image[rows_h][:, columns_w]
    got = view(image, ("shift",), down=numbers[0], right=numbers[1])
    np.testing.assert_array_equal(got, expected)


def test_a_shift_is_at_least_a_pixel_and_a_crop_that_moves_shows_what_lies_beside_it(view):
    image = random_image(8, 8)
    np.testing.assert_array_equal(view(image, ("shift",), down=1.0)[1:], image[:-1])
    image = random_image(75, 75)
    got = view(image, ("shift",), (50, 50), 1.5, top=0.5, left=0.5, down=1.0, right=0.0)
    np.testing.assert_array_equal(got, image[13 - 2 : 63 - 2, 13 + 2 : 63 + 2])


def test_flip_is_left_to_right_with_an_even_chance(view):
    image = random_image(8, 12)
    np.testing.assert_array_equal(view(image, ("flip",), flip=0.49), image[:, ::-1])
    np.testing.assert_array_equal(view(image, ("flip",), flip=0.51), image)
    np.testing.assert_array_equal(view(image, ("shift",), flip=0.01), image)


@pytest.mark.parametrize(("shape", "resize_factor", "number"), [((64, 48), 1.0, 0.1), ((32, 24), 2.0, 1.0)])
def test_shift_and_scale_are_one_resampling_of_the_image_with_its_edges_repeated(view, shape, resize_factor, number):
    image, (h, w) = random_image(64, 48), shape
    got = view(image, ALL, shape, resize_factor, down=0.9, right=0.2, size=number, flip=0.3)
    size, down, right = 0.84 + number * 0.22, 0.8 * max(1, 0.04 * h), -0.6 * max(1, 0.04 * w)
    padded = np.pad(image, ((20, 20), (20, 20), (0, 0)), mode="edge")
    y, x = 20 + 32 - (h / 2 + down) / size, 20 + 24 - (w / 2 + right) / size
    box = (x, y, x + w / size, y + h / size)
    expected = Image.fromarray(padded).resize((w, h), Image.Resampling.LANCZOS, box=box)
    assert abs(got.astype(int) - np.asarray(expected)[:, ::-1]).max() <= 1


@pytest.fixture
def source(tmp_path):
    """Five images of four classes, larger than the views, with changes."""
    for i, label in enumerate((0, 0, 1, 2, 3)):
        (tmp_path / f"class-{label}").mkdir(exist_ok=True)
        Image.fromarray(random_image(20 + i, 24, i)).save(tmp_path / f"class-{label}" / f"{i}.png")

    def make(**changes):
        return PixelSource.read(ImageFolder.scan(tmp_path), (16, 16), **{"augment": ALL, "seed": 3, **changes})

    return make


@pytest.mark.parametrize("resize_factor", [1.0, 1.125])
def test_a_view_depends_on_seed_epoch_and_image_alone(source, resize_factor):
    one = source(resize_factor=resize_factor)
    indices, epochs = torch.tensor([0, 1, 2, 3, 4] * 2), torch.tensor([0] * 5 + [7] * 5)
    views, _ = one.batch(indices, epochs)
    order = torch.tensor([9, 3, 4, 0, 7, 1, 2, 8, 6, 5])
    assert torch.equal(one.batch(indices[order], epochs[order])[0], views[order])
    for i in range(10):
        assert torch.equal(one.batch(indices[i : i + 1], epochs[i : i + 1])[0][0], views[i])
    assert torch.equal(source(resize_factor=resize_factor, cache_bytes=0).batch(indices, epochs)[0], views)
    backwards = one.select([4, 3, 2, 1, 0])
    assert torch.equal(backwards.labels, one.labels.flip(0))
    assert torch.equal(backwards.batch(range(5))[0], one.batch(range(5))[0].flip(0))
    assert len({view.numpy().tobytes() for view in views}) == 10
    other = source(resize_factor=resize_factor, seed=4).batch(indices, epochs)[0]
    assert not any(map(torch.equal, other, views))


@pytest.mark.parametrize("resize_factor", [1.0, 1.125])
def test_without_augmentation_crops_are_those_of_the_first_two_numbers(source, resize_factor):
    plain, augmented = source(resize_factor=resize_factor, augment=()), source(resize_factor=resize_factor)
    assert torch.equal(*(one.batch(range(5))[0] for one in (plain, augmented))), "centres are never changed"
    assert torch.equal(*(next(one.first(5, 5)) for one in (plain, augmented)))
    indices, epochs = torch.arange(5), torch.full((5,), 2)
    assert torch.equal(plain.batch(indices, epochs)[0], plain.batch(indices)[0]) == (resize_factor == 1)
    for i in range(5):
        assert torch.equal(view_noise(3, epochs, indices)[i, :2], uniform(3, [i], 2, (2,))[0])


def test_what_is_no_augmentation_is_refused():
    choose = "choose from shift, scale or flip"
    for augment, said in ((("shift", "blur"), f"'blur': {choose}"), ("flip", "'flip': give a list")):
        with pytest.raises(ValueError, match=f"^augment = {said}$"):
            Views(image_shape=(8, 8), resize_factor=1, seed=0, augment=augment)

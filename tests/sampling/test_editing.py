import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mvar.data.images.decoding import as_image
from mvar.sampling import masks
from mvar.sampling.config import SamplingSettings
from mvar.sampling.editing import edit, vary
from mvar.sampling.engine import Sampler
from mvar.scales import ScaleSchedule

USUAL = SamplingSettings(guidance=1.5, top_k=20)
MIXERS = [{}, {"attention": "global", "mamba": False}]


@pytest.fixture(params=[((1, 2, 3, 6), {}), ((1, 2, 3, 6), MIXERS[1]), ((1, (2, 3), (4, 6)), {})])
def sampler(build, request):
    sides, mixers = request.param
    return Sampler(*build(sides=sides, **mixers), 0, USUAL)


def picture(sampler, seed=0):
    shape = sampler.tokenizer.config.image_shape
    return torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(seed))


def corner(pixels):
    hole = torch.zeros(pixels.shape[-2:], dtype=torch.bool)
    hole[: pixels.shape[2] // 2, : pixels.shape[3] // 2] = True
    return hole


@pytest.mark.parametrize("smooth", [False, True])
def test_kept_cells_hold_the_images_own_tokens(sampler, smooth, monkeypatch):
    pixels = picture(sampler)
    tokenizer = sampler.tokenizer
    own, labels = tokenizer.encode(pixels), torch.tensor([0, 1, 3])
    added, add = [], tokenizer.quantizer.add
    monkeypatch.setattr(
        tokenizer.quantizer, "add", lambda f_hat, codes, k: added.append((k, codes)) or add(f_hat, codes, k)
    )
    settings = SamplingSettings(guidance=1.5, top_k=20, smooth=smooth)
    sampler = Sampler(tokenizer, sampler.generator, 0, settings)
    out = edit(sampler, pixels, corner(pixels), labels, [0, 1, 2], "own", 2)
    kept_any = painted_any = 0
    for k, kept in enumerate(out.kept):
        kept_any, painted_any = kept_any + int(kept.sum()), painted_any + int((~kept).sum())
        if not smooth:
            where = kept.flatten()
            assert torch.equal(out.tokens[k][:, where], own[k][:, where].expand(3, -1))
    monkeypatch.undo()
    for k, codes in added[-2 * len(own) :]:  # the batches of two images and of one
        expected = tokenizer.quantizer.lookup(own[k], k)[:, :, out.kept[k]]
        assert torch.equal(codes[:, :, out.kept[k]], expected.expand(len(codes), -1, -1))
    assert kept_any > 3
    assert painted_any > 3
    if not smooth:
        assert not torch.equal(out.tokens[-1][0], out.tokens[-1][1])
    assert out.pixels.shape == (3, 3, *tokenizer.config.image_shape)


def test_reencoded_cells_are_nearest_to_what_the_mixed_latent_lacks(sampler):
    pixels = picture(sampler)
    tokenizer, quantizer = sampler.tokenizer, sampler.tokenizer.quantizer
    out = edit(sampler, pixels, corner(pixels), torch.tensor([1]), [0], "reencode", 8)
    with torch.no_grad():
        f, f_hat = tokenizer.latent(pixels), quantizer.zeros(1)
        for k, tokens in enumerate(out.tokens):
            where, shape = out.kept[k].flatten(), quantizer.schedule.shapes[k]
            rest = torch.zeros(1, f.shape[1], *shape)  # the mean over the places of a cell that stay
            for y in range(shape[0]):
                for x in range(shape[1]):
                    (top, left), (bottom, right) = (
                        [rounded(place * side / n) for place, side, n in zip(at, f.shape[2:], shape, strict=True)]
                        for at, rounded in (((y, x), math.floor), ((y + 1, x + 1), math.ceil))
                    )
                    stays = out.kept[-1][top:bottom, left:right]
                    if stays.any():
                        rest[0, :, y, x] = (f - f_hat)[0, :, top:bottom, left:right][:, stays].mean(1)
            assert torch.equal(tokens[:, where], quantizer.nearest(rest, k)[:, where])
            f_hat = quantizer.add(f_hat, quantizer.lookup(tokens, k), k)


@pytest.mark.parametrize("mode", ["own", "reencode"])
def test_editing_everything_is_sampling_from_the_kept_scales(sampler, mode):
    pixels, labels = picture(sampler), torch.tensor([2])
    hole = torch.ones(pixels.shape[-2:], dtype=torch.bool)
    out = edit(sampler, pixels, hole, labels, [0], mode, 8)
    small = sum(area <= masks.KEPT_WHOLE_TOKENS for area in sampler.generator.schedule.areas)
    forced = sampler.finish(sampler.follow(sampler.start(labels, [0]), out.tokens[:small]))
    assert all(torch.equal(a, b) for a, b in zip(out.tokens, forced.tokens, strict=True))
    own = sampler.tokenizer.encode(pixels)
    assert all(torch.equal(a, b) for a, b in zip(out.tokens[:small], own[:small], strict=True))


def test_the_rule_for_kept_cells():
    schedule = ScaleSchedule([1, (1, 2), 2, 4, 8])
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[0, 0] = True  # one pixel takes its cell
    finest = masks.kept_cells(hole, schedule)
    assert [int((~cells).sum()) for cells in finest] == [0, 0, 0, 0, 1]
    hole[:, :8] = True
    cells = masks.kept_cells(hole, schedule)
    assert [c.sum().item() for c in cells] == [1, 2, 2, 8, 32]
    assert not cells[2][:, 0].any()
    expected = F.interpolate(cells[4][None, None].float(), size=(4, 4), mode="bilinear", align_corners=False) > 0.5
    assert torch.equal(cells[3], expected[0, 0])


def test_distance_is_the_number_of_steps_to_the_hole():
    hole = torch.zeros(9, 7, dtype=torch.bool)
    hole[2, 3] = hole[8, 0] = True
    steps = masks.distance(hole)
    for y in range(9):
        for x in range(7):
            assert steps[y, x] == min(max(abs(y - v), abs(x - u)) for v, u in ((2, 3), (8, 0)))


def test_drift_by_distance():
    original, hole = torch.zeros(3, 12, 12), torch.zeros(12, 12, dtype=torch.bool)
    hole[:, 0] = True
    edited = torch.linspace(1, 0, 12).expand(1, 3, 12, 12)
    rings = masks.drift(edited, original, original + 0.1, hole)
    assert [(r.nearest, r.farthest) for r in rings] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 11)]
    assert [r.edited for r in rings] == sorted((r.edited for r in rings), reverse=True)
    assert rings[2].edited == pytest.approx(255 * (edited[0, 0, 0, 3] + edited[0, 0, 0, 4]).item() / 2, rel=1e-5)
    assert all(r.tokenizer == pytest.approx(25.5, rel=1e-5) for r in rings)


def stored(mode, profile=None):
    """An image of noise, 30x20."""
    rng, channels = np.random.default_rng(0), {"LA": (2,), "RGB": (3,), "RGBA": (4,)}.get(mode, ())
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (20, 30), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (20, 30, *channels), dtype=np.uint8))
    image.info = {} if profile is None else {"icc_profile": profile}
    return image


HOLE = torch.zeros(20, 30, dtype=torch.bool)
HOLE[5:10, 5:10] = True


@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "RGB", "RGBA"])
@pytest.mark.parametrize("profile", [None, "p3", "grey"])  # of another colour space it stays, and counts as sRGB
def test_pasting_is_exact_where_the_feather_ends(mode, feather, profile, profiles):
    original = stored(mode, profile and profiles[profile])
    painted = torch.randint(0, 256, (2, 3, 20, 30), generator=torch.Generator().manual_seed(0)) / 255
    if mode in ("L", "LA", "I;16"):
        painted = painted[:, :1].expand(-1, 3, -1, -1)
    steps = masks.distance(HOLE).numpy()
    for result, painted_3HW in zip(masks.pasted(painted, original, HOLE, feather), painted, strict=True):
        assert (result.mode, result.info) == (original.mode, original.info)
        before, after = np.asarray(original), np.asarray(result)
        np.testing.assert_array_equal(after[steps > feather], before[steps > feather])
        error = np.asarray(as_image(result)).astype(int) - 255 * painted_3HW.permute(1, 2, 0).numpy()
        assert np.abs(error[HOLE.numpy()]).max() <= 2
        if mode.endswith("A"):
            assert (after[HOLE.numpy()][:, -1] == 255).all()


def test_the_feather_mixes_colours_by_how_opaque_they_are(profiles):
    painted = torch.ones(1, 3, 20, 30) * (200 / 255)
    half = (HOLE.numpy() == 0) & (masks.distance(HOLE).numpy() == 2)  # a weight of one half
    for alpha, colour in ((255, 150), (0, 200), (128, 167)):
        original = Image.merge("RGBA", [Image.new("L", (30, 20), level) for level in (100, 100, 100, alpha)])
        (result,) = masks.pasted(painted, original, HOLE, 3)
        expected = (colour, colour, colour, round(127.5 + alpha / 2))
        assert np.abs(np.asarray(result)[half].astype(int) - expected).max() <= 1
    (deep,) = masks.pasted(painted, Image.fromarray(np.full((20, 30), 300, np.uint16)), HOLE, 3)
    assert np.abs(np.asarray(deep)[half].astype(int) - (300 + 200 * 257) // 2).max() <= 1


@pytest.mark.parametrize("size", [(20, 30), (47, 80), (9, 11)])
def test_only_the_box_around_the_hole_is_worked_on(size, monkeypatch):
    """The same pixels as when all of what was painted is resized, at the image's edges too."""
    painted = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(painted, size=(20, 30), mode="bicubic", antialias=True).clamp(0, 1)
    seen, distance = [], masks.distance
    monkeypatch.setattr(masks, "distance", lambda hole: seen.append(hole.shape) or distance(hole))
    for rows, columns in ((slice(0, 4), slice(26, 30)), (slice(15, 20), slice(0, 7)), (slice(8, 9), slice(9, 14))):
        hole = torch.zeros(20, 30, dtype=torch.bool)
        hole[rows, columns] = True
        (result,) = masks.pasted(painted, stored("RGB"), hole, 2)
        weight = (1 - distance(hole) / 3).clamp(min=0)[..., None].numpy()
        expected = weight * large[0].permute(1, 2, 0).numpy() * 255 + (1 - weight) * np.asarray(stored("RGB"))
        assert np.abs(np.asarray(result) - expected).max() <= 1.01
    assert seen == [(6, 6), (7, 9), (5, 9)]


def test_what_cannot_be_painted_in_becomes_srgb(profiles):
    painted = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    for image in (stored("RGBA").convert("RGB").convert("CMYK"), stored("RGB", profiles["scanner"])):
        (result,) = masks.pasted(painted, image, HOLE, 0)
        assert (result.mode, result.info) == ("RGB", {})
        np.testing.assert_array_equal(np.asarray(result)[~HOLE], np.asarray(as_image(image))[~HOLE])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "mask, box, keep_box: have none of them; give exactly one"),
        ({"box": [0, 0, 2, 2], "keep_box": [0, 0, 1, 1]}, "have box and keep_box; give exactly one"),
        ({"box": [0, 0, 9, 2]}, "box = 0,0,9,2: give left,top,right,bottom in whole pixels, left < right <= 8 and top"),
        ({"box": [1, 2, 3]}, "box = 1,2,3: give left,top,right,bottom"),
        ({"box": [0, 0, 8, 6]}, "box: repaints the whole image, so that nothing of it would stay"),
        ({"keep_box": [0, 0, 8, 6]}, "keep_box: marks nothing to repaint"),
        ({"mask": torch.zeros(6, 8)}, "mask: marks nothing to repaint"),
        ({"mask": torch.ones(6, 8)}, "mask: repaints the whole image"),
        ({"mask": torch.ones(8, 6)}, "mask: is 6x8 pixels, the image is 8x6; give a mask of the image's size"),
        ({"mask": "nowhere.png"}, "mask = 'nowhere.png': not a file"),
        ({"mask": [[0, 1]]}, "mask: is a list; give a file's name or an image of Pillow"),
        ({"box": [0, 0, 2.5, 2]}, "box = 0,0,2.5,2: give left,top,right,bottom"),
    ],
)
def test_wrong_holes(asked, message):
    with pytest.raises(ValueError, match=message):
        masks.read_hole((6, 8), **asked)


def test_holes_from_masks_and_boxes(tmp_path):
    inside = masks.read_hole((9, 10), box=[2, 1, 5, 4])
    assert inside.sum() == 9
    assert inside[1:4, 2:5].all()
    assert torch.equal(masks.read_hole((9, 10), keep_box=[2, 1, 5, 4]), ~inside)
    grey = Image.fromarray((inside * 200).byte().numpy())
    grey.save(tmp_path / "mask.png")
    clear = Image.new("RGBA", grey.size, (255, 255, 255, 0))  # white paint on a transparent ground
    clear.putalpha(grey)
    for mask in (grey, tmp_path / "mask.png", clear, inside, inside.float(), inside.numpy(), inside.byte() * 200):
        assert torch.equal(masks.read_hole((9, 10), mask), inside)
    assert torch.equal(masks.read_hole((9, 10), box=np.array([2, 1, 5, 4])), inside)


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("batch_size", [2, 8])
def test_variations_keep_the_coarse_maps_and_nothing_else(build, mixers, batch_size):
    sampler = Sampler(*build(**mixers), 0, USUAL)
    maps = sampler.sample(torch.tensor([1]), [8]).tokens
    for k in range(4):
        varied = vary(sampler, maps, torch.tensor([1]), [0, 1, 2], k, batch_size)
        for scale, (tokens, own) in enumerate(zip(varied.tokens, maps, strict=True)):
            if scale < k:
                assert torch.equal(tokens, own.expand(3, -1))
        assert len(varied.tokens[-1].unique(dim=0)) > 1
    whole = vary(sampler, maps, torch.tensor([1]), [0, 1, 2], 0, batch_size)
    fresh = sampler.sample(torch.tensor([1, 1, 1]), [0, 1, 2])
    assert all(torch.equal(a, b) for a, b in zip(whole.tokens, fresh.tokens, strict=True))


def test_the_prefix_runs_once(build, monkeypatch):
    tokenizer, generator = build()
    sampler = Sampler(tokenizer, generator, 0, USUAL)
    maps = sampler.sample(torch.tensor([1]), [9]).tokens
    calls, step = [], generator.step
    monkeypatch.setattr(
        generator,
        "step",
        lambda x, m, s, scales, *rest: calls.append((len(x), len(scales))) or step(x, m, s, scales, *rest),
    )
    vary(sampler, maps, torch.tensor([1]), [0, 1, 2], 3, 8)
    assert calls == [(2, 3), (6, 1)]

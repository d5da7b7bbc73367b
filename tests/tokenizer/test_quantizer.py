import pytest
import torch
from torch.nn import functional as F

from mvar.tokenizer import quantizer as quantizer_module
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.quantizer import MultiScaleQuantizer, phi_of_scale

SCHEDULES = {"ragged": [1, 3, 5], "wide": [[1, 2], [2, 3], [4, 6]], "repeated": [2, 4, 4], "one": [4]}


def build(sides, **changes):
    torch.manual_seed(0)
    settings = {"channels": 32, "multipliers": (1, 1), "latent_channels": 8, "vocab_size": 32} | changes
    return MultiScaleQuantizer(TokenizerConfig(sides=sides, **settings))


def latent(quantizer, batch=3):
    return torch.randn(batch, 8, *quantizer.schedule.shapes[-1], generator=torch.Generator().manual_seed(1))


def naive(quantizer, f):
    """The algorithm of VAR's paper, vector by vector."""
    shapes, K = quantizer.schedule.shapes, len(quantizer.schedule)
    f_hat, tokens, sums = torch.zeros_like(f), [], []
    for k, (h, w) in enumerate(shapes):
        rest = f - f_hat if k == K - 1 else F.interpolate(f - f_hat, (h, w), mode="area")
        distance = (rest.permute(0, 2, 3, 1)[..., None, :] - quantizer.codebook).square().sum(-1)
        tokens.append(distance.argmin(-1))
        grown = quantizer.codebook[tokens[-1]].permute(0, 3, 1, 2)
        if k < K - 1:
            grown = F.interpolate(grown, shapes[-1], mode="bicubic")
        phi = quantizer.phi[quantizer.phi_of_scale[k]]
        f_hat = f_hat + 0.5 * grown + 0.5 * F.conv2d(grown, phi.weight, phi.bias, padding=1)
        sums.append(f_hat)
    return [t.flatten(1) for t in tokens], sums


@pytest.mark.parametrize("sides", SCHEDULES.values(), ids=SCHEDULES)
def test_every_path_equals_the_papers_algorithm(sides):
    quantizer = build(sides)
    f = latent(quantizer)
    tokens, sums = naive(quantizer, f)
    quantized = quantizer.quantize(f)
    for found in (quantized.tokens, quantizer.encode(f)):
        assert [t.tolist() for t in found] == [t.tolist() for t in tokens]
    torch.testing.assert_close(quantizer.partial_sums(tokens), sums)
    torch.testing.assert_close(quantized.f_hat_BZHW, sums[-1])
    expected = sum(1.25 * F.mse_loss(f_hat, f) for f_hat in sums) / len(sums)
    torch.testing.assert_close(quantized.loss, expected)
    assert [tuple(r.shape[-2:]) for r in quantized.residuals] == list(quantizer.schedule.shapes)


@pytest.mark.parametrize(
    ("scales", "phis", "expected"),
    [
        (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (5, 4, [0, 1, 2, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (10, 10, list(range(10))),
        (1, 4, [0]),
    ],
)
def test_which_phi_each_scale_uses(scales, phis, expected):
    assert phi_of_scale(scales, phis) == expected


def test_the_first_of_equal_codes_is_nearest_also_in_pieces(monkeypatch):
    quantizer = build([1, 4])
    with torch.no_grad():
        quantizer.codebook[20:] = quantizer.codebook[:12]
    f = latent(quantizer, batch=5)
    whole = quantizer.nearest(f, 1)
    assert whole.max() < 20
    monkeypatch.setattr(quantizer_module, "NEAREST_ROWS", 7)
    assert torch.equal(quantizer.nearest(f, 1), whole)


def test_autocast_changes_nothing():
    quantizer = build([1, 2, 4])
    f = latent(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer.quantize(f)
    plain = quantizer.quantize(f)
    assert cast.f_hat_BZHW.dtype == torch.float32
    assert torch.equal(cast.f_hat_BZHW, plain.f_hat_BZHW)


def gradients(quantizer, part):
    """Gradients of one part of a training pass, for the latent, the codebook and the phis."""
    f = latent(quantizer).requires_grad_()
    quantized = quantizer.quantize(f)
    {"image": quantized.f_hat_BZHW.square().sum(), "vq": quantized.loss}[part].backward()
    found = {"f": f, "codebook": quantizer.codebook, "phi": quantizer.phi[0].weight}
    return f, {name: tensor.grad for name, tensor in found.items()}, quantized


def test_reconstruction_gradients_reach_only_the_encoder_straight_through():
    _, grads, quantized = gradients(build([1, 2, 4]), "image")
    torch.testing.assert_close(grads["f"], 2 * quantized.f_hat_BZHW.detach())
    assert grads["codebook"] is None
    assert grads["phi"] is None


def test_codebook_and_phi_learn_from_their_half_of_the_loss_and_the_encoder_from_the_other():
    quantizer = build([1, 2, 4])
    f, grads, quantized = gradients(quantizer, "vq")
    sums = [s.detach() for s in quantizer.partial_sums(quantized.tokens)]
    torch.testing.assert_close(grads["f"], sum(0.25 * 2 * (f.detach() - s) / f.numel() / 3 for s in sums))

    quantizer.zero_grad()
    (sum(F.mse_loss(s, f.detach()) for s in quantizer.partial_sums(quantized.tokens)) / 3).backward()
    torch.testing.assert_close(grads["codebook"], quantizer.codebook.grad)
    torch.testing.assert_close(grads["phi"], quantizer.phi[0].weight.grad)
    assert grads["phi"].abs().sum() > 0

    without = build([1, 2, 4], commitment=0.0)
    _, grads, _ = gradients(without, "vq")
    assert not grads["f"].any()
    torch.testing.assert_close(grads["codebook"], quantizer.codebook.grad)


def test_tokens_of_another_shape_or_outside_the_codebook_are_refused():
    quantizer, tokens = build([1, 2, 4]), torch.zeros(3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"tokens have shape \(3, 2, 2\): scale 1 needs \(B, 4\)"):
        quantizer.lookup(tokens.view(3, 2, 2), 1)
    tokens[2, 1] = 32
    with pytest.raises(ValueError, match=r"tokens of scale 1 lie in 0\.\.32; give 0\.\.31$"):
        quantizer.lookup(tokens, 1)
    tokens[2, 1] = 31
    assert torch.equal(quantizer.lookup(tokens, 1)[2, :, 0, 1], quantizer.codebook[31])


# --- quantiser dropout ---


def test_an_image_may_keep_its_first_scales_only():
    sides = [1, 2, 3, 4]
    quantizer, kept = build(sides), [1, 4, 3, 2]
    f = latent(quantizer, batch=4).requires_grad_()
    found = quantizer.quantize(f, torch.tensor(kept))
    errors = 0.0
    for i, n in enumerate(kept):
        alone = f[i : i + 1].detach()
        tokens, sums = naive(quantizer, alone)
        assert [t[i].tolist() for t in found.tokens[:n]] == [t[0].tolist() for t in tokens[:n]]
        torch.testing.assert_close(found.f_hat_BZHW[i], sums[n - 1][0])
        errors += sum(1.25 * F.mse_loss(sums[min(k, n - 1)], alone) for k in range(len(sides)))
    torch.testing.assert_close(found.loss, errors / len(kept) / len(sides))

    (gradient,) = torch.autograd.grad(found.f_hat_BZHW.sum(), f)
    assert torch.equal(gradient, torch.ones_like(f))  # straight through, whatever was dropped
    # An image of one scale teaches the codes of its first scale alone.
    one = quantizer.quantize(f.detach(), torch.ones(4, dtype=torch.long))
    (moved,) = torch.autograd.grad(one.loss, quantizer.codebook)
    assert set(moved.abs().sum(1).nonzero().flatten().tolist()) == set(one.tokens[0].flatten().tolist())

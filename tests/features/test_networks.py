"""Networks of random weights in the published key names and shapes, against the same arithmetic written out."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mvar.features.dino import DINO
from mvar.features.networks import find_network
from mvar.features.vgg import VGG16

# --- VGG16 and LPIPS ---

# Number, channels in and out of each convolution as torchvision counts the layers, by stage.
VGG_STAGES = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)


@pytest.fixture(scope="module")
def vgg():
    """torchvision's layout, float16; the classifier is cut to a corner."""
    random = torch.Generator().manual_seed(0)
    state = {"classifier.0.weight": torch.zeros(1, 1), "classifier.0.bias": torch.zeros(1)}
    for i, fan_in, fan_out in (layer for stage in VGG_STAGES for layer in stage):
        weight = torch.randn(fan_out, fan_in, 3, 3, generator=random) * (2 / 9 / fan_in) ** 0.5
        state[f"features.{i}.weight"] = weight.half()
        state[f"features.{i}.bias"] = 0.1 * torch.randn(fan_out, generator=random).half()
    return state


@pytest.fixture(scope="module")
def channel_weights():
    """LPIPS's small file."""
    random = torch.Generator().manual_seed(1)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, stage[-1][2], 1, 1, generator=random)
        for i, stage in enumerate(VGG_STAGES)
    }


def naive_vgg(state, pixels):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    # LPIPS rounds ImageNet's mean and deviation, doubled for pixels in [-1, 1], to three digits.
    shift, scale = ((2 * mean - 1) * 1000).round() / 1000, (2 * std * 1000).round() / 1000
    x = (2 * pixels - 1 - shift[:, None, None]) / scale[:, None, None]
    maps = []
    for number, stage in enumerate(VGG_STAGES):
        x = F.max_pool2d(x, 2, 2) if number else x
        for i, _, _ in stage:
            weight, bias = (state[f"features.{i}.{kind}"].float() for kind in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
        maps.append(x)
    return maps


def test_vgg_and_lpips_from_each_layout(vgg, channel_weights, tmp_path):
    lpips = {f"scaling_layer.{name}": torch.zeros(1, 3, 1, 1) for name in ("shift", "scale")}
    for number, stage in enumerate(VGG_STAGES):
        for name in (f"{i}.{kind}" for i, _, _ in stage for kind in ("weight", "bias")):
            lpips[f"net.slice{number + 1}.{name}"] = vgg[f"features.{name}"]
    twice = {key.replace("lin", "lins."): tensor.clone() for key, tensor in channel_weights.items()}
    torch.save(vgg, tmp_path / "vgg16.pth", _use_new_zipfile_serialization=False)  # as torchvision's file is
    torch.save(channel_weights, tmp_path / "vgg_lpips.pth")
    save_file(lpips | channel_weights | twice, tmp_path / "whole.safetensors")

    pixels = torch.rand(2, 3, 32, 48)
    expected = naive_vgg(vgg, pixels)
    assert [tuple(m.shape[1:]) for m in expected] == [
        (64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3),
    ]  # fmt: skip
    for name in ("vgg16.pth", f"vgg16.pth+{tmp_path}/vgg_lpips.pth", "whole.safetensors"):
        network = find_network(f"{tmp_path}/{name}")
        torch.testing.assert_close(network.maps(pixels), expected, rtol=1e-4, atol=1e-5)
        if name == "vgg16.pth":
            assert network.channel_weights is None
        else:
            weights = [tensor.flatten() for tensor in channel_weights.values()]
            torch.testing.assert_close(network.channel_weights, weights, rtol=0, atol=0)


# --- DINO ---


def dino_state(width=64, depth=4, patch=8, side=5, scaled=False, registers=0):
    random = torch.Generator().manual_seed(0)

    def draw(*shape, around=0.0):
        return around + 0.3 * torch.randn(*shape, generator=random) / (shape[-1] ** 0.5 if len(shape) == 2 else 1)

    state = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, 1 + side**2, width),
        "patch_embed.proj.weight": draw(width, 3, patch, patch) / patch,
        "patch_embed.proj.bias": draw(width),
        "norm.weight": draw(width, around=1),
        "norm.bias": draw(width),
    }
    if scaled:
        state["mask_token"] = draw(1, width)
    if registers:
        state["register_tokens"] = draw(1, registers, width)
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            state[f"blocks.{i}.{norm}.weight"] = draw(width, around=1)
            state[f"blocks.{i}.{norm}.bias"] = draw(width)
        sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for layer, (outs, ins) in sizes.items():
            state[f"blocks.{i}.{layer}.weight"] = 4 * draw(outs * width, ins * width)
            state[f"blocks.{i}.{layer}.bias"] = draw(outs * width)
        if scaled:
            state |= {f"blocks.{i}.{scale}.gamma": draw(width, around=0.7) for scale in ("ls1", "ls2")}
    return state


def cubic(x, a):
    x = x.abs()
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def resized(x, length, dim, step, antialias):
    """Bicubic along one dimension, `step` old places a new one, as a matrix product."""
    old = x.shape[dim]
    centre = ((torch.arange(length, dtype=torch.float64) + 0.5) * step - 0.5)[:, None]
    if antialias:  # a wider kernel, cut off at the border
        matrix = cubic((torch.arange(old) - centre) / max(step, 1), a=-0.5)
        matrix = matrix / matrix.sum(1, keepdim=True)
    else:  # places beyond the border repeat it
        places = torch.arange(-3, old + 3)
        wide = cubic(places - centre, a=-0.75)
        matrix = torch.zeros(length, old, dtype=torch.float64).index_add_(1, places.clamp(0, old - 1), wide)
    return (matrix @ x.movedim(dim, -2).double()).movedim(-2, dim).float()


def naive_dino(state, pixels, grid, taps):
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    for dim, places in ((2, grid[0]), (3, grid[1])):
        if pixels.shape[dim] != places * patch:
            pixels = resized(pixels, places * patch, dim, pixels.shape[dim] / (places * patch), antialias=True)
    colours = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    windows = F.unfold((pixels - colours[0]) / colours[1], patch, stride=patch).mT
    x = windows @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]

    places = state["pos_embed"][:, 1:]
    side = round(places.shape[1] ** 0.5)
    places = places.unflatten(1, (side, side))
    registers = state.get("register_tokens", torch.empty(1, 0, width))
    if grid != (side, side):
        for dim, new in ((1, grid[0]), (2, grid[1])):
            step = side / new if registers.numel() else side / (new + 0.1)
            places = resized(places, new, dim, step, antialias=registers.numel() > 0)
    first = torch.cat((state["cls_token"] + state["pos_embed"][:, :1], registers), 1)
    x = torch.cat((first.expand(len(x), -1, -1), x + places.flatten(1, 2)), 1)

    maps = []
    for i in range(max(taps)):
        prefix = f"blocks.{i}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        published = ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias")
        attention.load_state_dict({name: own[key] for name, key in zip(names, published, strict=True)})
        y = F.layer_norm(x, (width,), own["norm1.weight"], own["norm1.bias"], eps=1e-6)
        x = x + own.get("ls1.gamma", 1) * attention(y, y, y, need_weights=False)[0]
        y = F.layer_norm(x, (width,), own["norm2.weight"], own["norm2.bias"], eps=1e-6)
        y = y @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        x = x + own.get("ls2.gamma", 1) * (y @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"])
        if i + 1 in taps:
            y = F.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], eps=1e-6)
            maps.append(y[:, first.shape[1] :].mT.unflatten(2, grid))
    return maps


DINOS = {
    "v1": {},
    "v2": {"width": 128, "patch": 14, "scaled": True},
    "v2-registers": {"patch": 14, "scaled": True, "registers": 4},
}


@pytest.mark.parametrize("kind", DINOS)
def test_dino_at_its_own_grid_and_at_others(kind, tmp_path):
    state = dino_state(**DINOS[kind])
    path = tmp_path / f"any name{'.safetensors' if kind == 'v1' else '.pth'}"
    (save_file if kind == "v1" else torch.save)(state, path)
    network = find_network(str(path))
    patch = state["patch_embed.proj.weight"].shape[-1]
    for grid, height, width in (
        ((5, 5), 5 * patch, 5 * patch),
        ((3, 7), 3 * patch, 7 * patch),
        ((4, 2), 4 * patch + 3, 2 * patch - 2),
        ((2, 2), 16, 17),
    ):
        pixels = torch.rand(2, 3, height, width)
        expected = naive_dino(state, pixels, grid, taps=(1, 2, 3, 4))
        torch.testing.assert_close(network.maps(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "taps"), [(1, (1,)), (6, (2, 3, 5, 6)), (12, (3, 6, 9, 12))])
def test_dino_gives_the_maps_of_evenly_spaced_blocks(depth, taps):
    state, pixels = dino_state(depth=depth), torch.rand(1, 3, 40, 40)
    expected = naive_dino(state, pixels, (5, 5), taps)
    torch.testing.assert_close(DINO(state).maps(pixels), expected, rtol=1e-4, atol=1e-4)


# --- all of them ---


@pytest.mark.parametrize("kind", ["effnet", "vgg", "lpips", *DINOS])
def test_frozen_but_gradients_pass(kind, vgg, channel_weights):
    before = torch.get_rng_state()
    if kind == "effnet":
        network = find_network("effnet-lite0")
    elif kind in DINOS:
        network = DINO(dino_state(**DINOS[kind]))
    else:
        network = VGG16(vgg | (channel_weights if kind == "lpips" else {}))
    assert torch.equal(before, torch.get_rng_state())  # a run draws the same numbers whatever network it has
    assert not any(module.training for module in network.train().modules())
    assert not any(tensor.requires_grad for tensor in network.parameters())
    assert {tensor.dtype for tensor in [*network.parameters(), *network.buffers()]} == {torch.float32}

    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pixels = torch.rand(2, 3, *((32, 48) if kind == "effnet" else (16, 16)), requires_grad=True)
    maps = network.maps(pixels)
    weights = network.channel_weights
    assert weights is None or [len(w) for w in weights] == [m.shape[1] for m in maps]
    for one in maps:
        (gradient,) = torch.autograd.grad(one.square().sum(), pixels, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.abs().sum((1, 2, 3)) > 0).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


# --- what is refused ---


CONTENTS = (
    ([1, 2], "x.pth holds no state dict; .*"),
    ({"student": {}, "teacher": {}, "epoch": 3}, "x.pth holds no state dict; .*"),
    ({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "no known network has conv1.weight, fc.bias"),
    ({name: tensor for name, tensor in dino_state().items() if name != "norm.bias"}, "norm.bias is missing"),
    (dino_state() | {"norm.scale": torch.zeros(1)}, "norm.scale is unknown to DINO"),
    (dino_state() | {"norm.bias": torch.zeros(9)}, r"norm.bias has shape \(9,\), expected \(64,\)"),
    (dino_state() | {"pos_embed": torch.zeros(1, 8, 64)}, "pos_embed has 8 positions, expected .*square"),
    (dino_state(width=96), "width 96 is no multiple of the head width 64"),
    (dino_state() | {"norm.bias": torch.full((64,), torch.nan)}, "norm.bias holds NaN .* in 64 of 64 .*"),
    ({"features.0.weight": torch.zeros(64, 3, 11, 11)}, r"features.0.weight has shape .*, expected \(64, 3, 3, 3\)"),
    ({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, "these are LPIPS's channel .*, without VGG16"),
)


def test_other_contents_are_named(tmp_path):
    for content, message in CONTENTS:
        torch.save(content, tmp_path / "x.pth")
        problem = rf"^perceptual_network = '.*/x.pth': {message}; give effnet-lite0, or .*$"
        with pytest.raises(ValueError, match=problem):
            find_network(f"{tmp_path}/x.pth")


def test_other_files_are_named(tmp_path):
    torch.save(dino_state(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"cls_token": print}, tmp_path / "code.pth")
    for name, message in {
        "missing.pth": r".*missing.pth: no such file",
        "cut.pth": r"cut.pth is damaged, cut short, or no file of tensors \(.*\)",
        "code.pth": "code.pth holds .*print, and pickled code is never run; .*",
        f"whole.pth+{tmp_path}/missing.pth": ".*missing.pth: no such file",
    }.items():
        with pytest.raises(ValueError, match=rf"^perceptual_network = '.*': {message}; give effnet-lite0, or .*$"):
            find_network(f"{tmp_path}/{name}")

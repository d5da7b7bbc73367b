from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import mvar
from mvar.checkpoint import hub, placement
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.model import Model, load
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import to_uint8
from mvar.sampling.export import image_file, save_npz, save_pngs
from mvar.sampling.sheet import class_sheet, strip
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

CLASSES = ["Ankle boot", "T-shirt/top", "crane", "crane"]


def build(**parts):
    torch.manual_seed(0)
    shared = {"vocab_size": 48, "latent_channels": 8, "sides": [1, 2, 3]}
    tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared)).eval()
    generator = Generator(GeneratorConfig(depth=1, width=64, heads=2, num_classes=4, **shared)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        generator.head.weight.mul_(4)
    return Model(**{"tokenizer": tokenizer, "generator": generator, "classes": CLASSES} | parts)


@pytest.fixture(scope="module")
def model():
    return build(defaults=SamplingSettings(guidance=0.5, top_k=7))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def test_defaults_are_the_models_and_arguments_win(model):
    plain = model.sample([0, 1])
    assert same(plain, model.sample([0, 1], guidance=0.5, top_k=7, top_p=0.96, temperature=1.0, smooth=False, seed=0))
    assert same(plain, model.sample([0, 1], index=[0, 1]))
    assert not same(plain, model.sample([0, 1], seed=1))
    assert not same(plain, model.sample([0, 1], top_k=0, temperature=3.0))  # 0 is a value, not "default"
    assert model.sample([0], smooth=True).tokens is None
    assert plain.pixels.shape == (2, 3, 6, 6)


def test_batches_are_joined_in_order(model):
    calls = []
    parts = model.sample([0, 1, 2, 3, -1], batch_size=2, on_scale=lambda k, K, preview: calls.append(len(preview())))
    assert same(parts, model.sample([0, 1, 2, 3, -1]))
    assert calls == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert len(model.sample([0] * 3, batch_size=2, smooth=True).pixels) == 3


def test_labels_are_indices_or_names(model):
    assert model.label_ids([0, "Ankle boot", "t-SHIRT/top", -1, None, np.int64(2)]) == [0, 0, 1, 4, 4, 2]
    assert model.label_ids(torch.tensor([3, -1])) == [3, 4]
    assert model.label_ids("Ankle boot") == [0]
    assert model.label_ids(" ankle  BOOT\ufeff") == [0]
    assert model.label_ids(None) == [4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels is empty: give at least one"),
        ([4], "labels has 4: give an index from 0 to 3, or -1 for no class"),
        ([-2], "labels has -2: give an index"),
        ([0.5], "labels has 0.5: give a class index, a class name"),
        ("ankle boots", "labels has 'ankle boots': no class of this name; close: Ankle boot$"),
        ("shirt", "no class of this name; close: T-shirt/top$"),
        ("zebra", "no class of this name; classes: Ankle boot, T-shirt/top"),
        ("crane", r"2 classes have this name; give an index of \[2, 3\]"),
    ],
)
def test_labels_refused(model, labels, message):
    with pytest.raises(ValueError, match=message):
        model.sample(labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": [1, 2]}, "index has 2 numbers for 1 labels"),
        ({"index": [-1]}, "index = -1: give an integer"),
        ({"seed": -1}, "seed = -1: give an integer"),
        ({"batch_size": 0}, "batch_size = 0: must lie in 1 to 1,000,000"),
    ],
)
def test_arguments_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.sample([0], **arguments)


@pytest.mark.parametrize("method", ["sample", "sample_best", "vary", "edit", "sampler"])
def test_a_setting_of_an_unknown_name_is_refused(model, method):
    with pytest.raises(TypeError, match=r"^topk: no such sampling setting; close: top_k$"):
        getattr(model, method)(0, **({"from_scale": 1} if method == "vary" else {}), topk=3)


def test_a_tokenizer_alone_does_not_sample(tmp_path):
    alone = load(build(generator=None, classes=[]).save(tmp_path))
    assert alone.generator is None
    with pytest.raises(ValueError, match="without a generator"):
        alone.sample([0])


def test_bfloat16_runs_and_keeps_the_quantizer_exact(model, tmp_path):
    folder = model.save(tmp_path)
    half = load(folder, dtype="bfloat16")
    assert half.generator.word_embed.weight.dtype == torch.bfloat16
    assert half.generator.head.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="load the model with dtype='float32' to save it exactly"):
        half.save(tmp_path / "rounded")
    half.save(tmp_path / "rounded", dtype="bfloat16")
    assert all(p.dtype == torch.float32 for p in half.tokenizer.quantizer.parameters())
    out = half.sample([0, 1, -1], top_k=1)
    assert out.pixels.dtype == torch.float32
    exact = model.sample([0, 1, -1], top_k=1)
    assert torch.equal(out.tokens[0], exact.tokens[0])  # a clear decision each
    torch.testing.assert_close(half.tokenizer.decode(exact.tokens), exact.pixels, rtol=0, atol=0.05)
    pixels = torch.rand(1, 3, 6, 6)
    assert len(half.tokenizer.encode(pixels)) == 3
    assert half.sample([0], smooth=True).pixels.isfinite().all()


def test_large_generators_run_in_bfloat16_by_default(model, tmp_path, monkeypatch):
    folder = model.save(tmp_path)
    assert load(folder).generator.word_embed.weight.dtype == torch.float32
    monkeypatch.setattr(placement, "LARGE", 1000)
    for is_quick, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda is_quick=is_quick: is_quick)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert load(folder, device="cpu").generator.word_embed.weight.dtype == expected


def test_packaged_names_win_over_folders(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "packaged_root", lambda: tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "models" / "tiny")
    (tmp_path / "tiny").mkdir()
    assert load("tiny").classes == CLASSES
    with pytest.raises(ValueError, match=r"has no config.json"):
        load("./tiny")
    with pytest.raises(ValueError, match=r"model = 'huge': no such model; give a packaged name \(tiny\), a bundle"):
        load("huge")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    asked = []

    def offline(repo, **_):
        asked.append(repo)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"'someone/else': no local folder.*\(no route\); packaged models: "):
        load("someone/else")
    with pytest.raises(ValueError, match="no such model"):
        load("./no/such/folder")
    assert asked == ["someone/else"]


def test_a_mistyped_path_below_a_local_folder_is_no_hub_id(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: asked.append(repo))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "generator").mkdir(parents=True)
    with pytest.raises(ValueError, match="model = 'runs/genrator': the folder 'runs' here has no 'genrator' in it"):
        load("runs/genrator")
    assert asked == []


def test_load_refuses(model, tmp_path):
    folder = model.save(tmp_path / "m")
    with pytest.raises(ValueError, match="dtype = 'int8': must be float32 or bfloat16"):
        load(folder, dtype="int8")
    with pytest.raises(ValueError, match="device = 'warp': not available here"):
        load(folder, device="warp")
    (tmp_path / "d16.pth").touch()
    with pytest.raises(ValueError, match=r"is a file; .* load_official"):
        load(tmp_path / "d16.pth")


def test_pngs_and_npz_hold_the_images(model, tmp_path):
    out = model.sample([0, 1])
    files = [image_file(name, i) for name, i in (("Ankle boot", 0), ("T-shirt/top", 12))]
    paths = save_pngs(out, tmp_path / "png", files)
    assert [path.name for path in paths] == ["Ankle_boot-000000.png", "T-shirt_top-000012.png"]
    assert sorted(tmp_path.glob("png/*")) == sorted(paths)
    images = partial(map, to_uint8(out.pixels).__getitem__)
    path = save_npz(images, (6, 6), [0, 7], tmp_path / "new" / "samples.npz")
    with np.load(path) as data:
        assert (data["arr_0"].shape, data["arr_0"].dtype) == ((2, 6, 6, 3), np.uint8)
        assert sorted(data["index"].tolist()) == [0, 1]
        assert [[0, 7][i] for i in data["index"]] == data["arr_1"].tolist()
        for i, array in zip(data["index"], data["arr_0"], strict=True):
            assert np.array_equal(np.asarray(Image.open(paths[i])), array)
    with pytest.raises(ValueError, match=r"ends in .npz"):
        save_npz(images, (6, 6), [0, 1], tmp_path / "samples.png")


def test_file_names_are_short_and_of_one_form():
    assert image_file("caf\u00e9 / bar", 7) == image_file(" cafe\u0301 / bar ", 7) == "caf\u00e9_bar-000007.png"
    assert image_file("../..", 0) == image_file("\ud800", 0) == "image-000000.png"
    assert len(image_file("\u00e9" * 300, 0).encode()) == 200 + len("-000000.png")


def test_sheets_enlarge_pixel_by_pixel():
    images = [Image.new("RGB", (12, 12), (10 * i, 0, 200)) for i in range(3)]
    sheet = class_sheet([("Ankle boot", images), ("T-shirt/top", images[:1])])
    colours = {colour: count for count, colour in sheet.getcolors(1 << 20)}
    assert colours[(0, 0, 200)] == 2 * 96 * 96  # both rows, eightfold, nothing blurred
    assert colours[(20, 0, 200)] == 96 * 96
    grown = strip([images], ["1x1", "2x2", "3x3"])
    assert grown.width > 3 * 96
    assert grown.getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match="at least one image"):
        class_sheet([])


def test_a_name_that_mvar_lacks():
    assert mvar.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        mvar.lod  # noqa: B018

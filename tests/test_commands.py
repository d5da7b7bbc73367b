"""edit, vary, score, classify, info, reschedule and convert as a user runs them."""

import csv
import re
import shutil

import pytest
import torch
from PIL import Image

from mvar.checkpoint import hub
from mvar.cli import main
from mvar.model import Model, load
from mvar.sampling.labels import parse_labels


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with photo.png (16x16, twice the model's size), mask.png, wide.png and images/cat, images/dog."""
    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)

    def save(path, width=16, height=16):
        pixels = torch.randint(0, 256, (height, width, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)

    save("photo.png")
    save("wide.png", width=24)
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    mask.save("mask.png")
    for name in ("dog", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            save(f"images/{name}/{i}.png", width=20)
    return tmp_path


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def pixels(path):
    return torch.frombuffer(bytearray(opened(path).tobytes()), dtype=torch.uint8)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("hole", [["--mask", "mask.png"], ["--box", "4,4,12,12"], ["--box=[4,4,12,12]"]])
def test_edit_writes_the_image_and_says_how_far_the_rest_moved(bundle, capsys, hole):
    main(["edit", "--model", bundle, "--image", "photo.png", *hole, "--label", "dog", "--out", "edited.png"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "change outside the hole, of 255:"
    assert lines[1].startswith("         1 pixel from it: ")
    assert lines[-1] == "wrote edited.png"
    assert opened("edited.png").size == (8, 8)
    main(["edit", "--model", bundle, "--image", "photo.png", *hole, "--paste", "--feather", "2", "--out", "pasted.png"])
    assert opened("pasted.png").size == (16, 16)
    outside = torch.ones(16, 16, 3, dtype=torch.bool)
    outside[2:14, 2:14] = False
    same = pixels("pasted.png") == pixels("photo.png")
    assert same[outside.flatten()].all()
    assert not same.all()


@pytest.mark.usefixtures("workplace")
def test_edit_gives_several_results_and_compares(bundle):
    outpaint = ["edit", "--model", bundle, "--image", "photo.png", "--keep-box", "8,0,16,16"]
    main([*outpaint, "--n", "3", "--compare", "--mode", "own", "--out", "sheet.png", "--batch-size", "2"])
    assert opened("sheet.png").width > 5 * 96
    main([*outpaint, "--n", "2", "--out-dir", "edits"])
    assert opened("edits/edited-000001.png").size == (8, 8)
    main([*outpaint, "--top-k", "1", "--out", "a.png"])
    main([*outpaint, "--top-k", "1,1,1", "--guidance", "0,0,0", "--guidance-schedule", "constant", "--out", "b.png"])
    assert torch.equal(pixels("a.png"), pixels("b.png"))  # no class: guidance changes nothing


@pytest.mark.usefixtures("workplace")
def test_vary_draws_a_row_for_each_prefix(bundle, capsys):
    main(["vary", "--model", bundle, "--image", "photo.png", "--from-scale", "2", "--n", "3", "--out", "one.png"])
    assert "wrote one.png: the image, then 3 variations" in capsys.readouterr().out
    main(["vary", "--model", bundle, "--label", "cat", "--from-scale", "0,1,2", "--n", "2", "--out", "three.png"])
    assert opened("three.png").height > 2.5 * opened("one.png").height - 60


def test_score_and_classify_read_a_folder_of_classes(bundle, capsys, workplace):
    model = load(bundle)
    files = sorted((workplace / "images").rglob("*.png"))
    labels = [file.parent.name for file in files]
    main(["score", "--model", bundle, "--images", "images", "--out", "scores.csv", "--sheet", "ranked.png"])
    found = model.score(files, labels)
    out = capsys.readouterr().out
    assert out.startswith(f"6 images: {found.bits_per_token.mean():.3f} bits per token")
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == labels
    assert [float(row["log_prob"]) for row in rows] == pytest.approx(found.log_prob.tolist(), abs=1e-3)

    assert opened("ranked.png").height > 2 * 96

    main(["classify", "--model", bundle, "--images", "images", "--limit", "4", "--out", "classes.csv"])
    out = capsys.readouterr().out
    named = model.classify([files[i] for i in (0, 1, 3, 4)])
    right = sum(a == b for a, b in zip(named.labels, ["cat", "cat", "dog", "dog"], strict=True))
    assert out.startswith(f"4 images: {25 * right:.2f} % classified right")
    shutil.rmtree("images/dog")
    shutil.move("images/cat", "images/Cat ")
    main(["classify", "--model", bundle, "--images", "images"])  # a single class folder is one too
    assert " % of 3" in capsys.readouterr().out
    main(["classify", "--model", bundle, "--images", "photo.png"])
    assert capsys.readouterr().out.startswith("photo.png: ")
    main(["score", "--model", bundle, "--images", "photo.png"])
    assert capsys.readouterr().out.startswith("1 image: ")


NAMED = ["cat", "Cats, dogs", "caf\u00e9 au lait", "7", "0,1", "cat,7", '5" disk', '"big" cat']


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat,1,-1", ["cat", 1, -1]),
        ("Cats, dogs", ["Cats, dogs"]),
        ('"Cats,  dogs",cat', ["Cats, dogs", "cat"]),
        ("cafe\u0301 au\u00a0lait", ["caf\u00e9 au lait"]),
        ('5" disk,cat', ['5" disk', "cat"]),
        ('"big" cat', ['"big" cat']),
    ],
)
def test_labels_between_commas(text, labels):
    assert parse_labels(text, NAMED) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7", "labels has 7: index 7 or the class named '7'? For the class, give 3"),
        ("0,1", "labels has '0,1': the class of this name or several? For the class, give 4"),
        ("cat,7", "labels has 'cat,7': the class of this name or several? For the class, give 5"),
        (" , ", "labels = ' , ': names no class; give at least one, or leave it out"),
    ],
)
def test_labels_of_two_meanings_or_none_are_refused(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_labels(text, NAMED)


def test_join_takes_the_decoder_of_one_and_the_generator_of_another(bundle, tmp_path, refused, capsys):
    whole = load(bundle, "cpu", "float32")
    with torch.no_grad():
        whole.tokenizer.decoder.conv_out.bias += 0.5
    Model(whole.tokenizer).save(tmp_path / "decoder")
    main(["join", "--tokenizer", str(tmp_path / "decoder"), "--generator", bundle, "--out", str(tmp_path / "joined")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'joined'}\n"
    joined, before = load(tmp_path / "joined", "cpu"), load(bundle, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(joined.sample("cat").tokens, before.sample("cat").tokens, strict=True))
    assert joined.sample("cat").pixels.mean() > before.sample("cat").pixels.mean()

    with torch.no_grad():
        whole.tokenizer.quantizer.codebook += 1
    other = Model(whole.tokenizer).save(tmp_path / "other")
    line = refused("join", "--tokenizer", str(other), "--generator", bundle, "--out", str(tmp_path / "x"))[-1]
    assert "was trained with in quantizer.codebook; give one that was trained from it with --decoder-only" in line
    assert not (tmp_path / "x").exists()
    line = refused("join", "--tokenizer", bundle, "--generator", str(other), "--out", str(tmp_path / "x"))[-1]
    assert line.startswith(f"mvar: generator = '{other}': is a tokenizer without a generator")


@pytest.mark.filterwarnings("ignore:the model was not trained at these scales")
@pytest.mark.usefixtures("workplace")
def test_reschedule_writes_a_bundle_of_another_size(bundle, capsys):
    main(["reschedule", "--model", bundle, "--sides", "1,2,[2,4],[4,8]", "--out", "wide"])
    assert "wrote wide: 16x8 pixels" in capsys.readouterr().out
    main(["sample", "--model", "wide", "--labels", "cat", "--out-dir", "drawn"])
    assert opened("drawn/cat-000000.png").size == (16, 8)
    opened("photo.png").resize((32, 16)).save("twice.png")
    main(["edit", "--model", "wide", "--image", "twice.png", "--box", "0,0,8,8", "--out", "edited.png"])
    assert opened("edited.png").size == (16, 8)


def test_info_tells_what_an_image_costs(bundle, capsys):
    main(["info", bundle])
    out = capsys.readouterr().out
    said = ("MB in float32", "MB in bfloat16", "G generator with guidance", "G decoder", "MB a branch", "cat, dog")
    assert all(part in out for part in said)


def test_edit_pastes_a_photo_of_nearly_the_models_aspect_where_it_was(bundle, workplace):
    with Image.open("photo.png") as photo:
        photo.resize((1000, 1015)).save("large.png")
    main(["edit", "--model", bundle, "--image", "large.png", "--box", "400,400,600,600", "--paste", "--out", "out.png"])
    outside = torch.ones(1015, 1000, 3, dtype=torch.bool)
    outside[396:604, 396:604] = False
    assert (pixels("out.png") == pixels("large.png"))[outside.flatten()].all()


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("mode", "profile", "suffix", "kept"),
    [("RGBA", "p3", ".png", True), ("LA", "grey", ".png", True), ("P", "p3", ".png", False)],
)
def test_edit_pastes_into_the_images_own_mode_and_profile(bundle, profiles, mode, profile, suffix, kept):
    noise = torch.randint(0, 256, (16, 16, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise[:8, :, 3] = 0  # whose hidden colours stay too
    image = Image.fromarray(noise.numpy()).convert("RGB" if mode == "P" else mode).convert(mode)
    image.save("own.png", icc_profile=profiles[profile])
    edit = ["edit", "--model", bundle, "--image", "own.png", "--box", "4,4,12,12", "--paste", "--feather", "1"]
    main([*edit, "--out", f"out{suffix}", "--out-dir", "edits"])
    main([*edit, "--n", "2", "--compare", "--out", "sheet.png"])
    assert opened("sheet.png").width > 4 * 96
    for path in (f"out{suffix}", "edits/edited-000000.png"):
        with Image.open(path) as result:
            assert result.mode == (mode if kept else "RGB")
            assert result.info["icc_profile"] == profiles[profile]
            before, after = (torch.tensor(list(x.convert(result.mode).tobytes())) for x in (image, result))
        outside = torch.ones(16, 16, len(before) // 256, dtype=torch.bool)
        outside[3:13, 3:13] = False
        assert (before == after)[outside.flatten()].all()
        assert not (before == after).all()


@pytest.mark.usefixtures("workplace")
def test_a_large_image_that_webp_cannot_hold_is_refused_before_any_work(refused):
    Image.new("L", (16_400, 400)).save("large.png")
    edit = ["edit", "--model", "nowhere", "--image", "large.png", "--box", "0,0,9,9", "--paste"]
    line = refused(*edit, "--out", "out.webp")[-1]
    assert line == "mvar: out = 'out.webp': 16400x400 pixels, a WebP has at most 16383 a side; give a .png"


def test_a_public_model_that_cannot_be_fetched_says_where_it_is(refused, tmp_path, monkeypatch):
    def offline(self, repo):
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", offline)
    lines = refused("convert", "--official", "d24", "--out", str(tmp_path / "d24"))
    assert lines[0].startswith("mvar: official = 'd24': not fetched from the Hugging Face hub (no network)")
    assert any("FoundationVision/var/resolve/main/vae_ch160v4096z32.pth" in line for line in lines)
    assert any("OliverRen/M-VAR/resolve/main/d24.pth" in line for line in lines)
    assert not (tmp_path / "d24").exists()
    assert refused("convert", "--official", "d25", "--out", str(tmp_path / "d24"))[0].startswith(
        "mvar: official = 'd25': no public model of this name; known: d12, d16"
    )


def test_a_public_model_is_found_by_its_depth(monkeypatch):
    files = ["README.md", "var_d16_ema.pth", "var_d160.pth", "vae_ch160v4096z32.pth"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: f"{repo}/{file}")
    tokenizer, generator = map(str, hub.official_files("var-d16"))
    assert tokenizer == "FoundationVision/var/vae_ch160v4096z32.pth"
    assert generator == "FoundationVision/var/var_d16_ema.pth"
    with pytest.raises(ValueError, match=r"FoundationVision/var has 0 files for depth 20, of README\.md"):
        hub.official_files("var-d20")


def test_a_public_model_becomes_a_bundle(load_parity, tmp_path, monkeypatch):
    case = load_parity("var")
    files = {"vae_ch160v4096z32.pth": case.tokenizer, "var_d16.pth": case.generator}
    for name, state in files.items():
        torch.save(state, tmp_path / name)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo: list(files))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: str(tmp_path / file))
    main(["convert", "--official", "var-d16", "--out", str(tmp_path / "var-d16")])
    assert load(tmp_path / "var-d16").generator.config.attention == "global"

"""What a refused command says, in a few lines, and that it leaves nothing on disk, no file and no folder."""

import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.model import load

pytestmark = pytest.mark.filterwarnings("ignore:.*they are enlarged")
NEW = "new/deep"  # a folder that no command may make
TRAIN = {
    "tokenizer": f"train tokenizer --preset tiny32 --perceptual 0 --steps 1 --device cpu --out {NEW}/run",
    "generator": f"train generator --preset tiny32 --tokenizer bundle --steps 1 --device cpu --out {NEW}/run",
}
SAMPLE = "sample --model bundle"
SHEET = f"{SAMPLE} --out {NEW}/c.png"
EDIT = f"edit --model bundle --image photo.png --out {NEW}/a.png --out-dir {NEW}/b"
VARY = f"vary --model bundle --image photo.png --out {NEW}/a.png"
EVALUATE = f"evaluate --reference images --out {NEW}/e --cache {NEW}/c"


@pytest.fixture(scope="module")
def workplace(bundle, tmp_path_factory):
    """Models and images of 8x8 pixels; what is refused is refused for something else than missing files."""
    root = tmp_path_factory.mktemp("workplace")
    shutil.copytree(bundle, root / "bundle")
    other = load(bundle, device="cpu")
    torch.nn.init.normal_(other.tokenizer.quantizer.codebook)
    other.save(root / "other")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for folder, images in (("images/cat", pixels[:6]), ("images/dog", pixels[6:]), ("single", pixels[:1])):
        (root / folder).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(root / folder / f"{i}.png")
    shutil.copytree(root / "images", root / "birds")
    (root / "birds" / "dog").rename(root / "birds" / "owl")
    (root / "large").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (i, i, i)).save(root / "large" / f"{i}.png")
    Image.new("RGB", (8, 8)).save(root / "photo.png")
    Image.new("RGB", (24, 16)).save(root / "wide.png")
    (root / "text.pth").write_text("none")
    (root / "empty").mkdir()
    (root / "reports" / "small").mkdir(parents=True)
    return root


def listing(root: Path) -> dict[str, int]:
    """Every file and folder with the time of its last change."""
    return {str(path): os.lstat(path).st_mtime_ns for path in [*root.rglob("*"), root] if path.is_file()} | {
        str(path): 0 for path in root.rglob("*") if path.is_dir()
    }


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("info", "mvar info: give MODEL; see mvar info --help"),
        (f"{SAMPLE} --of 3 --out {NEW}/a.png", "--of: mvar sample-best keeps the best of several candidates"),
        (f"{SAMPLE} --out=", "out = '': is empty; give a value, or leave it out"),
        ("sample-set --model bundle --out-dir=", "out_dir = '': is empty; give a value, or leave it out"),
        (f"{TRAIN['tokenizer']} --data single", "leaves no validation images"),
        (f"{TRAIN['tokenizer']} --data images --init-from other --decoder_only --model nowhere.yaml", "model"),
        (f"{TRAIN['tokenizer']} --data images --init-from nowhere", "init_from = 'nowhere': no such model"),
        (f"{TRAIN['tokenizer']} --data images --batch-size 1000000", "model, batch_size: "),
        (f"{TRAIN['tokenizer']} --data images --resume", "holds no checkpoint to resume"),
        (f"{TRAIN['tokenizer']} --data images --parallel ddp", "several processes are started by torchrun"),
        (
            f"{TRAIN['tokenizer']} --data images --parallel fsdp",
            "mvar: parallel = 'fsdp': a tokenizer fits every",
        ),
        (
            f"{TRAIN['tokenizer']} --data images --decoder-only",
            "mvar: decoder_only = True: needs a trained enc",
        ),
        (
            f"{TRAIN['generator']} --data images --freeze mlp",
            "mvar: freeze = mlp: weights that stay need ini",
        ),
        (f"{TRAIN['generator']} --data single", "leaves no validation images"),
        (f"{TRAIN['generator']} --data images --tokenizer nowhere", "tokenizer = 'nowhere': no such model"),
        (f"{TRAIN['generator']} --data images --init-from other", "was trained on another tokenizer's token maps"),
        (f"{TRAIN['generator']} --data birds --init-from bundle --freeze [classes]", "owl must be learnt first"),
        (f"{TRAIN['generator']} --data images --preview-per-class 100 --init-from bundle --model.depth 2", "keeps it"),
        (f"tokenize --tokenizer bundle --data single --out {NEW}/cache", "leaves no validation images"),
        (f"{TRAIN['tokenizer']} --data nowhere", "mvar: data = 'nowhere': does not exist"),
        (f"{TRAIN['tokenizer']} --data empty", "mvar: data = 'empty': holds no images"),
        ("train tokenizer --preset tiny32 --data images --out photo.png/a", "photo.png/a"),
        (f"{TRAIN['generator']} --data images --init-from photo.png/a", "photo.png/a"),
        (f"{SHEET} --labels 2,2", "mvar: labels has 2: give an index from 0 to 1, or -1 for no class"),
        (f"{SHEET} --labels dgo", "mvar: labels has 'dgo': no class of this name; close: dog"),
        (f"""{SHEET} --labels '"cat" dog'""", """mvar: labels = '"cat" dog': close each name in double quotes"""),
        (f"{SHEET} --guidance -1", "mvar: guidance = -1.0: must be 0 (no guidance) to 1000"),
        (f"{SHEET} --top-p 0", "mvar: top_p = 0.0: must lie in (0, 1]; 1 keeps all codes"),
        (f"{SHEET} --per-class 0", "mvar: per_class = 0: must lie in 1 to 1,000,000"),
        (f"{SHEET} --per-class 900", "mvar: out: a sheet of 2 rows of 900 images would be"),
        (f"{SHEET} --seed -1", "mvar: seed = -1: must lie in 0 to 9,223,372,036,854,775,807"),
        (f"{SHEET} --device nowhere", "mvar: device = 'nowhere': not available here; give cpu"),
        (f"{SHEET} --device cuda:99", "mvar: device = 'cuda:99': not available here; give cpu"),
        (f"{SHEET} --protocol x", "mvar sample: --protocol: mvar sample-set "),
        (f"{SHEET} --counts-of x", "mvar sample: --counts-of: mvar sample-set "),
        (f"{SHEET} --judge x", "mvar sample: --judge: mvar sample-best "),
        (f"{SAMPLE} --out {NEW}/c.txt", f"mvar: out = '{NEW}/c.txt': give a name that ends in .png or .webp"),
        (f"{SAMPLE} --labels owl --out-dir {NEW}/a --npz {NEW}/b.npz", "no class of this name"),
        (f"{SAMPLE} --out-dir photo.png/a", "mvar: out_dir = 'photo.png/a': cannot be written"),
        ("sample --model photo.png/a", "photo.png/a"),
        (f"{SAMPLE} --model single --out-dir {NEW}/a", "give a bundle or run folder"),
        (f"sample-set --model bundle --smooth --out-dir {NEW}/a", "smooth = True"),
        (f"sample-set --model bundle --npz {NEW}/a.npz --counts-of birds", "holds cat, owl, the model draws"),
        (f"sample-best --model bundle --judge text.pth --out-dir {NEW}/a", "text.pth"),
        (EDIT, "mvar: mask, box, keep_box: have none of them; give exactly one to say what to repaint"),
        (f"{EDIT} --box 0,0,8,8", "mvar: box: repaints the whole image, so that nothing of it would stay"),
        (f"{EDIT} --box 0,0,9,8", "mvar: box = 0,0,9,8: give left,top,right,bottom in whole pixels"),
        (f"{EDIT} --mask wide.png", "mvar: mask: is 24x16 pixels, the image is 8x8; give a mask of the image's"),
        (f"{EDIT} --mask nowhere.png", "mvar: mask = 'nowhere.png': not a file"),
        (f"{EDIT} --box 0,0,4,4 --image wide.png", "mvar: image: is 24x16 pixels, the model draws 8x8; crop"),
        (f"{EDIT} --box 0,0,4,4 --label owl", "mvar: labels has 'owl': no class of this name"),
        (f"{EDIT} --box 0,0,4,4 --feather 3", "mvar: feather = 3: blends what paste puts back; give --paste"),
        (f"{EDIT} --box 0,0,4,4 --top-k 1,2", "mvar: top_k has 2 values: give one number, or one for each of"),
        (f"{VARY} --from-scale 3", "mvar: from_scale = 3: give 0 (keep nothing) to 2"),
        (f"{VARY} --from-scale 1 --image wide.png", "mvar: image: is 24x16 pixels, the model draws 8x8"),
        (f"score --model bundle --images birds --out {NEW}/a.csv --sheet {NEW}/b.png", "no classes of the model"),
        ("score --model bundle --images images --label cat", "mvar: label = 'cat': the folders of 'images' give the"),
        ("score --model bundle --images photo.png --label 7", "mvar: labels has 7: give an index from 0 to 1"),
        ("score --model bundle --images nowhere", "mvar: images = 'nowhere': does not exist"),
        ("score --model bundle --images photo.png/a", "photo.png/a"),
        (
            f"score --model bundle --images images --out {NEW}/a.txt",
            f"mvar: out = '{NEW}/a.txt': give a name that ends",
        ),
        (f"classify --model bundle --images empty --out {NEW}/a.csv", "holds no images"),
        (f"{EVALUATE} --samples large", "samples and reference have 16x16 and 8x8 pixels"),
        (f"{EVALUATE} --samples single", "holds 1 image"),
        (f"{EVALUATE} --samples missing", "samples = 'missing': does not exist"),
        (f"{EVALUATE} --samples images --pipeline pytorch-fid", "pipeline = 'pytorch-fid': is Inception's"),
        (f"{EVALUATE} --samples images --features inception", "inception needs its file; give --weights"),
        (
            f"{EVALUATE} --samples images --floor large",
            "samples and floor have 8x8 and 16x16 pixels; give a floor",
        ),
        (f"{EVALUATE} --samples images --model bundle", "give one of them"),
        (f"compare --reports images --out {NEW}/a.md", "is no report.json"),
        (f"convert --tokenizer text.pth --out {NEW}/a", "text.pth"),
        (
            f"reschedule --model bundle --sides 2,1 --out {NEW}/a",
            "mvar: sides must grow from coarse to fine, but (1, 1)",
        ),
        (
            f"join --tokenizer nope --generator bundle --out {NEW}/a",
            "mvar: tokenizer = 'nope': no such model; give",
        ),
        (
            f"join --tokenizer bundle --generator nope --out {NEW}/a",
            "mvar: generator = 'nope': no such model; give",
        ),
        (f"reschedule --model bundle --sides 1,2 --out {NEW}/a --model nowhere", "no such model"),
        (f"join --tokenizer other --generator bundle --out {NEW}/a", "tokenizer = 'other': differs from the one"),
        (f"bench sample --preset tiny32 --batch 1000000 --out {NEW}/a", "preset, batch: "),
        (f"bench sample --preset d17 --out {NEW}/a", "mvar: preset = 'd17'"),
        (f"bench sample --batch 0 --out {NEW}/a", "batch = 0"),
        (f"bench sample --rounds 0 --out {NEW}/a", "rounds = 0"),
        (f"bench sample --against var-d17 --out {NEW}/a", "against = 'var-d17'"),
        (f"bench sample --model nowhere --out {NEW}/a", "no such model"),
        (f"bench train --preset d17 --out {NEW}/a", "mvar: preset = 'd17': choose from d12"),
        (f"bench train --steps 0 --out {NEW}/a", "mvar: steps = 0: must lie in 1 to 1,000,000,000"),
        (
            f"bench train --batch-size 1000000 --out {NEW}/a",
            "mvar: preset, batch_size: weights, gradients, Adam",
        ),
        (f"bench features --batch-size 1000000 --out {NEW}/a", "batch_size = 1000000: "),
        (f"study run sweep --model bundle --data images --judge text.pth --out {NEW}/a", "text.pth"),
        (f"study run mixers --data images --out {NEW}/a", "data = 'images': --scale small gets its own images"),
        (
            f"study run scan --scale paper --data images --out {NEW}/a",
            "tokenizer = None: --scale paper",
        ),
        (f"study run order --scale huge --out {NEW}/a", "scale = huge: give one of toy, small, medium, paper"),
        (f"study run mixers --seeds 0 --out {NEW}/a", "seeds = 0"),
        (f"study run attention --model bundle --out {NEW}/a", "data = None"),
        (f"study run cost --cases d13 --out {NEW}/a", "d13"),
        (f"study report --reports {NEW}/r --page {NEW}/p.md", "is no folder"),
        (f"study report --reports images --page {NEW}/p.md", "reports = 'images': has no results"),
        (f"study report --reports reports --scale toy --page {NEW}/p.md", "reports = 'reports' has only small"),
        ("study report --reports reports --page photo.png", "page = 'photo.png'"),
        (f"study run order --scale toy --device cuda --out {NEW}/a", "device = 'cuda': not available here"),
        (f"study run sweeep --out {NEW}/a", 'mvar study run: Unknown command "sweeep". Did you mean "sweep"?'),
        ("paint", 'mvar: Unknown command "paint".'),
        ("train painter", 'mvar train: Unknown command "painter".'),
        ("study run nothing", "replace, order, scan, scaling, ...; see mvar study run --help"),
        (f"data fashion-mnist --source empty --out {NEW}/a", "is missing or damaged"),
        (f"data icons --source empty --out {NEW}/a", "give a whole copy of the npm package"),
    ],
)
def test_a_refused_command_leaves_nothing(refused, workplace, monkeypatch, command, message):
    monkeypatch.chdir(workplace)
    before = listing(workplace)
    lines = refused(*shlex.split(command))
    assert any(message in line for line in lines), lines
    assert len(lines) <= 3
    assert listing(workplace) == before


@pytest.mark.parametrize("out", ["empty", "birds/owl"])
def test_a_folder_that_was_there_stays_as_it_was(refused, workplace, monkeypatch, out):
    monkeypatch.chdir(workplace)
    before = listing(workplace)
    for what in TRAIN.values():
        refused(*what.replace(f"{NEW}/run", out).split(), "--data", "single")
    assert listing(workplace) == before


def test_a_run_is_refused_before_its_data_are_read(refused, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for what in TRAIN.values():
        (line,) = refused(*what.replace(f"{NEW}/run", "other").split(), "--data", "nowhere")
        assert "out = 'other': holds a model, which this run would replace" in line

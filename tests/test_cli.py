"""The command as a user runs it: bad input gives its lines and exit code 2, before any work and without a traceback."""

import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from mvar.cli import COMMANDS, command_parser, main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "2,2"], "mvar: labels has 2: give an index from 0 to 1, or -1 for no class"),
        (["--labels", "dgo"], "mvar: labels has 'dgo': no class of this name; close: dog"),
        (["--guidance", "-1"], "mvar: guidance = -1.0: must be 0 (no guidance) or more"),
        (["--top-p", "0"], "mvar: top_p = 0.0: must lie in (0, 1]; 1 keeps all codes"),
        (["--top-p", "1.5"], "mvar: top_p = 1.5: must lie in (0, 1]; 1 keeps all codes"),
        (["--per-class", "0"], "mvar: per_class = 0: must lie in 1 to 1,000,000"),
        (["--seed", "-1"], "mvar: seed = -1: must lie in 0 to 9,223,372,036,854,775,807"),
        (["--per-class", "200", "--out", "sheet.webp"], "mvar: out: a sheet of 2 rows of 200 images would be"),
        (["--out", "sheet.txt"], "mvar: out = 'sheet.txt': give a name that ends in .png or .webp"),
        (["--device", "nowhere"], "mvar: device = 'nowhere': not available here"),
    ],
)
def test_sample_refuses(refused, bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    lines = refused("sample", "--model", bundle, *arguments)
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert not list(tmp_path.iterdir())


def test_two_wrong_values_are_both_named(refused, bundle, tmp_path):
    sample = ["sample", "--model", bundle, "--out", str(tmp_path / "a.png"), "--guidance", "-1", "--top-p", "0"]
    assert [line.split(" = ")[0] for line in refused(*sample)] == ["mvar: guidance", "mvar: top_p"]
    places = ["--data", str(tmp_path / "images"), "--out", str(tmp_path / "run")]
    train = ["train", "tokenizer", "--preset", "tiny32", *places]
    lines = refused(*train, "--steps", "0", "--model.channels", "7")
    assert [line.split(" = ")[0] for line in lines] == ["mvar: steps", "mvar: model.channels"]
    train = ["train", "generator", "--preset", "tiny32", "--tokenizer", "tok", *places]
    assert refused(*train, "--model.width", "7") == ["mvar: model.width = 7: Mamba-2 needs a multiple of 32"]
    assert not (tmp_path / "run").exists()


def test_data_that_is_missing_or_empty(refused, tmp_path):
    empty, run = tmp_path / "empty", tmp_path / "run"
    empty.mkdir()
    for folder, reason in ((tmp_path / "nowhere", "does not exist"), (empty, "holds no images")):
        lines = refused("train", "tokenizer", "--preset", "tiny32", "--data", str(folder), "--out", str(run))
        assert len(lines) == 1
        assert lines[0].startswith(f"mvar: data = '{folder}': {reason}")
        assert not run.exists()


def test_output_that_cannot_be_written(refused, bundle, tmp_path):
    (tmp_path / "file").write_text("in the way")
    lines = refused("sample", "--model", bundle, "--out-dir", str(tmp_path / "file" / "images"))
    assert len(lines) == 1
    assert "out_dir = " in lines[0]
    assert "give a writable folder" in lines[0]


def test_unknown_options_and_settings(refused, tmp_path):
    assert refused("train", "tokenizer", "--preset", "tiny32", "--data", "x", "--zzzz", "3", "--bathc-size=4") == [
        "mvar train tokenizer: unrecognized arguments: --zzzz 3 --bathc-size=4; close: --batch-size; "
        "see mvar train tokenizer --help"
    ]
    config = tmp_path / "run.yaml"
    config.write_text("preset: tiny32\nmodel:\n  chanels: 64\n")
    assert refused("train", "tokenizer", "--data", "x", "--out", "y") == [
        "mvar train tokenizer: the following arguments are required: --preset; see mvar train tokenizer --help"
    ]
    assert refused("train", "tokenizer", "--preset", "tiny32") == [
        "mvar train tokenizer: the following arguments are required: --data, --out; see mvar train tokenizer --help"
    ]
    assert refused("sample", "--bogus") == ["mvar sample: unrecognized arguments: --bogus; see mvar sample --help"]
    assert refused("info") == ["mvar info: the following arguments are required: model; see mvar info --help"]


def test_unknown_options_in_yaml(configured):
    assert configured("stepz: 3\nmodel:\n  widht: 64\n  heads: 3\nmodel.depht: two\nzzzz: 1\ndepth: 4\n") == [
        "mvar train generator: --config run.yaml: stepz = 3: no such option; close: steps",
        "mvar train generator: --config run.yaml: model.widht = 64: no such option; close: model.width",
        "mvar train generator: --config run.yaml: model.depht = 'two': no such option; close: model.depth",
        "mvar train generator: --config run.yaml: zzzz = 1: no such option",
        "mvar train generator: --config run.yaml: depth = 4: no such option; close: model.depth",
    ]


def test_a_preset_gives_defaults_wherever_it_is_named(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("preset: tiny32\nmodel:\n  heads: 6\n")
    for arguments in (["--preset", "tiny32", "--model.heads", "6"], ["--config", str(config)]):
        with pytest.raises(SystemExit) as exit_:
            main(["train", "generator", *arguments, "--print-config"])
        assert exit_.value.code == 0
        printed = capsys.readouterr().out
        assert "  heads: 6\n" in printed
        assert "  width: 192\n" in printed
        assert "resize_factor: 1.0\n" in printed


def test_sample_writes_what_was_asked(bundle, tmp_path, capsys):
    sheet, images, npz = tmp_path / "sheet.png", tmp_path / "images", tmp_path / "all.npz"
    asked = ["--labels", "dog,0", "--per-class", "2", "--show-scales", "--seed", "3"]
    main(["sample", "--model", bundle, *asked, "--out", str(sheet), "--out-dir", str(images), "--npz", str(npz)])
    assert sorted(path.name for path in images.iterdir()) == [
        "cat-000002.png",
        "cat-000003.png",
        "dog-000000.png",
        "dog-000001.png",
        "samples.json",
    ]
    with Image.open(sheet) as picture:
        assert picture.width > 200
    assert str(sheet) in capsys.readouterr().out
    main(["sample", "--model", bundle, "--labels", "dog,-1", "--seed", "3", "--out-dir", str(tmp_path / "again")])
    assert (tmp_path / "again" / "dog-000000.png").read_bytes() == (images / "dog-000000.png").read_bytes()
    main(["sample", "--model", bundle, "--show-scales", "--labels", "-1,dog", "--out", str(tmp_path / "null.png")])
    assert (tmp_path / "null.png").exists()


def test_a_number_that_is_a_class_name_is_not_guessed(refused, bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "numbers")
    (folder / "classes.json").write_text('["1", "10"]')
    lines = refused("sample", "--model", str(folder), "--labels", "1", "--out", str(tmp_path / "a.png"))
    assert lines == ["mvar: labels has 1: index 1 or the class named '1'? For the class, give 0"]
    main(["sample", "--model", str(folder), "--labels", "0", "--out", str(tmp_path / "a.png")])


def test_convert_there_and_back(bundle, tmp_path):
    official, again = tmp_path / "official", tmp_path / "again"
    main(["convert", "--model", bundle, "--out", str(official)])
    files = ["--tokenizer", str(official / "tokenizer.pth"), "--generator", str(official / "generator.pth")]
    main(["convert", *files, "--out", str(again)])
    main(["convert", "--model", str(again), "--out", str(tmp_path / "twice")])
    for name in ("tokenizer.pth", "generator.pth"):
        once, twice = (torch.load(tmp_path / run / name, weights_only=True) for run in ("official", "twice"))
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize("name", ["", "train", *COMMANDS])
def test_help_imports_no_torch(name):
    script = (
        "import sys; from mvar.cli import main\n"
        "try: main(sys.argv[1:] + ['--help'])\n"
        "except SystemExit as exit_: assert exit_.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, *name.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: {f'mvar {name}'.strip()}" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    for action in command_parser(name)._actions:
        assert len(str(action.help or "").split()) > 1, f"--{action.dest} is not explained"


def test_a_command_that_does_not_exist(refused):
    for arguments in (["paint"], ["train", "painter"]):
        assert refused(*arguments)[-1] == f"mvar: no such command: {' '.join(arguments)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "--n", "x"], "n = x: give a whole number"),
        (["edit", "--box", "a,b"], "box = a,b: give whole numbers with commas between them"),
        (["edit", "--mode", "best"], "mode = best: give one of reencode, own"),
        (["edit", "--paste", "maybe"], "paste = maybe: give true or false"),
        (["edit", "--dtype", "int9"], "dtype = int9: give one of float32, bfloat16"),
        (["sample", "--guidance", "much"], "guidance = much: give a number or numbers with commas between them"),
        (
            ["sample", "--top-k", "1,x"],
            "top_k = [1, 'x']: give a whole number or whole numbers with commas between them",
        ),
        (["train", "tokenizer", "--preset", "tiny32", "--steps", "many"], "steps = many: give a whole number"),
        (["reschedule", "--sides", "1,2,x"], "sides = x: give a whole number or a pair of them, [height, width]"),
        (["reschedule", "--sides", "5"], "sides = 5: give a list, in brackets"),
    ],
)
def test_values_of_the_wrong_type_are_told_in_plain_words(refused, arguments, message):
    command = " ".join(arguments[: 2 if arguments[0] == "train" else 1])
    assert refused(*arguments) == [f"mvar {command}: {message}; see mvar {command} --help"]


@pytest.fixture
def configured(refused, tmp_path, monkeypatch):
    """Train with this YAML file: what is printed, without the words about --help; nothing may be written."""

    def run(content: str, what: str = "generator") -> list[str]:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run.yaml").write_text(content)
        places = ["--data", "data", "--out", "out", *(["--tokenizer", "tok"] if what == "generator" else [])]
        lines = refused("train", what, "--preset", "tiny32", *places, "--config", "run.yaml")
        assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
        return [line.removesuffix(f"; see mvar train {what} --help") for line in lines]

    return run


@pytest.mark.parametrize(("value", "shown"), [("5", "5"), ("null", "None"), ("[1, 2]", "[1, 2]")])
@pytest.mark.parametrize("what", ["tokenizer", "generator"])
def test_a_model_in_yaml_needs_its_options_by_name(configured, what, value, shown):
    expected = f"mvar: model = {shown}: give its options by name, as in {{vocab_size: 1024}}"
    assert configured(f"model: {value}\n", what) == [expected]


def test_a_file_with_the_models_options(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text("heads: 7\n")
    arguments = "train generator --preset tiny32 --data data --out out --tokenizer tok --model model.yaml"
    assert refused(*arguments.split()) == ["mvar: model.heads = 7: must divide the width 192"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("freeze: blocks", "freeze = blocks: give a list, in brackets"),
        ("betas: 3", "betas = 3: give a list, in brackets"),
        ("betas: [0.9]", "betas = [0.9]: give a list of 2, in brackets"),
        ("model: {sides: 5}", "model.sides = 5: give a list, in brackets"),
    ],
)
def test_yaml_says_where_a_list_is_needed(configured, content, message):
    assert configured(content) == [f"mvar train generator: {message}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds nothing, expected options by name"),
        ("- 1\n- 2\n", "holds a list, expected options by name"),
        ("steps", "holds a str, expected options by name"),
        (
            "steps: 3\nbetas: [1\n",
            """is no YAML (while parsing a flow sequence in "run.yaml", line 2, column 8 expected ',' or ']', """
            """but got '<stream end>' in "run.yaml", line 3, column 1); mend it""",
        ),
    ],
)
def test_a_yaml_file_without_options(configured, content, message):
    assert configured(content) == [f"mvar train generator: --config run.yaml: {message}"]


def test_a_yaml_file_that_cannot_be_read(refused, tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    for arguments, message in (
        ("train tokenizer --config nope.yaml", "--config nope.yaml: no such file"),
        ("sample --config nope.yaml", "--config nope.yaml: no such file"),
        (f"train generator --config {tmp_path}", f"--config {tmp_path}: cannot be read (Is a directory); give a YAML"),
        (f"train generator --config {binary}", f"--config {binary}: is no YAML ('utf-8' codec can't decode byte 0xff"),
        ("train generator --config", "argument --config: expected one argument"),
        ("train generator --init-from", "argument --init-from: expected one argument"),
    ):
        (line,) = refused(*arguments.split())
        assert f": {message}" in line


def test_join_names_the_option_that_is_wrong(refused, bundle, tmp_path):
    for field in ("tokenizer", "generator"):
        models = {"tokenizer": bundle, "generator": bundle, field: "nope"}
        (line,) = refused("join", *(f"--{name}={model}" for name, model in models.items()), f"--out={tmp_path / 'out'}")
        assert line.startswith(f"mvar: {field} = 'nope': no such model; give a packaged name")
    assert not list(tmp_path.iterdir())


def test_a_batch_that_accumulate_does_not_divide_is_refused_before_data_are_read(configured):
    assert configured("batch_size: 4\naccumulate: 3\n") == [
        "mvar: batch_size = 4: cannot be cut into accumulate = 3 equal parts; give a multiple of 3"
    ]

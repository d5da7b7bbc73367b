"""The command as a user runs it: bad input gives its lines and exit code 2, before any work and without a traceback."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mvar.cli import COMMANDS, main
from mvar.options.fields import options_of


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
        (["--device", "nowhere"], "mvar: device = 'nowhere': not available here; give cpu"),
        (["--device", "meta"], "mvar: device = 'meta': not available here; give cpu"),
        (["--device", "privateuseone"], "mvar: device = 'privateuseone': not available here; give cpu"),
        (["--device", "cuda:99"], "mvar: device = 'cuda:99': not available here; give cpu"),
        (["--device", ""], "mvar: device = '': not available here; give cpu"),
        (["--labels", '"cat" dog'], """mvar: labels = '"cat" dog': close each name in double quotes"""),
        (["--labels", "9" * 5000], "mvar: labels has '99999"),
        (["--labels", "[" * 50_000], "mvar: labels has '[[["),
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
    assert refused("train", "tokenizer", "--preset", "tiny32", "--data", "x", "--bathc-size=4") == [
        "mvar train tokenizer: Unknown option: --bathc-size. Did you mean --batch-size?; "
        "see mvar train tokenizer --help"
    ]
    config = tmp_path / "run.yaml"
    config.write_text("preset: tiny32\nmodel:\n  chanels: 64\n")
    (line,) = refused("train", "tokenizer", "--data", "x", "--out", "y")
    assert (
        line
        == "mvar: preset: is missing; give --preset, one of f16-256, f16-512, tiny32, tiny64, quick32, or --minutes"
    )
    assert refused("train", "tokenizer", "--preset", "tiny32") == [
        "mvar train tokenizer: give --data, --out; see mvar train tokenizer --help"
    ]
    assert refused("sample", "--bogus") == [
        "mvar sample: Unknown option: --bogus. Did you mean --out?; see mvar sample --help"
    ]
    assert refused("info") == ["mvar info: give --model; see mvar info --help"]


def test_unknown_options_in_yaml(configured):
    assert configured("stepz: 3\nmodel:\n  widht: 64\n  heads: 3\nmodel.depht: two\nzzzz: 1\ndepth: 4\n") == [
        "mvar: --config run.yaml: stepz = 3: no such option; close: steps",
        "mvar: --config run.yaml: model.widht = 64: no such option; close: model.width",
        "mvar: --config run.yaml: model.depht = two: no such option; close: model.depth",
        "mvar: --config run.yaml: zzzz = 1: no such option",
        "mvar: --config run.yaml: depth = 4: no such option; close: model.depth",
    ]


def test_a_preset_gives_defaults_wherever_it_is_named(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("preset: tiny32\nmodel:\n  heads: 6\n")
    for arguments in (["--preset", "tiny32", "--model.heads", "6"], ["--config", str(config)]):
        main(["train", "generator", *arguments, "--print-config"])
        printed = capsys.readouterr().out
        assert "  heads: 6\n" in printed
        assert "  width: 192\n" in printed
        assert "resize_factor: 1.0\n" in printed


@pytest.fixture
def settled(capsys, tmp_path, monkeypatch):
    """What --print-config prints for words, among which a.yaml, ... stand for files of these contents."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: str, **files: str) -> dict[str, Any]:
        for name, content in files.items():
            Path(f"{name}.yaml").write_text(content)
        main([*command.split(), *words, "--print-config"])
        return yaml.safe_load(capsys.readouterr().out)

    return run


def test_what_is_typed_wins_over_files_and_later_files_over_earlier_ones(settled):
    files = {
        "a": "preset: tiny32\nsteps: 1\nbetas: [0.1, 0.2]\nmodel: {heads: 6, width: 96}",
        "b": "steps: 2\ndata: 2024\n",
    }
    typed = ["--steps", "3", "--model.heads=3", "--betas", "0.3,0.4", "--preset=tiny32"]
    both = ["--config", "a.yaml", "--config=b.yaml"]
    for words in ([*typed, *both], [*both, *typed], [*both[:2], *typed, both[2]]):
        found = settled("train generator", *words, **files)
        assert (found["steps"], found["betas"], found["data"]) == (3, [0.3, 0.4], "2024")
        assert (found["model"]["heads"], found["model"]["width"], found["model"]["depth"]) == (3, 96, 4)
    assert settled("train generator", *both)["steps"] == 2
    assert settled("train generator", "--config", "b.yaml", "--config", "a.yaml")["steps"] == 1
    assert settled("sample", "--model=m", "--labels", "Bag", "--config", "l.yaml", l="labels: Coat")["labels"] == "Bag"


def test_the_printed_config_gives_itself(settled):
    words = [
        "--preset",
        "tiny32",
        "--model.sides",
        "1,2,[3,4]",
        "--freeze",
        "mlp",
        "--device",
        "cpu",
        "--data",
        "2024-01-01",
    ]
    found = settled("train generator", *words)
    assert (found["model"]["sides"], found["freeze"]) == ([1, 2, [3, 4]], ["mlp"])
    assert settled("train generator", "--config", "all.yaml", all=yaml.safe_dump(found)) == found
    found = settled("sample", "--model", "m", "--labels", '"Cats, dogs",3', "--temperature", ".5,1")
    assert settled("sample", "--config", "all.yaml", all=yaml.safe_dump(found)) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1,1,1", [0.1, 1.0, 1.0]),
        ("1e-1", 0.1),
        ("+1, .5,  2", [1.0, 0.5, 2.0]),
        ("[1, 2.]", [1.0, 2.0]),
        (".5", 0.5),
        ("-1,1", [-1.0, 1.0]),
    ],
)
def test_lists_of_numbers(settled, text, value):
    assert settled("sample", "--model", "m", "--temperature", text)["temperature"] == value
    assert settled("sample", "--model", "m", "--config", "a.yaml", a=f"temperature: '{text}'")["temperature"] == value


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("3", "3"),
        ("no", "no"),
        ("010", "010"),
        ("2024-01-01", "2024-01-01"),
        ("[Bag, Coat]", "Bag,Coat"),
        ('["Cats, dogs", 3, \'5" disk\']', '"Cats, dogs",3,"5"" disk"'),
        ("\n- Bag\n- no", "Bag,no"),
        ("Bag, Coat", "Bag, Coat"),
    ],
)
def test_labels_in_yaml(settled, value, labels):
    assert settled("sample", "--model", "m", "--config", "a.yaml", a=f"labels: {value}")["labels"] == labels


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        "sample --model {bad}",
        "sample --model {bundle} --out-dir {bad}",
        "sample --model {bundle} --out {bad}.png",
        "score --model {bundle} --images {bad}",
        "info {bad}",
        "join --tokenizer {bundle} --generator {bundle} --out {bad}",
        "compare --reports {bad}",
        "tokenize --data data --tokenizer {bundle} --out {bad}",
        "train tokenizer --preset tiny32 --data {bad} --out out",
        "train tokenizer --preset tiny32 --data data --out {bad}",
        "train generator --preset tiny32 --tokenizer {bundle} --data data --out out --init-from {bad}",
        "train generator --preset tiny32 --tokenizer {bundle} --data data --out {bad} --init-from {bundle}",
    ],
)
@pytest.mark.parametrize("bad", [LONG, "loop/a", "file/a"])
def test_a_path_that_cannot_be(refused, bundle, tmp_path, monkeypatch, words, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (line,) = refused(*words.format(bad=bad, bundle=bundle).split())
    assert bad.split("/")[0] in line
    assert {path.name for path in tmp_path.iterdir()} == {"loop", "file"}


def test_other_errors_of_a_file_system_are_no_bad_input(bundle, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.png")

    monkeypatch.setattr("mvar.files.os.replace", full)
    with pytest.raises(SystemExit) as exit_:
        main(["sample", "--model", bundle, "--labels", "cat", "--out", str(tmp_path / "a.png")])
    assert exit_.value.code == 1
    assert "No space left" in capsys.readouterr().err


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


def test_options_that_became_commands_are_named(refused, bundle):
    for option, command in (("--protocol", "sample-set"), ("--counts-of", "sample-set"), ("--judge", "sample-best")):
        (line,) = refused("sample", "--model", bundle, option, "x")
        assert line.startswith(f"mvar sample: {option}: mvar {command} ")


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


def test_help_imports_no_torch():
    names = ["", "train", *COMMANDS]
    script = f"""
import sys
from mvar.cli import main
for name in {names}:
    try:
        main([*name.split(), "--help"])
    except SystemExit as exit_:
        assert exit_.code == 0, name
    assert "torch" not in sys.modules, name
    print("of the next command")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.split("of the next command")
    for name, text in zip(names, shown, strict=False):
        assert f"Usage: {f'mvar {name}'.strip()}" in text
        assert "\\x" not in text  # a control character, escaped


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    for option in options_of(COMMANDS[name].run).values():
        assert len(option.help.split()) > 1, f"--{option.name} is not explained"


def test_a_command_that_does_not_exist(refused):
    for arguments in (["paint"], ["train", "painter"]):
        assert refused(*arguments)[0].startswith(f'mvar: Unknown command "{arguments[-1]}".')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "--n", "x"], "n = x: give a whole number"),
        (["edit", "--box", "a,b"], "box = a,b: give whole numbers with commas between them"),
        (["edit", "--mode", "best"], "mode = best: give one of reencode, own"),
        (["edit", "--paste=maybe"], 'Invalid value for --paste: unable to convert "maybe" into bool'),
        (["edit", "--dtype", "int9"], "dtype = int9: give one of float32, bfloat16"),
        (["sample", "--guidance", "much"], "guidance = much: give a number or numbers with commas between them"),
        (
            ["sample", "--top-k", "1,x"],
            "top_k = 1,x: give a whole number or whole numbers with commas between them",
        ),
        (["train", "tokenizer", "--preset", "tiny32", "--steps", "many"], "steps = many: give a whole number"),
        (
            ["reschedule", "--sides", "1,2,x"],
            "sides = 1,2,x: give whole numbers with commas between them, [height,width] for a pair",
        ),
        (["sample", "--seed", "1:30"], "seed = 1:30: give a whole number"),
        (["sample", "--seed", ""], "seed = : give a whole number"),
        (["sample", "--seed=" + "[" * 50 + "]" * 50], f"seed = {'[' * 50}{']' * 50}: give a whole number"),
        (["sample", "--seed", "a\nb"], "seed = a b: give a whole number"),
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


@pytest.mark.parametrize("value", ["5", "null", "[1, 2]", "model.yaml"])
@pytest.mark.parametrize("what", ["tokenizer", "generator"])
def test_a_model_in_yaml_needs_its_options_by_name(configured, what, value):
    assert configured(f"model: {value}\n", what) == [
        f"mvar: --config run.yaml: model = {value}: give its options by name"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "freeze: [all]",
            "freeze = [all]: give some of classes, embeddings, attention, mamba, mlp, adaln, blocks, head",
        ),
        ("betas: 3", "betas = 3: give 2 numbers"),
        ("betas: [0.9]", "betas = [0.9]: give 2 numbers"),
        ("model: {mamba: [x]}", "model.mamba = [x]: give true or false or some of true, false"),
    ],
)
def test_yaml_says_where_a_list_is_needed(configured, content, message):
    message += " with commas between them"
    assert configured(content) == [f"mvar train generator: {message}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds nothing, expected options by name"),
        ("- 1\n- 2\n", "holds a list, expected options by name"),
        ("steps", "holds text, expected options by name"),
        (
            "steps: 3\nbetas: [1\n",
            "line 3: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'; fix",
        ),
        ("steps: 3\nsteps: 4\n", "line 1: steps is given twice; leave one out"),
        ("model: {depth: 4}\nmodel.depth: 4\n", "model.depth is given twice; leave one out"),
        (
            "steps: 3\n---\nsteps: 4\n",
            "line 2: expected a single document in the stream, but found another document; fix",
        ),
        (
            "data: &a [x, x]\nout: *a\n",
            "line 1: has an anchor, an alias or a tag, which are not read; write the value out",
        ),
        ("steps: !!python/name:os.system 3", "line 1: has an anchor, an alias or a tag, which are not read"),
        ("freeze: " + "[" * 50_000, "is nested too deeply; fix the file"),
        ("\n".join(["- " * 30_000]), "is nested too deeply; fix the file"),
        ("data: " + "x" * 2**20, "is larger than 1,048,576 bytes; give a file with options"),
        ("val_data: [a, b]", "val_data = [a, b]: give text"),
        ("on_bad_image: {a: b}", "on_bad_image = {a: b}: give one of skip, error"),
        ("batch_size: null", "batch_size = null: give a whole number"),
        ('val_data: "\\0"', "val_data = "),
        ("? [a, b]\n: 3", "line 1: has a key that is not text"),
        ("1: 3", "1 = 3: no such option"),
    ],
)
def test_a_yaml_file_without_options(configured, content, message):
    (line,) = configured(content)
    assert line.partition(": ")[2].removeprefix("--config run.yaml: ").startswith(message)
    assert len(line) < 600


def test_a_yaml_file_that_cannot_be_read(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    for arguments, message in (
        ("train tokenizer --config nope.yaml", "--config nope.yaml: no such file"),
        ("sample --config nope.yaml", "--config nope.yaml: no such file"),
        (f"train generator --config {tmp_path}", f"--config {tmp_path}: is not a file; give a YAML file"),
        (f"sample --config {tmp_path}/pipe", f"--config {tmp_path}/pipe: is not a file; give a YAML file"),
        ("sample --config /dev/zero", "--config /dev/zero: is not a file; give a YAML file"),
        (f"sample --config {tmp_path}/loop", "loop: cannot be read (Too many levels of symbolic links); give a YAML"),
        (f"sample --config {'x' * 300}", "xxx: cannot be read (File name too long); give a YAML"),
        (f"train generator --config {binary}", f"--config {binary}: is not YAML ('utf-8' codec can't decode byte 0xff"),
        ("train generator --config", "parameter --config requires an argument"),
        ("train generator --init-from", "parameter --init-from requires an argument"),
    ):
        (line,) = refused(*arguments.split())
        assert message in line


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

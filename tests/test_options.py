"""Options, typed or from YAML files: what they mean, and bad ones named before any work."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mvar.cli import main


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


def test_unknown_options_in_yaml(configured):
    assert configured("stepz: 3\nmodel:\n  widht: 64\n  heads: 3\nmodel.depht: two\nzzzz: 1\ndepth: 4\n") == [
        "mvar: --config run.yaml: stepz = 3: no such option; close: steps",
        "mvar: --config run.yaml: model.widht = 64: no such option; close: model.width",
        "mvar: --config run.yaml: model.depht = two: no such option; close: model.depth",
        "mvar: --config run.yaml: zzzz = 1: no such option",
        "mvar: --config run.yaml: depth = 4: no such option; close: model.depth",
    ]


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
    words = "--preset tiny32 --model.sides 1,2,[3,4] --freeze mlp --device cpu --data 2024-01-01"
    found = settled("train generator", *words.split())
    assert (found["model"]["sides"], found["freeze"]) == ([1, 2, [3, 4]], ["mlp"])
    assert settled("train generator", "--config", "all.yaml", all=yaml.safe_dump(found)) == found
    found = settled("sample", "--model", "m", "--labels", '"Cats, dogs",3', "--temperature", ".5,1")
    assert settled("sample", "--config", "all.yaml", all=yaml.safe_dump(found)) == found


@pytest.mark.parametrize(("text", "value"), [("1e-1,1,1", [0.1, 1.0, 1.0]), (".5", 0.5), ("-1,1", [-1.0, 1.0])])
def test_lists_of_numbers(settled, text, value):
    assert settled("sample", "--model", "m", "--temperature", text)["temperature"] == value
    assert settled("sample", "--model", "m", "--config", "a.yaml", a=f"temperature: '{text}'")["temperature"] == value


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("3", "3"),
        ("no", "no"),
        ("[Bag, Coat]", "Bag,Coat"),
        ('["Cats, dogs", 3, \'5" disk\']', '"Cats, dogs",3,"5"" disk"'),
        ("\n- Bag\n- no", "Bag,no"),
        ("Bag, Coat", "Bag, Coat"),
    ],
)
def test_labels_in_yaml(settled, value, labels):
    assert settled("sample", "--model", "m", "--config", "a.yaml", a=f"labels: {value}")["labels"] == labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "--box", "a,b"], "box = a,b: give whole numbers with commas between them"),
        (["edit", "--mode", "best"], "mode = best: give one of reencode, own"),
        (["edit", "--paste=maybe"], 'Invalid value for --paste: unable to convert "maybe" into bool'),
        (["edit", "--dtype", "int9"], "dtype = int9: give one of float32, bfloat16"),
        (["sample", "--guidance", "much"], "guidance = much: give a number or numbers with commas between them"),
        (["sample", "--top-k", "1,x"], "top_k = 1,x: give a whole number or whole numbers with commas between them"),
        (["train", "tokenizer", "--preset", "tiny32", "--steps", "many"], "steps = many: give a whole number"),
        (
            ["reschedule", "--sides", "1,2,x"],
            "sides = 1,2,x: give whole numbers with commas between them, [height,width] for a pair",
        ),
        (["sample", "--seed", ""], "seed = : give a whole number"),
    ],
)
def test_values_of_the_wrong_type_are_told_in_plain_words(refused, arguments, message):
    command = " ".join(arguments[: 2 if arguments[0] == "train" else 1])
    assert refused(*arguments) == [f"mvar {command}: {message}; see mvar {command} --help"]


@pytest.mark.parametrize("value", ["5", "model.yaml"])
def test_a_model_in_yaml_needs_its_options_by_name(configured, value):
    assert configured(f"model: {value}\n") == [f"mvar: --config run.yaml: model = {value}: give its options by name"]


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
        ("", "holds no options by name"),
        ("- 1\n- 2\n", "holds no options by name"),
        (
            "steps: 3\nbetas: [1\n",
            "line 3: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'; fix",
        ),
        ("steps: 3\nsteps: 4\n", "line 1: steps is given twice; leave one out"),
        ("model: {depth: 4}\nmodel.depth: 4\n", "model.depth is given twice; leave one out"),
        ("val_data: [a, b]", "val_data = [a, b]: give text"),
        ("on_bad_image: {a: b}", "on_bad_image = {a: b}: give one of skip, error"),
        ("batch_size: null", "batch_size = null: give a whole number"),
        ("1: 3", "1 = 3: no such option"),
    ],
)
def test_a_yaml_file_without_options(configured, content, message):
    (line,) = configured(content)
    assert line.partition(": ")[2].removeprefix("--config run.yaml: ").startswith(message)
    assert len(line) < 600


def test_a_yaml_file_that_cannot_be_read(refused, tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    for arguments, message in (
        ("sample --config nope.yaml", "--config nope.yaml: no such file"),
        (f"sample --config {tmp_path}", f"--config {tmp_path}: cannot be read (Is a directory); give a YAML file"),
        (f"sample --config {binary}", f"--config {binary}: is not YAML ('utf-8' codec can't decode byte 0xff"),
        ("sample --config", "parameter --config requires an argument"),
    ):
        (line,) = refused(*arguments.split())
        assert message in line

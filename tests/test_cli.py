"""The command as a user runs it: bad input gives its lines and exit code 2, before any work and without a traceback."""

import errno
import os
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from mvar.cli import COMMANDS, imported, main
from mvar.options.fields import options_of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "2,2"], "mvar: labels has 2: give an index from 0 to 1, or -1 for no class"),
        (["--labels", "dgo"], "mvar: labels has 'dgo': no class of this name; close: dog"),
        (["--guidance", "-1"], "mvar: guidance = -1.0: must be 0 (no guidance) or more"),
        (["--top-p", "0"], "mvar: top_p = 0.0: must lie in (0, 1]; 1 keeps all codes"),
        (["--per-class", "0"], "mvar: per_class = 0: must lie in 1 to 1,000,000"),
        (["--seed", "-1"], "mvar: seed = -1: must lie in 0 to 9,223,372,036,854,775,807"),
        (["--per-class", "200", "--out", "sheet.webp"], "mvar: out: a sheet of 2 rows of 200 images would be"),
        (["--out", "sheet.txt"], "mvar: out = 'sheet.txt': give a name that ends in .png or .webp"),
        (["--device", "nowhere"], "mvar: device = 'nowhere': not available here; give cpu"),
        (["--device", "cuda:99"], "mvar: device = 'cuda:99': not available here; give cpu"),
        (["--labels", '"cat" dog'], """mvar: labels = '"cat" dog': close each name in double quotes"""),
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


@pytest.mark.parametrize(
    "words",
    [
        "sample --model {bad}",
        "sample --model {bundle} --out-dir {bad}",
        "score --model {bundle} --images {bad}",
        "train tokenizer --preset tiny32 --data data --out {bad}",
        "train generator --preset tiny32 --tokenizer {bundle} --data data --out out --init-from {bad}",
    ],
)
def test_a_path_below_a_file(refused, bundle, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (line,) = refused(*words.format(bad="file/a", bundle=bundle).split())
    assert "file/a" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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


@pytest.mark.parametrize("name", ["", "train", *COMMANDS])
def test_help(name, capsys):
    main([*name.split(), "--help"])
    assert capsys.readouterr().out.startswith(f"Usage: {f'mvar {name}'.strip()}")


def test_help_shows_the_values_of_a_preset(capsys):
    shown = []
    for preset in ("tiny32", "d16"):
        main(["train", "generator", "--preset", preset, "--help"])
        shown.append(" ".join(capsys.readouterr().out.replace("│", "").split()))
    assert ["[default: 0.0001]" in text for text in shown] == [False, True]  # the learning rate


def test_a_shell_completes_commands_and_options(tmp_path, capsys):
    main(["completion", "--shell", "bash"])
    script = tmp_path / "mvar.sh"
    script.write_text(
        capsys.readouterr().out
        + """
complete=$(complete -p mvar | sed 's/.*-F \\([^ ]*\\).*/\\1/')
for COMP_WORDS_TEXT in "mvar tra" "mvar sample --per" "mvar train generator --model.dep"; do
    COMP_WORDS=($COMP_WORDS_TEXT); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); $complete mvar "" ""
    echo "${COMPREPLY[@]}"
done
"""
    )
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train", "--per-class", "--model.depth"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name):
    function = imported(COMMANDS[name].function)
    assert function.__doc__.splitlines()[0] == COMMANDS[name].help
    for option in options_of(function).values():
        assert len(option.help.split()) > 1, f"--{option.name} is not explained"


def test_a_command_that_does_not_exist(refused):
    for arguments in (["paint"], ["train", "painter"]):
        assert refused(*arguments)[0].startswith(f'mvar: Unknown command "{arguments[-1]}".')


def test_join_names_the_option_that_is_wrong(refused, bundle, tmp_path):
    for field in ("tokenizer", "generator"):
        models = {"tokenizer": bundle, "generator": bundle, field: "nope"}
        (line,) = refused("join", *(f"--{name}={model}" for name, model in models.items()), f"--out={tmp_path / 'out'}")
        assert line.startswith(f"mvar: {field} = 'nope': no such model; give a packaged name")
    assert not list(tmp_path.iterdir())

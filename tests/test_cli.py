"""The command as a user runs it: bad input gives its lines and exit code 2, before any work and without a traceback."""

import shutil
import subprocess

import pytest
import torch
from PIL import Image

from mvar.cli import main
from mvar.commands.table import COMMANDS, imported
from mvar.options.fields import options_of


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


def test_options_that_are_unknown_or_missing(refused):
    assert refused("train", "tokenizer", "--preset", "tiny32", "--data", "x", "--bathc-size=4") == [
        "mvar train tokenizer: Unknown option: --bathc-size. Did you mean --batch-size?; "
        "see mvar train tokenizer --help"
    ]
    assert refused("train", "tokenizer", "--data", "x", "--out", "y") == [
        "mvar: preset: is missing; give --preset, one of f16-256, f16-512, tiny32, tiny64, quick32, or --minutes"
    ]
    assert refused("train", "tokenizer", "--preset", "tiny32") == [
        "mvar train tokenizer: give --data, --out; see mvar train tokenizer --help"
    ]
    assert refused("sample", "--bogus") == [
        "mvar sample: Unknown option: --bogus. Did you mean --out?; see mvar sample --help"
    ]
    assert refused("info") == ["mvar info: give MODEL; see mvar info --help"]


def test_sample_writes_what_was_asked(bundle, tmp_path, capsys):
    sheet, images, npz = tmp_path / "sheet.png", tmp_path / "images", tmp_path / "all.npz"
    asked = ["--labels", "dog,0", "--per-class", "2", "--show-scales", "--seed", "3"]
    main(["sample", "--model", bundle, *asked, "--out", str(sheet), "--out-dir", str(images), "--npz", str(npz)])
    names = ["cat-000002.png", "cat-000003.png", "dog-000000.png", "dog-000001.png", "samples.json"]
    assert sorted(path.name for path in images.iterdir()) == names
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
def test_help_explains_every_command_and_option(name, capsys):
    main([*name.split(), "--help"])
    assert capsys.readouterr().out.startswith(f"Usage: {f'mvar {name}'.strip()}")
    if name in COMMANDS:
        function = imported(COMMANDS[name].function)
        assert function.__doc__.splitlines()[0] == COMMANDS[name].help
        for option in options_of(function).values():
            assert len(option.help.split()) > 1, f"--{option.name} is not explained"


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

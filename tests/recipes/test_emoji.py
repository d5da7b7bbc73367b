import re
from pathlib import Path

import torch
from PIL import Image

from mvar.recipes import page
from mvar.recipes.emoji import Emoji
from mvar.recipes.packaged import commands

PAGE = Path(__file__).parents[2] / "docs" / "models" / "emoji.md"


def test_the_page_lists_the_commands_of_the_recipe():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").strip().splitlines()
    assert [" ".join(line.split()) for line in lines] == commands(Emoji)


def test_emoji_are_compared_in_colour_and_whole():
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(Emoji.form.of(pixels), (255 * pixels).round().byte())


def test_page_and_sheet(tmp_path):
    for split, n in (("train", 3), ("val", 1)):
        for name, colour in (("flags", "red"), ("symbols", "blue")):
            folder = tmp_path / "emoji" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (16, 16), colour).save(folder / f"set-{i}.png")
    (tmp_path / "emoji" / "LICENCES.md").write_text("# Title\n\nIcons of a package.\n\n| set | MIT |\n")
    (tmp_path / "page.md").write_text(f"Before\n{page.BEGIN}\n{page.END}\nafter\n")
    Emoji().describe(str(tmp_path / "emoji"), str(tmp_path / "page.md"), str(tmp_path / "sheet.png"))
    text = (tmp_path / "page.md").read_text()
    for line in (
        "| flags | 3 | 1 |",
        "| symbols | 3 | 1 |",
        "| together | 6 | 2 |",
        "Icons of a package.",
        "| set | MIT |",
    ):
        assert f"\n{line}\n" in text
    assert "# Title" not in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert {(255, 0, 0), (0, 0, 255)} <= {colour for _, colour in colours}

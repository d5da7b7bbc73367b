from PIL import Image

from mvar.recipes import page
from mvar.recipes.icons import Icons


def test_page_credits_and_sheet(tmp_path):
    drawn = {"train": {"bell": 26, "train": 14, "unseen": 3}, "val": {"bell": 1, "train": 2}}
    for split, concepts in drawn.items():
        for name, n in concepts.items():
            folder = tmp_path / "icons" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("L", (16, 16), 100 if name == "bell" else 200).save(folder / f"{split}-{i}_icon.png")
                Image.new("L", (16, 16), 50).save(folder / f"{split}-{i}_other.png")  # of the same set
    (tmp_path / "icons" / "LICENCES.md").write_text("# Whose é\n", encoding="utf-8")
    (tmp_path / "page.md").write_text(f"Before\n{page.BEGIN}\n{page.END}\nafter\n")
    files = [str(tmp_path / name) for name in ("icons", "page.md", "credits.md", "sheet.png")]
    Icons().describe(*files)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for line in (
        "| 25 or more | 1 | 52 | 2 |",
        "| 15 to 24 | 1 | 28 | 4 |",
        "| fewer | 1 | 6 | 0 |",
        "| together | 3 | 86 | 6 |",
        "Drawn by 15 to 24: train.",
        "Without images for validation: unseen.",
    ):
        assert f"\n{line}\n" in text
    assert (tmp_path / "credits.md").read_text(encoding="utf-8") == "# Whose é\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert {50, 100, 200} <= {shade for _, shade in sheet.getcolors(1 << 24)}

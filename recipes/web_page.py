"""The pictures of docs/page.md, from a server of its own: python -m recipes.web_page --out docs/images/web"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.serving import served
from mvar.files import atomic_write

BROWSER = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
WIDE, PHONE = (1180, 860), (390, 860)


def main() -> None:
    """Draw, grow, edit, look and compare as a user does, and keep what is then seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/web"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with served("icons") as (address, *_), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
        page.goto(address)
        page.wait_for_selector("#draw", timeout=120_000)
        for name, act in TABS.items():
            page.get_by_role("tab", name=name).click()
            act(page)
            keep(page, options.out / f"{name.lower()}.png")
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        page.get_by_role("tab", name="Generate").click()
        page.wait_for_function(f"document.documentElement.scrollWidth <= {PHONE[0]}")
        keep(page, options.out / "phone.png", whole=False)
        browser.close()


def generate(page: Page) -> None:
    """Six houses."""
    choose(page, "house")
    page.get_by_label("number input for Number of images").locator("visible=true").fill("6")
    press(page, "#draw", "Drew 6 of house")
    page.get_by_role("button", name="Reproduce these images").click()
    page.get_by_text("--per-class").first.wait_for()


def grow(page: Page) -> None:
    """A house, and variations of it."""
    choose(page, "house")
    press(page, "#grow", "Grew house")
    press(page, "#vary", "8 variations that")


def edit(page: Page) -> None:
    """The middle of a house."""
    with page.expect_response(lambda answer: answer.url.endswith("gradio_api/upload")):  # once the editor shows it
        press(page, "#edit-take", "Sample loaded.")
    page.get_by_label("Or a box").fill("25,40,75,90")
    press(page, "#edit", "Before and after.")


def understand(page: Page) -> None:
    """The same house."""
    press(page, "#understand-take", "Sample loaded.")
    press(page, "#look", "This is what the model sees.")


def compare(page: Page) -> None:
    """With guidance and without."""
    choose(page, "house")
    page.locator("button:visible", has_text="Settings B").click()
    page.get_by_role("textbox", name="guidance").locator("visible=true").first.fill("0")
    press(page, "#compare", "on each side with seed")


TABS: dict[str, Callable[[Page], None]] = {
    "Generate": generate,
    "Grow": grow,
    "Edit": edit,
    "Understand": understand,
    "Compare": compare,
}


def choose(page: Page, name: str) -> None:
    """A class of the tab that is open."""
    page.get_by_label("Class", exact=True).locator("visible=true").focus()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type(name)
    page.get_by_role("option", name=name, exact=True).locator("visible=true").wait_for()
    page.keyboard.press("Enter")


def press(page: Page, button: str, text: str) -> None:
    """Click, and wait for what the tab then says."""
    page.click(button)
    page.locator(".status:visible", has_text=text).wait_for(timeout=120_000)


def keep(page: Page, path: Path, whole: bool = True) -> None:
    """Write the whole page, or what is seen of it, in 64 colours so that the file is small."""
    with Image.open(io.BytesIO(page.screenshot(full_page=whole))) as image:
        small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    atomic_write(path, lambda partial: small.save(partial, "PNG", optimize=True))


if __name__ == "__main__":
    main()

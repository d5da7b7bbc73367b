"""The page in a real browser, on a tiny model served by the real worker."""

import base64
import contextlib
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from mvar.cli import main
from mvar.model import load

from .page_server import Server

if find_spec("gradio") is None:  # importing it takes seconds, which only servers need
    pytest.skip("the page's packages are not installed", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
PATIENCE = 30_000  # ms for which a step is waited for
STARTING = 90_000  # the same, for Gradio's import
KEY = "the-key-of-this-test"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Playwright's


@pytest.fixture(scope="module")
def server(bundle):
    running = Server(bundle, KEY)
    yield running
    running.process.terminate()
    assert running.process.wait(20) in (0, -15)


@pytest.fixture(scope="module")
def browser():
    path = next((path for path in BROWSERS if Path(path).exists()), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS.split(), "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(server, browser):
    """The page; its `problems` are errors in the console and requests to elsewhere."""
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.problems = []
    page.on("console", lambda said: said.type == "error" and page.problems.append(said.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: elsewhere(request.url) and page.problems.append(request.url))
    page.set_default_timeout(PATIENCE)
    for _ in range(100):
        try:
            page.goto(server.address)
            break
        except sync_api.Error:  # the server does not listen yet
            page.problems.clear()
            page.wait_for_timeout(200)
    page.greeting = page.locator("h1").first.inner_text()
    page.get_by_label("username").wait_for(timeout=STARTING)  # the first page has reloaded itself
    log_in(page, "wrong")
    page.get_by_text("Incorrect Credentials").wait_for()
    page.problems.clear()  # the refusal's status
    log_in(page, KEY)
    page.wait_for_selector("#draw")
    yield page
    page.context.close()


@pytest.fixture(autouse=True)
def no_problems(page):
    yield
    assert page.problems == []


def elsewhere(url):
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"


def log_in(page, key):
    page.get_by_label("username").fill("anyone")
    page.get_by_label("password").fill(key)
    page.get_by_role("button", name="Login").click()


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def seed_of(page):
    return page.get_by_role("spinbutton", name="Seed").locator("visible=true")


def type_class(page, text):
    page.get_by_label("Class", exact=True).locator("visible=true").focus()
    page.keyboard.press("ControlOrMeta+A")  # as Tab would select it
    page.keyboard.type(text)


def settle(page):
    """Wait for two frames: Gradio sets a field's first value after the field appears, and takes over what is typed."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def fill(page, field, text):
    field.wait_for()
    settle(page)
    field.fill(text)


def press(page, button, text):
    """Click, and wait for what the tab then says."""
    settle(page)
    page.evaluate("document.querySelectorAll('.status').forEach(one => one.replaceChildren())")
    page.click(button)
    says(page, text)


def says(page, text):
    page.locator(".status:visible", has_text=text).wait_for()


def upload(page, button, path):
    with page.expect_file_chooser() as choosing:
        page.click(button)
    choosing.value.set_files(path)


def pictures(page, place):
    sources = page.locator(f"{place} img").evaluate_all("all => all.map(one => one.src)")
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))) for source in sources]


def draw(page, seed):
    tab(page, "Generate")
    fill(page, seed_of(page), str(seed))
    press(page, "#draw", f"with seed {seed}")


def test_until_the_page_is_there_another_says_so(page):  # and it was opened with the server's key
    assert page.greeting == "mvar is starting"


def test_nothing_else_of_gradio_can_be_reached(server, page):
    paths = (
        "file=http://192.0.2.1/",
        "file=https://example.org/x.png",
        "proxy=http://192.0.2.1/",
        "info",
        "openapi.json",
    )
    for path in (*(f"gradio_api/{each}" for each in paths), "gradio_api/call/draw", "runs", "nothing"):
        answer = page.request.get(f"{server.address}{path}")  # with the cookie of who is logged in
        assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found"), path


def id_of(config, name):
    return next(c["id"] for c in config["components"] if c["props"].get("elem_id") == name)


def test_no_address_or_file_that_a_client_names_is_read(server, page, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    found = page.request.get(f"{server.address}config").json()
    uploads = [event["id"] for event in found["dependencies"] if event["targets"][0][1] == "upload"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/photo.png"
        refusals = {
            address: "URLs are not fetched; upload a file",
            str(tmp_path / "photo.png"): "it was not uploaded by a user",
        }
        for event, (place, refusal) in product(uploads, refusals.items()):
            file = {"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}
            body = {"data": [file, "tiny"], "fn_index": event, "session_hash": "any"}
            assert page.request.post(f"{server.address}gradio_api/queue/join", data=body).ok
            answer = page.request.get(f"{server.address}gradio_api/queue/data?session_hash=any").text()
            assert refusal in answer
            assert "Image loaded" not in answer
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert len(uploads) == 2
    (draw_event,) = (e for e in found["dependencies"] if e["targets"] == [[id_of(found, "draw"), "click"]])
    file = {"path": str(tmp_path / "photo.png"), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file] * len(draw_event["inputs"]), "fn_index": draw_event["id"], "session_hash": "other"}
    page.request.post(f"{server.address}gradio_api/queue/join", data=body)
    answer = page.request.get(f"{server.address}gradio_api/queue/data?session_hash=other").text()
    assert "it was not uploaded by a user" in answer


def test_generate_draws_what_the_library_draws_and_says_how(page, server, bundle, tmp_path):
    draw(page, 7)
    model = load(bundle)
    expected = [np.asarray(image) for image in model.sample([0] * 4, seed=7).images]
    assert np.array_equal(pictures(page, "#gallery"), expected)
    page.get_by_role("button", name="Reproduce these images").click()
    page.get_by_text("--per-class").first.wait_for()
    command, python, curl = page.locator(".cm-content").all_inner_texts()
    with contextlib.chdir(tmp_path):
        main(shlex.split(command)[1:])
        exec(python)
        answer = subprocess.check_output(
            ["sh", "-c", curl], env=os.environ | {"MVAR_API_KEY": KEY}, stderr=subprocess.DEVNULL
        )
    for i, image in enumerate(json.loads(answer)["data"]):
        files = [*tmp_path.glob(f"samples/*{i}.png"), tmp_path / f"sample-{i}.png"]
        files += [io.BytesIO(base64.b64decode(image["b64_json"]))]
        assert [np.array_equal(Image.open(file), expected[i]) for file in files] == [True] * 3
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Save cat, seed 7, image 2").click()
    with Image.open(downloading.value.path()) as image:
        facts = json.loads(image.text["mvar"])
        assert np.array_equal(image, expected[2])
    assert (facts["model"], facts["class"], facts["seed"], facts["index"]) == ("tiny", "cat", 7, 2)
    assert facts["top_k"] == model.defaults.top_k
    assert not server.under_way()["torch"]


def test_an_error_is_a_sentence_in_the_line_and_a_message(page):
    tab(page, "Generate")
    page.locator("button:visible", has_text="Settings").click()
    top_p = page.get_by_label("top p").locator("visible=true")
    fill(page, top_p, "1.5")
    press(page, "#draw", "Request failed. top_p = 1.5: must lie in (0, 1]")
    page.locator(".toast-body", has_text="top_p = 1.5").wait_for()
    page.get_by_role("button", name="Close").first.click()
    fill(page, top_p, "0.96")
    count = page.get_by_label("number input for Number of images").locator("visible=true")
    fill(page, count, "10")
    press(
        page, "#draw", "Request failed. n = 10: this server takes at most 8 images"
    )  # after the line has said that it waits
    assert page.locator(".status:visible progress").count() == 0
    fill(page, count, "4")


def test_stop_ends_what_is_under_way(page, server):
    tab(page, "Generate")
    worker = server.under_way()["worker"]
    os.kill(worker, signal.SIGSTOP)  # as slow as can be
    try:
        press(page, "#draw", "Waiting for the model.")
        assert server.under_way()["requests"] == 4
        press(page, "#stop", "Stopped.")
        until = time.monotonic() + PATIENCE / 1000
        while server.under_way()["requests"]:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        os.kill(worker, signal.SIGCONT)
    draw(page, 8)


def test_generate_by_keyboard_alone(page, bundle):
    tab(page, "Generate")
    type_class(page, "do")
    page.get_by_role("option", name="dog").wait_for()
    page.keyboard.press("Enter")
    settle(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "draw":
            break
    page.keyboard.press("Enter")
    says(page, "of dog with seed")
    expected = load(bundle).sample([1] * 4, seed=int(seed_of(page).input_value()))
    assert np.array_equal(pictures(page, "#gallery"), [np.asarray(image) for image in expected.images])


@pytest.mark.parametrize(("name", "button"), [("Generate", "#draw"), ("Grow", "#grow"), ("Compare", "#compare")])
def test_a_class_that_is_typed_is_found_as_the_api_finds_it_or_close_ones_are_said(page, name, button):
    tab(page, name)
    type_class(page, "caat")
    press(page, button, "Request failed. class = 'caat': names no class; close: cat")
    type_class(page, "0")
    press(page, button, "cat")


def test_grow_shows_each_scale_and_varies_what_is_not_kept(page, bundle):
    tab(page, "Grow")
    press(page, "#grow", "Grew cat")
    strip = pictures(page, "#strip")
    model = load(bundle)
    sample = model.sample(0, seed=0)
    assert len(strip) == 3
    assert np.array_equal(strip[-1], sample.images[0])
    press(page, "#vary", "8 variations")
    expected = model.vary(sample.tokens, 0, from_scale=2, index=range(1, 9), n=8, seed=0)
    assert np.array_equal(pictures(page, "#variations"), [np.asarray(image) for image in expected.images])


def test_edit_repaints_what_is_painted_or_in_a_box_and_nothing_else(page, tmp_path):
    draw(page, 3)
    tab(page, "Edit")
    press(page, "#edit-take", "Sample loaded.")
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    upload(page, "#edit-upload", tmp_path / "photo.png")
    says(page, "Image loaded.")
    fill(page, page.get_by_label("Or a box"), "0,0,50,100")
    press(page, "#edit", "Before and after.")
    before, *after = pictures(page, "#edited")
    assert len(after) == 4
    for image in after:
        assert np.array_equal(image[:, 40:], photo[:, 40:])  # beyond what is blended
        assert not np.array_equal(image[:, :32], photo[:, :32])
    fill(page, page.get_by_label("Or a box"), "")
    canvas = page.locator("#editor canvas").first.bounding_box()
    middle = canvas["y"] + canvas["height"] / 2
    page.mouse.move(canvas["x"] + canvas["width"] / 2 - 60, middle)
    page.mouse.down()
    page.mouse.move(canvas["x"] + canvas["width"] / 2 + 60, middle, steps=2)
    page.mouse.up()
    press(page, "#edit", "Before and after.")
    before = pictures(page, "#edited")[0]
    hole = (before == (255, 136, 0)).all(-1)
    assert 20 <= hole.sum() < 2000
    for what in ("Paint beyond the border", "Change the class"):
        page.get_by_label(what).check()
        press(page, "#edit", "Before and after.")


def test_understand_an_upload(page, tmp_path):
    tab(page, "Understand")
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(tmp_path / "photo.png")
    upload(page, "#understand-upload", tmp_path / "photo.png")
    cropped = "The image was cropped to its centre: 20x20 of 30x20 pixels."
    says(page, f"Image loaded. {cropped}")
    press(page, "#look", f"This is what the model sees. {cropped}")
    assert len(pictures(page, "#bits")) == 4
    shares = page.locator("#posterior td:last-child").all_inner_texts()
    assert sum(float(share.rstrip(" %")) for share in shares) == pytest.approx(100, abs=0.2)
    assert page.locator("#blocks table").count() == 2
    (tmp_path / "none.png").write_bytes(b"no image")
    upload(page, "#understand-upload", tmp_path / "none.png")
    page.get_by_text("image: not a PNG, JPEG or WebP file").first.wait_for()


def test_compare_draws_two_sides_from_the_same_noise(page):
    tab(page, "Compare")
    press(page, "#compare", "on each side with seed")
    sides = [pictures(page, f"#side-{side}") for side in "ab"]
    assert np.array_equal(*sides)  # twins
    page.get_by_role("button", name="Settings B").click()
    fill(page, page.get_by_label("top k").locator("visible=true"), "1")
    press(page, "#compare", "on each side with seed")
    assert np.array_equal(pictures(page, "#side-a"), sides[0])
    assert not np.array_equal(pictures(page, "#side-b"), sides[1])


def test_a_phone_shows_all_tabs_without_scrolling_sideways(page):
    for name in ("Generate", "Grow", "Edit", "Understand", "Compare"):
        page.set_viewport_size({"width": 1200, "height": 900})  # where no tab is in a menu
        tab(page, name)
        page.set_viewport_size({"width": 360, "height": 740})
        page.wait_for_function("document.documentElement.scrollWidth <= 360")
    page.set_viewport_size({"width": 1200, "height": 900})

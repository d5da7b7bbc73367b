"""What the page shows and holds, without a browser."""

import asyncio
import base64
import io
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mvar.web.messages import Card, Drawn, Partial

pytest.importorskip("gradio", reason="the page's packages are not installed")

from mvar.web.api.errors import Problem
from mvar.web.api.security import UPLOAD
from mvar.web.page.asking import HOUR, Asked
from mvar.web.page.compare import counterpart
from mvar.web.page.generate import drawing
from mvar.web.page.page import MOST_UPLOADED, UNFINISHED, _Rest, delete_old
from mvar.web.page.pictures import SHOWN, png
from mvar.web.page.sources import Held, read
from mvar.web.service import Limits

CARD = Card(
    name="one",
    classes=["Cat", "dog"],
    size=(8, 8),
    shapes=[(1, 1), (2, 2)],
    defaults={},
    parameters=0,
    created=0,
    facts={},
)


def test_each_image_is_encoded_once_and_shown_small_and_saved_in_full(monkeypatch):
    class Service:
        limits = Limits()

        def card(self, name):
            return CARD

        async def ask(self, model, request):
            yield Partial(0, np.zeros((8, 8, 3), np.uint8))
            await asyncio.sleep(0.001 * request.index)  # so that they come one by one
            yield Drawn(Image.new("RGB", (2 * SHOWN, SHOWN)), None, 5)

    encoded = []
    monkeypatch.setattr("mvar.web.page.pictures.png", lambda *given: encoded.append(given[0].size) or png(*given))

    async def last():
        asked = Asked(model="one", label=1, seed=3, settings={})
        return [step async for step in drawing(Service(), asked, 3)][-1]

    view, samples, done = asyncio.run(last())
    assert (len(samples), done) == (3, 1)
    assert [encoded.count(size) for size in ((2 * SHOWN, SHOWN), (SHOWN, SHOWN // 2))] == [3, 3]
    assert len(encoded) <= 9  # the partial images too
    sizes = [Image.open(io.BytesIO(base64.b64decode(part.split('"')[0]))).size for part in view.split("base64,")[1:]]
    assert sizes == [(SHOWN, SHOWN // 2), (2 * SHOWN, SHOWN)] * 3


def test_a_class_of_one_model_is_found_in_another_in_any_case():
    other = replace(CARD, name="other", classes=["bird", "DOG", "cat"])
    assert [counterpart(i, CARD, other) for i in (0, 1, None)] == [2, 1, None]
    assert counterpart(1, CARD, CARD) == 1
    with pytest.raises(ValueError, match="class = 'bird': one has no class of this name"):
        counterpart(0, other, CARD)


def test_an_upload_that_was_deleted_is_asked_for_again(tmp_path):
    with pytest.raises(ValueError, match="upload the image again"):
        asyncio.run(read(Held(str(tmp_path / "gone.png")), (8, 8)))


def test_old_uploads_and_what_is_left_of_broken_ones_are_deleted(tmp_path):
    ages = {"a/whole.png": HOUR - 60, "b/old.png": HOUR + 60, "tmp1": UNFINISHED - 60, "tmp2": UNFINISHED + 60}
    for name, age in ages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    delete_old(tmp_path)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == {
        "a/whole.png",
        "tmp1",
    }


def test_uploads_are_refused_where_those_before_fill_the_disk(tmp_path, monkeypatch):
    answered = []

    async def app(scope, receive, send):
        answered.append(scope["path"])

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    rest = _Rest("", app=app)
    for path in (UPLOAD, "/config"):
        asyncio.run(rest.handle({"path": path}, None, None))
    with (tmp_path / "large").open("wb") as large:
        large.truncate(MOST_UPLOADED + 1)  # which takes no space
    asyncio.run(rest.handle({"path": "/config"}, None, None))
    with pytest.raises(Problem, match="as many uploads as it can"):
        asyncio.run(rest.handle({"path": UPLOAD}, None, None))
    assert answered == [UPLOAD, "/config", "/config"]

"""The HTTP service as clients see it: OpenAI's own client, and what the extensions add."""

import base64
import io
import os
import re
import shlex
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import mvar
from mvar.web.api import images
from mvar.web.messages import Broken


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


@pytest.fixture(scope="module")
def model(bundle):
    return mvar.load(bundle, "cpu")


@pytest.fixture
def photo():
    """A PNG of 16x16, whose middle is transparent."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[6:10, 6:10, 3] = 0
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def pixels_of(encoded: str | bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded) if isinstance(encoded, str) else encoded)))


def test_images_are_those_of_the_library(client, model):
    response = client.images.generate(
        prompt="a photo of two cats", n=3, extra_body={"seed": 7, "guidance_scale": 2.0, "top_k": 5}
    )
    expected = model.sample(["cat"] * 3, seed=7, guidance=2.0, top_k=5).images
    for found, image in zip(response.data, expected, strict=True):
        assert (pixels_of(found.b64_json) == np.asarray(image)).all()
    assert (response.usage.input_tokens, response.usage.output_tokens, response.size) == (3, 3 * 21, "8x8")
    assert (response.seed, getattr(response, "class")) == (7, "cat")


def test_a_seed_that_is_chosen_gives_the_images_again(client):
    first = client.images.generate(prompt="dog", model="dall-e-3", size="1024x1024", quality="hd", style="vivid")
    again = client.images.generate(prompt="1", model="tiny", extra_body={"seed": first.seed})
    assert first.data[0].b64_json == again.data[0].b64_json
    assert first.size == "8x8"


def test_fast_has_no_guidance_at_the_last_scale(client, model):
    fast = client.images.generate(prompt="cat", extra_body={"seed": 1, "speed": "fast", "guidance_scale": 3.0})
    (expected,) = model.sample(["cat"], seed=1, guidance=[0.0, 1.5, 0.0]).images
    assert (pixels_of(fast.data[0].b64_json) == np.asarray(expected)).all()


@pytest.mark.parametrize(("kind", "quality"), [("png", 100), ("jpeg", 50), ("webp", 100), ("webp", 30)])
def test_formats(client, kind, quality):
    exact = client.images.generate(prompt="cat", extra_body={"seed": 1})
    other = client.images.generate(prompt="cat", output_format=kind, output_compression=quality, extra_body={"seed": 1})
    content = base64.b64decode(other.data[0].b64_json)
    assert Image.open(io.BytesIO(content)).format == kind.upper()
    same = (pixels_of(content) == pixels_of(exact.data[0].b64_json)).all()
    assert same == (kind == "png" or (kind == "webp" and quality == 100))


@pytest.mark.parametrize(("asked", "count"), [(None, 2), (1, 1), (0, 0), (9, 2)])
def test_streams(client, asked, count):
    more = {} if asked is None else {"partial_images": asked}
    events = list(client.images.generate(prompt="cat", stream=True, extra_body={"seed": 1}, **more))
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * count,
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:-1]] == list(range(count))
    whole = client.images.generate(prompt="cat", extra_body={"seed": 1})
    assert events[-1].b64_json == whole.data[0].b64_json
    assert events[-1].usage.output_tokens == 21
    assert len({event.b64_json for event in events}) == count + 1


def test_events_of_several_images_say_which(client):
    events = list(client.images.generate(prompt="cat", n=3, stream=True, extra_body={"seed": 1}))
    whole = client.images.generate(prompt="cat", n=3, extra_body={"seed": 1})
    finished = {event.image_index: event.b64_json for event in events if event.type.endswith("completed")}
    assert [finished[i] for i in range(3)] == [each.b64_json for each in whole.data]
    assert sum(event.type.endswith("partial_image") for event in events) == 6


def test_urls_draw_the_image_again(client):
    response = client.images.generate(
        prompt="cat", n=2, response_format="url", output_format="webp", extra_body={"seed": 5}
    )
    whole = client.images.generate(prompt="cat", n=2, output_format="webp", extra_body={"seed": 5})
    for found, expected in zip(response.data, whole.data, strict=True):
        head, image = httpx.head(found.url), httpx.get(found.url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == "image/webp"
        assert "content-length" not in head.headers
        assert image.headers["content-type"] == "image/webp"
        assert image.content == base64.b64decode(expected.b64_json)
    first, _, rest = found.url.partition("generations/")
    for wrong in ("A" + rest, rest.replace(".webp", ".svg"), rest[1:], "..%2f..%2fetc%2fpasswd.png", "é.é.png"):
        assert httpx.get(f"{first}generations/{wrong}").status_code == 404


def test_urls_end(client, monkeypatch):
    monkeypatch.setattr("mvar.web.api.links.SECONDS", -1)
    response = client.images.generate(prompt="cat", response_format="url")
    assert httpx.get(response.data[0].url).status_code == 410


def test_edits_repaint_what_is_transparent(client, model, photo):
    arguments = {"image": ("photo.png", photo), "prompt": "dog", "n": 2}
    response = client.images.edit(**arguments, extra_body={"seed": 3, "top_p": 0.9})
    before = pixels_of(photo)
    hole = before[..., 3] < 128
    expected = model.edit(Image.fromarray(before), hole, label="dog", n=2, paste=True, seed=3, top_p=0.9).images
    for found, image in zip(response.data, expected, strict=True):
        after = pixels_of(found.b64_json)
        assert (after == np.asarray(image)).all()
        assert (after[hole][:, 3] == 255).all()
    assert (after[0] == before[0]).all()
    plain = client.images.edit(**arguments, mask=("mask.png", photo), extra_body={"seed": 3, "paste": False})
    assert plain.size == "8x8"
    events = list(client.images.edit(**arguments, stream=True, extra_body={"seed": 3}))
    assert {event.type for event in events} == {"image_edit.partial_image", "image_edit.completed"}


@pytest.mark.filterwarnings("ignore:deprecated")  # says OpenAI of its own
def test_variations_keep_coarse_maps(client, model, photo):
    response = client.images.create_variation(
        image=("photo.png", photo), n=2, extra_body={"seed": 2, "from_scale": 2, "prompt": "cat"}
    )
    expected = model.vary(Image.open(io.BytesIO(photo)), "cat", from_scale=2, n=2, seed=2).images
    for found, image in zip(response.data, expected, strict=True):
        assert (pixels_of(found.b64_json) == np.asarray(image)).all()
    assert response.usage.input_tokens_details.image_tokens == 2 * 5


def test_scores_and_classifications(served, model, photo, monkeypatch):
    image, files = Image.open(io.BytesIO(photo)), {"image": photo}
    score = served.http.post("/v1/scores", files=files, data={"prompt": "dog"}).json()
    assert score["log_prob"] == pytest.approx(float(model.score([image], "dog").log_prob[0]), rel=1e-5)
    assert [scale["tokens"] for scale in score["scales"]] == [1, 4, 16]
    monkeypatch.setattr("mvar.web.messages.FEW_MAPS", 2)
    for data, scales in (({}, 2), ({"scales": "3"}, 3)):
        found = served.http.post("/v1/classifications", files=files, data=data | {"top": "2"}).json()["data"]
        expected = model.classify([image], scales=scales).log_posterior_BC[0]
        for each in found:
            assert each["log_probability"] == pytest.approx(float(expected[each["index"]]), abs=1e-7)


def test_models_and_documents(client, served):
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").classes == ["cat", "dog"]
    assert served.http.get("/healthz").json() == {"status": "ok"}
    metrics = served.http.get("/metrics").text
    assert 'mvar_loaded{model="tiny"} 1.0' in metrics
    page = served.http.get("/docs").text
    assert "POST /v1/images/edits" in page
    assert "<script" not in page
    assert "//" not in page.replace("<!doctype", "")


@pytest.mark.parametrize(
    ("body", "status", "param", "part"),
    [
        ({}, 400, "prompt", "is missing"),
        ({"prompt": "cta"}, 400, "prompt", "close: cat"),
        ({"prompt": "a cat and a dog"}, 400, "prompt", "several classes"),
        ({"prompt": "2"}, 400, "prompt", "an index from 0 to 1"),
        ({"prompt": "cat", "model": "tinny"}, 404, "model", "choose from tiny"),
        ({"prompt": "cat", "sed": 1}, 400, "sed", "did you mean seed?"),
        ({"prompt": "cat", "n": 11}, 400, "n", "must lie in 1 to 10"),
        ({"prompt": "cat", "n": True}, 400, "n", "must be an integer"),
        ({"prompt": "cat", "seed": 10**40}, 400, "seed", "must lie in"),
        ({"prompt": "cat", "size": "large"}, 400, "size", "give auto"),
        ({"prompt": "cat", "output_format": "gif"}, 400, "output_format", "choose from png"),
        ({"prompt": "cat", "guidance_scale": [1, 2]}, 400, "guidance_scale", "one for each of the 3 scales"),
        ({"prompt": "cat", "temperature": 0}, 400, "temperature", "must be 0.001 to 1000"),
        ({"prompt": ["cat"]}, 400, "prompt", "give text"),
        ({"prompt": "c" * 5000}, 400, "prompt", "at most 4000"),
        ({"prompt": "cat", "stream": True, "response_format": "url"}, 400, "response_format", "b64_json"),
        ([1], 400, None, "JSON object"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(served, body, status, param, part):
    response = served.http.post("/v1/images/generations", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert part in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 600


@pytest.mark.parametrize("content", ['{"prompt": "cat", "temperature": NaN}', '{"prompt": "cat", "top_p": 1e999}'])
def test_numbers_that_are_none(served, content):
    headers = {"Content-Type": "application/json"}
    response = served.http.post("/v1/images/generations", content=content, headers=headers)
    assert "must be a finite number" in response.json()["error"]["message"]


def test_openai_raises_its_own_errors(client, served):
    with pytest.raises(openai.BadRequestError, match="names no class"):
        client.images.generate(prompt="zebra")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong").models.list()


def test_a_client_that_leaves_frees_its_place(served, until):
    os.kill(served.host.pid, signal.SIGSTOP)  # so that nothing is answered
    try:
        for body in ({"prompt": "cat", "n": 5}, {"prompt": "cat", "n": 5, "stream": True}):
            with pytest.raises(httpx.ReadTimeout):
                served.http.post("/v1/images/generations", json=body, timeout=0.5)
            until(lambda: served.host.waiting == 0)
    finally:
        os.kill(served.host.pid, signal.SIGCONT)
    assert served.http.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 200


def test_a_full_queue_and_a_deadline(served, monkeypatch):
    body = {"prompt": "cat", "n": 2}
    monkeypatch.setattr(served.host, "limits", type(served.host.limits)(waiting=1))
    busy = served.http.post("/v1/images/generations", json=body)
    assert (busy.status_code, busy.json()["error"]["code"]) == (429, "busy")
    assert int(busy.headers["Retry-After"]) >= 1
    monkeypatch.setattr(served.host, "limits", type(served.host.limits)(seconds=0.0))
    assert served.http.post("/v1/images/generations", json=body).status_code == 504
    assert served.host.waiting == 0
    monkeypatch.setattr(served.service, "limits", type(served.host.limits)(waiting=1))
    never = served.http.post("/v1/images/generations", json=body)
    assert (never.status_code, never.json()["error"]["param"]) == (400, "n")


def test_the_documented_calls_work(served, photo, tmp_path, monkeypatch):
    """Of docs/serving.md, with the test's server, key and classes."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for documented, real in {"http://127.0.0.1:8000": served.url, "house": "cat", '"none"': f'"{served.key}"'}.items():
        page = page.replace(documented, real)
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "mask.png"):
        Path(name).write_bytes(photo)
    calls = [call for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for call in block.split("curl ")[1:]]
    assert len(calls) == 7
    for call in calls:
        words = shlex.split(call.replace("\\\n", " "))
        subprocess.run(["curl", "-f", "-H", f"Authorization: Bearer {served.key}", *words], check=True)
        assert Path(words[-1]).stat().st_size > 100
    (block,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "serving.md", "exec"), {})


def test_what_goes_wrong_within_a_stream_is_its_last_event(client, monkeypatch):
    encode, calls = images.as_base64, []

    async def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise Broken("the process ended")
        return await encode(*arguments)

    monkeypatch.setattr(images, "as_base64", failing)
    stream = iter(client.images.generate(prompt="cat", stream=True))
    assert next(stream).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError, match="the process ended"):
        next(stream)


def test_a_model_that_dies_is_started_again(served, until):
    os.kill(served.host.pid, signal.SIGSTOP)
    body = {"prompt": "cat", "seed": 1}
    with httpx.Client(base_url=served.url, headers=served.http.headers, timeout=60) as other:
        request = other.build_request("POST", "/v1/images/generations", json=body | {"stream": True})
        before, pid = served.host.restarts, served.host.pid
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(other.send, request)
            until(lambda: served.host.waiting == 1)
            os.kill(pid, signal.SIGKILL)
            response = answer.result()
    assert (response.status_code, response.json()["error"]["type"]) == (503, "server_error")
    assert "Retry-After" in response.headers
    until(lambda: served.service.ready)
    assert served.host.restarts == before + 1
    assert served.http.post("/v1/images/generations", json=body).status_code == 200

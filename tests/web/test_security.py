"""What hostile clients get: limits, keys, broken images, and whatever schemathesis thinks of."""

import asyncio
import base64
import io
import json
import socket
import struct
import zlib
from contextlib import suppress
from itertools import count

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image

from mvar.web.api.security import LOOPBACK
from mvar.web.api.uploads import MOST_BYTES

GENERATE = "/v1/images/generations"


def png(width, height, data=b"", kind=2) -> bytes:
    """A PNG file of this size with whatever data."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def photo(kind="PNG", **options) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(content, kind, **options)
    return content.getvalue()


HOSTILE = {
    "bomb of 2.5 gigapixels": png(50_000, 50_000, b"\0" * 100_000),
    "bomb just above the limit": png(5001, 5000, b"\0" * (5001 * 3 + 1) * 5000),
    "truncated PNG": photo()[:-200],
    "truncated JPEG": photo("JPEG")[:200],
    "truncated WebP": photo("WEBP")[:-20],
    "GIF": photo("GIF"),
    "BMP": photo("BMP"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "text": b"../../etc/passwd",
    "nothing": b"",
    "too small": png(1, 1, b"\0" * 4),
    "no size": png(0, 0),
    "strip": png(20_000, 8, b"\0" * 60_001 * 8),
    "garbage after the header": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20,
    "wrong aspect": png(32, 16, b"\0" * (32 * 3 + 1) * 16),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_images_that_cannot_be_used_are_refused(served, content):
    for path in ("/v1/images/edits", "/v1/images/variations", "/v1/scores", "/v1/classifications"):
        response = served.http.post(path, files={"image": ("../../x.png", content)})
        if path in ("/v1/scores", "/v1/classifications") and content == HOSTILE["wrong aspect"]:
            assert response.status_code == 200  # these are cropped
            continue
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "image"
    assert served.host.waiting == 0


def test_uploads_are_upright_and_without_metadata(served):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "secret"
    sent = photo("JPEG", exif=exif, quality=100)
    mask = Image.new("RGBA", (32, 32), "white")
    mask.paste((0, 0, 0, 0), (24, 24, 32, 32))
    hole = io.BytesIO()
    mask.save(hole, "PNG")
    response = served.http.post("/v1/images/edits", files={"image": sent, "mask": hole.getvalue()})
    edited = Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"])))
    before = Image.open(io.BytesIO(sent)).transpose(Image.Transpose.ROTATE_270)
    assert edited.crop((0, 0, 16, 16)).tobytes() == before.crop((0, 0, 16, 16)).tobytes()
    assert not edited.getexif()


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"files": {"mask": photo()}}, "image"),
        ({"files": {"image": photo()}}, "image"),  # has no transparency
        ({"files": {"image": photo(), "mask": photo()}}, "mask"),
        ({"files": [("image", photo()), ("image", photo())]}, "image"),
        ({"files": {"image": photo(), "other": photo()}}, "other"),
        ({"files": {"image": photo()}, "data": {"n": "many"}}, "n"),
        ({"files": {"image": photo()}, "data": {"n": "[" * 100_000}}, "n"),
        ({"files": {"image": photo()}, "data": {"seed": "9" * 10_000}}, "seed"),
        ({"files": {"image": photo()}, "data": {"image_url": "http://169.254.169.254/"}}, "image_url"),
        ({"files": {"image": photo()}, "data": {"response_format": "url"}}, "response_format"),
        ({"files": {"image": photo()}, "data": {"image": "file:///etc/passwd"}}, "image"),
    ],
)
def test_forms_that_cannot_be_used_are_refused(served, form, param):
    response = served.http.post("/v1/images/edits", **form)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 50_000, "application/json", 400),
        (b"9" * 5_000, "application/json", 400),
        (b'{"prompt": "cat"', "application/json", 400),
        (b"\xff\xfe\x00", "application/json", 400),
        (b'{"prompt": "cat"}', "text/plain", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": "' + b"c" * 2**20 + b'"}', "application/json", 413),
        (b"", "multipart/form-data", 400),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(served, content, kind, status):
    response = served.http.post(GENERATE, content=content, headers={"Content-Type": kind})
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_bodies_are_limited_however_they_come(served):
    headers = {"Content-Type": "application/json"}
    chunked = served.http.post(GENERATE, content=(b" " * 2**16 for _ in range(40)), headers=headers)
    assert (chunked.status_code, chunked.headers["connection"]) == (413, "close")
    with suppress(httpx.TransportError):  # the connection may be closed before the answer is read
        endless = (b" " * 2**16 for _ in count())
        assert served.http.post(GENERATE, content=endless, headers=headers).status_code == 413
    large = served.http.post("/v1/scores", files={"image": b"\0" * (MOST_BYTES + 1)})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    form = served.http.post("/v1/images/edits", content=b"{}", headers=headers)
    assert form.status_code == 415


def test_slow_and_half_open_connections_hold_nothing_up(served):
    address = served.http.base_url.host, served.http.base_url.port
    idle = [socket.create_connection(address) for _ in range(50)]
    slow = socket.create_connection(address)
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\n"
    slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    gone = socket.create_connection(address)
    gone.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    gone.close()
    assert served.http.post(GENERATE, json={"prompt": "cat"}).status_code == 200
    slow.settimeout(30)
    assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    for each in (*idle, slow):
        each.close()
    assert served.host.waiting == 0


def test_schemathesis_finds_no_failure_of_the_server(served):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    tried = []

    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=10,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def never_fails(case):
            response = case.call(headers={"Authorization": f"Bearer {served.key}"})
            tried.append((case.path, response.status_code))
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        never_fails()
    assert len({path for path, _ in tried}) == 11
    assert served.host.waiting == 0


# --- keys, rates, headers: no model is needed ---


def asked(client, *requests):
    """Responses to (method, path, options)."""

    async def all_of_them():
        async with client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(all_of_them())


def test_the_key_is_needed_and_never_logged(unserved, capsys):
    key = "a-very-secret-key"
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": key}, {"Authorization": "Bearer é".encode()}]
    paths = ["/v1/models", "/metrics", "/v1/nothing"]
    refused = asked(
        unserved(api_key=key), *(("GET", path, {"headers": headers}) for path in paths for headers in wrong)
    )
    for response in refused:
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    right = {"headers": {"Authorization": f"Bearer {key}"}}
    open_to_all = [("GET", path, {}) for path in ("/healthz", "/docs", "/openapi.json")]
    for response in asked(unserved(api_key=key), ("GET", "/v1/models", right), *open_to_all):
        assert response.status_code == 200
    prompt = {"json": {"prompt": "a secret prompt"}, **right}
    asked(unserved(api_key=key), ("POST", GENERATE, prompt), ("GET", f"{GENERATE}/secret.png?key={key}", {}))
    assert "secret" not in capsys.readouterr().err


def test_each_client_has_a_rate(unserved, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mvar.web.api.security.monotonic", lambda: now[0])
    client = unserved(rate=3)

    async def statuses():
        async with client:
            codes = [(await client.get("/v1/models")).status_code for _ in range(4)]
            last = await client.get("/v1/models")
            healthy = (await client.get("/healthz")).status_code
            now[0] += float(last.headers["Retry-After"])
            return codes, last, healthy, (await client.get("/v1/models")).status_code

    codes, last, healthy, later = asyncio.run(statuses())
    assert codes == [200, 200, 200, 429]
    assert last.json()["error"]["code"] == "rate_limit_exceeded"
    assert (healthy, later) == (200, 200)


def test_headers_of_every_response(unserved):
    long, own = {"X-Request-Id": "x" * 65}, {"X-Request-Id": "mine-1"}
    found = asked(
        unserved(),
        ("GET", "/v1/models", {"headers": own}),
        ("GET", "/v1/models", {"headers": long}),
        ("GET", "/nothing", {}),
        ("POST", "/healthz", {}),
        ("GET", "/readyz", {}),
    )
    assert [response.status_code for response in found] == [200, 200, 404, 405, 503]
    assert found[0].headers["X-Request-Id"] == "mine-1"
    assert found[1].headers["X-Request-Id"] != long["X-Request-Id"]
    for response in found:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.status_code < 400 or response.json()["error"]["message"]


def test_other_origins_only_when_allowed(unserved):
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    (off,) = asked(unserved(), ("OPTIONS", GENERATE, {"headers": ask}))
    assert off.status_code == 405
    origins = ("https://a.example",)
    other = ask | {"Origin": "https://b.example"}
    on, refused = asked(
        unserved(origins=origins, api_key="a-secret-key"),
        ("OPTIONS", GENERATE, {"headers": ask}),
        ("OPTIONS", GENERATE, {"headers": other}),
    )
    assert on.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_what_nobody_expected_is_logged_and_not_told(unserved, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("inner life")

    monkeypatch.setattr("mvar.web.api.operations._model", fail)
    monkeypatch.setattr("mvar.web.api.operations.card_of", fail)
    (response,) = asked(unserved(), ("GET", "/v1/models/tiny", {}))
    assert response.status_code == 500
    assert "inner life" not in response.text
    log = capsys.readouterr().err
    assert "inner life" in log
    assert json.loads(log.splitlines()[-1])["id"] == response.headers["X-Request-Id"]


def test_without_a_key_only_names_of_this_machine_are_answered(unserved):
    """A page of another site that has its own name lead here (DNS rebinding) has no use of it."""

    async def statuses() -> list[int]:
        async with unserved(hosts=LOOPBACK) as client:
            hosts = ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "evil.example", "127.0.0.1.evil")
            return [(await client.get("/v1/models", headers={"Host": host})).status_code for host in hosts]

    assert asyncio.run(statuses()) == [200, 200, 200, 200, 421, 421]

"""What hostile clients get: broken images and bodies, slow connections, and thousands of requests made up at random."""

import base64
import io
import json
import random
import socket
import struct
import zlib
from contextlib import suppress
from itertools import count

import httpx
import pytest
from PIL import Image

from mvar.web.api.schemas import Classifying, Edit, Generation, Scoring, Variation
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


def test_what_is_wrong_with_a_body_is_said(served):
    broken = served.http.post(GENERATE, content=b"\xff\xfe\x00", headers={"Content-Type": "application/json"})
    assert broken.json()["error"]["message"].startswith("body: cannot be read; send a JSON object")
    many = served.http.post("/v1/scores", files={"image": photo()}, data={f"field{i}": "" for i in range(65)})
    assert (many.status_code, "Too many fields" in many.json()["error"]["message"]) == (400, True)


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


def test_all_uploads_together_are_limited(served, monkeypatch, until):
    monkeypatch.setattr(served.memory, "most", 3000)
    for path, form in (("/v1/scores", {"image": b"\0" * 3000}), ("/v1/scores", {"image": png(32, 32, bytes(97 * 32))})):
        full = served.http.post(path, files=form)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "busy"), full.text
        assert full.headers["retry-after"] == "5"
    until(lambda: served.memory.held == 0)
    assert served.http.post("/v1/scores", files={"image": png(16, 16, bytes(49 * 16))}).status_code == 200
    until(lambda: served.memory.held == 0)


def test_slow_and_half_open_connections_hold_nothing_up(served, monkeypatch):
    monkeypatch.setattr("mvar.web.api.connections.HEAD_SECONDS", 0.5)
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
    for each in idle:  # the server has closed them
        each.settimeout(10)
        assert each.recv(1) == b""
    again = socket.create_connection(address)  # one that sends a head, then half of another
    again.settimeout(10)
    again.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert again.recv(4096).startswith(b"HTTP/1.1 200 ")
    again.sendall(b"GET /healthz HTTP/1.1\r\nHost")
    while again.recv(4096):
        pass  # the rest of the first answer
    for each in (*idle, slow, again):
        each.close()
    assert served.host.waiting == 0


def test_a_client_that_reads_nothing_is_cut_off(served, monkeypatch, until):
    monkeypatch.setattr("mvar.web.api.connections.STALLED_SECONDS", 0.3)
    side = 900
    noise = Image.frombytes("RGBA", (side, side), random.Random(0).randbytes(4 * side * side))
    noise.putalpha(Image.new("L", noise.size, 255))
    noise.putpixel((0, 0), (0, 0, 0, 0))
    content = io.BytesIO()
    noise.save(content, "PNG", compress_level=0)
    body = httpx.Request("POST", served.url, files={"image": content.getvalue()}, data={"n": "2"})
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((served.http.base_url.host, served.http.base_url.port))
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\n"
    head += "".join(f"{name}: {body.headers[name]}\r\n" for name in ("Content-Type", "Content-Length"))
    deaf.sendall(head.encode() + b"\r\n" + body.read())
    until(lambda: served.memory.held > 0)
    until(lambda: served.memory.held == 0)  # it held its share until then
    deaf.settimeout(10)
    got = 0
    while part := deaf.recv(2**20):
        got += len(part)
    assert 0 < got < 2 * side * side * 4
    deaf.close()


# --- thousands of requests ---

NASTY = (
    *(None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 10**400, 1e308, -0.0, 0.5, 1.5, [], {}, [[]], {"a": 1}),
    *("", " ", "cat", "\0", "\n", "é" * 50, "x" * 5000, "../../etc/passwd", "http://127.0.0.1:1/", "%s%n", "NaN"),
    *("1e999", "-1", "[1, 2, 3]", "[" * 3000, "'; DROP TABLE images; --", "${jndi:ldap://x}", "\u202e", "\ufffe"),
)
FORMS = {
    "/v1/images/edits": Edit,
    "/v1/images/variations": Variation,
    "/v1/scores": Scoring,
    "/v1/classifications": Classifying,
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """With bytes changed, cut off, left out or repeated."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(found))
        match rng.randrange(4):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                del found[at : at + rng.randint(1, 20)]
            case 2:
                found[at:at] = found[at : at + rng.randint(1, 20)]
            case _:
                found[at:] = b"" if rng.random() < 0.1 else found[at:]
        found = found or bytearray(1)
    return bytes(found)


def made_up(rng: random.Random):
    """Requests without end: fields with what no client should send, and damaged images."""
    files = [photo(), photo("JPEG"), photo("WEBP"), png(32, 32, bytes(129 * 32), kind=6)]
    while True:
        if rng.random() < 0.5:
            field = rng.choice([*Generation.model_fields, "other"])
            body = {"prompt": "cat", field: rng.choice(NASTY)}
            yield GENERATE, {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
            continue
        path, kind = rng.choice([*FORMS.items()])
        image = rng.choice(files)
        form = {"files": {"image": damaged(image, rng) if rng.random() < 0.7 else image}}
        if rng.random() < 0.6:
            value = rng.choice(NASTY)
            form["data"] = {rng.choice([*kind.model_fields]): value if isinstance(value, str) else json.dumps(value)}
        yield path, form


def check(response: httpx.Response) -> None:
    """It is an answer, or says what is wrong."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_requests_made_up_at_random_neither_fail_nor_stay(served, until):
    before = served.http.post(GENERATE, json={"prompt": "cat", "seed": 1}).json()["data"]
    restarts = served.host.restarts
    some = made_up(random.Random(0))
    tried = []
    for path, form in (next(some) for _ in range(1600)):
        with served.http.stream("POST", path, **form) as response:
            if response.headers["content-type"].startswith("text/event-stream"):
                continue  # leave in the middle
            response.read()
        check(response)
        tried.append(response.status_code)
    assert 200 < tried.count(200) < len(tried) - 200
    until(lambda: served.host.waiting == 0 and served.memory.held == 0)
    assert served.host.restarts == restarts
    assert served.http.post(GENERATE, json={"prompt": "cat", "seed": 1}).json()["data"] == before


def test_what_is_hardly_http_is_closed_or_refused(served, until):
    rng = random.Random(0)
    body = json.dumps({"prompt": "cat"}).encode()
    good = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\nConnection: close\r\n"
    good += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(200):
        with socket.create_connection((served.http.base_url.host, served.http.base_url.port), 10) as line:
            line.sendall(damaged(good.encode(), rng) + damaged(body, rng))
            with suppress(ConnectionError):
                line.shutdown(socket.SHUT_WR)
                found = line.recv(4096)
                assert found == b"" or 200 <= int(found.split(b" ", 2)[1]) < 500, found
    until(lambda: served.host.waiting == 0 and served.memory.held == 0)
    assert served.http.get("/healthz").status_code == 200


def test_schemathesis_finds_no_failure_of_the_server(served):
    import schemathesis  # takes a second, which only one of several processes needs
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    assert "422" not in served.http.get("/openapi.json").text
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=30,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def never_fails(case):
            response = case.call(headers={"Authorization": f"Bearer {served.key}"})
            tried.append(case.path)
            check(response)

        never_fails()
    assert len(set(tried)) == 11
    assert served.host.waiting == 0

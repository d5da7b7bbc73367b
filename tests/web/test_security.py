"""Keys, rates, headers and what is logged; no model is needed."""

import asyncio
import json

import httpx

from mvar.web.api.app import create_app
from mvar.web.api.security import LOOPBACK
from mvar.web.messages import Refused
from mvar.web.service import Service, Source

GENERATE = "/v1/images/generations"


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
        ("HEAD", "/healthz", {}),
    )
    assert [response.status_code for response in found] == [200, 200, 404, 405, 503, 200]
    assert found[0].headers["X-Request-Id"] == "mine-1"
    assert found[1].headers["X-Request-Id"] != long["X-Request-Id"]
    for response in found:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.status_code < 400 or response.json()["error"]["message"]


def test_other_origins_only_when_allowed(unserved):
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    ask["Access-Control-Request-Headers"] = "authorization, x-stainless-os"
    (off,) = asked(unserved(), ("OPTIONS", GENERATE, {"headers": ask}))
    assert off.status_code == 403
    origins = ("https://a.example",)
    other = ask | {"Origin": "https://b.example"}
    on, refused = asked(
        unserved(origins=origins, api_key="a-secret-key"),
        ("OPTIONS", GENERATE, {"headers": ask}),
        ("OPTIONS", GENERATE, {"headers": other}),
    )
    assert on.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert "x-stainless-os" in on.headers["Access-Control-Allow-Headers"]  # of OpenAI's client


def test_pages_of_other_sites_have_no_use_of_a_server(unserved):
    """Neither of the page nor of the API, where what a browser sends without asking first would do harm."""
    evil, own = {"Origin": "https://evil.example"}, {"Origin": "http://test"}
    client = unserved(origins=("https://good.example",))
    good = {"Origin": "https://good.example"}
    asks = [
        ("POST", "/v1/scores", evil),
        ("POST", "/login", evil),
        ("GET", "/config", evil),
        ("OPTIONS", "/login", evil),
    ]
    asks += [("GET", "/v1/models", {"Origin": "null"}), ("POST", "/login", good)]
    asks += [("GET", "/v1/models", good), ("GET", "/v1/models", own), ("GET", "/v1/models", {})]
    found = asked(client, *((method, path, {"headers": headers}) for method, path, headers in asks))
    assert [response.status_code for response in found] == [403] * 6 + [200] * 3
    for response in found[:6]:
        assert "Access-Control-Allow-Credentials" not in response.headers


def test_requests_to_anywhere_are_counted_and_small(unserved):
    client = unserved(rate=3)
    found = asked(
        client,
        ("POST", "/login", {"content": b" " * (2**18 + 1)}),
        ("POST", "/nothing", {}),
        ("POST", "/healthz", {}),
        ("POST", "/login", {}),
        ("GET", "/nothing", {}),
    )
    assert [response.status_code for response in found] == [413, 404, 405, 429, 404]


def test_metrics_name_known_methods_only(unserved):
    requests = [(f"MADE{i}", "/v1/models", {}) for i in range(5)]
    *_, metrics = asked(unserved(), *requests, ("GET", "/metrics", {}))
    assert 'method="other"' in metrics.text
    assert "MADE" not in metrics.text


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


def test_a_server_that_has_given_up_a_model_is_not_healthy():
    """So that what watches it starts it again."""
    service = Service([Source(name="tiny", path="nowhere")])
    app = create_app(service)

    async def statuses() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            before = (await client.get("/healthz")).status_code
            service.hosts["tiny"].failure = Refused("no such model")  # or whatever the process ended of
            return [before, (await client.get("/healthz")).status_code]

    assert asyncio.run(statuses()) == [200, 503]

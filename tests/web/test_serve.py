"""The command `mvar serve`: what it refuses, and how it starts and stops."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from mvar.commands.serving import open_socket


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--host", "0.0.0.0"], "host = '0.0.0.0': others could reach it; give --api-key too, or --insecure"),
        (["--host", "no.such.invalid"], "host = 'no.such.invalid': no address of this name"),
        (["--port", "65536"], "port = 65536: must lie in 0 to 65,535"),
        (["--api-key", "short"], "api_key: give at least 16"),
        (["--cors", "https://a.example/"], "cors = 'https://a.example/': not an origin"),
        (["--cors", "*"], "cors = '*': not an origin"),
        (["--rate", "0"], "rate = 0: must lie in"),
        (["--queue", "0"], "queue = 0: must lie in"),
        (["--timeout", "nan"], "timeout = "),
        (["--timeout", "0"], "timeout = 0.0: must be above 0"),
        (["--model", "a/tiny,b/tiny"], "model: several are called tiny"),
        (["--model", ","], "model = ',': is empty"),
    ],
)
def test_options_that_are_refused(refused, bundle, arguments, line):
    (said,) = refused("serve", "--model", bundle, "--port", "0", *arguments)
    assert said.startswith(f"mvar: {line}") or line in said


def test_a_port_in_use(refused, bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (said,) = refused("serve", "--model", bundle, "--port", str(taken.getsockname()[1]))
    assert re.match(r"mvar: port = \d+: Address already in use at 127.0.0.1; give another", said)


def test_answers_are_not_held_back_for_40_ms():
    """By Nagle's algorithm, where the client delays its acknowledgement of the first part."""
    with (
        open_socket("127.0.0.1", 0, anywhere=False) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def started(*arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mvar", "serve", "--port", "0", *arguments]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment, start_new_session=True
    )


def test_it_starts_drains_and_says_which_model_is_wrong(bundle):
    """SIGTERM lets requests under way end; the key of the environment is needed, and logged nowhere."""
    key = "a-key-of-the-environment"
    with (
        started("--model", "no-such-model") as wrong,
        started("--no-page", "--model", bundle, MVAR_API_KEY=key) as server,
    ):
        first = server.stderr.readline()
        url = re.search(r"http://\S+", first)[0]
        assert httpx.get(f"{url}/healthz").status_code == 200  # at once
        assert httpx.get(f"{url}/readyz").status_code == 503
        lines = []
        while "ready at" not in (lines or [""])[-1]:
            lines.append(server.stderr.readline())
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with ThreadPoolExecutor(1) as pool:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"prompt": "cat", "n": 10}
            answer = pool.submit(httpx.post, f"{url}/v1/images/generations", json=body, headers=headers, timeout=60)
            while not answer.done():
                if re.search(r"mvar_waiting\S* [1-9]", httpx.get(f"{url}/metrics", headers=headers).text):
                    break
            os.killpg(server.pid, signal.SIGTERM)  # as service managers do
            assert answer.result().status_code == 200
            assert len(answer.result().json()["data"]) == 10
        log = server.stderr.read()
        assert server.wait(30) == 0
        assert key not in first + "".join(lines) + log
        assert {"id", "status", "ms", "client"} < json.loads(log.splitlines()[-1]).keys()
        said = wrong.stderr.read().splitlines()
        assert wrong.wait(30) == 2
        assert said[-1].startswith("mvar: model = 'no-such-model'")


def test_an_open_page_does_not_keep_a_server_from_ending(bundle):
    """A browser keeps Gradio's heartbeat under way, which has to end by itself: cut off, it prints a traceback."""
    if find_spec("gradio") is None:
        pytest.skip("the page's packages are not installed")
    with started("--model", bundle) as server:
        url = re.search(r"http://\S+", server.stderr.readline())[0]
        while httpx.get(f"{url}/config").status_code != 200:
            time.sleep(0.1)
        with httpx.stream("GET", f"{url}/gradio_api/heartbeat/session", timeout=60) as heartbeat:
            beats = heartbeat.iter_lines()
            assert next(beats) == "data: ALIVE"
            server.send_signal(signal.SIGTERM)
            assert not any(line for line in beats if line != "data: ALIVE")
        assert "Traceback" not in server.stderr.read()
        assert server.wait(30) == 0


@pytest.mark.parametrize("error", [ValueError("changed"), RuntimeError("changed")])
def test_a_page_that_cannot_be_built_says_so(monkeypatch, capsys, error):
    """Whatever the error, and no page promises that another will come."""
    page = pytest.importorskip("mvar.web.page.page")

    def mount(*_):
        raise error

    async def loaded():
        pass

    monkeypatch.setattr(page, "mount", mount)
    app = FastAPI()
    asyncio.run(page.open_page(app, SimpleNamespace(loaded=loaded, ready=True)))
    assert "changed\nmvar: the page failed" in capsys.readouterr().err
    assert "/" not in [route.path for route in app.router.routes]

"""A server with a tiny model, and an application without one."""

import asyncio
import time
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from mvar.commands.serving import open_socket
from mvar.web.api.app import create_app
from mvar.web.api.connections import Prompt
from mvar.web.api.security import Options
from mvar.web.service import Service, Source

KEY = "a-secret-of-the-tests"


def wait_until(condition, seconds=60):
    """Wait for what others bring about."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="session")
def until():
    return wait_until


@pytest.fixture(scope="session")
def served(bundle):
    """A server in a thread, with the bundle's model in a process: its url, key and parts, and an HTTP client."""
    service = Service([Source(name="tiny", path=bundle, device="cpu")])
    app = create_app(service, Options(api_key=KEY, rate=100_000, body_seconds=2))
    listening = open_socket("127.0.0.1", 0, anywhere=False)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, http=Prompt, log_level="warning", access_log=False))
    thread = Thread(target=asyncio.run, args=(server.serve([listening]),))
    thread.start()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        parts = {"service": service, "host": service.hosts["tiny"], "memory": app.state.memory}
        yield SimpleNamespace(url=url, key=KEY, http=client, **parts)
    server.should_exit = True
    thread.join()


@pytest.fixture
def unserved():
    """Makes clients of applications whose model is never loaded."""

    def client(**options) -> httpx.AsyncClient:
        app = create_app(Service([Source(name="tiny", path="nowhere")]), Options(**options))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    return client

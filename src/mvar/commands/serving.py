"""The command serve. torch is imported in the processes of the models only."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mvar.settings import Count, Real, Whole, raise_problems
from mvar.text import split_names

if TYPE_CHECKING:
    import uvicorn

    from mvar.web.service import Service, Source

DRAIN_SECONDS = 25  # for requests under way when the server is to stop; deploy/kubernetes.yaml allows for it
KEY = "MVAR_API_KEY"
LEAST_KEY = 16  # characters
ORIGIN = re.compile(r"https?://[^/\s*]+")
DAY = 86_400
Seconds = Annotated[float, Real(0, DAY, open="(", text=f"must be above 0 and at most {DAY:,} seconds")]


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: Annotated[int, Whole(0, 65535)] = 8000,
    api_key: str | None = None,
    insecure: bool = False,
    cors: str | None = None,
    rate: Count = 600,
    queue: Count = 128,
    timeout: Seconds = 120.0,
    no_page: bool = False,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Serve models: a page in the browser, and OpenAI's Images API over HTTP.

    Runs until SIGTERM or Ctrl-C.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub; separate several by commas.
        host: name or address to listen at; any other than this machine's own needs --api-key.
        port: to listen at; 0 chooses a free one.
        api_key: that clients must send; better set as the environment variable MVAR_API_KEY, as lists of processes
            show options.
        insecure: listen at any address without a key.
        cors: origins, such as https://example.org, whose pages may call the API from a browser; separate several by
            commas.
        rate: requests a minute from each client address.
        queue: images of each model that may be drawn or wait at once; requests beyond get 429.
        timeout: seconds that a request may take, waiting included; then it gets 504.
        no_page: serve the API alone.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the weights in use.
    """
    from mvar.web.service import Limits, Service

    key = os.environ.get(KEY) if api_key is None else api_key
    _check_key(key)
    sources = _sources(model, device, dtype)
    origins = tuple(split_names(cors or "", "cors"))
    wrong = [origin for origin in origins if not ORIGIN.fullmatch(origin)]
    raise_problems(f"cors = {origin!r}: not an origin; give one such as https://example.org" for origin in wrong)
    listening = open_socket(host, port, key is not None or insecure)
    service = Service(sources, Limits(waiting=queue, seconds=timeout))
    service.launch()  # models load while the rest is imported
    own_name = None if key is not None or insecure else host.lower()
    server = _server(service, {"api_key": key, "origins": origins, "rate": rate}, own_name, not no_page)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn's own handler stops the server, then raises the signal
    try:
        asyncio.run(_run(server, service, listening))
    except KeyboardInterrupt:
        print("mvar: stopped", file=sys.stderr)


def _server(service: "Service", options: dict[str, Any], own_name: str | None, page: bool) -> "uvicorn.Server":
    """The server of a service; `own_name` is what clients must call it by, besides localhost, None for anything."""
    try:
        import uvicorn

        from mvar.web.api.app import create_app
        from mvar.web.api.connections import Prompt, allow_many
        from mvar.web.api.security import LOOPBACK, Options
    except ModuleNotFoundError as error:
        raise ValueError(f"serve: needs {error.name}; pip install 'mvar-torch[serve]'") from error
    allow_many()
    hosts = None if own_name is None else tuple(dict.fromkeys((*LOOPBACK, own_name)))
    config = uvicorn.Config(
        create_app(service, Options(hosts=hosts, **options), page),
        http=Prompt,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return uvicorn.Server(config)


def _sources(model: str, device: str | None, dtype: str | None) -> "list[Source]":
    from mvar.web.service import Source

    paths = split_names(model, "model")
    names = [Path(path).name or path for path in paths]
    twice = [name for name, n in Counter(names).items() if n > 1]
    raise_problems(f"model: several are called {name}; rename a folder" for name in twice)
    if not names:
        raise ValueError(f"model = {model!r}: is empty; give a packaged name, a folder, or owner/name of the hub")
    return [Source(name=name, path=path, device=device, dtype=dtype) for name, path in zip(names, paths, strict=True)]


async def _run(server: "uvicorn.Server", service: "Service", listening: socket.socket) -> None:
    """Serve until a signal, or until a model cannot be loaded, which is raised."""
    name, port = listening.getsockname()[:2]
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}"

    async def load() -> None:
        try:
            await service.loaded()
            print(f"mvar: ready at {url}", file=sys.stderr)
        except BaseException:
            server.should_exit = True
            raise

    print(f"mvar: loading {', '.join(service.hosts)}; listening at {url}", file=sys.stderr)

    async def close_page() -> None:
        """End the page before the server waits for open requests: each browser with the page open keeps one."""
        while not server.should_exit:
            await asyncio.sleep(0.1)
        if (page := server.config.app.state.page) is not None:  # type: ignore[union-attr]
            page.cancel()

    loading, closing = asyncio.create_task(load()), asyncio.create_task(close_page())
    await server.serve(sockets=[listening])
    closing.cancel()
    if loading.done():
        loading.result()
    loading.cancel()


def _check_key(key: str | None) -> None:
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and len(key) >= LEAST_KEY):
        raise ValueError(f"api_key: give at least {LEAST_KEY} printable ASCII characters, without spaces around them")


def open_socket(host: str, port: int, anywhere: bool) -> socket.socket:
    """A socket that listens; at others than this machine's own addresses only if `anywhere`.

    Raises:
        ValueError: one line that says why it cannot.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host = {host!r}: no address of this name; give one such as 127.0.0.1") from error
    if not anywhere and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ValueError(f"host = {host!r}: others could reach it; give --api-key too, or --insecure")
    try:
        found = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"port = {port}: {os.strerror(error.errno or 0)} at {host}; give another --port or --host"
        ) from error
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or an answer's second part waits 40 ms
    return found

"""The middleware: request ids and logs, the API key, the rate of each client, limits on bodies, response headers.

It is one plain ASGI application around the others, so that it sees every request and its outcome.
"""

import asyncio
import hmac
import json
import re
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, time
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvar.web.api.errors import Problem, problem_of
from mvar.web.api.operations import Metrics

MOST_BODY = 42 * 2**20  # bytes: an image, a mask and the fields of a form
MOST_JSON = 2**20
PART = 2**20  # of an answer's body
MOST_OTHER = 2**18  # of the page's requests, but for its uploads
UPLOAD = "/gradio_api/upload"
DISCARDED = 4  # times the limit is read and dropped, so that a client that sends too much still sees the answer
MOST_HELD = 2**30  # bytes of all requests' bodies and uploaded images at once
MOST_CLIENTS = 10_000  # whose rate is remembered
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":[0-9]{1,5}$")
Take = Callable[[int], None]
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
API_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'"
)
SIGNED = "/v1/images/generations/"  # images by URL
OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a server requires of its clients.

    Attributes:
        api_key: that requests must give; None for none.
        origins: of other sites' pages that may use the API from a browser.
        rate: requests a minute from each client address.
        body_seconds: within which a request must have arrived.
        hosts: names by which the server may be called; None for any. Without a key, another site's page could reach it
            through a name of its own that leads to this machine (DNS rebinding).
    """

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    rate: int = 600
    body_seconds: float = 60.0
    hosts: tuple[str, ...] | None = None


def is_api(path: str) -> bool:
    """Whether a path belongs to the API; others to the page."""
    return path.startswith("/v1/") or path == "/metrics" or path in OPEN


@dataclass
class Memory:
    """Memory that requests hold.

    Attributes:
        most: bytes of all of them together.
        held: bytes at this moment.
    """

    most: int = MOST_HELD
    held: int = 0

    @contextmanager
    def share(self) -> Iterator[Take]:
        """A request's share, until it ends: call it with a number of bytes; raises a problem if they are too many."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            if self.held + size > self.most:
                text = "the server holds as many uploads as it can; try again in 5 s"
                headers = {"Retry-After": "5", "Connection": "close"}
                raise Problem(429, text, None, "busy", "rate_limit_error", headers)
            own += size
            self.held += size

        try:
            yield take
        finally:
            self.held -= own


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, options: Options, metrics: Metrics, memory: Memory) -> None:
        self.app, self.options, self.metrics, self.memory = app, options, metrics, memory
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when that was

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, headers = monotonic(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if ID.fullmatch(given) else uuid4().hex
        noted: dict[str, Any] = {}
        scope["mvar.noted"] = noted
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), number, scope["path"])
            body = message.get("body", b"")
            while len(body) > PART:  # the next one waits for the client, and this request's share of memory with it
                await send({**message, "body": body[:PART], "more_body": True})
                body = body[PART:]
            await send({**message, "body": body} if "body" in message else message)

        try:
            self._admit(scope, headers)
            with self.memory.share() as take:
                scope["mvar.take"] = take
                await self.app(scope, await self._received(scope, headers, receive, take), sending)
        except Exception as error:
            problem = problem_of(error)
            if not isinstance(error, Problem):
                print(f"mvar: request {number} failed", file=sys.stderr)
                traceback.print_exception(error, file=sys.stderr)
            if not status:
                await problem.response()(scope, receive, sending)
        finally:
            self._log(scope, number, status or 499, monotonic() - began, noted)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Raise a problem for a client without the key, or with too many requests."""
        path, hosts = scope["path"], self.options.hosts
        if hosts is not None and PORT.sub("", headers.get("host", "")).lower() not in hosts:
            text = f"Host: this server is called {' or '.join(hosts)}; start it with --api-key for other names"
            raise Problem(421, text, None, "wrong_host")
        self._check_origin(path, headers)
        reads = scope["method"] in ("GET", "HEAD")
        if path != "/metrics" and not (reads and (path in OPEN or not is_api(path))):
            self._count(_client(scope))
        if not is_api(path) or path in OPEN:
            return
        signed = reads and path.startswith(SIGNED)
        key = self.options.api_key
        if key is not None and not signed:
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key.encode())
            if kind.lower() != "bearer" or not same:
                text = "give the server's API key, as Authorization: Bearer KEY"
                raise Problem(401, text, None, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_origin(self, path: str, headers: Headers) -> None:
        """Refuse requests from another site's pages; browsers name the origin with all but plain GETs."""
        origin = headers.get("origin")
        if origin is None or (is_api(path) and origin in self.options.origins):
            return
        if origin.partition("://")[2].lower() != headers.get("host", "").lower():
            text = f"Origin: pages of {origin} may not use this server; --cors allows the API, proxies must pass Host"
            raise Problem(403, text, None, "wrong_origin")

    def _count(self, client: str) -> None:
        """Take one from a client's requests, which grow again with time."""
        rate, now = self.options.rate, monotonic()
        left, since = self._clients.pop(client, (float(rate), now))
        left = min(rate, left + (now - since) * rate / 60)
        self._clients[client] = (max(0.0, left - 1), now)
        if len(self._clients) > MOST_CLIENTS:
            self._clients.popitem(last=False)
        if left < 1:
            wait = str(max(1, round((1 - left) * 60 / rate + 0.5)))
            text = f"more than {rate} requests a minute; try again in {wait} s"
            raise Problem(429, text, None, "rate_limit_exceeded", "rate_limit_error", {"Retry-After": wait})

    async def _received(self, scope: Scope, headers: Headers, receive: Receive, take: Take) -> Receive:
        """A receive function with the request's whole body, which is read here, within its limits."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        if scope["path"] == UPLOAD:  # goes to a file, once the user is known
            return _limited(receive, self.options.body_seconds)
        form = headers.get("content-type", "").lower().startswith("multipart/")
        most = MOST_OTHER if not is_api(scope["path"]) else MOST_BODY if form else MOST_JSON
        too_large = _too_large(most)
        body, more, size = bytearray(), True, 0
        try:
            async with asyncio.timeout(self.options.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(499, "the client left", None, "client_left")
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        take(len(part))
                        body += part
                    elif size > DISCARDED * most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise _too_slow(self.options.body_seconds) from error
        if size > most:
            raise too_large
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _add_headers(self, headers: MutableHeaders, number: str, path: str) -> None:
        headers["X-Request-Id"] = number
        for name, value in HEADERS.items():
            headers[name] = value
        if path.startswith(SIGNED):  # may be shown by other front ends
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        headers["Content-Security-Policy"] = API_POLICY if is_api(path) else PAGE_POLICY
        if is_api(path):
            headers["Cache-Control"] = "no-store"

    def _log(self, scope: Scope, number: str, status: int, seconds: float, noted: dict[str, Any]) -> None:
        """One line of JSON, without content, prompts, keys or signed URLs."""
        route = getattr(scope.get("route"), "path", None)
        if is_api(scope["path"]):
            self.metrics.ended(scope["method"], route or "other", status, seconds)
        line = {
            "time": round(time(), 3),
            "id": number,
            "method": scope["method"],
            "path": route or scope["path"][:100],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "client": _client(scope),
            **noted,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)


def _limited(receive: Receive, seconds: float) -> Receive:
    """The same, but raises once the body is too large, or does not arrive in time."""
    size, more, until = 0, True, monotonic() + seconds

    async def limited() -> Message:
        nonlocal size, more
        try:
            async with asyncio.timeout(max(0.0, until - monotonic()) if more else None):
                message = await receive()
        except TimeoutError as error:
            raise _too_slow(seconds) from error
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if size > MOST_BODY:
            raise _too_large(MOST_BODY)
        return message

    return limited


def _too_large(most: int) -> Problem:
    text = f"body: larger than {most / 2**20:g} MiB"
    return Problem(413, text, None, "too_large", headers={"Connection": "close"})


def _too_slow(seconds: float) -> Problem:
    text = f"body: not complete within {seconds:g} s"
    return Problem(408, text, None, "slow_body", headers={"Connection": "close"})


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])

"""The application of `mvar serve`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from mvar import __version__
from mvar.web.api import images, judging, operations
from mvar.web.api.errors import REFUSALS, handle_errors
from mvar.web.api.links import Links
from mvar.web.api.operations import Metrics
from mvar.web.api.security import Guard, Memory, Options
from mvar.web.page.page import open_page
from mvar.web.service import Service

ABOUT = "Images of next-scale models, in the form of OpenAI's Images API."
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def create_app(service: Service, options: Options | None = None, page: bool = False) -> FastAPI:
    """The application, with or without the page; it starts the service, and stops it at the end."""
    options = options or Options()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service, AsyncExitStack() as stack:
            if page:
                app.state.page = asyncio.create_task(open_page(app, service, key=options.api_key))
                stack.callback(app.state.page.cancel)
            yield

    refusal = {"description": "What is wrong.", "content": {"application/json": {"schema": ERROR}}}
    app = _App(
        title="mvar",
        description=ABOUT,
        version=__version__,
        lifespan=lifespan,
        responses=dict.fromkeys(REFUSALS, refusal),
        docs_url=None,  # FastAPI's own pages come from a CDN
        redoc_url=None,
    )
    metrics = Metrics(service)
    app.include_router(images.router(service, Links(options.api_key), metrics.drawn))
    app.include_router(judging.router(service))
    app.include_router(operations.router(service, metrics))
    handle_errors(app)
    app.state.memory, app.state.page = Memory(), None
    app.add_middleware(Guard, options=options, metrics=metrics, memory=app.state.memory)
    if options.origins:
        methods, seen = ["GET", "POST"], ["Retry-After", "X-Request-Id"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.origins),
            allow_methods=methods,
            allow_headers=["*"],
            expose_headers=seen,
        )
    return app


class _App(FastAPI):
    """Describes what it does: FastAPI's own answer to wrong parameters is never given."""

    def openapi(self) -> dict[str, Any]:
        found = super().openapi()
        for operation in (each for path in found["paths"].values() for each in path.values()):
            operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        return found

"""The page as a whole: its tabs and looks, and how it joins a running server.

Importing Gradio takes seconds, so the server starts without it: until the page is there, "/" says so.
"""

import asyncio
import hmac
import os
import re
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.routing import Match, Mount, Route
from starlette.types import Scope

from mvar.web.api.uploads import MOST_BYTES, MOST_PIXELS
from mvar.web.page.style import CSS, STARTING
from mvar.web.service import Service

if TYPE_CHECKING:
    import gradio as gr
    from gradio.routes import App

AT_ONCE = 16  # of each kind of event; their images share the model's steps
WAITING = 64  # events
HOUR = 3600  # after which uploads are deleted
NEEDED = re.compile(  # of Gradio's paths
    r"/(config|theme\.css|favicon\.ico|manifest\.json|login|logout|(assets|static|svelte)/.*"
    r"|gradio_api/(queue/(join|data)|run/predict|cancel|reset|upload|upload_progress|heartbeat/[^/]*|startup-events|file=/.*))?"
)


async def open_page(app: FastAPI, service: Service, path: str = "/", key: str | None = None) -> None:
    """Mount the page on a running app once the models are loaded, and keep it until cancelled.

    Args:
        path: where it is.
        key: that a user has to give, where there is one.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    waiting = Route(path, _starting)
    app.router.routes.append(waiting)
    try:
        await service.loaded()  # quicker without Gradio's import beside it
        await asyncio.to_thread(import_module, "gradio")
        mounted = await asyncio.to_thread(mount, app, service, path, key)
    except Exception as error:
        if service.ready:  # else it is of models, which the command prints
            traceback.print_exception(error)
            print("mvar: there is no page, as it could not be built; the API is not affected", file=sys.stderr)
        return
    finally:
        app.router.routes.remove(waiting)
    # What Gradio would do when the server starts.
    async with mounted.router.lifespan_context(mounted):
        mounted.get_blocks().run_startup_events()
        await mounted.get_blocks().run_extra_startup_events()
        mounted.startup_events_triggered = True  # else a request, which takes no key, would start them again
        try:
            await asyncio.Event().wait()
        finally:
            mounted.stop_event.set()  # ends the request that each open page keeps under way


def mount(app: FastAPI, service: Service, path: str = "/", key: str | None = None) -> "App":
    """Build the page of the loaded models and mount it, see `open_page`."""
    import gradio as gr
    from gradio import processing_utils

    processing_utils.async_ssrf_protected_download = _refuse
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    before = len(app.router.routes)
    gr.mount_gradio_app(
        app,
        blocks(service, key is not None),
        path,
        auth=None if key is None else lambda user, password: hmac.compare_digest(password.encode(), key.encode()),
        auth_message="Any user name, and the server's API key as the password.",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=CSS,
    )
    mounted: App = app.router.routes[before].app  # type: ignore[attr-defined]
    app.router.routes[before] = _Rest(path.rstrip("/"), app=mounted)
    return mounted


class _Rest(Mount):
    """What is mounted answers what the page needs, and nothing else that Gradio can do, such as fetching URLs."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        needed = NEEDED.fullmatch(scope["path"].removeprefix(self.path))
        return super().matches(scope) if needed else (Match.NONE, {})


async def _refuse(url: str, cache_dir: str) -> str:
    """In place of Gradio's download of whatever a client names."""
    raise ValueError("no URL is fetched; upload a file")


def blocks(service: Service, with_key: bool) -> "gr.Blocks":
    """All tabs."""
    import gradio as gr

    from mvar.web.page import compare, edit, generate, grow, understand

    names = ", ".join(service.cards)
    with gr.Blocks(title=f"mvar: {names}", analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True) as page:
        gr.HTML(f"<h1>mvar</h1><p>Images drawn scale by scale, by {names}.</p>")
        with gr.Tab("Generate"):
            chosen = generate.build(service, with_key)
        with gr.Tab("Grow"):
            grow.build(service)
        with gr.Tab("Edit"):
            edit.build(service, chosen)
        with gr.Tab("Understand"):
            understand.build(service, chosen)
        with gr.Tab("Compare"):
            compare.build(service)
    page.queue(default_concurrency_limit=AT_ONCE, max_size=WAITING, api_open=False)
    return page


async def _starting(request: Request) -> HTMLResponse:
    return HTMLResponse(STARTING, headers={"Cache-Control": "no-store", "Refresh": "2"})

"""The page as a whole: its tabs and looks, and how it joins a running server.

Importing Gradio takes seconds, so the server starts without it: until the page is there, "/" says so.
"""

import asyncio
import hmac
import os
import re
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.routing import Match, Mount, Route
from starlette.types import Receive, Scope, Send

from mvar.web.api.errors import Problem
from mvar.web.api.security import UPLOAD
from mvar.web.api.uploads import MOST_BYTES, MOST_PIXELS
from mvar.web.service import Service

if TYPE_CHECKING:
    import gradio as gr
    from gradio.routes import App

AT_ONCE = 16  # of each kind of event; their images share the model's steps
WAITING = 64  # events
SWEEPING, UNFINISHED = 60, 120  # seconds: how often old uploads are deleted, and for how long unfinished ones are kept
MOST_UPLOADED = 2 * 2**30  # bytes of all uploads that are not deleted yet
SESSIONS = 256  # latest, whose states are kept: each holds 0.3 MB of the page's configuration, and up to 12 samples
NEEDED = re.compile(  # of Gradio's paths
    r"/(config|theme\.css|favicon\.ico|manifest\.json|login|logout|(assets|static|svelte)/.*"
    r"|gradio_api/(queue/(join|data)|run/predict|cancel|reset|upload|upload_progress|heartbeat/[^/]*|startup-events|file=/.*))?"
)

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; width: 100% !important; }
.gradio-container > main, .gradio-container .wrap { width: 100%; max-width: 100%; }
.gradio-container h1 { font-size: 1.5rem; margin: 0; }
.pictures { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.pictures.strip { grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); }
.pictures.pair { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); }
.pictures figure { margin: 0; min-width: 0; }
.pictures img, .pictures .to-come { width: 100%; border-radius: 8px; display: block; box-sizing: border-box; }
.pictures img { border: 1px solid var(--border-color-primary); }
.pictures .to-come { aspect-ratio: 1; background: var(--block-border-color); opacity: 0.5; }
.pictures img.sharp { image-rendering: pixelated; }
.pictures figcaption { font-size: 0.8rem; padding: 2px 4px; display: flex; justify-content: space-between; }
.pictures a, .pictures a:visited { text-decoration: underline; padding: 2px 6px; }
.status { margin: 4px 0; min-height: 1.6em; white-space: pre-line; }
.status progress { width: 120px; vertical-align: middle; }
.wide { overflow-x: auto; max-width: 100%; margin: 8px 0 16px; }
.wide table, .wide td, .wide th, .wide tr, .bars, .bars td, .bars th, .bars tr { border: 0 !important; }
.wide table, .bars { border-collapse: collapse; font-size: 0.85rem; }
.wide caption, .bars caption { text-align: left; padding: 4px 0; font-weight: 600; }
.wide th { font-weight: 400; padding: 2px 8px; white-space: nowrap; }
.wide td { text-align: right; padding: 2px 8px; min-width: 2.6em; }
.bars { width: 100%; max-width: 560px; }
.bars th { font-weight: 400; text-align: left; width: 30%; padding: 2px 8px 2px 0; }
.bars td { padding: 2px 0; }
.bars td:last-child { width: 5em; text-align: right; white-space: nowrap; }
.bars td div { background: var(--primary-500, #6366f1); height: 1em; border-radius: 3px; min-width: 1px; }
"""

STARTING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>mvar is starting</title><link rel="icon" href="data:,"></head>
<body style="font-family: system-ui, sans-serif; margin: 4rem auto; max-width: 30rem; padding: 0 1rem">
<h1>mvar is starting</h1><p role="status">Loading. This page refreshes automatically.</p>
</body></html>
"""


async def open_page(app: FastAPI, service: Service, path: str = "/", key: str | None = None) -> None:
    """Mount the page on a running app once the models are loaded, and keep it until cancelled.

    Args:
        path: where it is.
        key: that a user has to give, where there is one.
    """
    uploads = TemporaryDirectory(prefix="mvar-uploads-", ignore_cleanup_errors=True)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads.name}
    try:
        mounted = await _mounted(app, service, path, key)
        # What Gradio would do when the server starts.
        async with mounted.router.lifespan_context(mounted):
            mounted.get_blocks().run_startup_events()
            await mounted.get_blocks().run_extra_startup_events()
            mounted.startup_events_triggered = True  # else a request, which takes no key, would start them again
            try:
                while True:
                    await asyncio.sleep(SWEEPING)
                    await asyncio.to_thread(delete_old, Path(uploads.name))
            finally:
                mounted.stop_event.set()  # ends the request that each open page keeps under way
    except Exception as error:
        if service.ready:  # else it is of models, which the command prints
            traceback.print_exception(error)
            print("mvar: the page failed; the API is not affected", file=sys.stderr)
    finally:
        uploads.cleanup()


def delete_old(uploads: Path) -> None:
    """Delete uploads after an hour, and what is left of those that were cut off, which Gradio never deletes, sooner."""
    from mvar.web.page.asking import HOUR

    for file in uploads.rglob("*"):
        kept = UNFINISHED if file.parent == uploads else HOUR  # whole ones are in folders
        with suppress(FileNotFoundError):  # finished or deleted meanwhile
            if file.is_file() and time() - file.stat().st_mtime > kept:
                file.unlink()


async def _mounted(app: FastAPI, service: Service, path: str, key: str | None) -> "App":
    """Mount the page once the models are loaded; until then its address says that they are being loaded."""
    waiting = Route(path, _starting)
    app.router.routes.append(waiting)
    try:
        await service.loaded()  # quicker without Gradio's import beside it
        await asyncio.to_thread(import_module, "gradio")
        return await asyncio.to_thread(mount, app, service, path, key)
    finally:
        app.router.routes.remove(waiting)


def mount(app: FastAPI, service: Service, path: str = "/", key: str | None = None) -> "App":
    """Build the page of the loaded models and mount it, see `open_page`."""
    import gradio as gr
    from gradio import processing_utils

    processing_utils.async_ssrf_protected_download = _refuse
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    page = blocks(service, key is not None)
    page.has_launched = True  # else Gradio reads whatever file of this machine a client names
    apart = FastAPI()  # so that nothing of the page can be reached but through `_Rest`
    gr.mount_gradio_app(
        apart,
        page,
        path,
        auth=None if key is None else lambda user, password: hmac.compare_digest(password.encode(), key.encode()),
        auth_message="Enter any user name, and the server's API key as the password.",
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
    mounted: App = apart.router.routes[-1].app  # type: ignore[attr-defined]
    app.router.routes.append(_Rest(path.rstrip("/"), app=mounted))
    return mounted


class _Rest(Mount):
    """What is mounted answers what the page needs, and nothing else that Gradio can do, such as fetching URLs."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        needed = NEEDED.fullmatch(scope["path"].removeprefix(self.path))
        return super().matches(scope) if needed else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith(UPLOAD):
            await asyncio.to_thread(check_room, Path(os.environ["GRADIO_TEMP_DIR"]))
        await super().handle(scope, receive, send)


def check_room(uploads: Path) -> None:
    """Raise a problem where uploads take as much of the disk as they may."""
    size = 0
    for file in uploads.rglob("*"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            size += file.stat().st_size
    if size > MOST_UPLOADED:
        text = "the server holds as many uploads as it can; try again in some minutes"
        raise Problem(429, text, None, "busy", "rate_limit_error", {"Retry-After": "600"})


async def _refuse(url: str, cache_dir: str) -> str:
    """In place of Gradio's download of whatever a client names."""
    raise ValueError("URLs are not fetched; upload a file")


def blocks(service: Service, with_key: bool) -> "gr.Blocks":
    """All tabs."""
    import gradio as gr

    from mvar.web.page import compare, edit, generate, grow, understand

    names = ", ".join(service.cards)
    with gr.Blocks(title=f"mvar: {names}", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>mvar</h1><p>Images drawn scale by scale by {names}.</p>")
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
    page.state_session_capacity = SESSIONS
    page.queue(default_concurrency_limit=AT_ONCE, max_size=WAITING, api_open=False)
    return page


async def _starting(request: Request) -> HTMLResponse:
    return HTMLResponse(STARTING, headers={"Cache-Control": "no-store", "Refresh": "2"})

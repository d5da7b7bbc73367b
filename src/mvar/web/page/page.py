"""The page as a whole: its tabs and looks, and how it joins a running server.

Importing Gradio takes seconds, so the server starts without it: until the page is there, "/" says so.
"""

import asyncio
import hmac
import os
from importlib import import_module
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.routing import Match, Mount, Route
from starlette.types import Scope

from mvar.web.api.security import is_api
from mvar.web.api.uploads import MOST_BYTES, MOST_PIXELS
from mvar.web.page.style import CSS, STARTING
from mvar.web.service import Service

if TYPE_CHECKING:
    import gradio as gr
    from gradio.routes import App

AT_ONCE = 16  # of each kind of event; their images share the model's steps
WAITING = 64  # events
HOUR = 3600  # after which uploads are deleted


async def open_page(app: FastAPI, service: Service, path: str = "/", key: str | None = None) -> None:
    """Mount the page on a running app once the models are loaded, and keep it until cancelled.

    Args:
        path: where it is.
        key: that a user has to give, where there is one.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    waiting = Route(path, _starting)
    app.router.routes.append(waiting)
    await asyncio.gather(service.loaded(), asyncio.to_thread(import_module, "gradio"))
    mounted = await asyncio.to_thread(mount, app, service, path, key)
    app.router.routes.remove(waiting)
    # What Gradio would do when the server starts.
    async with mounted.router.lifespan_context(mounted):
        mounted.get_blocks().run_startup_events()
        await mounted.get_blocks().run_extra_startup_events()
        mounted.startup_events_triggered = True  # else a request, which takes no key, would start them again
        await asyncio.Event().wait()


def mount(app: FastAPI, service: Service, path: str = "/", key: str | None = None) -> "App":
    """Build the page of the loaded models and mount it, see `open_page`."""
    import gradio as gr

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
    """What is mounted answers all paths but the API's, whose errors have a form of their own."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if is_api(scope["path"]) else super().matches(scope)


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

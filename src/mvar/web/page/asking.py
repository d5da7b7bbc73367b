"""What tabs ask for and get: one sentence for each error, and what a sample is."""

import asyncio
import functools
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from mvar.web.api.errors import Problem
from mvar.web.messages import Broken, Busy, Late, Maps
from mvar.web.page.pictures import status

LAST = 0.5  # seconds after which a cancelled event changes nothing any more
HOUR = 3600  # seconds after which uploads, and what sessions hold, are deleted
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # of events
Results = AsyncGenerator[Any, None]  # new values of an event's outputs, again and again
Handler = Callable[..., Results]
WRONG = (ValueError, Busy, Late, Broken)  # errors whose text says to the user what to do


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What decides an image, but its index.

    Attributes:
        model: name.
        label: class index; None for no class.
        seed: of the noise.
        settings: those that are not the model's own.
    """

    model: str
    label: int | None
    seed: int
    settings: dict[str, Any]

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of each `Drawing`."""
        return {"label": self.label, "seed": self.seed, "settings": self.settings}


@dataclass(frozen=True, kw_only=True, eq=False)  # Gradio hashes what a state holds, images have no hash
class Sample:
    """A drawn image, and what drew it.

    Attributes:
        maps: its tokens; None for smooth samples.
    """

    asked: Asked
    index: int
    image: Image.Image
    maps: Maps | None


def state(value: Any) -> gr.State:
    """What a session holds for a tab, for as long as uploads are kept: without a limit, for as long as it is open."""
    return gr.State(value, time_to_live=HOUR)


def connect_stop(stop: gr.Button, said: gr.HTML, *events: Any) -> None:
    """Let a button end these events, and the line that says how far they are say so."""

    async def stopped() -> str:
        await asyncio.sleep(LAST)  # of the event's own lines
        return status("Stopped.")

    stop.click(stopped, None, said, cancels=list(events), queue=False, **QUIET)


def sentences(said: gr.HTML) -> Callable[[Handler], Handler]:
    """Decorates the handler of an event: an error ends it with a sentence, in the tab's line and as a message."""

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def run(*values: Any, **more: Any) -> Results:
            try:
                async with aclosing(handler(*values, **more)) as results:
                    async for result in results:
                        yield result
            except Exception as error:  # is not raised: Gradio may then drop the line
                text = _sentence(error)
                gr.Warning(text)
                yield {said: status(f"Request failed. {text}")}

        return run

    return decorate


def _sentence(error: Exception) -> str:
    """What an error says to the user; a fault of the server goes to its log."""
    if isinstance(error, Problem):
        return error.detail
    if isinstance(error, WRONG):
        return str(error)
    traceback.print_exception(error)
    return "The server's log says why."

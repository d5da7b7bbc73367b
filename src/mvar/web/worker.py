"""The process that holds a model: it answers messages, many at once, and ends when the pipe to its service does."""

import ctypes
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.analysis.examining import examine
from mvar.checkpoint import hub
from mvar.checkpoint.placement import Dtype
from mvar.data.images.decoding import as_image
from mvar.data.views import scaled
from mvar.model import Model, load
from mvar.sampling.concurrency import turn
from mvar.sampling.engine import SampleOutput, to_uint8
from mvar.sampling.likelihood import token_log_probs, token_maps
from mvar.sampling.masks import resized
from mvar.web import messages
from mvar.web.batching import CPU_PROCESSORS, CPU_TOKENS, GPU_TOKENS, Batcher
from mvar.web.messages import (
    Answer,
    Broken,
    Card,
    Classified,
    Drawn,
    Examined,
    Failed,
    Partial,
    Refused,
    Request,
    Scored,
    Seen,
)

CPU_AT_ONCE, GPU_AT_ONCE = 16, 32  # requests; others wait in order
M_ARENA_MAX = -8  # of glibc's mallopt
FAILED = "the model failed on this request; the server's log says why"
LOG_2 = float(np.log(2))
RESIZING = ThreadPoolExecutor(1)  # large images take several times their memory, and glibc keeps it for each thread


class Cancelled(Exception):
    """The client no longer waits for the answer."""


def main(pipe: Connection, name: str, source: str, device: str | None, dtype: Dtype | None) -> None:
    """Load a model, send its card, and answer lists of (number, request); (number, None) cancels one.

    None ends the process. Answers are (number, Partial), then (number, Answer) or (number, exception).
    """
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to all processes, but the service decides
        signal.signal(number, signal.SIG_IGN)
    try:
        model = load(source, device, dtype)
        pipe.send(card(model, name, source))
    except Exception as error:
        pipe.send(Refused(str(error)) if isinstance(error, ValueError) else Broken(f"{type(error).__name__}: {error}"))
        return
    _keep_little_memory()
    Worker(model, pipe).run()


def _keep_little_memory() -> None:
    """glibc lets each thread keep memory of its own: 1.2 GB in place of 0.8 for the packaged icons on two cores."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_ARENA_MAX, 2 * torch.get_num_threads())  # as many as threads cost a tenth of the throughput


class Worker:
    """Answers the messages that come through a pipe."""

    def __init__(self, model: Model, pipe: Connection) -> None:
        self.model, self.pipe, self._sending = model, pipe, Lock()
        self._wanted: dict[int, Request] = {}
        on_gpu, cores = model.device.type == "cuda", torch.get_num_threads()
        self.at_once = GPU_AT_ONCE if on_gpu else CPU_AT_ONCE
        processors = 1 if on_gpu else min(cores, CPU_PROCESSORS)
        self.batcher = Batcher(processors, GPU_TOKENS if on_gpu else CPU_TOKENS, cores // processors)

    def run(self) -> None:
        """Answer until the service says stop, or has ended."""
        with ThreadPoolExecutor(self.at_once) as pool:
            while self._heard(pool):
                pass
            self._wanted.clear()
            pool.shutdown(cancel_futures=True)

    def _heard(self, pool: ThreadPoolExecutor) -> bool:
        """Receive the next requests; false at the end. Only `_wanted` holds them, so that a cancel frees memory."""
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            return False
        if said is None:
            return False
        for number, request in said:
            if request is None:
                self._wanted.pop(number, None)
            else:
                self._wanted[number] = request
                pool.submit(self._answer, number)
        return True

    def _answer(self, number: int) -> None:
        request = self._wanted.get(number)
        if request is None:
            return
        answer: Answer | Exception
        try:
            with self.batcher.joined(lambda: self._check(number)):
                answer = respond(self.model, request, lambda partial: self._send(number, partial))
        except Cancelled:
            return
        except Refused as error:
            answer = error
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            answer = Failed(f"{type(error).__name__}: {error}" if isinstance(error, FloatingPointError) else FAILED)
        self._send(number, answer)
        self._wanted.pop(number, None)

    def _check(self, number: int) -> None:
        if number not in self._wanted:
            raise Cancelled

    def _send(self, number: int, answer: Any) -> None:
        with self._sending:
            try:
                self.pipe.send((number, answer))
            except OSError:  # the service has ended
                self._wanted.clear()


def card(model: Model, name: str, source: str) -> Card:
    """Facts about a model."""
    model.sampler()  # raises for one without a generator
    folder = hub.find(source)
    written = max((path.stat().st_mtime for path in Path(folder).iterdir()), default=time())
    networks = (model.tokenizer, model.generator)
    return Card(
        name=name,
        classes=model.classes,
        size=model.tokenizer.config.image_shape,
        shapes=list(model.tokenizer.quantizer.schedule.shapes),
        defaults=asdict(model.defaults),
        parameters=sum(p.numel() for network in networks if network is not None for p in network.parameters()),
        created=int(written),
        facts=model.bundle().facts(),
    )


def checked(model: Model, request: Request) -> Request:
    """The request, with its image shrunk to the model's size unless the result is pasted back into it.

    Raises:
        Refused: a request that the model cannot fulfil.
    """
    try:
        if not isinstance(request, messages.Classifying):
            model.label_ids(request.label)
        if isinstance(request, messages.Drawing):
            model.sampler(request.seed, **request.settings)
        if isinstance(request, messages.Editing | messages.Varying):
            with turn():
                return RESIZING.submit(_smaller, request, model.tokenizer.config.image_shape).result()
    except ValueError as error:
        raise Refused(str(error)) from error
    return request


def _smaller(request: Request, shape: tuple[int, int]) -> Request:
    if isinstance(request, messages.Varying) and isinstance(request.source, Image.Image):
        return replace(request, source=_resized(request.source, shape))
    if isinstance(request, messages.Editing):
        image = _resized(request.image, shape)
        if not request.paste:
            return replace(request, image=image, hole=resized(torch.tensor(request.hole), shape).numpy())
    return request


def _resized(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    return Image.fromarray(to_uint8(scaled(as_image(image), shape)[None])[0])


def respond(model: Model, request: Request, tell: Callable[[Partial], None]) -> Answer:
    """The answer to a request.

    Args:
        tell: called with the unfinished image after each scale of `request.partials`.

    Raises:
        Refused: a request that the model cannot fulfil.
    """
    request = checked(model, request)
    if isinstance(request, messages.Scoring):
        maps = token_maps(model.tokenizer, [request.image])
        label = torch.tensor(model.label_ids(request.label))
        log_probs_L = token_log_probs(model.tokenizer, model.sampler().generator, maps, label)[0]
        return Scored(float(log_probs_L.sum()), (-log_probs_L / LOG_2).numpy())
    if isinstance(request, messages.Examining):
        maps = token_maps(model.tokenizer, [request.image])
        label = torch.tensor(model.label_ids(request.label))
        return Examined([Seen(**block) for block in examine(model.tokenizer, model.sampler().generator, maps, label)])
    if isinstance(request, messages.Classifying):
        return Classified(model.classify([request.image], scales=request.scales).log_posterior_BC[0].numpy())

    def on_scale(k: int, scales: int, preview: Callable[[], Tensor]) -> None:
        if k in request.partials and k < scales - 1:
            tell(Partial(k, to_uint8(preview())[0]))

    common: dict[str, Any] = {"seed": request.seed, "index": [request.index], "on_scale": on_scale, "batch_size": 1}
    common |= request.settings
    areas = model.tokenizer.quantizer.schedule.areas
    out: SampleOutput
    kept = 0
    if isinstance(request, messages.Editing):
        edited = model.edit(
            request.image, request.hole, label=request.label, mode=request.mode, paste=request.paste, **common
        )
        out, kept = edited, sum(int(kept_hw.sum()) for kept_hw in edited.kept)
    elif isinstance(request, messages.Varying):
        source: Any = request.source
        if isinstance(source, list):
            source = [torch.from_numpy(tokens_P)[None] for tokens_P in source]
        out = model.vary(source, request.label, from_scale=request.from_scale, n=1, **common)
        kept = sum(areas[: request.from_scale])
    else:
        out = model.sample([request.label], **common)
    drawn = None if out.tokens is None else [tokens_BP[0].numpy() for tokens_BP in out.tokens]
    return Drawn(out.images[0], drawn, sum(areas) - kept)

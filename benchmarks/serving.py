"""How much `mvar serve` does on this machine: python -m benchmarks.serving --model icons --out docs/images/serving

A server of its own on the loopback interface; clients that send the next request when they have the answer to the last.
Writes serving.json and serving.png, and puts the figures into a page.
"""

import argparse
import asyncio
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from mvar.charts import BLUE, ORANGE, new_figure, save, style_axes
from mvar.machine import machine
from mvar.studies.page import fill, table, write_json

CLIENTS = (1, 2, 4, 8, 16, 32)
STARTS = 3
IDLE = 10  # requests, one after another, whose first partial image is timed
PATIENCE = 120.0  # seconds


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[str, float, subprocess.Popen[bytes]]]:
    """A server: its address, the seconds until it was ready, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mvar", "serve", "--model", model, "--port", str(port), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                raise RuntimeError(f"{' '.join(command)}: is not ready")
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        yield address, time.perf_counter() - start, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def first_partial(address: str, classes: int) -> list[float]:
    """Milliseconds until the first partial image of each of several requests to an idle server."""
    found = []
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        for i in range(IDLE):
            body = {"prompt": str(i % classes), "seed": i, "stream": True}
            start = time.perf_counter()
            with client.stream("POST", "/v1/images/generations", json=body) as answer:
                events = (line for line in answer.iter_lines() if line.startswith("data:"))
                next(events)
                found.append(1000 * (time.perf_counter() - start))
                deque(events, maxlen=0)  # the rest
    return found


async def under_load(address: str, clients: int, requests: int, classes: int) -> dict[str, float]:
    """Images a second, and percentiles of a request's seconds, with so many clients."""
    numbers, seconds = iter(range(requests)), []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:

        async def one() -> None:
            for i in numbers:
                start = time.perf_counter()
                answer = await client.post("/v1/images/generations", json={"prompt": str(i % classes), "seed": i})
                answer.raise_for_status()
                seconds.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        whole = time.perf_counter() - start
    return {
        "clients": clients,
        "images": requests,
        "images_per_second": requests / whole,
        "p50_seconds": float(np.quantile(seconds, 0.5)),
        "p95_seconds": float(np.quantile(seconds, 0.95)),
    }


def memory(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of the server and its children, in MB."""
    parent = psutil.Process(process.pid)
    return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True))) / 1e6


def measure(model: str, requests: int) -> dict[str, Any]:
    """All figures of a model."""
    ready = []
    for _ in range(STARTS):
        with served(model) as (_, seconds, _):
            ready.append(seconds)
    with served(model, "--no-page", "--rate", "1000000") as (address, _, process):
        card = httpx.get(f"{address}/v1/models/{Path(model).name}").json()
        classes = len(card["classes"])
        asyncio.run(under_load(address, 2, 8, classes))  # to warm up
        partial = first_partial(address, classes)
        before = memory(process)
        rounds = [[asyncio.run(under_load(address, n, max(requests, n), classes)) for n in CLIENTS] for _ in range(3)]
        after = memory(process)
    loads = [
        {key: statistics.median(each[key] for each in same) for key in same[0]} for same in zip(*rounds, strict=True)
    ]
    return {
        "model": model,
        "ready_seconds": statistics.median(ready),
        "first_partial_ms": statistics.median(partial),
        "loads": loads,
        "memory_mb": {"before": before, "after": after},
        "machine": machine(),
    }


def text(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    alone, best = found["loads"][0], max(found["loads"], key=lambda load: load["images_per_second"])
    hardware = found["machine"]
    rows = [
        [
            f"{load['clients']:.0f}",
            f"{load['images_per_second']:.2f}",
            f"{load['images_per_second'] / alone['images_per_second']:.2f}",
            f"{load['p50_seconds']:.2f} s",
            f"{load['p95_seconds']:.2f} s",
        ]
        for load in found["loads"]
    ]
    head = ["Clients at once", "Images a second", "Relative to one", "p50", "p95"]
    used = found["memory_mb"]
    where = f"{hardware['cores']} cores of {hardware['processor']}"
    return f"""`python -m benchmarks.serving --model {found["model"]}` on {where}:
ready {found["ready_seconds"]:.1f} s after the command; the first partial image of an idle server after
{found["first_partial_ms"]:.0f} ms; memory {used["before"]:.0f} MB before the load and {used["after"]:.0f} MB after it.

{table(head, rows)}

The best throughput is {best["images_per_second"] / alone["images_per_second"]:.2f} times that of one client.

![Throughput and latency over the number of clients](images/serving/serving.png)"""


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Throughput and latency over the number of clients."""
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    clients = [load["clients"] for load in found["loads"]]
    left.plot(clients, [load["images_per_second"] for load in found["loads"]], "o-", color=BLUE)
    left.set_ylim(bottom=0)
    style_axes(left, "Images a second", "clients at once")
    for name, colour in (("p50", BLUE), ("p95", ORANGE)):
        right.plot(clients, [load[f"{name}_seconds"] for load in found["loads"]], "o-", color=colour, label=name)
    right.legend(frameon=False)
    style_axes(right, "Seconds of a request", "clients at once")
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(clients, [f"{n:.0f}" for n in clients])
    save(figure, path)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default="icons", help="packaged name or bundle")
    parser.add_argument("--out", type=Path, default=Path("docs/images/serving"), help="folder for figures and report")
    parser.add_argument("--requests", type=int, default=32, help="at each number of clients, in each of three rounds")
    parser.add_argument("--page", type=Path, help="Markdown file whose serving block is filled in")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options.model, options.requests)
    write_json(options.out / "serving.json", found)
    draw(found, options.out / "serving.png")
    if options.page is not None:
        fill(options.page, text(found), "serving", "page")
    print(text(found))


if __name__ == "__main__":
    main()

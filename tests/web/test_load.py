"""Many clients at once, some of whom leave; and replicas behind a load balancer of which one dies."""

import asyncio
import base64
import io
import random
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.serving import memory, served
from mvar.model import load
from mvar.sampling.engine import to_uint8

REQUESTS, CLIENTS = 1000, 24
GROWTH = 60  # MB that allocators may keep
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def expected(bundle) -> dict[tuple[int, int], np.ndarray]:
    """Images drawn without a server, by class and seed."""
    model = load(bundle)
    return {(c, s): to_uint8(model.sample([c], seed=s).pixels)[0] for c in (0, 1) for s in range(20)}


def image_of(answer: httpx.Response) -> np.ndarray:
    (item,) = answer.json()["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB")).astype(int)


def body(label: int, seed: int) -> dict:
    return {"prompt": str(label), "seed": seed}


def measured(address: str, name: str) -> float:
    """The value of a metric."""
    (line,) = [line for line in httpx.get(f"{address}/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.rsplit(" ", 1)[1])


async def ask_many(address, expected, requests, rng) -> dict[str, int]:
    """How often clients left, were told to wait, and got an image; every image is compared."""
    counts = {"left": 0, "wait": 0, "right": 0}
    numbers = iter(range(requests))
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=CLIENTS)) as client:

        async def one() -> None:
            for _ in numbers:
                label, seed = rng.choice(list(expected))
                call = client.post("/v1/images/generations", json=body(label, seed))
                leaves = rng.random() < 0.3
                try:
                    answer = await asyncio.wait_for(call, rng.uniform(0, 0.2) if leaves else None)
                except TimeoutError:
                    counts["left"] += 1
                    continue
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    counts["wait"] += 1
                    continue
                assert answer.status_code == 200, answer.text
                assert np.abs(image_of(answer) - expected[label, seed]).max() <= 1  # rounding
                counts["right"] += 1

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return counts


def test_of_a_thousand_requests_none_is_lost_or_mixed_up_and_memory_stays(bundle, expected):
    rng = random.Random(0)
    with served(bundle, "--no-page", "--rate", "1000000") as (address, _, process):
        asyncio.run(ask_many(address, expected, 200, rng))
        before = memory(process)
        counts = asyncio.run(ask_many(address, expected, REQUESTS, rng))
        assert sum(counts.values()) == REQUESTS
        assert counts["left"] > 0
        assert counts["right"] > 500
        assert memory(process) < before + GROWTH
        until = time.monotonic() + 20
        while measured(address, "mvar_waiting"):  # those who left free their places
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_replicas_behind_a_load_balancer_survive_the_death_of_one(bundle, expected, tmp_path):
    with ExitStack() as stack:
        replicas = [stack.enter_context(served(bundle, "--no-page")) for _ in range(2)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = (ROOT / "deploy" / "nginx.conf").read_text().replace("listen 8000", f"listen 127.0.0.1:{port}")
        for name, (address, *_) in zip(("127.0.0.1:8001", "127.0.0.1:8002"), replicas, strict=True):
            settings = settings.replace(name, address.removeprefix("http://"))
        (tmp_path / "nginx.conf").write_text(settings)
        balancer = subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", "nginx.conf"], stderr=subprocess.DEVNULL)
        stack.callback(balancer.wait)
        stack.callback(balancer.terminate)
        transport = httpx.HTTPTransport(retries=20)  # until it listens
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=60) as client:
            for i, ((label, seed), pixels) in enumerate(expected.items()):
                if i == len(expected) // 2:
                    assert all(measured(address, "mvar_images_total") > 0 for address, *_ in replicas)
                    victim = psutil.Process(replicas[0][2].pid)
                    for process in (*victim.children(recursive=True), victim):
                        process.kill()
                answer = client.post("/v1/images/generations", json=body(label, seed))
                assert answer.status_code == 200, answer.text
                assert np.abs(image_of(answer) - pixels).max() <= 1

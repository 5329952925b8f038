"""No image file keeps the real server from answering others, and none takes it long to refuse or to read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import numpy as np
import pytest

from loadtest.hostile_images import HOSTILE
from loadtest.server import Server, running
from models import images
from models.errors import ImageError
from tests.fakes import encode_image

pytestmark = [pytest.mark.checkpoint, pytest.mark.slow, pytest.mark.alone]

MOST_WAIT_S: Final = 0.1
"""That /livez may take longer beside a hostile image than beside a harmless one of as many bytes: the median of its
worst waits. A busy machine makes both wait."""

ON_THE_LOOP_S: Final = 0.005
IN_A_WORKER_S: Final = 0.1
"""CPU time of reading a header, on a slow machine."""

ROUNDS: Final = 3
HARMLESS: Final = encode_image(np.zeros((96, 128, 3), np.uint8), "JPEG")


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the limits of the defaults."""
    with running(tmp_path_factory.mktemp("open"), models="unet-mobilenetv2-citrus") as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    found = {}
    for number, (name, make) in enumerate(HOSTILE.items()):
        found[name] = folder / f"{number}.bin"
        found[name].write_bytes(make())
    return found


class Watch(threading.Thread):
    """Asks /livez again and again, and keeps the longest time it took."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.worst = 0.0
        self._address = address
        self._over = threading.Event()

    def run(self) -> None:
        with httpx.Client() as client:
            while not self._over.is_set():
                tick = time.perf_counter()
                client.get(f"{self._address}/livez").raise_for_status()
                self.worst = max(self.worst, time.perf_counter() - tick)
                time.sleep(0.005)

    def stop(self) -> float:
        self._over.set()
        self.join()
        return self.worst


@pytest.mark.parametrize("name", HOSTILE)
def test_others_are_answered_while_a_hostile_image_is_looked_at(
    open_server: Server, files: dict[str, Path], name: str
) -> None:
    data = files[name].read_bytes()
    harmless = HARMLESS + bytes(len(data) - len(HARMLESS))
    waits: dict[bytes, list[float]] = {harmless: [], data: []}
    for _ in range(ROUNDS):
        for body, worst in waits.items():
            watch = Watch(open_server.address)
            watch.start()
            with httpx.Client(timeout=60) as client:
                answer = client.post(
                    f"{open_server.address}/v1/semantic", content=body, headers={"content-type": "image/jpeg"}
                )
            worst.append(watch.stop())
            assert answer.status_code in {200, 422, 413}
    plain, hostile = (median(worst) for worst in waits.values())
    print(f"\n{name}: {answer.status_code}, /livez {hostile * 1e3:.0f} ms, beside a harmless one {plain * 1e3:.0f} ms")
    assert hostile < plain + MOST_WAIT_S


@pytest.mark.parametrize("name", HOSTILE)
def test_its_header_costs_little(files: dict[str, Path], name: str) -> None:
    data = files[name].read_bytes()
    for read, most in ((images.read_size_quickly, ON_THE_LOOP_S), (images.read_size, IN_A_WORKER_S)):
        spent = []
        for _ in range(ROUNDS):
            tick = time.thread_time()
            with contextlib.suppress(ImageError):
                read(data, max_pixels=50_000_000)
            spent.append(time.thread_time() - tick)
        assert median(spent) < most

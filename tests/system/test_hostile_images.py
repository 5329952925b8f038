"""No image file keeps the real server from answering others, and none takes it long to refuse or to read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from loadtest.hostile_images import HOSTILE
from loadtest.server import Server, running

pytestmark = [pytest.mark.checkpoint, pytest.mark.slow]

MOST_WAIT_S: Final = 0.1
"""Promised of /livez beside any image, on a machine with nothing else to do; the median of its worst waits."""

ROUNDS: Final = 3


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
    headers = {"content-type": "image/jpeg"}
    waits = []
    for _ in range(ROUNDS):
        watch = Watch(open_server.address)
        watch.start()
        with httpx.Client(timeout=60) as client:
            answer = client.post(f"{open_server.address}/v1/semantic", content=data, headers=headers)
        waits.append(watch.stop())
        assert answer.status_code in {200, 422, 413, 504}
    print(f"\n{name}: {answer.status_code}, /livez at worst {sorted(waits)[len(waits) // 2] * 1e3:.0f} ms")
    assert sorted(waits)[len(waits) // 2] < MOST_WAIT_S

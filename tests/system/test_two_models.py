"""A SAM and a U-Net in one server share its device: they take turns."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest.saturation import UNET
from loadtest.server import MODEL, running
from tests.system.calls import draw

pytestmark = pytest.mark.checkpoint

REQUESTS = 8
"""To each model, by two callers at once."""


def test_two_models_on_one_device_never_run_at_the_same_time(tmp_path: Path) -> None:
    images = [draw(seed).data for seed in range(20, 24)]
    with (
        running(tmp_path, embedding_cache_mib="0") as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):

        def ask(path: str, number: int) -> int:
            return client.post(path, files={"image": ("oranges.png", images[number % 4])}).status_code

        started = time.perf_counter()
        with ThreadPoolExecutor(2) as sams, ThreadPoolExecutor(2) as unets:
            embedded = sams.map(ask, ["/v1/embed"] * REQUESTS, range(REQUESTS))
            classified = unets.map(ask, ["/v1/semantic"] * REQUESTS, range(REQUESTS))
        passed = time.perf_counter() - started
        assert [*embedded, *classified] == [200] * 2 * REQUESTS
        busy = re.findall(
            r'^pomona_batch_duration_seconds_sum\{runner="(.*)",stage="(.*)"\} (\S+)$',
            client.get("/metrics").text,
            re.MULTILINE,
        )
    assert sorted((runner, stage) for runner, stage, _ in busy) == [(MODEL, "encode"), (UNET, "infer")]
    # Each batch is timed on the device: two at a time would add up to more than has passed.
    assert sum(float(seconds) for _, _, seconds in busy) <= passed

"""The real server's start and end."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest.server import Server, running
from tests.system.calls import draw, iou, pixels_of, segment

pytestmark = pytest.mark.checkpoint


def test_while_the_models_load_the_server_is_alive_and_not_ready(server: Server) -> None:
    since_it_listens = [seen for seen in server.seen_while_loading if seen[0] is not None]
    assert since_it_listens
    assert {livez for livez, _ in since_it_listens} == {200}
    assert {readyz for _, readyz in since_it_listens} == {503}
    first = server.seen_while_loading.index(since_it_listens[0])
    assert server.seen_while_loading[first:] == since_it_listens


def test_once_ready_it_prints_a_call_that_works_as_pasted(server: Server, client: httpx.Client) -> None:
    (call,) = re.findall(r"^curl .*$", server.log(), re.MULTILINE)
    image, request, url = re.fullmatch(r"curl -s -F image=@(\S+) -F 'request=(.*)' (\S+)", call).groups()  # type: ignore[union-attr]
    assert httpx.URL(url).port == httpx.URL(server.address).port
    files = {"image": (Path(image).name, Path(image).read_bytes()), "request": (None, request)}
    answer = client.post(httpx.URL(url).path, files=files)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"][0]["masks"]) == 3


def test_a_request_in_flight_is_answered_when_the_server_is_asked_to_stop(tmp_path: Path) -> None:
    new = draw(13)
    with (
        running(tmp_path) as server,
        ThreadPoolExecutor(1) as thread,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):
        call = thread.submit(segment, client, new.data, *[{"points": [new.centre(1)]}] * 16)
        while not _in_flight(server):
            assert not call.done()
        server.stop()
        answer = call.result(60)
    assert len(answer.results) == 16
    assert iou(pixels_of(answer.results[15].masks[0]), new.fruit(1)) >= 0.9


def _in_flight(server: Server) -> bool:
    text = httpx.get(f"{server.address}/metrics").text
    lines = re.findall(r"^pomona_requests_in_progress\{(.*)\} (\S+)$", text, re.MULTILINE)
    return any("/v1/segment" in labels and float(value) > 0 for labels, value in lines)

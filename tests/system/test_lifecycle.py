"""The real server from start to stop, and what it serves beside its operations."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest.server import Server, running
from models.catalog import CATALOGUE
from service.api import schema
from tests.system.calls import ENTRY, Scene, iou, pixels_of, post, render_scene, segment

pytestmark = pytest.mark.checkpoint

SAM, UNET = ENTRY.name, "unet-mobilenetv2-citrus"
REQUESTS = 8
"""To each model, by two callers at once."""


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


def test_the_models_that_are_loaded_are_listed(client: httpx.Client) -> None:
    listed = schema.ListModelsResponse.model_validate_json(client.get("/v1/models").raise_for_status().content).models
    assert {model.name for model in listed} == set(CATALOGUE)
    loaded = [model for model in listed if model.loaded]
    assert [(one.name, one.family) for one in loaded] == [(SAM, "sam"), (UNET, "unet")]
    for one in loaded:
        assert (one.revision, one.licence) == (CATALOGUE[one.name].revision, "Apache-2.0")
        assert (one.backend, one.device) in {("openvino", "cpu"), ("torch", "cuda:0")}
    assert not any(model.backend or model.device for model in listed if not model.loaded)


def test_the_page_and_all_that_it_loads_come_from_the_server(client: httpx.Client) -> None:
    page = client.get("/").raise_for_status()
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="\./([^"]+)"', page.text)
    assert len(files) >= 3
    for file in files:
        assert client.get(f"/{file}").raise_for_status().content
    description = client.get("/docs.json").raise_for_status().json()
    assert {"/v1/segment", "/v1/embed", "/v1/models"} <= set(description["paths"])
    assert "4 MiB" in json.dumps(description)


def test_metrics_count_requests_by_path_and_outcome(client: httpx.Client) -> None:
    def refused() -> float:
        text = client.get("/metrics").raise_for_status().text
        lines = re.findall(r"^pomona_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for labels, value in lines if "/v1/embed" in labels and '"refused"' in labels)

    before = refused()
    assert client.post("/v1/embed").status_code == 400
    assert refused() == before + 1


def test_a_request_leaves_one_line_of_json_in_the_log(client: httpx.Client, server: Server, scene: Scene) -> None:
    headers = {"x-request-id": "belt-7.frame-1"}
    answer = post(client, "/v1/segment", scene.data, headers, prompts=[{"box": scene.box(1)}])
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "belt-7.frame-1"
    (text,) = [line for line in server.log().splitlines() if "belt-7.frame-1" in line]
    line = json.loads(text)
    assert (line["request_id"], line["model"], line["status"]) == ("belt-7.frame-1", SAM, 200)
    assert line["timing_ms"] == {name: value for name, value in answer.json()["timing_ms"].items() if value}


def test_a_request_in_flight_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    new = render_scene(13)
    with (
        running(tmp_path) as server,
        ThreadPoolExecutor(1) as thread,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):
        call = thread.submit(segment, client, new.data, *[{"points": [new.centre(1)]}] * 16)
        while not in_flight(httpx.get(f"{server.address}/metrics").text, "/v1/segment"):
            assert not call.done()
        server.stop()
        answer = call.result(60)
    assert len(answer.results) == 16
    assert iou(pixels_of(answer.results[15].masks[0]), new.fruit(1)) >= 0.9


def in_flight(metrics: str, endpoint: str) -> bool:
    lines = re.findall(r"^pomona_requests_in_progress\{(.*)\} (\S+)$", metrics, re.MULTILINE)
    return any(endpoint in labels and float(value) > 0 for labels, value in lines)


def test_two_models_on_one_device_never_run_at_the_same_time(tmp_path: Path) -> None:
    images = [render_scene(seed).data for seed in range(20, 24)]
    with (
        running(tmp_path, embedding_cache_mib="0") as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):

        def status(path: str, number: int) -> int:
            return client.post(path, files={"image": ("oranges.png", images[number % 4])}).status_code

        started = time.perf_counter()
        with ThreadPoolExecutor(2) as sams, ThreadPoolExecutor(2) as unets:
            embedded = sams.map(status, ["/v1/embed"] * REQUESTS, range(REQUESTS))
            classified = unets.map(status, ["/v1/semantic"] * REQUESTS, range(REQUESTS))
        passed = time.perf_counter() - started
        assert [*embedded, *classified] == [200] * 2 * REQUESTS
        busy = re.findall(
            r'^pomona_batch_duration_seconds_sum\{runner="(.*)",stage="(.*)"\} (\S+)$',
            client.get("/metrics").text,
            re.MULTILINE,
        )
    assert sorted((runner, stage) for runner, stage, _ in busy) == [(SAM, "encode"), (UNET, "infer")]
    # Each batch is timed on the device: two at a time would add up to more than has passed.
    assert sum(float(seconds) for _, _, seconds in busy) <= passed

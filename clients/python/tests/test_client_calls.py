"""Calls over HTTP and gRPC, by the sync and the async client: results, errors, retries and limits."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from stand_in import (
    ANSWERS,
    EMBEDDED,
    IMAGE,
    INSPECTED,
    MODELS,
    PATIENCE_S,
    SEGMENTED,
    SILENCE_S,
    Problem,
    Received,
    Reply,
    StandIn,
    use,
)

from pomona import NO_RETRY, AsyncClient, Box, Client, Inspect, Mask, Point, Prompt, Retry, errors
from pomona.errors import BY_CODE, PomonaError
from pomona.masks import Logits

QUICK = Retry(attempts=3, first_delay=0)


def test_results_hold_what_the_service_answered(service: StandIn, kind: str) -> None:
    report = use(kind, service.address, lambda client: client.inspect(IMAGE, request_id="belt-7"))
    (fruit,) = report.fruits
    assert (fruit.grade, fruit.fruit_class, fruit.infected_fraction, fruit.box.width) == ("B", "infected", 0.1, 4)
    assert fruit.array[1:6, 2:6].all()
    assert int(fruit.array.sum()) == fruit.area == 20
    assert (report.unet.input_size, report.sam, report.mode) == ((448, 224), None, "fast")
    assert (report.timings.infer, report.timings.prompt, report.batch.infer) == (18, 0, 1)
    result = use(kind, service.address, lambda client: client.segment(IMAGE, [Point(3, 3)]))
    assert (result.masks[0].score, result.model.input_size, result.model.padding) == (0.9, 1024, "none")
    classes = use(kind, service.address, lambda client: client.semantic(IMAGE))
    assert (int(classes.array.sum()), classes.healthy_area, classes.objects[0].region_class) == (20, 20, "healthy")
    embedding = use(kind, service.address, lambda client: client.embed(IMAGE))
    assert (embedding.image.id, embedding.source.data) == ("6ae3", IMAGE)
    models = use(kind, service.address, lambda client: client.models())
    assert [(model.loaded, model.device) for model in models] == [(True, "cpu"), (False, None)]
    assert use(kind, service.address, lambda client: client.ready()) is True
    assert len({received.headers["x-request-id"] for received in service.received}) == 6


def test_both_transports_give_equal_results(http: StandIn, grpc_service: StandIn) -> None:
    with Client(http.address) as one, Client(grpc_service.address) as other:
        for call in ("inspect", "semantic", "embed"):
            assert getattr(other, call)(IMAGE) == getattr(one, call)(IMAGE)
        assert other.segment(IMAGE, Point(3, 3)) == one.segment(IMAGE, Point(3, 3))
        assert other.models() == one.models()


def test_requests_carry_every_option(service: StandIn, kind: str) -> None:
    options = {"deadline": 9, "urgency": 2, "request_id": "belt-7"}
    grades = {"A": 0, "B": 0.1}

    def inspect(client: Any) -> Any:
        frame = {"frame_id": "7", "trigger_id": "t", "captured_at_ns": 5}
        return client.inspect(
            IMAGE, mode="accurate", model="u", sam_model="s", grades=grades, overlay=True, **frame, **options
        )

    def segment(client: Any) -> Any:
        guess = Mask((8, 16), Logits((2, 4), bytes(16), (2, 4)))
        prompts = [Prompt(points=(Point(1, 2, 0),), box=Box(1, 2, 3, 4), multimask=False), Prompt(mask=guess)]
        return client.segment(IMAGE, prompts, model="m", logits=True, input_size=512, padding="square")

    service.answer = lambda received: ANSWERS[received.operation]
    use(kind, service.address, inspect, headers={"Authorization": "Bearer x"})
    use(kind, service.address, segment)
    inspected, segmented = service.received
    assert (inspected.image, segmented.image) == (IMAGE, IMAGE)
    assert inspected.fields == {
        "mode": "accurate",
        "model": "u",
        "sam_model": "s",
        "grades": [{"grade": "A", "max_infected_fraction": 0}, {"grade": "B", "max_infected_fraction": 0.1}],
        "overlay": True,
        "frame_id": "7",
        "trigger_id": "t",
        "captured_at_ns": 5,
    }
    over_http = service.address.startswith("http")
    data, size = ("AAAAAAAAAAAAAAAAAAAAAA==", 512) if over_http else (bytes(16), "512")
    first, second = segmented.fields.pop("prompts")
    assert {name: value for name, value in first.items() if value is not None} == {
        "points": [[1, 2]],
        "labels": [0],
        "box": [1, 2, 3, 4],
        "multimask": False,
    }
    assert second["mask"] == {"shape": [2, 4], "dtype": "float16", "data": data}
    assert segmented.fields == {"model": "m", "format": "logits", "input_size": size, "padding": "square"}
    headers = inspected.headers
    assert (headers["x-request-id"], headers["priority"], headers["authorization"]) == ("belt-7", "u=2", "Bearer x")
    assert 8000 < float(headers["x-deadline-ms"]) <= 9000
    assert not {"x-deadline-ms", "priority"} & segmented.headers.keys()


def test_long_prompts_travel_too(service: StandIn) -> None:
    noise = np.random.default_rng(3).random((80, 80)) < 0.5
    with Client(service.address) as pomona:
        pomona.segment(IMAGE, Mask.of(noise))
    (received,) = service.received
    assert received.image == IMAGE
    assert received.fields["prompts"][0]["mask"]["size"] == [80, 80]


def test_every_code_is_raised_as_its_class(service: StandIn) -> None:
    with Client(service.address, retry=NO_RETRY) as pomona:
        for code, cls in BY_CODE.items():
            service.always(Problem(code, f"It is {code}.", retry_after=2))
            with pytest.raises(PomonaError) as raised:
                pomona.inspect(IMAGE, request_id="r1")
            error = raised.value
            assert type(error) is cls
            assert (error.code, error.detail, error.request_id, error.retry_after) == (code, f"It is {code}.", "r1", 2)
            assert str(error) == f"{code}: It is {code}. (request r1)"


def test_an_error_without_a_detail_still_says_something() -> None:
    assert str(errors.Overloaded("")) == "overloaded"
    assert str(errors.ConnectionFailed("")) == "ConnectionFailed"


def test_answers_that_lack_fields_are_bad_answers(service: StandIn) -> None:
    lacking: list[dict[str, Any]] = [
        {"image": None},
        {"image": {"id": "6ae3", "width": 0, "height": 8}},
        {"fruits": [{"id": 1}]},
        {"mode": None},
    ]
    for fields in lacking:
        service.always(INSPECTED | fields)
        with pytest.raises(errors.BadAnswer, match="Inspect"):
            use("sync", service.address, lambda client: client.inspect(IMAGE))


def test_a_service_that_is_not_ready_is_reported_without_retries(service: StandIn, kind: str) -> None:
    service.always(Reply(503) if service.address.startswith("http") else Problem("not_ready"))
    assert use(kind, service.address, lambda client: client.ready(), retry=QUICK) is False
    assert len(service.received) == 1


def test_overload_is_tried_again_after_the_time_the_service_says(service: StandIn, kind: str) -> None:
    service.answers(Problem("overloaded", retry_after=2), Problem("not_ready", retry_after=1), SEGMENTED)
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    sleep = waits.append if kind == "sync" else pause
    result = use(kind, service.address, lambda client: client.segment(IMAGE, Point(1, 1)), retry=QUICK, sleep=sleep)
    assert len(result.masks) == 1
    assert waits == [2, 1]
    assert len({received.headers["x-request-id"] for received in service.received}) == 1


def test_a_forgotten_image_is_sent_again(service: StandIn) -> None:
    def answer(received: Received) -> Any:
        return Problem("unknown_image_id") if received.image_id else SEGMENTED

    with Client(service.address) as pomona:
        service.always(EMBEDDED)
        embedding = pomona.embed(IMAGE)
        service.answer = answer
        assert len(pomona.segment(embedding, Point(1, 1)).masks) == 1
        with pytest.raises(errors.UnknownImageId):
            pomona.segment(embedding.without_source(), Point(1, 1))
    sent = [(received.image_id, received.image) for received in service.received[1:]]
    assert sent == [("6ae3", None), (None, IMAGE), ("6ae3", None)]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_unreachable_service_is_reported_after_the_attempts(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    waits: list[float] = []
    with Client(f"{scheme}://127.0.0.1:{port}", retry=QUICK, sleep=waits.append) as pomona:
        with pytest.raises(errors.ConnectionFailed, match="cannot be reached"):
            pomona.models()
        with pytest.raises(errors.ConnectionFailed):
            pomona.ready()
    assert len(waits) == 4


@pytest.mark.parametrize("limit", ["deadline", "timeout"])
def test_silence_ends_in_time(service: StandIn, kind: str, limit: str) -> None:
    done = threading.Event()
    service.answer = lambda received: done.wait(PATIENCE_S) and INSPECTED
    expected = errors.DeadlineExceeded if limit == "deadline" else errors.NoAnswer
    deadline, timeout = (SILENCE_S, None) if limit == "deadline" else (None, SILENCE_S)
    try:
        began = time.monotonic()
        with pytest.raises(expected):
            use(kind, service.address, lambda client: client.send(Inspect(), IMAGE, deadline=deadline), timeout=timeout)
        assert 0.95 * SILENCE_S <= time.monotonic() - began < 10  # not 65, the default
    finally:
        done.set()


async def test_closing_ends_calls_and_refuses_new_ones(service: StandIn) -> None:
    pomona, waiting = Client(service.address), AsyncClient(service.address)
    pomona.models()
    await waiting.models()
    for _ in range(2):
        pomona.close()
        await waiting.close()
    calls: list[Any] = [pomona.models, pomona.ready, lambda: pomona.inspect(IMAGE)]
    for call in calls:
        with pytest.raises(errors.ClientClosed):
            call()
    for later in (waiting.models(), waiting.inspect(IMAGE)):
        with pytest.raises(errors.ClientClosed):
            await later


def test_a_path_in_the_url_is_a_prefix_and_headers_are_sent(http: StandIn) -> None:
    with Client(http.address + "/vision/", headers={"authorization": "Bearer x"}) as pomona:
        assert len(pomona.models()) == len(MODELS["models"])
    (received,) = http.received
    assert (received.path, received.headers["authorization"]) == ("/vision/v1/models", "Bearer x")


def test_urls_that_cannot_be_used_are_refused_with_an_example() -> None:
    http = ("localhost:3000", "ftp://localhost", "http://", "", "http://[::1", "http://local host")
    grpc = ("grpc://", "grpc://localhost:99999", "grpc://localhost/path", "grpc://me@localhost", "grpc://b\u00fccher")
    for urls, example in ((http, "http://localhost:3000"), (grpc, "grpc://localhost:3001")):
        for url in urls:
            for client in (Client, AsyncClient):
                with pytest.raises(errors.InvalidArgument, match=example):
                    client(url)


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    def public(client: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(each.name, each.default) for each in inspect.signature(value).parameters.values()]
            for name, value in vars(client).items()
            if callable(value) and not name.startswith("_")
        }

    assert public(Client) == public(AsyncClient)


async def test_a_cancelled_call_is_cancelled_in_the_service(grpc_service: StandIn) -> None:
    done = threading.Event()
    grpc_service.answer = lambda received: done.wait(PATIENCE_S) and INSPECTED
    async with AsyncClient(grpc_service.address) as pomona:
        call = asyncio.create_task(pomona.inspect(IMAGE))
        await asyncio.to_thread(grpc_service.wait_for, lambda: bool(grpc_service.received))
        assert not grpc_service.cancelled.is_set()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(grpc_service.cancelled.wait, PATIENCE_S)
    done.set()

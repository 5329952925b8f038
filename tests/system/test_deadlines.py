"""The real server keeps to deadlines, and stays alive when it cannot."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.api import schema
from tests.system.calls import Drawn, ask, draw, embed, iou, only, segment

pytestmark = pytest.mark.checkpoint

FAR_AWAY = {"x-deadline-ms": "60000"}


def late(answer: httpx.Response) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = schema.Problem.model_validate_json(answer.content)
    assert body.code in {"deadline_exceeded", "deadline_unreachable"}
    assert answer.status_code == body.status == 504


def test_a_deadline_that_no_encoder_meets_is_answered_soon_and_the_server_lives_on(client: httpx.Client) -> None:
    new = draw(21)
    box = {"box": new.box(1), "multimask": False}
    embed(client, draw(22).data)  # the device was used just now: nothing is tried for the sake of learning
    began = time.monotonic()
    late(ask(client, new.data, box, headers={"x-deadline-ms": "5"}))
    assert time.monotonic() - began < 2
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    answer = segment(client, new.data, box, headers=FAR_AWAY)
    assert iou(only(answer.results[0]), new.fruit(1)) >= 0.9


def test_a_image_that_is_known_is_answered_within_a_deadline(client: httpx.Client, drawn: Drawn, known: str) -> None:
    answer = segment(client, known, {"box": drawn.box(2), "multimask": False}, headers=FAR_AWAY)
    assert iou(only(answer.results[0]), drawn.fruit(2)) >= 0.9


def test_a_crowd_is_answered_or_refused_and_nobody_is_left_waiting(client: httpx.Client) -> None:
    images = [draw(seed) for seed in range(30, 36)]

    def call(number: int) -> httpx.Response:
        new = images[number]
        deadline = {"x-deadline-ms": "5"} if number % 2 else FAR_AWAY
        return ask(client, new.data, {"box": new.box(1), "multimask": False}, headers=deadline)

    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(call, range(len(images))))
    for number, answer in enumerate(answers):
        if number % 2:
            late(answer)
        else:
            assert answer.status_code == 200, answer.text
            masks = schema.SegmentResponse.model_validate_json(answer.content)
            assert iou(only(masks.results[0]), images[number].fruit(1)) >= 0.9
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("urgency", ["u=0", "u=7", "nonsense"])
def test_a_priority_changes_no_answer(client: httpx.Client, drawn: Drawn, known: str, urgency: str) -> None:
    prompt = {"box": drawn.box(1), "multimask": False}
    assert (
        segment(client, known, prompt, headers={"priority": urgency}).results == segment(client, known, prompt).results
    )

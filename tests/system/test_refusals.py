"""The real server refuses bad requests with their problem, and keeps deadlines under load."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import numpy as np
import pytest

from loadtest.server import Server
from tests.contract.door import problem
from tests.fakes import encode_image
from tests.system.calls import Scene, embed, iou, only, post, render_scene, segment

pytestmark = pytest.mark.checkpoint

FAR_AWAY: Final = {"x-deadline-ms": "60000"}


def black(height: int, width: int, file_format: str = "PNG") -> bytes:
    return encode_image(np.zeros((height, width, 3), np.uint8), file_format)


SMALL: Final = black(96, 128)
POINT: Final = {"points": [[64, 48]]}
REFUSALS: Final[list[tuple[str, dict[str, Any]]]] = [
    ("not_an_image", {"image": b"an orange"}),
    ("truncated_image", {"image": black(96, 128, "JPEG")[:400]}),
    ("unsupported_image_format", {"image": b"GIF89a\x04\x00\x04\x00"}),
    ("too_many_pixels", {"image": black(1501, 2000)}),
    ("upload_too_large", {"image": bytes(4 * 1024 * 1024 + 1)}),
    ("no_prompt", {"prompts": []}),
    ("malformed_prompt", {"prompts": [{"points": [[float("nan"), 1]]}]}),
    ("malformed_prompt", {"prompts": [{"mask": {"size": [96, 127], "counts": "PQ<"}}]}),
    ("prompt_outside_image", {"prompts": [{"box": [0, 0, 129, 96]}]}),
    ("too_many_prompts", {"prompts": [POINT] * 17}),
    ("too_many_prompts", {"prompts": [{"points": [[1, 1]] * 9}]}),
    ("unknown_model", {"model": "plum-sam"}),
    ("model_not_loaded", {"model": "sam-vit-h"}),
    ("wrong_model_family", {"model": "unet-mobilenetv2-citrus"}),
    ("unknown_image_id", {"image": "0" * 32}),
    ("unsupported_format", {"format": "webp"}),
    ("unknown_field", {"fromat": "rle"}),
    ("malformed_request", {"input_size": 640}),
]


@pytest.mark.parametrize(("code", "changes"), REFUSALS)
def test_a_bad_request_is_refused_with_its_problem(client: httpx.Client, code: str, changes: Mapping[str, Any]) -> None:
    request = {"image": SMALL, "prompts": [POINT], **changes}
    answer = post(client, "/v1/segment", headers={"x-request-id": "belt-7"}, **request)
    assert problem(answer, code).request_id == "belt-7"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/segment", "method_not_allowed"),
        ("PUT", "/v1/models", "method_not_allowed"),
        ("GET", "/v1/oranges", "not_found"),
        ("POST", "/v1/oranges", "not_found"),
        ("POST", "/v1/segment", "malformed_request"),
    ],
)
def test_a_wrong_path_method_or_body_is_refused_with_its_problem(
    client: httpx.Client, method: str, path: str, code: str
) -> None:
    problem(client.request(method, path), code)


def test_an_upload_without_a_length_is_refused_at_the_limit(server: Server) -> None:
    def long() -> Any:
        yield b'--belt\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(64 * 16):
            yield bytes(65536)

    headers = {"content-type": "multipart/form-data; boundary=belt"}
    answer = httpx.post(f"{server.address}/v1/segment", content=long(), headers=headers, timeout=60)
    problem(answer, "upload_too_large")


# Deadlines.


def check_late(answer: httpx.Response) -> None:
    code = answer.json()["code"]
    assert code in {"deadline_exceeded", "deadline_unreachable"}
    problem(answer, code)


def test_a_deadline_that_cannot_be_met_is_refused_soon_and_the_server_lives_on(client: httpx.Client) -> None:
    new = render_scene(21)
    box = {"box": new.box(1), "multimask": False}
    embed(client, render_scene(22).data)  # the device was used just now, so that it is not probed
    began = time.monotonic()
    check_late(post(client, "/v1/segment", new.data, {"x-deadline-ms": "5"}, prompts=[box]))
    assert time.monotonic() - began < 2
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    answer = segment(client, new.data, box, headers=FAR_AWAY)
    assert iou(only(answer.results[0]), new.fruit(1)) >= 0.9


def test_a_crowd_is_answered_or_refused_and_no_caller_is_left_waiting(client: httpx.Client) -> None:
    images = [render_scene(seed) for seed in range(30, 36)]

    def call(number: int) -> httpx.Response:
        new = images[number]
        headers = {"x-deadline-ms": "5"} if number % 2 else FAR_AWAY
        return post(client, "/v1/segment", new.data, headers, prompts=[{"box": new.box(1), "multimask": False}])

    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(call, range(len(images))))
    for number, answer in enumerate(answers):
        if number % 2:
            check_late(answer)
        else:
            assert answer.status_code == 200, answer.text
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("urgency", ["u=0", "u=7", "nonsense"])
def test_a_priority_changes_no_answer(client: httpx.Client, scene: Scene, known: str, urgency: str) -> None:
    prompt = {"box": scene.box(1), "multimask": False}
    urgent = segment(client, known, prompt, headers={"priority": urgency})
    assert urgent.results == segment(client, known, prompt, headers=FAR_AWAY).results


# Paths.


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nope", "not_found"),
        ("GET", "/schema.json", "not_found"),
        ("POST", "/readyz", "method_not_allowed"),
        ("DELETE", "/", "method_not_allowed"),
        ("GET", "/" + "a" * 50_000, "not_found"),
    ],
    ids=["unknown", "BentoML's", "a probe's", "the page's", "long"],
)
def test_every_path_answers_with_a_problem(
    client: httpx.Client, server: Server, method: str, path: str, code: str
) -> None:
    answer = client.request(method, path)
    problem(answer, code)
    (line,) = [line for line in server.log().splitlines() if answer.headers["x-request-id"] in line]
    assert len(line) < 1000


def test_a_path_with_a_line_break_answers_as_its_protocol_does(client: httpx.Client) -> None:
    answer = client.get("/v2/%0A")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["error"]

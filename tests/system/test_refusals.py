"""Every bad request gets its problem from the real server too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import httpx
import numpy as np
import pytest

from loadtest.server import Server
from service.api import schema
from tests.fakes import encode_image

pytestmark = pytest.mark.checkpoint


def plain_image(height: int, width: int, file_format: str = "PNG") -> bytes:
    return encode_image(np.zeros((height, width, 3), np.uint8), file_format)


SMALL: Final = plain_image(96, 128)
POINT: Final = {"points": [[64, 48]]}
REFUSALS: Final[list[tuple[str, int, dict[str, Any]]]] = [
    ("not_an_image", 415, {"image": b"an orange"}),
    ("not_an_image", 415, {"image": b"http://127.0.0.1/orange.png"}),
    ("truncated_image", 422, {"image": plain_image(96, 128, "JPEG")[:400]}),
    ("unsupported_image_format", 415, {"image": b"GIF89a\x04\x00\x04\x00"}),
    ("too_many_pixels", 413, {"image": plain_image(1501, 2000)}),
    ("upload_too_large", 413, {"image": bytes(4 * 1024 * 1024 + 1)}),
    ("no_image", 422, {"image": None}),
    ("no_prompt", 422, {"request": {"prompts": []}}),
    ("no_prompt", 422, {"request": {"prompts": [{}]}}),
    ("malformed_prompt", 422, {"request": {"prompts": [{"points": [[1, 1]], "labels": [1, 1]}]}}),
    ("malformed_prompt", 422, {"request": {"prompts": [{"points": [[1, 1]], "labels": [7]}]}}),
    ("malformed_prompt", 422, {"request": {"prompts": [{"box": [8, 8, 8, 9]}]}}),
    ("malformed_prompt", 422, {"request": {"prompts": [{"points": [[float("nan"), 1]]}]}}),
    ("malformed_prompt", 422, {"request": {"prompts": [{"mask": {"size": [96, 127], "counts": "PQ<"}}]}}),
    ("prompt_outside_image", 422, {"request": {"prompts": [{"points": [[128, 48]]}]}}),
    ("prompt_outside_image", 422, {"request": {"prompts": [{"box": [0, 0, 129, 96]}]}}),
    ("too_many_prompts", 422, {"request": {"prompts": [POINT] * 17}}),
    ("too_many_prompts", 422, {"request": {"prompts": [{"points": [[1, 1]] * 9}]}}),
    ("unknown_model", 404, {"request": {"prompts": [POINT], "model": "plum-sam"}}),
    ("model_not_loaded", 404, {"request": {"prompts": [POINT], "model": "sam-vit-h"}}),
    ("unknown_image_id", 404, {"image": None, "image_id": b"0" * 32}),
    ("unsupported_format", 422, {"request": {"prompts": [POINT], "format": "webp"}}),
    ("malformed_json", 400, {"request": b'{"prompts": ['}),
    ("unknown_field", 422, {"request": {"prompts": [POINT], "fromat": "rle"}}),
    ("unknown_field", 422, {"image": SMALL}),
    ("malformed_request", 400, {"image_id": b"0" * 32}),
    ("malformed_request", 400, {"request": {"prompts": [POINT], "input_size": 640}}),
]


@pytest.mark.parametrize(
    ("code", "status", "changes"), REFUSALS, ids=[f"{number}-{code}" for number, (code, _, _) in enumerate(REFUSALS)]
)
def test_a_bad_request_is_refused_with_its_problem(
    client: httpx.Client, code: str, status: int, changes: Mapping[str, Any]
) -> None:
    parts = {"image": SMALL, "request": {"prompts": [POINT]}, **changes}
    sent = {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in parts.items()
        if value is not None
    }
    files = {name: (name if name in {"image"} else None, value) for name, value in sent.items()}
    refused(client.post("/v1/segment", files=files, headers={"x-request-id": "belt-7"}), code, status)


def refused(answer: httpx.Response, code: str, status: int) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = schema.Problem.model_validate_json(answer.content)
    assert (answer.status_code, body.status, body.code) == (status, status, code)
    assert body.type == f"urn:pomona:problem:{code}"
    assert body.title
    assert body.detail
    assert body.request_id == answer.headers["x-request-id"] == "belt-7"


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/v1/segment", "method_not_allowed", 405),
        ("PUT", "/v1/models", "method_not_allowed", 405),
        ("GET", "/v1/oranges", "not_found", 404),
        ("POST", "/v1/oranges", "not_found", 404),
        ("POST", "/v1/segment", "malformed_request", 400),
        ("POST", "/v1/embed", "malformed_request", 400),
    ],
)
def test_a_wrong_path_method_or_body_is_refused_with_its_problem(
    client: httpx.Client, method: str, path: str, code: str, status: int
) -> None:
    refused(client.request(method, path, headers={"x-request-id": "belt-7"}), code, status)


def test_an_upload_that_tells_no_length_is_cut_off_at_the_limit(server: Server) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        yield b'--belt\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(64 * 16):
            sent += 65536
            yield bytes(65536)

    headers = {"content-type": "multipart/form-data; boundary=belt", "x-request-id": "belt-7"}
    answer = httpx.post(f"{server.address}/v1/segment", content=endless(), headers=headers, timeout=60)
    refused(answer, "upload_too_large", 413)
    assert sent < 64 * 1024 * 1024

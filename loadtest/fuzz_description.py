"""Requests that schemathesis makes from the served description, `/docs.json`; answers are held against it too.

Half of them come from a narrower description, with models, prompts and tensors that exist, as few of what the schemas
allow gets past the first check. Requests are made in blocks, each with a seed of its own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, Final

import httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from loadtest import fuzz_inputs as inputs
from loadtest.answers import Violation, judged
from loadtest.fuzz_served import Address, HttpInput, answer_of
from loadtest.fuzz_targets import Target, dice_of
from models.catalog import CATALOGUE

PER_BLOCK: Final = 50
_SAM, _UNET = "mobile-sam", "unet-mobilenetv2-citrus"
_LEFT_OUT: Final = {"x-schemathesis-testcaseid", "user-agent", "accept-encoding", "connection", "content-length"}


@cache
def _served() -> dict[str, Any]:
    """Return the description that the server serves."""
    found: dict[str, Any] = httpx.get(f"{Address.current().http}/docs.json").raise_for_status().json()
    return found


def _narrow(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description whose requests are mostly valid."""
    narrow = copy.deepcopy(dict(description))
    schemas = narrow["components"]["schemas"]
    point = {"type": "array", "prefixItems": [_number(0, 37), _number(0, 37)], "minItems": 2, "maxItems": 2}
    rle, logits = (json.loads(text)["prompts"][-1]["mask"] for text in inputs.json_seeds("/v1/segment")[:2])
    schemas["Prompt"] = {
        "anyOf": [
            _fields(points={"type": "array", "items": point, "minItems": 1, "maxItems": 3}),
            _fields(points={"enum": [[[3, 4], [5, 6]], [[0, 0], [37, 37]]]}, labels={"enum": [[1, 0], [1, 1]]}),
            _fields(box={"enum": [[1, 2, 30, 31], [0, 0, 37, 37], [5.5, 5, 6, 6]]}, multimask={"type": "boolean"}),
            _fields(mask={"enum": [rle, logits]}),
        ]
    }  # fmt: skip
    schemas["SegmentRequest"]["properties"]["prompts"] |= {"minItems": 1, "maxItems": 4}
    for name, models in (("SegmentRequest", _SAM), ("EmbedRequest", _SAM), ("SemanticRequest", _UNET)):
        schemas[name]["properties"]["model"] = {"enum": [models, None]}
    schemas["InspectRequest"]["properties"] |= {"model": {"enum": [_UNET, None]}, "sam_model": {"enum": [_SAM, None]}}
    image = {"name": "image", "datatype": "UINT8", "shape": [3, 4, 3], "data": list(range(36))}
    points = {"name": "points", "datatype": "FP32", "shape": [1, 1, 2], "data": [1, 2]}
    schemas["InferenceRequest"]["properties"] |= {
        "inputs": {"enum": [[image], [image, points]]},
        "outputs": {"enum": [[], [{"name": "scores"}], [{"name": "class_map", "parameters": {"binary_data": True}}]]},
        "parameters": {"enum": [{}, {"mask_format": "rle"}, {"timeout": 5_000_000}, {"binary_data_output": True}]},
    }
    parameters = {
        "model": {"enum": [_SAM, _UNET]},
        "version": {"enum": [CATALOGUE[name].revision for name in (_SAM, _UNET)]},
        "X-Deadline-Ms": {"type": "number", "minimum": 100, "maximum": 60_000},
        "Priority": {"enum": [f"u={urgency}" for urgency in range(8)]},
    }
    for item in narrow["paths"].values():
        for holder in (item, *(value for value in item.values() if isinstance(value, dict))):
            for parameter in holder.get("parameters", ()):
                parameter["schema"] = parameters.get(parameter["name"], parameter["schema"])
    return narrow


def _number(least: float, most: float) -> dict[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most}


def _fields(**fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


@cache
def _operations(*, narrow: bool) -> tuple[Any, ...]:
    """Return the operations; those with a body many times, as they have more to try."""
    images = inputs.image_seeds()
    schemathesis.openapi.format("binary", st.sampled_from(images))
    for kind in ("image/jpeg", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, st.sampled_from(images))
    description = _narrow(_served()) if narrow else _served()
    results = schemathesis.openapi.from_dict(description).get_all_operations()
    found = [result.ok() for result in results if isinstance(result, Ok)]
    return tuple(operation for operation in found for _ in range(20 if operation.method == "post" else 1))


@lru_cache(maxsize=2)
def _block(number: int) -> tuple[bytes, ...]:
    """Return the requests of a block: all of one operation."""
    dice = dice_of("description", number)
    operation = dice.choice(_operations(narrow=dice.random() < 0.5))
    mode = GenerationMode.POSITIVE if dice.random() < 0.7 else GenerationMode.NEGATIVE
    made: list[bytes] = []

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=PER_BLOCK,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        if (request := _input(case)) is not None:
            made.append(request.to_bytes())

    with warnings.catch_warnings(), contextlib.suppress(Unsatisfiable):  # nothing about it can be made wrong
        warnings.simplefilter("ignore")
        collect()
    return tuple(made)


def _input(case: Any) -> HttpInput | None:
    """Return what schemathesis would send; None where no client could."""
    arguments = case.as_transport_kwargs(base_url="http://pomona")
    try:
        prepared = requests.Request(**{name: arguments[name] for name in arguments if name != "cookies"}).prepare()
        headers = [(str(name), str(value)) for name, value in prepared.headers.items() if name.lower() not in _LEFT_OUT]
        for name, value in headers:
            (name + value).encode("latin-1")
    except (requests.RequestException, UnicodeEncodeError, ValueError):
        return None
    body = prepared.body or b""
    target = (prepared.url or "").removeprefix("http://pomona")
    return HttpInput(prepared.method or "GET", target, headers, body.encode() if isinstance(body, str) else body)


def _make(number: int) -> bytes:
    block = number // PER_BLOCK
    while not (made := _block(block)):
        block += 1_000_003  # of an operation without any that can be sent
    return made[number % PER_BLOCK % len(made)]


@cache
def _by_path() -> list[tuple[re.Pattern[str], Any]]:
    """Return operations as served, with what their paths match."""
    found = dict.fromkeys(_operations(narrow=False))
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", operation.path)), operation) for operation in found]


def _compare(answer: httpx.Response, operation: Any) -> None:
    """Check that an operation is described to answer so.

    Raises:
        Violation: it is not.
    """
    statuses = _served()["paths"][operation.path][operation.method]["responses"]
    if str(answer.status_code) not in statuses:
        raise Violation(f"{answer.status_code} is not described for {operation.label}: {answer.text[:300]}")
    try:
        operation.validate_response(answer)
    except (AssertionError, FailureGroup) as error:
        reasons = error.exceptions if isinstance(error, FailureGroup) else (error,)
        raise Violation(
            f"{operation.label} answered otherwise than described: {'; '.join(map(str, reasons))}"
        ) from None


def _use(data: bytes) -> str:
    """Send a request, and hold the answer against the description where it is an operation's."""
    request = HttpInput.from_bytes(data)
    answer = answer_of(request)
    outcome = judged(answer)
    path = request.target.partition("?")[0]
    for described, operation in _by_path():
        if operation.method.upper() == request.method and described.fullmatch(path):
            _compare(answer, operation)
            break
    return outcome


DESCRIBED: Final[Mapping[str, Target]] = {"HTTP by schemathesis": Target(_make, _use, 0.03, served=True)}

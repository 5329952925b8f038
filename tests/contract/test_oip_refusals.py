"""What only tensors can get wrong; what every door refuses is in `refusals`."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np
import pytest

from service.proto.generated.inference import open_inference_pb2 as oip
from tests.contract.door import LIMITS
from tests.contract.grpc_door import Caller, open_grpc, refused
from tests.contract.oip_door import (
    GRPC_RAW,
    GRPC_TYPED,
    HTTP_BINARY,
    HTTP_JSON,
    WAYS,
    Inputs,
    Refused,
    grpc_answer,
    grpc_message,
    http_answer,
    infer,
)
from tests.contract.scenes import IMAGE
from tests.fakes import LOADED, LOADED_UNET, SECOND

pytestmark = pytest.mark.asyncio(loop_scope="module")

POINTS: Final = np.array([[[64, 48]]], np.float32)
GOOD: Final[Inputs] = {"image": IMAGE, "points": POINTS}
PATH: Final = f"/v2/models/{LOADED.name}/infer"


def points(x: float, y: float, label: int = 1) -> Inputs:
    return {
        "image": IMAGE,
        "points": np.array([[[x, y]]], np.float32),
        "labels": np.array([[label]], np.int32),
    }


@pytest.fixture
def caller(unharmed: Caller) -> Caller:
    return unharmed


@dataclass(frozen=True)
class Odd:
    """A request that only tensors can get wrong."""

    name: str
    code: str
    says: str
    tensors: Inputs
    outputs: tuple[str, ...] = ()
    model: str = LOADED.name
    version: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def odd(name: str, code: str, says: str, **fields: Any) -> Odd:
    """Return a request that is good but for these fields."""
    return Odd(name, code, says, **{"tensors": GOOD, **fields})


ODD: Final = [
    odd("an input", "unknown_field", "no input 'prompts'", tensors={**GOOD, "prompts": POINTS}),
    odd("an input of others", "unknown_field", "'points'", tensors=GOOD, model=LOADED_UNET.name),
    odd("an output", "unknown_field", "'mask'", outputs=("mask",)),
    odd("an output of others", "unknown_field", "'class_map'", outputs=("class_map",)),
    odd("an output twice", "malformed_request", "scores must not be repeated", outputs=("scores", "scores")),
    odd("a type", "malformed_request", "FP32 [-1, -1, 2]", tensors={**GOOD, "points": np.array([[[64, 48]]])}),
    odd("a shape", "malformed_request", "FP32 [-1, 4]", tensors={**GOOD, "boxes": np.ones((1, 1, 4), np.float32)}),
    odd("a point of three", "malformed_request", "points", tensors={**GOOD, "points": np.ones((1, 1, 3), np.float32)}),
    odd("grey pixels", "malformed_request", "UINT8 [8, 8]", tensors={**GOOD, "image": np.zeros((8, 8), np.uint8)}),
    odd("no pixels", "malformed_request", "must have pixels", tensors={**GOOD, "image": np.zeros((0, 8, 3), np.uint8)}),
    odd(
        "too many pixels",
        "too_many_pixels",
        "320 x 320",
        tensors={**GOOD, "image": np.zeros((320, 320, 3), np.uint8)},
    ),
    odd("two values", "malformed_request", "multimask", tensors={**GOOD, "multimask": np.array([True, False])}),
    odd(
        "labels alone",
        "malformed_prompt",
        "one label per point",
        tensors={"image": IMAGE, "labels": np.array([[1]], np.int64)},
    ),
    odd(
        "labels that do not pair",
        "malformed_prompt",
        "one label per point",
        tensors={**GOOD, "labels": np.array([[1, 0]], np.int64)},
    ),
    odd(
        "prompts that do not pair",
        "malformed_prompt",
        "1 of points and 2 of boxes",
        tensors={**GOOD, "boxes": np.ones((2, 4), np.float32)},
    ),
    odd("no rows", "no_prompt", "must have prompts", tensors={"image": IMAGE, "boxes": np.ones((0, 4), np.float32)}),
    odd("points that are none", "no_prompt", "prompts[0]", tensors=points(1, 1, -1)),
    odd("a version", "unknown_model", "got '3'", version="3"),
    odd("a version of another model", "unknown_model", LOADED.revision, version=SECOND.revision),
    odd("a parameter", "unknown_field", "'mask_fromat'", parameters={"mask_fromat": "rle"}),
    odd("a parameter of others", "unknown_field", "'input_size'", tensors={"image": IMAGE},
        model=LOADED_UNET.name, parameters={"input_size": 512}),
    odd("a format", "unsupported_format", "pixels or rle", parameters={"mask_format": "png"}),
    odd("a format that is no text", "unsupported_format", "True", parameters={"mask_format": True}),
    odd("an input size of no model", "unsupported_input", "1024, 768, 512, auto", parameters={"input_size": 640}),
    odd("an input size as text", "unsupported_input", "'512'", parameters={"input_size": "512"}),
    odd("a padding", "unsupported_input", "none, square", parameters={"padding": "mirror"}),
    odd("a priority below 0", "malformed_request", "0 or more, got -1", parameters={"priority": -1}),
    odd("a priority as text", "malformed_request", "0 or more, got 'high'", parameters={"priority": "high"}),
    odd("a priority that is true", "malformed_request", "0 or more, got True", parameters={"priority": True}),
    odd("a timeout below 0", "malformed_request", "0 or more, got -5", parameters={"timeout": -5}),
    odd("a timeout in fractions", "malformed_request", "0 or more, got 0.5", parameters={"timeout": 0.5}),
    odd("a timeout of hours", "malformed_request", "microseconds", parameters={"timeout": 3_600_000_001}),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("request_", ODD, ids=lambda odd: odd.name)
async def test_tensors_and_parameters_that_a_model_does_not_have_are_refused(
    caller: Caller, request_: Odd, way: str
) -> None:
    with pytest.raises(Refused) as caught:
        await infer(
            caller,
            way,
            request_.tensors,
            *request_.outputs,
            model=request_.model,
            version=request_.version,
            **request_.parameters,
        )
    assert caught.value.code == request_.code
    assert request_.says in caught.value.detail


def tensor(name: str = "boxes", **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}


JSON: Final[list[tuple[str, str, str, Any]]] = [
    ("nothing", "malformed_json", "JSON", b""),
    ("half", "malformed_json", "JSON", b'{"inputs": ['),
    ("not UTF-8", "malformed_json", "JSON", b"\xff\xfe{}"),
    ("a list", "malformed_request", "The body", []),
    ("no inputs", "malformed_request", "inputs", {}),
    ("inputs as a mapping", "malformed_request", "inputs", {"inputs": {}}),
    ("an input without a name", "malformed_request", "inputs[0].name", {"inputs": [{"shape": [], "datatype": "BOOL"}]}),
    ("a number for an id", "malformed_request", "id", {"id": 7, "inputs": []}),
    ("a list for a parameter", "malformed_request", "priority", {"inputs": [], "parameters": {"priority": [1]}}),
    ("no data", "malformed_request", "must have data or a binary_data_size", {"inputs": [tensor(data=None)]}),
    ("an input twice", "malformed_request", "boxes must not be repeated", {"inputs": [tensor(), tensor()]}),
    ("few elements", "malformed_request", "must have 4 elements, got 3", {"inputs": [tensor(data=[1, 2, 3])]}),
    ("lists of another shape", "malformed_request", "must have the shape", {"inputs": [tensor(data=[[1, 2], [3, 4]])]}),
    ("text for numbers", "malformed_request", "must be FP32, got str", {"inputs": [tensor(data=["1", 2, 3, 4])]}),
    ("booleans for numbers", "malformed_request", "must be FP32, got bool", {"inputs": [tensor(data=[True, 2, 3, 4])]}),
    ("null for a number", "malformed_request", "got NoneType", {"inputs": [tensor(data=[None, 2, 3, 4])]}),
    ("an unknown type", "malformed_request", "'FP31'", {"inputs": [tensor(datatype="FP31")]}),
    ("a dimension below 0", "malformed_request", "0 or more", {"inputs": [tensor(shape=[-1, 4])]}),
    ("a dimension in fractions", "malformed_request", "shape[0]", {"inputs": [tensor(shape=[1.5, 4])]}),
    ("a huge shape", "malformed_request", "at most 8 dimensions", {"inputs": [tensor(shape=[0, 1 << 62], data=[])]}),
    ("many dimensions", "malformed_request", "at most 8 dimensions", {"inputs": [tensor(shape=[1] * 70, data=[1])]}),
    (
        "fractions",
        "malformed_request",
        "must be INT64, got float",
        {"inputs": [tensor(datatype="INT64", data=[1.5, 2, 3, 4])]},
    ),
    (
        "256",
        "malformed_request",
        "within the range of UINT8",
        {"inputs": [tensor(datatype="UINT8", data=[256, 2, 3, 4])]},
    ),
    (
        "text that is no base64",
        "malformed_request",
        "base64",
        {"inputs": [tensor("image", datatype="BYTES", shape=[1], data=["an orange"])]},
    ),
    (
        "shared memory",
        "unknown_field",
        "shared_memory_region",
        {"inputs": [tensor(parameters={"shared_memory_region": "a", "shared_memory_byte_size": 4})]},
    ),
    (
        "classification",
        "unknown_field",
        "classification",
        {"inputs": [], "outputs": [{"name": "scores", "parameters": {"classification": 1}}]},
    ),
    (
        "binary as text",
        "malformed_request",
        "binary_data of scores",
        {"inputs": [], "outputs": [{"name": "scores", "parameters": {"binary_data": "yes"}}]},
    ),
    (
        "all binary as text",
        "malformed_request",
        "binary_data_output must be true or false, got 1",
        {"inputs": [], "parameters": {"binary_data_output": 1}},
    ),
]


@pytest.mark.parametrize(("code", "says", "body"), [one[1:] for one in JSON], ids=[one[0] for one in JSON])
async def test_json_that_is_not_of_the_protocol_is_refused(caller: Caller, code: str, says: str, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    with pytest.raises(Refused) as caught:
        http_answer(await caller.door.client.post(PATH, content=content))
    assert caught.value.code == code
    assert says in caught.value.detail


def binary(size: Any, behind: bytes, **changes: Any) -> tuple[bytes, bytes]:
    described = tensor(parameters={"binary_data_size": size}, **changes)
    if "data" not in changes:
        del described["data"]
    return json.dumps({"inputs": [described]}).encode(), behind


SIXTEEN: Final = bytes(16)


@pytest.mark.parametrize(
    ("says", "text", "data"),
    [
        ("must have 16 bytes, got 15", *binary(15, bytes(15))),
        ("must take all 17 bytes behind the JSON, got 16", *binary(16, bytes(17))),
        ("at most the 15 bytes that are left", *binary(16, bytes(15))),
        ("binary_data_size of boxes must be", *binary(-1, b"")),
        ("got '16'", *binary("16", SIXTEEN)),
        ("either data or a binary_data_size, not both", *binary(16, SIXTEEN, data=[1, 2, 3, 4])),
        ("must be 4 elements of BYTES", *binary(12, bytes(12), datatype="BYTES", shape=[2, 2])),
        ("must be 1 elements of BYTES", *binary(16, struct.pack("<I", 13) + bytes(12), datatype="BYTES", shape=[1])),
        ("must be 1 elements of BYTES", *binary(3, bytes(3), datatype="BYTES", shape=[1])),
        ("must be 3 elements of BYTES", *binary(16, SIXTEEN, datatype="BYTES", shape=[3])),
        ("must be 1000000 elements of BYTES", *binary(16, SIXTEEN, datatype="BYTES", shape=[1_000_000])),
    ],
)
async def test_binary_data_that_do_not_fit_the_json_are_refused(
    caller: Caller, says: str, text: bytes, data: bytes
) -> None:
    answer = await caller.door.client.post(
        PATH, content=text + data, headers={"inference-header-content-length": str(len(text))}
    )
    with pytest.raises(Refused) as caught:
        http_answer(answer)
    assert caught.value.code == "malformed_request"
    assert says in caught.value.detail


@pytest.mark.parametrize("length", ["", "-1", "1e3", "ten", "99999", "9" * 5000, "²"])
async def test_a_wrong_length_of_the_json_is_refused(caller: Caller, length: str) -> None:
    answer = await caller.door.client.post(
        PATH, content=b'{"inputs": []}', headers={b"inference-header-content-length": length.encode()}
    )
    with pytest.raises(Refused) as caught:
        http_answer(answer)
    assert (caught.value.code, "Inference-Header-Content-Length" in caught.value.detail) == ("malformed_request", True)


async def test_a_compressed_body_is_refused(caller: Caller) -> None:
    answer = await caller.door.client.post(PATH, content=b"{}", headers={"content-encoding": "gzip"})
    with pytest.raises(Refused, match="without a content encoding"):
        http_answer(answer)


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("one raw_input_contents per input, got 1 for 2", lambda message: message.raw_input_contents.pop()),
        (
            "must not have contents beside raw_input_contents",
            lambda message: message.inputs[0].contents.bytes_contents.append(b"x"),
        ),
        ("The parameter odd must have a value", lambda message: message.parameters["odd"].SetInParent()),
        ("shared_memory_region", lambda message: message.inputs[0].parameters["shared_memory_region"].SetInParent()),
        ("must not be repeated", lambda message: setattr(message.inputs[1], "name", "image")),
    ],
)
async def test_messages_that_are_not_of_the_protocol_are_refused(caller: Caller, says: str, change: Any) -> None:
    message = grpc_message(GOOD, (), {}, raw=True)
    message.model_name = LOADED.name
    change(message)
    with pytest.raises(Refused) as caught:
        await grpc_answer(caller, message)
    assert says in caught.value.detail


async def test_float16_must_be_raw_over_grpc(caller: Caller) -> None:
    message = oip.ModelInferRequest(model_name=LOADED.name)
    message.inputs.add(name="boxes", datatype="FP16", shape=[1, 4])
    with pytest.raises(Refused, match="must be raw"):
        await grpc_answer(caller, message)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v2/oranges", "not_found"),
        ("GET", "/v2/models", "not_found"),
        ("POST", "/v2/repository/index", "not_found"),
        ("GET", f"/v2/models/{LOADED.name}/stats", "not_found"),
        ("GET", f"/v2/models/{LOADED.name}/ready/", "not_found"),
        ("GET", PATH, "method_not_allowed"),
        ("POST", "/v2", "method_not_allowed"),
        ("POST", "/v2/health/ready", "method_not_allowed"),
    ],
)
async def test_an_unknown_path_or_method_is_refused_as_the_protocol_has_it(
    caller: Caller, method: str, path: str, code: str
) -> None:
    with pytest.raises(Refused) as caught:
        http_answer(await caller.door.client.request(method, path))
    assert caught.value.code == code


async def test_more_masks_than_fit_an_answer_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for door in ("http", "grpc"):
        monkeypatch.setattr(f"service.oip.{door}.MAX_RAW", 2 * 3 * 96 * 128)
        monkeypatch.setattr(f"service.oip.{door}.MAX_LISTED", 1 * 3 * 96 * 128)
    inputs: Inputs = {"image": IMAGE, "points": np.full((3, 1, 2), 20, np.float32)}
    async with open_grpc(**LIMITS) as caller:
        for way in WAYS:
            with pytest.raises(Refused, match="mask_format=rle"):
                await infer(caller, way, inputs)
        assert caller.door.sam.encodes == []
        assert (await infer(caller, HTTP_JSON, inputs, mask_format="rle")).outputs["masks"].shape == (3, 3)
        assert (await infer(caller, HTTP_JSON, inputs, "areas")).outputs["areas"].shape == (3, 3)
        two = {**inputs, "points": np.full((2, 1, 2), 20, np.float32)}
        for way in (HTTP_BINARY, GRPC_RAW):
            assert (await infer(caller, way, two, "masks")).outputs["masks"].shape == (2, 3, 96, 128)
        for way in (HTTP_JSON, GRPC_TYPED):
            with pytest.raises(Refused, match="mask_format=rle"):
                await infer(caller, way, two, "masks")


async def test_bytes_that_are_no_message_are_refused(caller: Caller) -> None:
    call = caller.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff\xff")
    assert (await refused(call, "malformed_request")).status is grpc.StatusCode.INVALID_ARGUMENT

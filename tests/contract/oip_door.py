"""The Open Inference Protocol as callers see it: over HTTP and gRPC, each with listed elements and with raw bytes."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import httpx
import numpy as np
from grpc_status import rpc_status
from numpy.typing import NDArray

from service.errors import PROBLEMS
from service.proto.generated.inference import open_inference_pb2 as pb
from service.proto.generated.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.contract.grpc_door import Caller, call_error
from tests.contract.scenes import IMAGE

HTTP_JSON: Final = "HTTP, listed"
HTTP_BINARY: Final = "HTTP, binary"
GRPC_TYPED: Final = "gRPC, typed"
GRPC_RAW: Final = "gRPC, raw"
WAYS: Final = (HTTP_JSON, HTTP_BINARY, GRPC_TYPED, GRPC_RAW)

DTYPES: Final = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
_NAMES: Final = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

Inputs = Mapping[str, "NDArray[Any] | bytes"]


def boxed(data: bytes = IMAGE) -> Inputs:
    """Return the tensors of a box, for one mask."""
    return {"image": data, "boxes": np.array([[32, 16, 64, 48]], np.float32), "multimask": np.array([False])}


@dataclass(frozen=True)
class Answer:
    """What a model returned: arrays by the names of its outputs, in the order of the answer."""

    outputs: dict[str, NDArray[Any]]
    model: str
    version: str
    id: str
    parameters: dict[str, Any]


class Refused(Exception):
    """An error in the documented shape, whichever way it came."""

    def __init__(self, code: str, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


async def infer(
    caller: Caller,
    way: str,
    inputs: Inputs,
    *outputs: str,
    model: str = "orange-sam",
    version: str = "",
    request_id: str = "",
    headers: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Answer:
    """Run a model.

    Raises:
        Refused: there was an error instead.
    """
    if way in (HTTP_JSON, HTTP_BINARY):
        raw = way == HTTP_BINARY
        body, length = http_body(inputs, outputs, parameters, request_id=request_id, raw=raw)
        given = {"inference-header-content-length": str(length)} if raw else {}
        path = f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"
        return http_answer(await caller.door.client.post(path, content=body, headers={**given, **(headers or {})}))
    message = grpc_message(inputs, outputs, parameters, raw=way == GRPC_RAW)
    message.model_name, message.model_version, message.id = model, version, request_id
    return await grpc_answer(caller, message, tuple((headers or {}).items()))


def http_body(
    inputs: Inputs, outputs: Sequence[str], parameters: Mapping[str, Any], *, request_id: str, raw: bool
) -> tuple[bytes, int]:
    tensors, data = [], []
    for name, value in inputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(value), "shape": shape_of(value)}
        if raw:
            data.append(bytes_of(value))
            tensor["parameters"] = {"binary_data_size": len(data[-1])}
        elif isinstance(value, bytes):
            tensor["data"] = [base64.b64encode(value).decode()]
        else:
            tensor["data"] = value.tolist()
        tensors.append(tensor)
    request: dict[str, Any] = {"inputs": tensors, "outputs": [{"name": name} for name in outputs]}
    request["parameters"] = {**parameters, "binary_data_output": raw}
    if request_id:
        request["id"] = request_id
    text = json.dumps(request, separators=(",", ":")).encode()
    return b"".join((text, *data)), len(text)


def http_answer(answer: httpx.Response) -> Answer:
    if answer.status_code != 200:
        body = answer.json()
        assert set(body) == {"error"}
        code = answer.headers["x-pomona-code"]
        row = next(row for row in PROBLEMS.values() if row.code == code)
        assert answer.status_code == row.status
        assert answer.headers["x-request-id"]
        raise Refused(code, body["error"], retry_after_s(answer))
    length = answer.headers.get("inference-header-content-length")
    kind = "application/json" if length is None else "application/octet-stream"
    assert answer.headers["content-type"] == kind
    body = json.loads(answer.content if length is None else answer.content[: int(length)])
    rest = b"" if length is None else answer.content[int(length) :]
    outputs = {}
    for tensor in body["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = tensor["data"]
            assert len(values) == math.prod(tensor["shape"])
            if tensor["datatype"] == "BYTES":
                values = [value.encode() for value in values]
            array = np.array(values, DTYPES.get(tensor["datatype"], object)).reshape(tensor["shape"])
        else:
            assert "data" not in tensor
            array, rest = array_of(tensor["datatype"], tensor["shape"], rest[:size]), rest[size:]
        outputs[tensor["name"]] = array
    assert rest == b""
    return Answer(outputs, body["model_name"], body["model_version"], body.get("id", ""), body.get("parameters", {}))


def retry_after_s(answer: httpx.Response) -> int | None:
    seconds = answer.headers.get("retry-after")
    return None if seconds is None else int(seconds)


def grpc_message(
    inputs: Inputs, outputs: Sequence[str], parameters: Mapping[str, Any], *, raw: bool
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    for name, value in inputs.items():
        tensor = message.inputs.add(name=name, datatype=datatype_of(value), shape=shape_of(value))
        if raw:
            message.raw_input_contents.append(bytes_of(value))
        else:
            elements = [value] if isinstance(value, bytes) else value.ravel().tolist()
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(elements)
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


async def grpc_answer(
    caller: Caller, message: pb.ModelInferRequest, metadata: tuple[tuple[str, str], ...] = ()
) -> Answer:
    stub: Any = GRPCInferenceServiceStub(caller.channel)
    try:
        answer = await stub.ModelInfer(message, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise refusal_of(error) from error
    raw = answer.raw_output_contents
    assert len(raw) in (0, len(answer.outputs))
    outputs = {}
    for number, tensor in enumerate(answer.outputs):
        if raw:
            assert not tensor.HasField("contents")
            array = array_of(tensor.datatype, tensor.shape, raw[number])
        else:
            elements = list(getattr(tensor.contents, _CONTENTS[tensor.datatype]))
            array = np.array(elements, DTYPES.get(tensor.datatype, object)).reshape(tuple(tensor.shape))
        outputs[tensor.name] = array
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in answer.parameters.items()
    }
    return Answer(outputs, answer.model_name, answer.model_version, answer.id, parameters)


def refusal_of(error: grpc.aio.AioRpcError) -> Refused:
    if rpc_status.from_call(error) is None:  # the library's own, before a handler sees the message
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return Refused("upload_too_large", error.details() or "")
    found = call_error(error)
    return Refused(found.code, found.detail, found.retry_after_s)


def datatype_of(value: NDArray[Any] | bytes) -> str:
    return "BYTES" if isinstance(value, bytes) else _NAMES[value.dtype]


def shape_of(value: NDArray[Any] | bytes) -> list[int]:
    return [1] if isinstance(value, bytes) else list(value.shape)


def bytes_of(value: NDArray[Any] | bytes) -> bytes:
    return struct.pack("<I", len(value)) + value if isinstance(value, bytes) else value.tobytes()


def array_of(datatype: str, shape: Sequence[int], data: bytes) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.frombuffer(data, DTYPES[datatype]).reshape(tuple(shape))
    elements = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        elements.append(data[4 : 4 + length])
        data = data[4 + length :]
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(tuple(shape))

"""`inference.GRPCInferenceService`: messages to tensors, tensors to messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from service.api.openapi import VERSION
from service.errors import MalformedRequest
from service.grpc.calls import Call, Door, Method
from service.memory import Kind
from service.oip import models
from service.oip.inference import (
    MAX_LISTED,
    MAX_RAW,
    InferRequest,
    InferResponse,
    Parameter,
    by_name,
    infer,
    refuse_unsupported,
)
from service.oip.models import TensorSpec
from service.oip.tensors import Header, Tensor, chunks, from_bytes, from_list, to_bytes
from service.proto.generated.inference import open_inference_pb2 as pb

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Fields with the elements of tensors that are not raw, by datatype."""

_MAX_FIELDS: Final = 1 << 22
"""In a message: an image of 1.4 megapixels whose elements are not raw, which no camera sends."""

_VALUE_BYTES: Final = 48
"""Of an element that is not raw, while it becomes an object and then an element of an array."""


def service(door: Door) -> tuple[str, dict[str, Method]]:
    """Return the service's name and its methods by path."""

    async def server_live(request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        del request, call
        return pb.ServerLiveResponse(live=models.is_live(door.pipelines))

    async def server_ready(request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        del request, call
        return pb.ServerReadyResponse(ready=models.all_ready(door.serving))

    async def model_ready(request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        del call
        return pb.ModelReadyResponse(ready=models.is_ready(door.serving, request.name, request.version))

    async def server_metadata(request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        del request, call
        return pb.ServerMetadataResponse(name=models.SERVER_NAME, version=VERSION, extensions=models.EXTENSIONS)

    async def model_metadata(request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        del call
        metadata = models.metadata(door.ready(), request.name, request.version)
        return pb.ModelMetadataResponse(
            name=metadata.name,
            versions=metadata.versions,
            platform=metadata.platform,
            inputs=[_spec(spec) for spec in metadata.tensors.inputs],
            outputs=[_spec(spec) for spec in metadata.tensors.outputs],
        )

    async def model_infer(request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        pipelines = door.ready()
        model = models.find(pipelines, request.model_name, request.model_version)
        call.context.model = model.name
        call.set_deadline(call.context)
        if request.raw_input_contents:
            wanted = read_request(request)
        else:
            cost = _VALUE_BYTES * sum(map(_listed, request.inputs))
            async with call.context.hold(Kind.WORK, cost):
                wanted = await asyncio.to_thread(read_request, request)
        answer = await infer(pipelines, model, wanted, call.context)
        return await asyncio.to_thread(write_response, answer, request)

    methods = {
        "ServerLive": Method(pb.ServerLiveRequest, server_live, needs=None),
        "ServerReady": Method(pb.ServerReadyRequest, server_ready, needs=None),
        "ModelReady": Method(pb.ModelReadyRequest, model_ready),
        "ServerMetadata": Method(pb.ServerMetadataRequest, server_metadata),
        "ModelMetadata": Method(pb.ModelMetadataRequest, model_metadata),
        "ModelInfer": Method(pb.ModelInferRequest, model_infer, max_fields=_MAX_FIELDS),
    }
    return SERVICE_NAME, {f"/{SERVICE_NAME}/{name}": method for name, method in methods.items()}


def read_request(request: pb.ModelInferRequest) -> InferRequest:
    """Read a request; elements that are not raw take as long as many messages, so they belong in a worker thread.

    Raises:
        MalformedRequest: a tensor is repeated, or its elements do not fit its type and shape.
        UnknownField: a parameter of a tensor is not supported.
    """
    for tensor in request.inputs:
        refuse_unsupported(tensor.name, tensor.parameters)
    for output in request.outputs:
        refuse_unsupported(output.name, output.parameters)
    outputs = by_name("output", ((output.name, None) for output in request.outputs))
    inputs = by_name("input", ((tensor.name, tensor) for tensor in _tensors(request)))
    parameters = {name: _value(name, parameter) for name, parameter in request.parameters.items()}
    return InferRequest(inputs, tuple(outputs), parameters, MAX_RAW if request.raw_input_contents else MAX_LISTED)


def write_response(answer: InferResponse, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """Return the answer, whose elements are raw where the request's are; belongs in a worker thread as well."""
    response = pb.ModelInferResponse(
        model_name=answer.model.name,
        model_version=answer.model.revision,
        id=request.id,
        parameters={name: _parameter(value) for name, value in answer.parameters.items()},
    )
    for tensor in answer.outputs:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if request.raw_input_contents:
            response.raw_output_contents.append(to_bytes(tensor))
        else:
            for chunk in chunks(tensor.array.ravel()):
                getattr(output.contents, _CONTENTS[tensor.datatype]).extend(chunk.tolist())
    return response


def _spec(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    form = spec.forms[0]
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=form.datatype, shape=form.shape)


def _tensors(request: pb.ModelInferRequest) -> list[Tensor]:
    headers = [Header(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in request.inputs]
    raw = request.raw_input_contents
    if not raw:
        return [
            from_list(header, _elements(header, tensor.contents))
            for header, tensor in zip(headers, request.inputs, strict=True)
        ]
    if len(raw) != len(headers):
        raise MalformedRequest(f"There must be one raw_input_contents per input, got {len(raw)} for {len(headers)}.")
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise MalformedRequest(f"The input {tensor.name} must not have contents beside raw_input_contents.")
    return [from_bytes(header, data) for header, data in zip(headers, raw, strict=True)]


def _listed(tensor: pb.ModelInferRequest.InferInputTensor) -> int:
    """Return the number of elements that are not raw."""
    return sum(len(getattr(tensor.contents, name)) for name in set(_CONTENTS.values()))


def _elements(header: Header, contents: pb.InferTensorContents) -> list[Any]:
    if header.datatype not in _CONTENTS:
        raise MalformedRequest(
            f"{header.name} is {header.datatype!r}, whose elements must be raw; datatypes with contents are "
            f"{', '.join(_CONTENTS)}."
        )
    return list(getattr(contents, _CONTENTS[header.datatype]))


def _value(name: str, parameter: pb.InferParameter) -> Parameter:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise MalformedRequest(f"The parameter {name} must have a value.")
    value: Parameter = getattr(parameter, kind)
    return value


def _parameter(value: Parameter) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    return pb.InferParameter(string_param=value) if isinstance(value, str) else pb.InferParameter(double_param=value)

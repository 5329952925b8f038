"""Messages of the Open Inference Protocol, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.errors import MalformedRequest
from service.oip.asking import MOST_LISTED, MOST_RAW, Asked, Parameter, by_name, refuse_elsewhere
from service.oip.inference import Inferred
from service.oip.models import ModelMetadata, TensorSpec
from service.oip.tensors import Header, Tensor, chunks, from_bytes, from_list, to_bytes
from service.proto.generated.inference import open_inference_pb2 as pb

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
"""Where the elements of a tensor are that are not raw."""


def asked(request: pb.ModelInferRequest) -> Asked:
    """What a caller asks; elements that are not raw are many messages' worth of work, for a worker thread.

    Raises:
        MalformedRequest: a tensor twice, or one whose elements are not of its type and shape.
        UnknownField: a parameter of a tensor that asks for what is not done here.
    """
    for tensor in request.inputs:
        refuse_elsewhere(tensor.name, tensor.parameters)
    for output in request.outputs:
        refuse_elsewhere(output.name, output.parameters)
    outputs = by_name("output", ((output.name, None) for output in request.outputs))
    inputs = by_name("input", ((tensor.name, tensor) for tensor in _read(request)))
    parameters = {name: _value(name, told) for name, told in request.parameters.items()}
    return Asked(inputs, tuple(outputs), parameters, MOST_RAW if request.raw_input_contents else MOST_LISTED)


def inferred(answer: Inferred, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """The answer of ModelInfer, whose elements are raw where the request's are; for a worker thread as well."""
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


def metadata(told: ModelMetadata) -> pb.ModelMetadataResponse:
    """The answer of ModelMetadata."""
    return pb.ModelMetadataResponse(
        name=told.name,
        versions=told.versions,
        platform=told.platform,
        inputs=[_spec(spec) for spec in told.tensors.inputs],
        outputs=[_spec(spec) for spec in told.tensors.outputs],
    )


def _spec(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    form = spec.forms[0]
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=form.datatype, shape=form.shape)


def _read(request: pb.ModelInferRequest) -> list[Tensor]:
    headers = [Header(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in request.inputs]
    raw = request.raw_input_contents
    if not raw:
        return [
            from_list(header, _elements(header, tensor.contents))
            for header, tensor in zip(headers, request.inputs, strict=True)
        ]
    if len(raw) != len(headers):
        raise MalformedRequest(f"There are {len(headers)} inputs and {len(raw)} raw_input_contents: one each is right.")
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise MalformedRequest(f"The input {tensor.name} has contents beside raw_input_contents.")
    return [from_bytes(header, data) for header, data in zip(headers, raw, strict=True)]


def _elements(header: Header, contents: pb.InferTensorContents) -> list[Any]:
    if header.datatype not in _CONTENTS:
        raise MalformedRequest(
            f"{header.name} is of type {header.datatype!r}, whose elements must be raw; of types with contents there "
            f"are {', '.join(_CONTENTS)}."
        )
    return list(getattr(contents, _CONTENTS[header.datatype]))


def _value(name: str, told: pb.InferParameter) -> Parameter:
    kind = told.WhichOneof("parameter_choice")
    if kind is None:
        raise MalformedRequest(f"The parameter {name} has no value.")
    value: Parameter = getattr(told, kind)
    return value


def _parameter(value: Parameter) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    return pb.InferParameter(string_param=value) if isinstance(value, str) else pb.InferParameter(double_param=value)

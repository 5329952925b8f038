"""One inference: tensors checked against the model's, run through its pipeline, and its answer as tensors."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.catalog import CatalogueEntry
from models.detector.postprocess import Detection
from models.errors import MalformedPrompt, NoPrompt
from models.masks import Rle, rle_of
from models.sam.postprocess import MaskCrop
from models.types import FOREGROUND, Box, Point, Prompt, Size
from models.unet.postprocess import Region
from service.api.context import LEAST_URGENT, RequestContext, deadline_seconds
from service.api.detection import DetectRequest
from service.api.parsing import parse_fields
from service.api.schema import EmbedRequest
from service.errors import MalformedRequest, NoImage, UnknownField, UnsupportedFormat, UnsupportedInput
from service.oip.models import TENSORS, Tensors
from service.oip.tensors import Tensor
from service.pipelines import Pipelines
from service.pipelines.letterboxes import INPUT_SIZES
from service.pipelines.segment import MaskReceiver
from service.pipelines.semantic import Classified
from service.pipelines.source import EncodedImage, ImageInput, RawImage

T = TypeVar("T")

Parameter: TypeAlias = bool | int | float | str

MAX_RAW: Final = 1 << 29
MAX_LISTED: Final = 1 << 25
"""Elements of all masks of an answer: as bytes, 512 MiB; in lists, where one takes six bytes and more."""

PADDING_LABEL: Final = -1
"""Label of a point that does not count: rows of `points` have one length."""

_PRIORITY: Final = "priority"
_TIMEOUT: Final = "timeout"
_MASK_FORMAT: Final = "mask_format"
_UNSUPPORTED: Final = ("shared_memory_region", "classification")
"""Parameters of tensors by which other servers are asked for what Pomona does not do."""

_CHOICES: Final[Mapping[str, tuple[int | str, ...]]] = {
    "input_size": (*INPUT_SIZES, "auto"),
    "padding": ("none", "square", "stretch"),
}
_FORMATS: Final = ("pixels", "rle")
_OF_DETECTORS: Final = ("score_threshold", "nms_threshold", "max_detections")
_MULTIMASKS: Final = 3

_COPIES: Final = 4
"""How often an answer exists at a time: as tensors, as bytes, in the message or the body, and where it is sent."""

_SMALL_ANSWER: Final = 1 << 20
"""Bytes of an answer without pixels of masks."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request of the protocol, whichever way it came.

    Attributes:
        inputs: by name.
        outputs: those that are wanted, in their order; all where empty.
        parameters: of the request.
        max_elements: of all masks in the answer, by how it travels.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    max_elements: int = MAX_RAW


@dataclass(frozen=True, slots=True)
class InferResponse:
    """An answer of the protocol: the model, the outputs that were wanted, and parameters."""

    model: CatalogueEntry
    outputs: Sequence[Tensor]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


async def infer(
    pipelines: Pipelines, model: CatalogueEntry, request: InferRequest, context: RequestContext
) -> InferResponse:
    """Run a model.

    Args:
        pipelines: with the model.
        model: that is loaded.
        request: of it.
        context: of the request; the protocol's own deadline and priority count too.

    Raises:
        PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
    """
    family = model.architecture.family
    context.model = model.name
    tensors = TENSORS[family]
    _check_tensors(request, tensors)
    _set_deadline(request.parameters, context)
    outputs = request.outputs or tuple(spec.name for spec in tensors.outputs)
    if family == "unet":
        response = await _classify(pipelines, model, request, outputs, context)
    elif family == "detector":
        response = await _detect(pipelines, model, request, outputs, context)
    else:
        response = await _segment(pipelines, model, request, outputs, context)
    context.log["timing_ms"] = {part: value for part, value in context.timing_ms() if value}
    return response


async def _segment(
    pipelines: Pipelines,
    model: CatalogueEntry,
    request: InferRequest,
    outputs: Sequence[str],
    context: RequestContext,
) -> InferResponse:
    parameters, in_worker = request.parameters, pipelines.engine.in_worker
    _check_parameters(parameters, (_MASK_FORMAT, *_CHOICES))
    given = parameters.get(_MASK_FORMAT, "pixels")
    if not isinstance(given, str) or given not in _FORMATS:
        raise UnsupportedFormat(f"The parameter {_MASK_FORMAT} must be {' or '.join(_FORMATS)}, got {given!r}.")
    options = EmbedRequest.model_validate(
        {"model": model.name, **{name: _choice(parameters, name) for name in _CHOICES}}
    )
    image, prompts = await in_worker(_image, request.inputs), await in_worker(_prompts, request.inputs)
    shape = (len(prompts), _MULTIMASKS if prompts[0].multimask else 1)
    answer = _SMALL_ANSWER
    if "masks" in outputs and given == "pixels":
        pixels = (await pipelines.engine.size(image.required())).pixels
        _check_room(request.max_elements, math.prod(shape), pixels)
        answer += math.prod(shape) * pixels
    tensors = _MaskTensors(outputs, shape, pixels=given == "pixels")
    degraded = await pipelines.segment.masks(
        options, prompts, image, context, tensors.receiver, beside=_COPIES * answer
    )
    context.count_answer(_COPIES * answer)
    context.log |= {"prompts": len(prompts), "degraded": degraded}
    return InferResponse(model, tensors.tensors(), {"degraded": degraded})


async def _classify(
    pipelines: Pipelines,
    model: CatalogueEntry,
    request: InferRequest,
    outputs: Sequence[str],
    context: RequestContext,
) -> InferResponse:
    _check_parameters(request.parameters, ())
    image = await pipelines.engine.in_worker(_image, request.inputs)
    found = await pipelines.semantic.classify(model.name, image, context, beside=_COPIES)
    context.count_answer(_COPIES * found.classes.nbytes)
    context.log["objects"] = len(found.regions)
    return InferResponse(model, [_CLASS_OUTPUTS[name](found) for name in outputs])


async def _detect(
    pipelines: Pipelines,
    model: CatalogueEntry,
    request: InferRequest,
    outputs: Sequence[str],
    context: RequestContext,
) -> InferResponse:
    _check_parameters(request.parameters, _OF_DETECTORS)
    given = {name: request.parameters[name] for name in _OF_DETECTORS if name in request.parameters}
    options = parse_fields({"model": model.name, **given}, DetectRequest)
    image = await pipelines.engine.in_worker(_image, request.inputs)
    found, classes = await pipelines.detect.objects(options, image, context)
    context.log["objects"] = len(found)
    return InferResponse(model, [_OBJECT_OUTPUTS[name](found, classes) for name in outputs])


# Requests.


def by_name(what: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return things by their names.

    Raises:
        MalformedRequest: a name is repeated.
    """
    found: dict[str, T] = {}
    for name, one in named:
        if name in found:
            raise MalformedRequest(f"The {what} {name} must not be repeated.")
        found[name] = one
    return found


def refuse_unsupported(name: str, parameters: Iterable[str]) -> None:
    """Refuse parameters of a tensor that ask for what Pomona does not do; others are ignored.

    Raises:
        UnknownField: there is one.
    """
    given = set(parameters)
    for parameter in _UNSUPPORTED:
        if parameter in given:
            raise UnknownField(f"The parameter {parameter} of {name} is not supported.")


def _check_parameters(parameters: Mapping[str, Parameter], names: Iterable[str]) -> None:
    known = (_PRIORITY, _TIMEOUT, *names)
    for name in parameters:
        if name not in known:
            raise UnknownField(f"There is no parameter {name!r}; known: {', '.join(known)}.")


def _set_deadline(parameters: Mapping[str, Parameter], context: RequestContext) -> None:
    """Apply the protocol's parameters.

    `priority` 1 is the most urgent (RFC 9218's urgency 0), 2 the next, 8 and above the least; 0 leaves it as it is.
    `timeout` is in microseconds from the request's arrival; 0 is none. The earliest deadline counts.
    """
    priority, timeout = _whole(parameters, _PRIORITY), _whole(parameters, _TIMEOUT)
    if priority:
        context.urgency = min(priority - 1, LEAST_URGENT)
    if timeout:
        deadline = context.received + deadline_seconds(timeout / 1000, "timeout", f"{timeout} microseconds")
        context.deadline = deadline if context.deadline is None else min(deadline, context.deadline)


def _whole(parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MalformedRequest(f"The parameter {name} must be a whole number, 0 or more, got {value!r}.")
    return value


def _choice(parameters: Mapping[str, Parameter], name: str) -> int | str | None:
    if name not in parameters:
        return None
    given = parameters[name]
    for choice in _CHOICES[name]:
        if type(given) is type(choice) and given == choice:
            return choice
    raise UnsupportedInput(f"The parameter {name} must be one of {', '.join(map(str, _CHOICES[name]))}, got {given!r}.")


def _check_tensors(request: InferRequest, tensors: Tensors) -> None:
    """Refuse tensors that the model does not have.

    Raises:
        UnknownField: an input or an output of another name.
        MalformedRequest: an input of another type or shape.
    """
    forms = {spec.name: spec.forms for spec in tensors.inputs}
    for name, tensor in request.inputs.items():
        if name not in forms:
            raise UnknownField(f"There is no input {name!r}; known: {', '.join(forms)}.")
        if not any(form.fits(tensor.datatype, tensor.shape) for form in forms[name]):
            wanted = " or ".join(f"{form.datatype} {list(form.shape)}" for form in forms[name])
            raise MalformedRequest(
                f"The input {name} must be {wanted} (-1: any length), got {tensor.datatype} {list(tensor.shape)}."
            )
    outputs = [spec.name for spec in tensors.outputs]
    for name in request.outputs:
        if name not in outputs:
            raise UnknownField(f"There is no output {name!r}; known: {', '.join(outputs)}.")


def _check_room(max_elements: int, masks: int, pixels: int) -> None:
    if masks * pixels > max_elements:
        raise MalformedRequest(
            f"An answer like this must have at most {max_elements} elements of masks, got {masks} masks of {pixels} "
            f"pixels; use the parameter {_MASK_FORMAT}=rle, binary data, fewer prompts or other outputs."
        )


def _image(inputs: Mapping[str, Tensor]) -> ImageInput:
    """Return the image: BYTES [1], base64 where it came as text, or UINT8 [height, width, 3], RGB."""
    image = inputs.get("image")
    if image is None:
        raise NoImage("The request must have the input image.")
    if image.datatype == "UINT8":
        if 0 in image.shape:
            raise MalformedRequest(f"The input image must have pixels, got the shape {list(image.shape)}.")
        return ImageInput(RawImage(np.ascontiguousarray(image.array)))
    data: bytes = image.array[0]
    if image.text:
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise MalformedRequest(f"The input image must be base64 where it is text: {error}.") from error
    return ImageInput(EncodedImage(data))


def _prompts(inputs: Mapping[str, Tensor]) -> list[Prompt]:
    """Return the prompts: row by row, what `points` with `labels`, `boxes` and `mask_input` have.

    Raises:
        NoPrompt: there are no rows.
        MalformedPrompt: they do not have as many rows, or points and labels do not pair.
    """
    points, boxes, masks = (_array(inputs, name) for name in ("points", "boxes", "mask_input"))
    labels = _array(inputs, "labels")
    if labels is not None and (points is None or labels.shape != points.shape[:2]):
        given = None if points is None else list(points.shape)
        raise MalformedPrompt(
            f"labels must have one label per point, got labels of shape {list(labels.shape)} and points of {given}."
        )
    named = {"points": points, "boxes": boxes, "mask_input": masks}
    rows = {name: len(array) for name, array in named.items() if array is not None}
    if not any(rows.values()):
        raise NoPrompt("The request must have prompts: points, boxes or mask_input.")
    if len(set(rows.values())) > 1:
        given_rows = " and ".join(f"{count} of {name}" for name, count in rows.items())
        raise MalformedPrompt(f"points, boxes and mask_input must have one row per prompt each, got {given_rows}.")
    multimask = bool(inputs["multimask"].array[0]) if "multimask" in inputs else True
    return [
        Prompt(
            points=_points(points, labels, row),
            box=None if boxes is None else Box(*map(float, boxes[row])),
            mask=None if masks is None else masks[row],
            multimask=multimask,
        )
        for row in range(next(iter(rows.values())))
    ]


def _array(inputs: Mapping[str, Tensor], name: str) -> NDArray[Any] | None:
    return inputs[name].array if name in inputs else None


def _points(points: NDArray[Any] | None, labels: NDArray[Any] | None, row: int) -> tuple[Point, ...]:
    if points is None:
        return ()
    given = [FOREGROUND] * points.shape[1] if labels is None else labels[row].tolist()
    return tuple(
        Point(float(x), float(y), label)
        for (x, y), label in zip(points[row], given, strict=True)
        if label != PADDING_LABEL
    )


# Answers.


class _MaskTensors:
    """Tensors of shape [prompts, masks, …], filled as the masks come.

    Args:
        outputs: names of those that are wanted.
        shape: prompts and masks of each.
        pixels: whether `masks` are pixels; else RLE.
    """

    def __init__(self, outputs: Sequence[str], shape: tuple[int, int], *, pixels: bool) -> None:
        self._outputs = outputs
        self._shape = shape
        self._pixels = pixels
        self._masks: NDArray[Any] = np.empty(0)
        self._measures: dict[str, list[list[Any]]] = {
            name: [[None] * shape[1] for _ in range(shape[0])] for name in outputs if name != "masks"
        }

    def receiver(self, size: Size) -> MaskReceiver:
        """Return what receives the masks of an image, also from several threads."""
        if "masks" in self._outputs:
            whole = (size.height, size.width) if self._pixels else ()
            self._masks = np.zeros((*self._shape, *whole), np.bool_ if self._pixels else object)
        return self._receive

    def tensors(self) -> list[Tensor]:
        """Return the tensors, in the order in which they are wanted."""
        return [self._tensor(name) for name in self._outputs]

    def _receive(self, row: int, place: int, mask: MaskCrop) -> None:
        if "masks" in self._outputs:
            if self._pixels:
                x0, y0, x1, y1 = mask.crop.box
                self._masks[row, place, y0:y1, x0:x1] = mask.crop.pixels
            else:
                self._masks[row, place] = _json(rle_of(mask.crop))
        for name, values in self._measures.items():
            values[row][place] = _MEASURES[name].of(mask)

    def _tensor(self, name: str) -> Tensor:
        if name == "masks":
            return Tensor(name, "BOOL" if self._pixels else "BYTES", self._masks)
        measure = _MEASURES[name]
        return Tensor(name, measure.datatype, np.array(self._measures[name], measure.dtype))


def _json(rle: Rle) -> bytes:
    return json.dumps({"size": rle.size, "counts": rle.counts}).encode()


@dataclass(frozen=True, slots=True)
class _Measure:
    """What a tensor holds of a mask."""

    datatype: str
    dtype: type
    of: Callable[[MaskCrop], Any]


_MEASURES: Final[Mapping[str, _Measure]] = {
    "scores": _Measure("FP32", np.float32, lambda mask: mask.score),
    "stability_scores": _Measure("FP32", np.float32, lambda mask: mask.stability_score),
    "boxes": _Measure("INT64", np.int64, lambda mask: mask.box),
    "areas": _Measure("INT64", np.int64, lambda mask: mask.area),
    "logits": _Measure("FP32", np.float32, lambda mask: mask.logits),
}


def _of_regions(
    name: str, datatype: str, dtype: type, of: Callable[[Region], Any], each: tuple[int, ...] = ()
) -> Callable[[Classified], Tensor]:
    def tensor(found: Classified) -> Tensor:
        values: NDArray[Any] = np.array([of(region) for region in found.regions], dtype)
        return Tensor(name, datatype, values.reshape(len(found.regions), *each))

    return tensor


_CLASS_OUTPUTS: Final[Mapping[str, Callable[[Classified], Tensor]]] = {
    "class_map": lambda found: Tensor("class_map", "UINT8", found.classes),
    "object_boxes": _of_regions("object_boxes", "INT64", np.int64, lambda region: region.box, (4,)),
    "object_classes": _of_regions("object_classes", "UINT8", np.uint8, lambda region: region.pixel_class),
    "object_scores": _of_regions("object_scores", "FP32", np.float32, lambda region: region.score),
    "object_areas": _of_regions("object_areas", "INT64", np.int64, lambda region: region.area),
}


def _corners(found: Sequence[Detection]) -> NDArray[np.float32]:
    boxes = [(each.box.x0, each.box.y0, each.box.x1, each.box.y1) for each in found]
    return np.array(boxes, np.float32).reshape(len(found), 4)


def _names(found: Sequence[Detection], classes: Sequence[str]) -> NDArray[Any]:
    names = np.empty(len(found), object)
    names[:] = [classes[each.class_id].encode() for each in found]
    return names


_OBJECT_OUTPUTS: Final[Mapping[str, Callable[[Sequence[Detection], Sequence[str]], Tensor]]] = {
    "boxes": lambda found, _: Tensor("boxes", "FP32", _corners(found)),
    "scores": lambda found, _: Tensor("scores", "FP32", np.array([each.score for each in found], np.float32)),
    "class_ids": lambda found, _: Tensor("class_ids", "INT64", np.array([each.class_id for each in found], np.int64)),
    "classes": lambda found, classes: Tensor("classes", "BYTES", _names(found, classes)),
}

"""Input tensors, checked against what a model takes, and turned into images and prompts."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.errors import MalformedPrompt, NoPrompt
from models.types import FOREGROUND, Box, Point, Prompt
from service.errors import MalformedRequest, NoImage, UnknownField
from service.oip.asking import Asked
from service.oip.models import Tensors
from service.oip.tensors import Tensor

PADDING_LABEL: Final = -1
"""Of a point that is none: rows of `points` are of one length."""


def check(asked: Asked, tensors: Tensors) -> None:
    """Refuse tensors that the model does not have.

    Raises:
        UnknownField: an input or an output of another name.
        MalformedRequest: an input of another type or shape.
    """
    forms = {spec.name: spec.forms for spec in tensors.inputs}
    for name, tensor in asked.inputs.items():
        if name not in forms:
            raise UnknownField(f"There is no input {name!r} here; known: {', '.join(forms)}.")
        if not any(form.fits(tensor.datatype, tensor.shape) for form in forms[name]):
            right = " or ".join(f"{form.datatype} {list(form.shape)}" for form in forms[name])
            raise MalformedRequest(
                f"The input {name} is {tensor.datatype} {list(tensor.shape)}; {right} would be right (-1: any length)."
            )
    outputs = [spec.name for spec in tensors.outputs]
    for name in asked.outputs:
        if name not in outputs:
            raise UnknownField(f"There is no output {name!r} here; known: {', '.join(outputs)}.")


def image_of(inputs: Mapping[str, Tensor]) -> bytes:
    """The image as a file: as it was sent, or a BMP of its pixels, which loses nothing.

    Args:
        inputs: checked; `image` is BYTES [1], base64 where it came as text, or UINT8 [height, width, 3], RGB.

    Raises:
        NoImage: it is not there.
        MalformedRequest: text that is not base64, or an image without pixels.
    """
    image = inputs.get("image")
    if image is None:
        raise NoImage("Send an image as the input image.")
    if image.datatype == "UINT8":
        if 0 in image.shape:
            raise MalformedRequest(f"The input image has the shape {list(image.shape)}, which is an image of nothing.")
        file = io.BytesIO()
        PIL.Image.fromarray(np.ascontiguousarray(image.array)).save(file, "BMP")
        return file.getvalue()
    data: bytes = image.array[0]
    if not image.text:
        return data
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise MalformedRequest(f"The input image came as text that is not base64: {error}.") from error


def prompts_of(inputs: Mapping[str, Tensor]) -> list[Prompt]:
    """The prompts: row by row, what `points` with `labels`, `boxes` and `mask_input` have.

    Args:
        inputs: checked.

    Raises:
        NoPrompt: none of them is there, or they have no rows.
        MalformedPrompt: they do not have as many rows, or points and labels do not pair.
    """
    points, boxes, masks = (_array(inputs, name) for name in ("points", "boxes", "mask_input"))
    labels = _array(inputs, "labels")
    if labels is not None and (points is None or labels.shape != points.shape[:2]):
        there = None if points is None else list(points.shape)
        raise MalformedPrompt(
            f"labels has the shape {list(labels.shape)} and points {there}: one label per point is right."
        )
    given = {"points": points, "boxes": boxes, "mask_input": masks}
    rows = {name: len(array) for name, array in given.items() if array is not None}
    if not any(rows.values()):
        raise NoPrompt("The request has no prompts: send points, boxes or mask_input.")
    if len(set(rows.values())) > 1:
        told = " and ".join(f"{name} {count}" for name, count in rows.items())
        raise MalformedPrompt(f"Prompts do not pair: {told}; one row for each prompt is right in each.")
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
    told = [FOREGROUND] * points.shape[1] if labels is None else labels[row].tolist()
    return tuple(
        Point(float(x), float(y), label)
        for (x, y), label in zip(points[row], told, strict=True)
        if label != PADDING_LABEL
    )

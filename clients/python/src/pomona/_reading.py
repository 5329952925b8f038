"""Reads results from the service's answers, by the types of their fields.

An answer is the object of the JSON API; `pomona.grpc_codec` turns messages into the same objects, in which bytes need
not be base64. Unknown fields are ignored, as a newer service may send more; fields that are absent or null get their
default, if they have one.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from pomona.masks import Logits, Mask, PixelBox, Rle, logits_window
from pomona.results import Inspection, Model, ModelUsed, Result, Segmentation, SemanticMap

R = TypeVar("R", bound=Result)

_JSON_NAMES: Final = {
    "timings": "timing_ms",
    "overlay_png": "overlay",
    "fruit_class": "class",
    "region_class": "class",
}
"""Of the fields that have another name in the results."""


def read_result(kind: type[R], body: Mapping[str, Any]) -> R:
    """Read a result.

    Args:
        kind: of result.
        body: object of the API.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the object does not have the result's fields.
    """
    size = int(body["image"]["height"]), int(body["image"]["width"])
    if min(size) < 1:
        raise ValueError(f"an image must have pixels, got {size[1]} x {size[0]}")
    input_size = (body.get("model") or {}).get("input_size", 0)
    return cast("R", _Reader(size, input_size).read(kind, body))


def read_models(body: Mapping[str, Any]) -> tuple[Model, ...]:
    """Read the list of models; see `read_result`."""
    models: tuple[Model, ...] = _Reader((0, 0), 0).read(tuple[Model, ...], body["models"])
    return models


class _Reader:
    """Reads values of one answer.

    Args:
        size: height and width of the image, which masks have.
        input_size: longest side of the image as a SAM saw it, for logits.
    """

    def __init__(self, size: tuple[int, int], input_size: int) -> None:
        self._size = size
        self._input_size = input_size
        self._converters: dict[Any, Callable[[Any], Any]] = {
            Mask: self._mask,
            PixelBox: lambda sides: PixelBox(*map(int, sides)),
            bytes: _from_base64,
            **{kind: kind for kind in (str, int, float, bool)},
        }

    def read(self, kind: Any, value: Any) -> Any:
        """Read a value as the type that a field is annotated with."""
        convert = self._converters.get(kind)
        if convert is not None:
            return convert(value)
        if dataclasses.is_dataclass(kind):
            return self._object(kind, _reshape(kind, value))
        arguments = get_args(kind)
        if get_origin(kind) is tuple:
            return tuple(self.read(arguments[0], item) for item in value)
        if get_origin(kind) is Literal:
            if value not in arguments:
                raise ValueError(f"expected one of {', '.join(map(str, arguments))}, got {value!r}")
            return value
        # A union: with None, which is not read, or of a number and a list.
        return self.read(arguments[1 if isinstance(value, list) else 0], value)

    def _object(self, kind: Any, body: Mapping[str, Any]) -> Any:
        values = {}
        for field in dataclasses.fields(kind):
            value = body.get(_JSON_NAMES.get(field.name, field.name))
            if value is not None:
                values[field.name] = self.read(_hints(kind)[field.name], value)
            elif field.default is MISSING and field.default_factory is MISSING:
                raise KeyError(f"{kind.__name__}.{field.name}")
        return kind(**values)

    def _mask(self, body: Mapping[str, Any]) -> Mask:
        if "counts" in body:
            height, width = body["size"]
            return Mask(self._size, Rle((int(height), int(width)), str(body["counts"])))
        height, width = body["shape"]
        window = logits_window(self._size, self._input_size)
        return Mask(self._size, Logits((int(height), int(width)), _from_base64(body["data"]), window))


def _from_base64(value: str | bytes) -> bytes:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _reshape(kind: Any, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object with the fields of the result, where they are not those of the API."""
    if kind is ModelUsed and "input_width" in body:
        return {**body, "input_size": [body["input_width"], body["input_height"]]}
    if kind is Segmentation:
        return {**body, "results": [result["masks"] for result in body["results"]]}
    if kind is Inspection:
        return {**body, **body["models"]}
    if kind is SemanticMap:
        classes = {each["class"]: each for each in body["classes"]}
        masks = {name: each["mask"] for name, each in classes.items()}
        return {**body, **masks, **{f"{name}_area": each["area"] for name, each in classes.items()}}
    return body


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)

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
from dataclasses import MISSING, dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from pomona.masks import Logits, Mask, PixelBox, Rle, logits_window
from pomona.proposals import Progress
from pomona.results import FloatBox, Inspection, Instances, Model, ModelUsed, Result, Segmentation, SemanticMap

R = TypeVar("R", bound=Result)

_JSON_NAMES: Final = {
    "timings": "timing_ms",
    "overlay_png": "overlay",
    "edges_png": "edges",
    "fruit_class": "class",
    "region_class": "class",
    "class_name": "class",
}
"""Of the fields that have another name in the results."""


@dataclass(frozen=True)
class _Context:
    """What masks need of the rest of the answer.

    Attributes:
        size: height and width of the image.
        input_size: longest side of the image as a SAM saw it, for logits.
        stretched: whether the image filled the SAM's square whatever its proportions.
    """

    size: tuple[int, int]
    input_size: int
    stretched: bool = False


_Convert: TypeAlias = Callable[[Any, _Context], Any]


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
    sam = body.get("model") or (body.get("models") or {}).get("sam") or {}
    input_size = sam.get("input_size", 0)
    context = _Context(size, input_size, stretched=sam.get("padding") == "stretch")
    return cast("R", _converter(cast("Any", kind))(body, context))


def read_models(body: Mapping[str, Any]) -> tuple[Model, ...]:
    """Read the list of models; see `read_result`."""
    models: tuple[Model, ...] = _converter(tuple[Model, ...])(body["models"], _Context((0, 0), 0))
    return models


def read_progress(body: Mapping[str, Any], size: tuple[int, int]) -> Progress:
    """Read what has changed while the service works; see `read_result`.

    Args:
        body: object of the API.
        size: height and width of the image; (0, 0) where unknown, then that of each mask.
    """
    progress: Progress = _converter(Progress)(body, _Context(size, 0))
    return progress


@functools.cache
def _converter(kind: Any) -> _Convert:
    """Return the function that reads values of a type that a field is annotated with."""
    if kind in _CONVERTERS:
        return _CONVERTERS[kind]
    if dataclasses.is_dataclass(kind):
        return _object_converter(kind)
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return functools.partial(_one_of, arguments)
    first = _converter(arguments[0])
    if get_origin(kind) is tuple:
        return lambda value, context: tuple([first(item, context) for item in value])
    # A union: with None, which is not read, or of a number and a list.
    other = first if arguments[1] is type(None) else _converter(arguments[1])
    return lambda value, context: (other if isinstance(value, list) else first)(value, context)


def _object_converter(kind: Any) -> _Convert:
    hints = get_type_hints(kind)
    fields = [
        (
            field.name,
            _JSON_NAMES.get(field.name, field.name),
            _converter(hints[field.name]),
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in dataclasses.fields(kind)
    ]
    reshape = _RESHAPE.get(kind)

    def convert(body: Mapping[str, Any], context: _Context) -> Any:
        if reshape is not None:
            body = reshape(body)
        values = {}
        for name, json_name, read, required in fields:
            value = body.get(json_name)
            if value is not None:
                values[name] = read(value, context)
            elif required:
                raise KeyError(json_name)
        return kind(**values)

    return convert


def _one_of(allowed: tuple[str, ...], value: Any, context: _Context) -> Any:  # noqa: ARG001 (as all converters)
    if value not in allowed:
        raise ValueError(f"expected one of {', '.join(allowed)}, got {value!r}")
    return value


def _mask(body: Mapping[str, Any], context: _Context) -> Mask:
    if "counts" in body:
        height, width = body["size"]
        size = (int(height), int(width))
        return Mask(context.size if any(context.size) else size, Rle(size, str(body["counts"])))
    height, width = body["shape"]
    shape = (int(height), int(width))
    window = shape if context.stretched else logits_window(context.size, context.input_size)
    return Mask(context.size, Logits(shape, _from_base64(body["data"]), window))


def _from_base64(value: str | bytes) -> bytes:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


_CONVERTERS: Final[Mapping[Any, _Convert]] = {
    Mask: _mask,
    PixelBox: lambda sides, _: PixelBox(*map(int, sides)),
    FloatBox: lambda sides, _: FloatBox(*map(float, sides)),
    bytes: lambda value, _: _from_base64(value),
    str: lambda value, _: str(value),
    int: lambda value, _: int(value),
    float: lambda value, _: float(value),
    bool: lambda value, _: bool(value),
}


def _reshape_model(body: Mapping[str, Any]) -> Mapping[str, Any]:
    if "input_width" not in body:
        return body
    return {**body, "input_size": [body["input_width"], body["input_height"]]}


def _reshape_classes(body: Mapping[str, Any]) -> Mapping[str, Any]:
    classes = {each["class"]: each for each in body["classes"]}
    masks = {name: each["mask"] for name, each in classes.items()}
    return {**body, **masks, **{f"{name}_area": each["area"] for name, each in classes.items()}}


_RESHAPE: Final[Mapping[Any, Callable[[Mapping[str, Any]], Mapping[str, Any]]]] = {
    ModelUsed: _reshape_model,
    Segmentation: lambda body: {**body, "results": [result["masks"] for result in body["results"]]},
    Inspection: lambda body: {**body, **body["models"]},
    Instances: lambda body: {**body, **body["models"]},
    SemanticMap: _reshape_classes,
}
"""For results that do not have the fields of the API's object."""

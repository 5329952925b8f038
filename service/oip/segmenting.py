"""What a SAM is asked and what it gives, as tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from models import images
from models.letterbox import Padding
from models.masks import Rle
from service.errors import MalformedRequest, UnsupportedFormat, UnsupportedInput
from service.formats import MaskFormat
from service.frames import SIZES
from service.messages import InputChoice, InputSize, MaskResult, Segmented, SegmentRequest
from service.oip.asking import Asked, Parameter, known
from service.oip.inputs import image_of, prompts_of
from service.oip.tensors import Tensor, bytes_tensor

T = TypeVar("T")

MASK_FORMAT: Final = "mask_format"
INPUT_SIZE: Final = "input_size"
PADDING: Final = "padding"

_Results = Sequence[Sequence[MaskResult]]

_FORMATS: Final[Mapping[str, MaskFormat | None]] = {"pixels": None, "rle": "rle"}
_SIZES: Final[tuple[InputSize, ...]] = (*SIZES, "auto")
_PADDINGS: Final[tuple[Padding, ...]] = ("none", "square")
_MULTIMASKS: Final = 3


def segment_request(model: str, asked: Asked, outputs: Sequence[str], *, max_pixels: int) -> SegmentRequest:
    """Build the pipeline's request; an image of pixels is made a file, so it belongs into a worker thread.

    Args:
        model: catalogue name.
        asked: of it, checked.
        outputs: that are wanted.
        max_pixels: of the image.

    Raises:
        NoImage, NoPrompt, MalformedPrompt, UnsupportedFormat, UnsupportedInput, UnknownField, MalformedRequest: by
            what is wrong.
        ImageError: the image's header cannot be used.
    """
    parameters = asked.parameters
    known(parameters, (MASK_FORMAT, INPUT_SIZE, PADDING))
    told = parameters.get(MASK_FORMAT, "pixels")
    if not isinstance(told, str) or told not in _FORMATS:
        raise UnsupportedFormat(f"The parameter {MASK_FORMAT} is {told!r}; {' or '.join(_FORMATS)} would be right.")
    mask_format = _FORMATS[told] if "masks" in outputs else None
    choice = InputChoice(_choice(parameters, INPUT_SIZE, _SIZES), _choice(parameters, PADDING, _PADDINGS))
    data, prompts = image_of(asked.inputs), prompts_of(asked.inputs)
    if "masks" in outputs and mask_format is None:
        masks = len(prompts) * (_MULTIMASKS if prompts[0].multimask else 1)
        _check_room(asked.room, masks, images.read_size(data, max_pixels=max_pixels).pixels)
    return SegmentRequest(prompts, data, model=model, format=mask_format, input=choice)


def segmented(answer: Segmented, outputs: Sequence[str]) -> list[Tensor]:
    """The tensors that are wanted, each of shape [prompts, masks, …]; for a worker thread."""
    return [_OUTPUTS[name](answer.results) for name in outputs]


def _choice(parameters: Mapping[str, Parameter], name: str, choices: Sequence[T]) -> T | None:
    if name not in parameters:
        return None
    told = parameters[name]
    for choice in choices:
        if type(told) is type(choice) and told == choice:
            return choice
    raise UnsupportedInput(f"The parameter {name} is {told!r}; {', '.join(map(str, choices))} would be right.")


def _check_room(room: int, masks: int, pixels: int) -> None:
    if masks * pixels > room:
        raise MalformedRequest(
            f"{masks} masks of {pixels} pixels are more than the {room} elements of one answer like this; ask with the "
            f"parameter {MASK_FORMAT}=rle, for binary data, for fewer prompts or for other outputs."
        )


def _figures(name: str, datatype: str, dtype: type, of: Callable[[MaskResult], Any]) -> Callable[[_Results], Tensor]:
    def tensor(results: _Results) -> Tensor:
        return Tensor(name, datatype, np.array([[of(one) for one in masks] for masks in results], dtype))

    return tensor


def _masks(results: _Results) -> Tensor:
    if isinstance(results[0][0].encoded, Rle):
        encoded = [_json(one.encoded) for masks in results for one in masks if isinstance(one.encoded, Rle)]
        return bytes_tensor("masks", encoded, (len(results), len(results[0])))
    return Tensor("masks", "BOOL", np.array([[one.mask.pixels for one in masks] for masks in results]))


def _json(rle: Rle) -> bytes:
    return json.dumps({"size": rle.size, "counts": rle.counts}).encode()


_OUTPUTS: Final[Mapping[str, Callable[[_Results], Tensor]]] = {
    "masks": _masks,
    "scores": _figures("scores", "FP32", np.float32, lambda one: one.mask.score),
    "stability_scores": _figures("stability_scores", "FP32", np.float32, lambda one: one.mask.stability_score),
    "boxes": _figures("boxes", "INT64", np.int64, lambda one: one.mask.box),
    "areas": _figures("areas", "INT64", np.int64, lambda one: one.mask.area),
    "logits": _figures("logits", "FP32", np.float32, lambda one: one.mask.logits),
}

"""What a U-Net is asked and what it gives, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.unet.postprocess import Region
from service.messages import Classified, SemanticRequest
from service.oip.asking import Asked, known
from service.oip.inputs import image_of
from service.oip.tensors import Tensor


def semantic_request(model: str, asked: Asked) -> SemanticRequest:
    """Build the pipeline's request; an image of pixels is made a file, so it belongs into a worker thread.

    Args:
        model: catalogue name.
        asked: of it, checked.

    Raises:
        NoImage, UnknownField, MalformedRequest: by what is wrong.
    """
    known(asked.parameters, ())
    return SemanticRequest(image_of(asked.inputs), model=model, format=None)


def classified(answer: Classified, outputs: Sequence[str]) -> list[Tensor]:
    """The tensors that are wanted: `class_map` [height, width], the others [objects, …]."""
    return [_OUTPUTS[name](answer) for name in outputs]


def _class_map(answer: Classified) -> Tensor:
    return Tensor("class_map", "UINT8", answer.pixels)


def _of_objects(
    name: str, datatype: str, dtype: type, of: Callable[[Region], Any], each: tuple[int, ...] = ()
) -> Callable[[Classified], Tensor]:
    def tensor(answer: Classified) -> Tensor:
        values: NDArray[Any] = np.array([of(region) for region in answer.objects], dtype)
        return Tensor(name, datatype, values.reshape(len(answer.objects), *each))

    return tensor


_OUTPUTS: Final[Mapping[str, Callable[[Classified], Tensor]]] = {
    "class_map": _class_map,
    "object_boxes": _of_objects("object_boxes", "INT64", np.int64, lambda region: region.box, (4,)),
    "object_classes": _of_objects("object_classes", "UINT8", np.uint8, lambda region: region.pixel_class),
    "object_scores": _of_objects("object_scores", "FP32", np.float32, lambda region: region.score),
    "object_areas": _of_objects("object_areas", "INT64", np.int64, lambda region: region.area),
}

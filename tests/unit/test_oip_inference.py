"""Requests of the Open Inference Protocol: parameters, tensors, images and prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.errors import MalformedPrompt
from models.types import Box, Point, Size
from service.api.context import RequestContext
from service.errors import MalformedRequest, UnknownField
from service.oip.inference import (
    InferRequest,
    _check_parameters,
    _check_tensors,
    _image,
    _prompts,
    _set_deadline,
    by_name,
    refuse_unsupported,
)
from service.oip.models import TENSORS
from service.oip.tensors import Tensor, bytes_tensor


def tensors(**arrays: Any) -> dict[str, Tensor]:
    kinds = {"f": "FP32", "i": "INT64", "b": "BOOL", "u": "UINT8"}
    return {name: Tensor(name, kinds[array.dtype.kind], array) for name, array in arrays.items()}


@pytest.mark.parametrize(("priority", "urgency"), [(1, 0), (2, 1), (4, 3), (8, 7), (9, 7), (2**62, 7), (0, 5)])
def test_priority_one_is_urgency_zero_and_priority_zero_changes_nothing(priority: int, urgency: int) -> None:
    context = RequestContext(urgency=5)
    _set_deadline({"priority": priority}, context)
    assert (context.urgency, context.deadline) == (urgency, None)


@pytest.mark.parametrize(("before", "after"), [(None, 130.0), (105.0, 105.0), (150.0, 130.0)])
def test_a_timeout_is_in_microseconds_from_the_arrival_and_the_earlier_deadline_counts(
    before: float | None, after: float
) -> None:
    context = RequestContext(received=100, deadline=before)
    _set_deadline({"timeout": 30_000_000}, context)
    assert context.deadline == after
    _set_deadline({"timeout": 0}, context)
    assert context.deadline == after


def test_names_must_not_be_repeated() -> None:
    assert by_name("input", [("b", 1), ("a", 2)]) == {"b": 1, "a": 2}
    with pytest.raises(MalformedRequest, match="The input a must not be repeated"):
        by_name("input", [("a", 1), ("b", 1), ("a", 1)])


def test_unknown_parameters_are_refused_with_the_known_ones() -> None:
    _check_parameters({"priority": 1, "timeout": 2, "size": 3}, ["size"])
    with pytest.raises(UnknownField, match="'sice'; known: priority, timeout, size"):
        _check_parameters({"sice": 3}, ["size"])
    refuse_unsupported("masks", ["content_type"])
    with pytest.raises(UnknownField, match="shared_memory_region of masks"):
        refuse_unsupported("masks", ["shared_memory_region"])


def test_each_row_of_points_boxes_and_masks_is_a_prompt() -> None:
    prompts = _prompts(
        tensors(
            points=np.array([[[1.5, 2], [3, 4]], [[5, 6], [0, 0]]]),
            labels=np.array([[1, 0], [0, -1]]),
            boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
            mask_input=np.arange(8, dtype=np.float32).reshape(2, 2, 2),
            multimask=np.array([False]),
        )
    )
    assert [prompt.points for prompt in prompts] == [(Point(1.5, 2, 1), Point(3, 4, 0)), (Point(5, 6, 0),)]
    assert [prompt.box for prompt in prompts] == [Box(1, 2, 3, 4), Box(5, 6, 7, 8)]
    assert np.array_equal(np.array([prompt.mask for prompt in prompts]), np.arange(8).reshape(2, 2, 2))
    assert not any(prompt.multimask for prompt in prompts)


def test_by_default_points_are_foreground_and_a_prompt_has_three_masks() -> None:
    (prompt,) = _prompts(tensors(points=np.array([[[1.0, 2.0]]])))
    assert (prompt.points, prompt.multimask) == ((Point(1, 2, 1),), True)


def test_labels_must_be_one_per_point() -> None:
    with pytest.raises(MalformedPrompt, match=r"got labels of shape \[1, 2\] and points of \[2, 1, 2\]"):
        _prompts(tensors(points=np.ones((2, 1, 2)), labels=np.ones((1, 2), np.int64)))


def test_pixels_are_an_image_with_an_id_of_its_own() -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (13, 7, 3), np.uint8)
    source = _image(tensors(image=pixels)).required()
    assert np.array_equal(source.pixels(1000), pixels)
    assert (source.size(1000), source.nbytes) == (Size(13, 7), 13 * 7 * 3)
    # However they lie in memory, the same pixels are the same image to the cache of embeddings.
    assert _image(tensors(image=np.asfortranarray(pixels))).required().content_id() == source.content_id()
    others = [pixels.reshape(7, 13, 3), pixels[::-1]]
    ids = {_image(tensors(image=other)).required().content_id() for other in others}
    assert len(ids - {source.content_id()}) == 2


def test_a_file_is_taken_as_it_is_and_text_is_base64() -> None:
    data = bytes_tensor("image", [b"YWI="], (1,))
    text = Tensor("image", "BYTES", np.array([b"YWI="], object), text=True)
    assert [_image({"image": image}).required().nbytes for image in (data, text)] == [4, 2]


def test_each_form_of_an_input_is_taken() -> None:
    for spec in TENSORS["sam"].inputs:
        for form in spec.forms:
            shape = tuple(2 if length == -1 else length for length in form.shape)
            _check_tensors(InferRequest({spec.name: Tensor(spec.name, form.datatype, np.zeros(shape))}), TENSORS["sam"])
            wrong = InferRequest({spec.name: Tensor(spec.name, form.datatype, np.zeros((1, *shape)))})
            with pytest.raises(MalformedRequest, match=f"The input {spec.name} must be"):
                _check_tensors(wrong, TENSORS["sam"])

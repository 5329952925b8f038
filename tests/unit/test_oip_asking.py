from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from service.messages import When
from service.oip.asking import Asked, by_name, known, refuse_elsewhere, wanted
from service.oip.inputs import check, image_of, prompts_of

from models.errors import MalformedPrompt
from models.images import decode
from models.types import Box, Point
from service.errors import MalformedRequest, UnknownField
from service.oip.models import TENSORS
from service.oip.tensors import Tensor, bytes_tensor

LONG_AGO = time.monotonic() - 1e9


def tensors(**arrays: Any) -> dict[str, Tensor]:
    kinds = {"f": "FP32", "i": "INT64", "b": "BOOL", "u": "UINT8"}
    return {name: Tensor(name, kinds[array.dtype.kind], array) for name, array in arrays.items()}


@pytest.mark.parametrize(("priority", "urgency"), [(1, 0), (2, 1), (4, 3), (8, 7), (9, 7), (2**62, 7), (0, 5)])
def test_a_priority_is_an_urgency_one_above_it_and_zero_leaves_what_was_told(priority: int, urgency: int) -> None:
    assert wanted({"priority": priority}, When(urgency=5), time.monotonic()) == When(None, urgency)


def test_a_timeout_counts_microseconds_from_the_arrival() -> None:
    arrived = time.monotonic() - 10
    within = wanted({"timeout": 30_000_000}, When(), arrived).within
    assert within == pytest.approx(20, abs=1)


@pytest.mark.parametrize(("told", "left"), [(5.0, 5.0), (None, 30.0), (50.0, 30.0)])
def test_the_earlier_limit_counts(told: float | None, left: float) -> None:
    within = wanted({"timeout": 30_000_000}, When(told), time.monotonic()).within
    assert within == pytest.approx(left, abs=1)


def test_without_parameters_what_was_told_stays() -> None:
    assert wanted({"timeout": 0, "priority": 0}, When(5.0, 2), LONG_AGO) == When(5.0, 2)


def test_names_are_there_once() -> None:
    assert by_name("input", [("b", 1), ("a", 2)]) == {"b": 1, "a": 2}
    with pytest.raises(MalformedRequest, match="The input a is there twice"):
        by_name("input", [("a", 1), ("b", 1), ("a", 1)])


def test_parameters_that_are_not_known_are_refused_and_told() -> None:
    known({"priority": 1, "timeout": 2, "size": 3}, ["size"])
    with pytest.raises(UnknownField, match="'sice' here; known: priority, timeout, size"):
        known({"sice": 3}, ["size"])
    refuse_elsewhere("masks", ["content_type"])
    with pytest.raises(UnknownField, match="shared_memory_region of masks"):
        refuse_elsewhere("masks", ["shared_memory_region"])


def test_rows_of_points_boxes_and_masks_make_a_prompt_each() -> None:
    prompts = prompts_of(
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
    masks = [prompt.mask for prompt in prompts]
    assert np.array_equal(np.array(masks), np.arange(8).reshape(2, 2, 2))
    assert not any(prompt.multimask for prompt in prompts)


def test_points_without_labels_are_foreground_and_masks_come_in_threes() -> None:
    (prompt,) = prompts_of(tensors(points=np.array([[[1.0, 2.0]]])))
    assert (prompt.points, prompt.multimask) == ((Point(1, 2, 1),), True)


def test_labels_must_be_one_per_point() -> None:
    with pytest.raises(MalformedPrompt, match=r"labels has the shape \[1, 2\] and points \[2, 1, 2\]"):
        prompts_of(tensors(points=np.ones((2, 1, 2)), labels=np.ones((1, 2), np.int64)))


def test_pixels_become_a_file_that_loses_nothing() -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (13, 7, 3), np.uint8)
    data = image_of(tensors(image=pixels))
    assert np.array_equal(decode(data, max_pixels=1000).pixels, pixels)
    # The same pixels are the same image to the cache of embeddings.
    assert image_of(tensors(image=np.asfortranarray(pixels))) == data


def test_a_file_is_taken_as_it_is_and_its_text_is_base64() -> None:
    assert image_of({"image": bytes_tensor("image", [b"YWI="], (1,))}) == b"YWI="
    assert image_of({"image": Tensor("image", "BYTES", np.array([b"YWI="], object), text=True)}) == b"ab"


def test_each_of_an_inputs_forms_is_taken() -> None:
    for spec in TENSORS["sam"].inputs:
        for form in spec.forms:
            shape = tuple(2 if length == -1 else length for length in form.shape)
            check(Asked({spec.name: Tensor(spec.name, form.datatype, np.zeros(shape))}), TENSORS["sam"])
            with pytest.raises(MalformedRequest, match=f"The input {spec.name} is"):
                check(Asked({spec.name: Tensor(spec.name, form.datatype, np.zeros((1, *shape)))}), TENSORS["sam"])

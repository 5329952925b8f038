"""Parameters and images of the Open Inference Protocol; its tensors are tested in `tests/contract`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import numpy as np
import pytest

from models.types import Size
from service.api.context import RequestContext
from service.oip.inference import InferRequest, infer
from service.oip.tensors import Tensor, bytes_tensor
from service.pipelines import Pipelines
from service.pipelines.source import RawImage
from tests.fakes import LOADED, PATIENCE_S, FakeSam, image_bytes, make_pipelines

TENSORS: Final = {
    "image": bytes_tensor("image", [image_bytes()], (1,)),
    "points": Tensor("points", "FP32", np.array([[[64, 48]]], np.float32)),
}


@pytest.fixture
async def pipelines() -> AsyncIterator[Pipelines]:
    opened = make_pipelines(FakeSam())
    yield opened
    await opened.engine.close(PATIENCE_S)


@pytest.mark.parametrize(("priority", "urgency"), [(1, 0), (2, 1), (4, 3), (8, 7), (9, 7), (2**62, 7), (0, 5)])
async def test_priority_one_is_urgency_zero_and_priority_zero_changes_nothing(
    pipelines: Pipelines, priority: int, urgency: int
) -> None:
    context = RequestContext(urgency=5, clock=pipelines.engine.clock)
    await infer(pipelines, LOADED, InferRequest(TENSORS, ("areas",), {"priority": priority}), context)
    assert (context.urgency, context.deadline) == (urgency, None)


@pytest.mark.parametrize(("before", "after"), [(None, 3000.0), (2000.0, 2000.0), (3500.0, 3000.0)])
async def test_a_timeout_is_in_microseconds_from_the_arrival_and_the_earlier_deadline_counts(
    pipelines: Pipelines, before: float | None, after: float
) -> None:
    now = pipelines.engine.clock()
    deadline = None if before is None else now + before
    context = RequestContext(received=now, arrived=now, deadline=deadline, clock=pipelines.engine.clock)
    for timeout in (3_000_000_000, 0):
        await infer(pipelines, LOADED, InferRequest(TENSORS, ("areas",), {"timeout": timeout}), context)
        assert context.deadline == now + after


def test_raw_pixels_have_an_id_of_their_shape_and_values() -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (13, 7, 3), np.uint8)
    source = RawImage(pixels)
    assert np.array_equal(source.pixels(1000), pixels)
    assert (source.size(1000), source.nbytes) == (Size(13, 7), 13 * 7 * 3)
    # However they lie in memory, the same pixels are the same image to the cache of embeddings.
    assert RawImage(np.asfortranarray(pixels)).content_id() == source.content_id()
    others = {RawImage(other).content_id() for other in (pixels.reshape(7, 13, 3), pixels[::-1])}
    assert len(others - {source.content_id()}) == 2

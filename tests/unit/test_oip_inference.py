"""Parameters and images of the Open Inference Protocol; its tensors are tested in `tests/contract`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, get_args

import numpy as np
import pytest

from models.letterbox import Padding
from models.types import Size
from service.api import schema
from service.api.context import RequestContext
from service.errors import UnsupportedInput
from service.oip.inference import InferRequest, infer
from service.oip.models import TENSORS as SPECS
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


@pytest.mark.parametrize(
    "parameters",
    [{"input_size": size} for size in get_args(schema.InputSize)] + [{"padding": "none"}, {"padding": "square"}],
)
async def test_input_sizes_and_paddings_are_those_of_the_schema(
    pipelines: Pipelines, parameters: dict[str, int | str]
) -> None:
    context = RequestContext(clock=pipelines.engine.clock)
    answer = await infer(pipelines, LOADED, InferRequest(TENSORS, ("areas",), parameters), context)
    assert answer.parameters == {"degraded": False}


async def test_every_padding_of_the_schema_is_known_and_the_model_must_support_it(pipelines: Pipelines) -> None:
    assert set(get_args(Padding)) == {"none", "square", "stretch"}
    context = RequestContext(clock=pipelines.engine.clock)
    with pytest.raises(UnsupportedInput, match="padding must be none or square, got stretch, which is for SAM 2"):
        await infer(pipelines, LOADED, InferRequest(TENSORS, ("areas",), {"padding": "stretch"}), context)


def test_tensors_are_the_fields_of_the_schema() -> None:
    def plural(model: type[schema.Schema]) -> set[str]:
        names = {info.alias or name for name, info in model.model_fields.items()}
        return {f"{name}es" if name in ("box", "class") else f"{name}s" for name in names}

    sam, unet = SPECS["sam"], SPECS["unet"]
    prompt = {{"box": "boxes", "mask": "mask_input"}.get(name, name) for name in schema.Prompt.model_fields}
    assert {spec.name for spec in sam.inputs} == prompt | {"image"}
    assert {spec.name for spec in sam.outputs} == plural(schema.ScoredMask) | {"logits"}
    assert {spec.name for spec in unet.inputs} == {"image"}
    assert {spec.name for spec in unet.outputs} == {f"object_{name}" for name in plural(schema.Region)} | {"class_map"}


def test_raw_pixels_have_an_id_of_their_shape_and_values() -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (13, 7, 3), np.uint8)
    source = RawImage(pixels)
    assert np.array_equal(source.pixels(1000, lambda: False), pixels)
    assert (source.size(1000), source.nbytes) == (Size(13, 7), 13 * 7 * 3)
    # However they lie in memory, the same pixels are the same image to the cache of embeddings.
    assert RawImage(np.asfortranarray(pixels)).content_id() == source.content_id()
    others = {RawImage(other).content_id() for other in (pixels.reshape(7, 13, 3), pixels[::-1])}
    assert len(others - {source.content_id()}) == 2

"""`/v1/text` with a model of an open vocabulary beside, or instead of, a detector; worked out by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from models.errors import BackendError
from service.api import detection
from service.runners.base import Runner
from service.runners.grounding import GroundingRunner
from tests.contract.door import ALL_MODELS, LIMITS, Door, checked, fields, image, problem, serving
from tests.contract.doors import pixels_of
from tests.contract.scenes import BLACK, PEEL
from tests.fake_detector import LOADED_DETECTOR, FakeDetector, WatchedDetectorRunner
from tests.fake_grounding import LOADED_GROUNDING, OTHER_GROUNDING, SCORE, FakeGrounding
from tests.fakes import (
    HEALTHY_BOX,
    INFECTED_BOX,
    LOADED,
    PEEL_SIZE,
    FakeSam,
    make_pipelines,
    make_settings,
    rectangle,
)

GREEN, RED = HEALTHY_BOX, INFECTED_BOX


@asynccontextmanager
async def with_grounding(door: Door, *, detector: bool = True) -> AsyncIterator[FakeGrounding]:
    """Serve a SAM and a model of an open vocabulary, with a detector before it."""
    sam = FakeSam()
    grounding = FakeGrounding(device="fake:3", clock=sam.clock)
    boxes = FakeDetector(device="fake:4", clock=sam.clock)

    def more(queue_of: Any) -> dict[str, Runner]:
        found: dict[str, Runner] = {}
        if detector:
            found[LOADED_DETECTOR.name] = WatchedDetectorRunner(LOADED_DETECTOR, boxes, queue_of(boxes.device))
        found[LOADED_GROUNDING.name] = GroundingRunner(LOADED_GROUNDING, grounding, queue_of(grounding.device))
        return found

    entries = {each.name: each for each in (LOADED_GROUNDING, OTHER_GROUNDING)}
    pipelines = make_pipelines(sam, more=more, catalogue={**ALL_MODELS, **entries}, settings=make_settings(**LIMITS))
    async with serving(door, pipelines):
        yield grounding


async def text(door: Door, words: str, data: bytes = PEEL, **values: Any) -> detection.TextResponse:
    answer = await door.post(image(data), fields(text=words, **values), path="/v1/text")
    return checked(answer, detection.TextResponse)


async def refused(door: Door, words: str, code: str, **values: Any) -> str:
    answer = await door.post(image(PEEL), fields(text=words, **values), path="/v1/text")
    return problem(answer, code).detail


async def test_nouns_that_no_detector_knows_are_found_and_outlined(door: Door) -> None:
    async with with_grounding(door) as grounding:
        answer = await text(door, "Red spots and the green fruit.")
        assert grounding.asked == [("red spots", "green fruit")]
    assert answer.classes == ["red spots", "green fruit"]
    assert (answer.models.detector.name, answer.models.detector.revision) == (LOADED_GROUNDING.name, "2a" * 6)
    assert (answer.models.detector.input_width, answer.models.detector.input_height) == (448, 224)
    assert answer.models.sam is not None
    assert answer.models.sam.name == LOADED.name
    found = [(one.class_name, one.class_id, one.box, one.score) for one in answer.instances]
    assert found == [("red spots", 0, RED, SCORE), ("green fruit", 1, GREEN, SCORE)]
    for one, box in zip(answer.instances, (RED, GREEN), strict=True):
        np.testing.assert_array_equal(pixels_of(one.mask.model_dump(mode="json")), rectangle(*box, PEEL_SIZE))
    assert (answer.batch.infer, answer.batch.prompt) == (1, 2)


async def test_what_the_detector_knows_is_answered_by_it_unless_the_other_is_named(door: Door) -> None:
    async with with_grounding(door) as grounding:
        assert (await text(door, "oranges")).models.detector.name == LOADED_DETECTOR.name
        # One noun that it does not know is enough.
        assert (await text(door, "green oranges")).models.detector.name == LOADED_GROUNDING.name
        named = await text(door, "green", model=LOADED_GROUNDING.name)
        assert (named.models.detector.name, named.classes) == (LOADED_GROUNDING.name, ["green"])
        assert "knows no class 'plums'" in await refused(door, "plums", "unknown_class", model=LOADED_DETECTOR.name)
        assert grounding.asked == [("green oranges",), ("green",)]


async def test_no_detector_is_needed(door: Door) -> None:
    async with with_grounding(door, detector=False):
        assert [one.class_name for one in (await text(door, "red things")).instances] == ["red things"]
        assert (await text(door, "red things", BLACK)).instances == []


async def test_a_click_refines_and_scores_and_counts_are_limited(door: Door) -> None:
    async with with_grounding(door) as grounding:
        answer = await text(door, "green fruit, red fruit", points=[[40, 40]], labels=[0])
        assert [one.box for one in answer.instances] == [GREEN, RED]
        assert (await text(door, "green fruit", score_threshold=0.9)).instances == []
        assert len((await text(door, "green fruit, red fruit", max_instances=1)).instances) == 1
        assert "in a box of what the text names" in await refused(
            door, "green fruit", "malformed_prompt", points=[[200, 10]]
        )
        asked = len(grounding.asked)
        await refused(door, "green fruit", "prompt_outside_image", points=[[300, 40]])
        await refused(door, "green fruit", "malformed_prompt", points=[[40, 40]], labels=[2])
        assert len(grounding.asked) == asked


async def test_texts_that_are_too_much_are_refused_before_anything_runs(door: Door) -> None:
    async with with_grounding(door) as grounding:
        many = ", ".join(f"green {number}" for number in range(17))
        assert "at most 16 things, got 17" in await refused(door, many, "malformed_prompt")
        assert "1 to 40 tokens" in await refused(door, "green " + "x" * 60, "malformed_prompt")
        await refused(door, "x" * 257, "malformed_request")
        assert grounding.asked == []


async def test_a_model_that_is_not_loaded_or_cannot_read_is_refused(door: Door) -> None:
    async with with_grounding(door):
        await refused(door, "green", "model_not_loaded", model=OTHER_GROUNDING.name)
        await refused(door, "green", "wrong_model_family", model=LOADED.name)
        await refused(door, "green", "unknown_model", model="third-word")
        answer = await door.post(image(PEEL), fields(model=LOADED_GROUNDING.name), path="/v1/detect")
        assert "a model of an open vocabulary" in problem(answer, "wrong_model_family").detail


async def test_a_failing_device_fails_the_request_alone(door: Door) -> None:
    async with with_grounding(door) as grounding:
        grounding.fails = BackendError("the device failed")
        await refused(door, "green", "internal_error")
        grounding.fails = None
        assert len((await text(door, "green")).instances) == 1


@pytest.mark.parametrize("path", ["", "/infer"])
async def test_the_open_inference_protocol_does_not_serve_it(door: Door, path: str) -> None:
    async with with_grounding(door):
        url = f"/v2/models/{LOADED_GROUNDING.name}{path}"
        answer = await (door.client.post(url, json={"inputs": []}) if path else door.client.get(url))
    assert answer.status_code == 422
    assert "use /v1/text" in answer.json()["error"]

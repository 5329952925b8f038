"""`/v1/inspect` with the default models."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from models.masks import Rle, bounding_box, decode_rle
from models.types import BinaryMask, PixelClass
from service.api import schema
from tests.system.calls import ENTRY, FRUITS, SIZE, Scene, answered, iou, post, render_scene

pytestmark = pytest.mark.checkpoint

TRIES = 10
LESIONS = (12, 13, 38)
"""Seeds of scenes in which one of three fruits has rot, mould, or rot over two fifths of it."""

GRADES = [{"grade": "fine", "max_infected_fraction": 0.5}]


def send(client: httpx.Client, scene: Scene, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return post(client, "/v1/inspect", scene.data, headers, **({"grades": GRADES} | fields))


def inspect(client: httpx.Client, scene: Scene, **fields: Any) -> schema.InspectResponse:
    return answered(send(client, scene, **fields), schema.InspectResponse)


def pixels_of(fruit: schema.Fruit) -> BinaryMask:
    """Return the mask; the fruit's measures are checked against its pixels."""
    assert isinstance(fruit.mask, schema.RleMask)
    assert isinstance(fruit.infected_mask, schema.RleMask)
    mask, infected = (decode_rle(Rle(one.size, one.counts)) for one in (fruit.mask, fruit.infected_mask))
    assert mask.shape == (SIZE.height, SIZE.width)
    assert (bounding_box(mask), mask.sum()) == (fruit.box, fruit.area)
    assert not (infected & ~mask).any()
    assert fruit.infected_fraction == infected.sum() / mask.sum()
    assert fruit.pixel_class == ("infected" if fruit.infected_fraction >= 0.02 else "healthy")
    assert fruit.grade == ("fine" if fruit.infected_fraction <= 0.5 else "reject")
    assert 0 <= fruit.confidence <= 1
    return mask


@pytest.mark.parametrize("mode", ["fast", "accurate"])
def test_the_measures_of_fruit_are_those_of_its_masks(client: httpx.Client, mode: str) -> None:
    found = 0
    for seed in range(20, 24):
        answer = inspect(client, render_scene(seed), mode=mode, frame_id="7", captured_at_ns=1)
        assert (answer.mode, answer.degraded) == (mode, False)
        assert answer.frame.model_dump() == {"frame_id": "7", "trigger_id": None, "captured_at_ns": 1}
        masks = [pixels_of(fruit) for fruit in answer.fruits]
        assert not masks or np.sum(masks, axis=0).max() == 1
        assert [fruit.id for fruit in answer.fruits] == list(range(1, len(masks) + 1))
        assert answer.timing_ms.infer > 0
        if mode == "accurate":
            assert answer.models.sam is not None
            assert answer.models.sam.name == ENTRY.name
            assert bool(answer.timing_ms.prompt) is bool(answer.fruits)
        parts = answer.timing_ms.model_dump()
        total = parts.pop("total")
        assert sum(parts.values()) <= total + 0.05
        found += len(masks)
    assert found > 0


@pytest.mark.parametrize("mode", ["fast", "accurate"])
@pytest.mark.parametrize("seed", LESIONS)
def test_a_rendered_lesion_is_found_where_it_is(client: httpx.Client, seed: int, mode: str) -> None:
    scene = render_scene(seed, infected_share=0.4)
    answer = inspect(client, scene, mode=mode)
    assert len(answer.fruits) == FRUITS
    infected = scene.sample.semantic == PixelClass.INFECTED
    for instance in scene.sample.instances:
        whole = scene.fruit(instance.id)
        fruit = max(answer.fruits, key=lambda one: iou(pixels_of(one), whole))
        assert iou(pixels_of(fruit), whole) > 0.9
        lesion = whole & infected
        assert fruit.pixel_class == ("infected" if lesion.any() else "healthy")
        if lesion.any():
            assert isinstance(fruit.infected_mask, schema.RleMask)
            assert iou(decode_rle(Rle(fruit.infected_mask.size, fruit.infected_mask.counts)), lesion) > 0.4
            assert abs(fruit.infected_fraction - lesion.sum() / whole.sum()) < 0.06
    assert infected.any()


def test_an_overlay_has_the_images_size(client: httpx.Client, scene: Scene) -> None:
    answer = inspect(client, scene, mode="accurate", overlay=True)
    assert answer.overlay is not None
    overlay = PIL.Image.open(io.BytesIO(answer.overlay))
    assert (overlay.format, overlay.size) == ("PNG", (SIZE.width, SIZE.height))
    assert answer.fruits
    assert (np.asarray(overlay) != scene.sample.pixels).any()


def test_auto_is_accurate_where_there_is_time_and_fast_where_there_is_not(client: httpx.Client, scene: Scene) -> None:
    for _ in range(3):  # so that times are learned
        answer = inspect(client, scene)
        assert (answer.mode, answer.degraded) == ("accurate", False)
        inspect(client, scene, mode="fast")
    # Enough for the U-Net by far, but not for the SAM's encoder.
    headers = {"x-deadline-ms": str(0.7 * answer.timing_ms.encode)}
    for _ in range(TRIES):  # a machine that is busy with other things may miss some
        hurried = send(client, scene, headers)
        if hurried.status_code == 200:
            break
        assert hurried.status_code == 504, hurried.text
    fast = answered(hurried, schema.InspectResponse)
    assert (fast.mode, fast.degraded, fast.models.sam) == ("fast", True, None)
    assert fast.reason
    assert len(fast.fruits) == len(answer.fruits)


def test_a_bad_inspection_is_refused(client: httpx.Client, scene: Scene) -> None:
    answer = send(client, scene, grades=[])
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")

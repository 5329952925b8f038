"""`/v1/detect`, `/v1/instances` and `/v1/text`, worked out by hand."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import PIL.Image
import pytest

from models import images
from service.api import detection, schema
from tests.contract.door import Door, checked, fields, image, problem, within
from tests.contract.doors import pixels_of
from tests.contract.scenes import BLACK, PEEL, fruit_image
from tests.fake_detector import LOADED_DETECTOR
from tests.fakes import HEALTHY_BOX, INFECTED_BOX, LOADED, PATIENCE_S, PEEL_SIZE, SECOND, peel_image, rectangle

ORANGE: Final = HEALTHY_BOX
APPLE: Final = INFECTED_BOX


async def instances(door: Door, data: bytes = PEEL, **values: Any) -> detection.InstancesResponse:
    answer = await door.post(image(data), fields(**values), path="/v1/instances")
    return checked(answer, detection.InstancesResponse)


async def text(door: Door, words: str, **values: Any) -> detection.TextResponse:
    answer = await door.post(image(PEEL), fields(text=words, **values), path="/v1/text")
    return checked(answer, detection.TextResponse)


async def test_objects_are_answered_with_class_score_and_box_the_best_first(door: Door) -> None:
    answer = await door.detect()
    assert answer.image == schema.Image(id=images.content_id(PEEL), width=224, height=112)
    assert answer.model == schema.DetectorModel(
        name=LOADED_DETECTOR.name, revision="0f" * 6, input_width=448, input_height=224
    )
    assert [(one.class_name, one.class_id, one.score) for one in answer.detections] == [
        ("orange", 0, 0.75),
        ("apple", 1, 0.5),
    ]
    for one, box in zip(answer.detections, (ORANGE, APPLE), strict=True):
        assert one.box == pytest.approx(box, abs=1e-4)
    assert (answer.overlay, answer.batch) == (None, schema.Batch(encode=0, prompt=0, infer=1))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"classes": ["Apples"]}, ["apple"]),
        ({"classes": ["apple", "orange", "orange"]}, ["orange", "apple"]),
        ({"classes": []}, ["orange", "apple"]),
        ({"score_threshold": 0.6}, ["orange"]),
        ({"score_threshold": 0.8}, []),
        ({"max_detections": 1}, ["orange"]),
    ],
)
async def test_only_what_is_wanted_is_answered(door: Door, wanted: dict[str, Any], found: list[str]) -> None:
    assert [one.class_name for one in (await door.detect(**wanted)).detections] == found


async def test_boxes_lie_in_the_image_after_its_orientation(door: Door) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    answer = await door.detect(peel_image(exif=exif.tobytes()))
    assert (answer.image.width, answer.image.height) == (112, 224)
    x0, y0, x1, y1 = ORANGE
    assert answer.detections[0].box == pytest.approx((112 - y1, x0, 112 - y0, x1), abs=1e-4)


async def test_an_overlay_has_a_labelled_box_around_each_object(door: Door) -> None:
    answer = await door.detect(BLACK, overlay=True)
    assert answer.overlay is not None
    assert not np.asarray(PIL.Image.open(io.BytesIO(answer.overlay))).any()
    drawn = await door.detect(overlay=True)
    assert drawn.overlay is not None
    pixels = np.asarray(PIL.Image.open(io.BytesIO(drawn.overlay)))
    assert pixels.shape == (PEEL_SIZE.height, PEEL_SIZE.width, 3)
    x0, y0, x1, y1 = APPLE
    assert tuple(pixels[(y0 + y1) // 2, x0]) != (255, 0, 0)
    assert tuple(pixels[(y0 + y1) // 2 + 16, (x0 + x1) // 2]) == (255, 0, 0)


async def test_each_box_becomes_a_mask_of_the_sam_in_one_batch(door: Door) -> None:
    answer = await instances(door)
    assert answer.models.detector.name == LOADED_DETECTOR.name
    assert answer.models.sam is not None
    assert (answer.models.sam.name, answer.degraded) == (LOADED.name, False)
    assert [(one.class_name, one.score, one.box) for one in answer.instances] == [
        ("orange", 0.75, ORANGE),
        ("apple", 0.5, APPLE),
    ]
    for one, box in zip(answer.instances, (ORANGE, APPLE), strict=True):
        mask = pixels_of(one.mask.model_dump(mode="json"))
        np.testing.assert_array_equal(mask, rectangle(*box, PEEL_SIZE))
        assert one.area == mask.sum()
        assert one.mask_score == pytest.approx(0.5)
        assert one.detected_box == pytest.approx(box, abs=1e-4)
    assert answer.batch == schema.Batch(encode=1, prompt=2, infer=1)
    assert [call.prompts for call in door.sam.decodes] == [2]


async def test_the_sam_that_is_named_outlines_and_a_known_image_is_not_encoded_again(door: Door) -> None:
    assert (await instances(door, sam_model=SECOND.name)).models.sam is not None
    assert (door.sam.encodes, door.second.encodes) == ([], [1])
    again = await instances(door, sam_model=SECOND.name)
    assert (again.batch.encode, again.batch.infer, door.second.encodes) == (0, 1, [1])


async def test_the_best_objects_are_outlined_where_there_are_more_than_prompts(door: Door) -> None:
    four = fruit_image(*[(x, 20, x + 50, 70) for x in (10, 110, 210, 310)])
    assert len((await door.detect(four)).detections) == 4
    assert len((await instances(door, four)).instances) == 3  # POMONA_MAX_PROMPTS
    assert len((await instances(door, four, max_instances=2)).instances) == 2


async def test_where_nothing_is_found_no_sam_runs(door: Door) -> None:
    answer = await instances(door, BLACK, overlay=True)
    assert (answer.instances, answer.models.sam, answer.overlay) == ([], None, None)
    assert door.sam.encodes == []


async def test_a_text_finds_what_its_nouns_name(door: Door) -> None:
    answer = await text(door, "The apples.")
    assert (answer.classes, [one.class_name for one in answer.instances]) == (["apple"], ["apple"])
    both = await text(door, "an orange, all oranges and each apple")
    assert (both.classes, len(both.instances)) == (["orange", "apple"], 2)


async def test_a_click_refines_the_smallest_box_around_it(door: Door) -> None:
    answer = await text(door, "oranges and apples", points=[[150, 60], [40, 40]], labels=[0, 1])
    assert [one.box for one in answer.instances] == [ORANGE, APPLE]
    problem(
        await door.post(image(PEEL), fields(text="oranges", points=[[40, 40], [2, 3]]), path="/v1/text"),
        "malformed_prompt",
    )


async def test_the_time_of_the_sam_counts_against_a_deadline_before_the_detector_runs(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    await instances(door, peel_image(1))
    door.forget()
    answer = await door.post(image(peel_image(2)), fields(), path="/v1/instances", headers=within(1000 * PATIENCE_S))
    problem(answer, "deadline_unreachable")
    assert door.encodes == []

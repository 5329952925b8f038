"""`/v1/semantic`, as callers meet it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from service.pipeline import Pipeline

from models import images
from models.errors import BackendError
from models.masks import Rle, decode_rle
from models.overlay import CLASS_COLOURS
from models.polygons import decode_polygons
from models.types import BinaryMask
from service.api import schema
from service.http import semantic_schema as semantic
from tests.contract.door import BOX, HELD, Door, asked, checked, image, only, plain, problem
from tests.contract.test_http_deadlines import Caller, within
from tests.fakes import (
    HEALTHY_BOX,
    INFECTED_BOX,
    LOADED_UNET,
    PATIENCE_S,
    PEEL_FRAME,
    PEEL_SIZE,
    FakeSam,
    FakeUNet,
    image_bytes,
    make_pipelines,
    peel_image,
    rectangle,
)

PEEL = peel_image()
BLACK = image_bytes(size=PEEL_SIZE)
PATH = "/v1/semantic"
HEALTHY, INFECTED = (rectangle(*box, PEEL_SIZE) for box in (HEALTHY_BOX, INFECTED_BOX))
SECONDS = PEEL_FRAME.padded.pixels / 1e4
"""Of the network for a image_bytes, where a megapixel takes 100: about 10."""


def from_rle(mask: Any) -> BinaryMask:
    return decode_rle(Rle(mask.size, mask.counts))


def from_polygons(mask: Any) -> BinaryMask:
    return decode_polygons(mask.polygons, PEEL_SIZE)


def drawing(data: str | None) -> PIL.Image.Image:
    assert data is not None
    drawn = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert (drawn.format, drawn.size) == ("PNG", (PEEL_SIZE.width, PEEL_SIZE.height))
    return drawn


def pixels_of(drawn: PIL.Image.Image) -> NDArray[np.uint8]:
    return np.asarray(drawn, np.uint8)


async def test_a_image_goes_in_and_a_mask_for_each_class_and_its_objects_come_out(door: Door) -> None:
    answer = await door.semantic(PEEL)
    assert answer.image == schema.ImageOut(id=images.content_id(PEEL), width=224, height=112)
    assert answer.model == semantic.SemanticModelRef(
        name=LOADED_UNET.name, revision="0d" * 6, input_width=448, input_height=224
    )
    assert [(one.name, one.area) for one in answer.classes] == [("healthy", 64 * 48), ("infected", 96 * 56)]
    assert [(one.name, one.box, one.area) for one in answer.objects] == [
        ("infected", INFECTED_BOX, 96 * 56),
        ("healthy", HEALTHY_BOX, 64 * 48),
    ]
    # All of it but the rim is fruit with a logit of 8 against 0.
    assert all(0.98 < one.score < 1 for one in answer.objects)
    assert (answer.class_map, answer.overlay) == (None, None)
    assert answer.batch == semantic.SemanticBatch(infer=1)
    assert door.unet.frames == [PEEL_FRAME]


@pytest.mark.parametrize(
    ("name", "kind", "decode"),
    [("rle", schema.RleMask, from_rle), ("polygons", schema.PolygonsMask, from_polygons)],
)
async def test_each_format_decodes_to_the_same_masks(door: Door, name: str, kind: Any, decode: Any) -> None:
    answer = await door.semantic(PEEL, format=name)
    for one, expected in zip(answer.classes, (HEALTHY, INFECTED), strict=True):
        assert type(one.mask) is kind
        np.testing.assert_array_equal(decode(one.mask), expected)
    assert answer.class_map is None


async def test_as_png_all_classes_come_in_one_indexed_image(door: Door) -> None:
    answer = await door.semantic(PEEL, format="png")
    assert [(one.name, one.mask, one.area) for one in answer.classes] == [
        ("healthy", None, 64 * 48),
        ("infected", None, 96 * 56),
    ]
    drawn = drawing(answer.class_map)
    assert drawn.mode == "P"
    np.testing.assert_array_equal(pixels_of(drawn), HEALTHY + 2 * INFECTED.view(np.uint8))
    assert {colour for _, colour in drawn.convert("RGB").getcolors() or []} == set(CLASS_COLOURS)


async def test_an_overlay_is_the_image_with_each_class_tinted_in_its_colour(door: Door) -> None:
    answer = await door.semantic(PEEL, overlay=True)
    assert [one.area for one in answer.classes] == [64 * 48, 96 * 56]
    pixels = pixels_of(drawing(answer.overlay))
    assert not pixels[~(HEALTHY | INFECTED)].any()
    assert tuple(pixels[16, 16]) == CLASS_COLOURS[1]  # outlines are not mixed
    assert tuple(pixels[40, 112]) == CLASS_COLOURS[2]
    assert tuple(pixels[40, 48]) == (0, 192, 80)  # 0.55 of green and 0.45 of the class's colour


async def test_a_image_without_fruit_has_empty_classes_and_no_objects(door: Door) -> None:
    answer = await door.semantic(BLACK)
    assert [(one.name, one.area) for one in answer.classes] == [("healthy", 0), ("infected", 0)]
    assert not any(from_rle(one.mask).any() for one in answer.classes)
    assert answer.objects == []
    polygons = await door.semantic(BLACK, format="polygons")
    assert [one.mask for one in polygons.classes] == [schema.PolygonsMask(polygons=[])] * 2


async def test_masks_lie_in_the_image_after_its_orientation(door: Door) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    for overlay in (False, True):
        answer = await door.semantic(peel_image(exif=exif.tobytes()), overlay=overlay)
        assert (answer.image.width, answer.image.height) == (112, 224)
        np.testing.assert_array_equal(from_rle(answer.classes[0].mask), np.rot90(HEALTHY, -1))
        x0, y0, x1, y1 = HEALTHY_BOX
        assert answer.objects[1].box == (112 - y1, x0, 112 - y0, x1)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WebP"])
async def test_each_lossless_image_format_gives_the_same(door: Door, file_format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if file_format == "WebP" else {}
    answer = await door.semantic(peel_image(file_format=file_format, **options))
    np.testing.assert_array_equal(from_rle(answer.classes[0].mask), HEALTHY)


async def test_a_image_as_the_body_is_answered_as_a_part_is(door: Door) -> None:
    for options in ({}, {"request": json.dumps({"format": "polygons", "model": LOADED_UNET.name})}):
        raw = await door.client.post(PATH, content=PEEL, params=options, headers={"content-type": "image/png"})
        assert [one.area for one in checked(raw, semantic.SemanticOut).classes] == [64 * 48, 96 * 56]
    empty = await door.client.post(PATH, content=b"", headers={"content-type": "image/png"})
    problem(empty, "not_an_image")


async def test_a_request_without_the_field_request_is_answered_with_the_defaults(door: Door) -> None:
    answer = checked(await door.post(image(PEEL), path=PATH), semantic.SemanticOut)
    np.testing.assert_array_equal(from_rle(answer.classes[1].mask), INFECTED)


async def test_the_same_image_again_is_looked_at_anew(door: Door) -> None:
    for _ in range(2):
        assert (await door.semantic(PEEL)).timing_ms.infer > 0
    assert door.unet.encodes == [1, 1]
    problem(await door.post(plain("image_id", images.content_id(PEEL)), asked(BOX)), "unknown_image_id")


async def test_the_parts_of_the_time_lie_within_the_whole(door: Door) -> None:
    timings = (await door.semantic(PEEL, overlay=True)).timing_ms.model_dump()
    total = timings.pop("total")
    assert set(timings) == {"decode", "queue", "infer", "postprocess"}
    assert all(value >= 0 for value in timings.values())
    assert timings["decode"] > 0 < timings["postprocess"]
    assert sum(timings.values()) <= total + 0.05  # each is rounded to 0.01


async def test_an_answer_leaves_one_line_with_its_facts(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.http")
    answer = await door.semantic(PEEL)
    (line,) = (vars(record) for record in caplog.records)
    assert (line["path"], line["status"], line["model"], line["objects"]) == (PATH, 200, LOADED_UNET.name, 2)
    assert line["timing_ms"] == answer.timing_ms.model_dump()


@asynccontextmanager
async def served(door: Door, pipeline: Pipeline) -> AsyncIterator[None]:
    """The door with other models behind it."""
    door.app.pipelines = pipeline
    try:
        yield
    finally:
        await pipeline.close(PATIENCE_S)


async def test_where_no_model_of_the_family_is_loaded_the_answer_says_how_to_load_one(door: Door) -> None:
    async with served(door, make_pipelines(FakeSam())):
        body = problem(await door.post(image(PEEL), path=PATH), "model_not_loaded")
        assert "POMONA_MODELS=orange-sam,peel-unet would load one" in body.detail
    async with served(door, make_pipelines(unet=FakeUNet())):
        for answer in (await door.post(image(), asked(BOX)), await door.post(image(), path="/v1/embed")):
            assert "POMONA_MODELS=peel-unet,orange-sam" in problem(answer, "model_not_loaded").detail
        assert (await door.semantic(PEEL)).model.name == LOADED_UNET.name


async def test_images_that_wait_share_a_batch_and_each_gets_its_own_answer(door: Door) -> None:
    door.unet.image_batches = (1, 2, 4)
    door.unet.infer_s_per_batch = 1
    await door.unet_runner.warm_up()
    door.unet.forget()
    busy = await door.hold_unet()
    calls = [asyncio.create_task(door.semantic(data)) for data in (peel_image(1), BLACK, peel_image(2))]
    await door.unet_runner.images.reach(4)
    door.let_go()
    await busy
    together = await asyncio.gather(*calls)
    assert door.unet.encodes == [1, 3]
    assert [answer.batch.infer for answer in together] == [3, 3, 3]
    assert [len(answer.objects) for answer in together] == [2, 0, 2]
    assert len({answer.image.id for answer in together}) == 3


async def test_one_bad_image_of_a_shared_batch_fails_alone(door: Door) -> None:
    busy = await door.hold_unet()
    door.unet.spoilt = {2}
    calls = [door.start(image(peel_image(mark)), path=PATH) for mark in (1, 2, 3)]
    await door.unet_runner.images.reach(4)
    door.let_go()
    await busy
    first, bad, last = await asyncio.gather(*calls)
    for good in (first, last):
        assert len(checked(good, semantic.SemanticOut).objects) == 2
    problem(bad, "internal_error")


async def test_a_failing_device_leaks_nothing_and_the_next_caller_notices_nothing(door: Door) -> None:
    door.unet.fails = BackendError("CUDA: secret path /srv/weights")
    answer = await door.post(image(PEEL), path=PATH)
    problem(answer, "internal_error")
    assert "secret" not in answer.text
    door.unet.fails = None
    assert len((await door.semantic(PEEL)).objects) == 2


async def test_a_deadline_that_passes_in_the_queue_is_answered_at_once_and_nothing_is_run(door: Door) -> None:
    busy = await door.hold_unet()
    began = time.monotonic()
    problem(await door.post(image(peel_image(1)), path=PATH, headers=within(300)), "deadline_exceeded")
    assert 0.3 <= time.monotonic() - began < PATIENCE_S / 2
    assert not busy.done()
    door.let_go()
    await busy
    assert door.unet.encoded == [HELD]


async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_run(door: Door) -> None:
    door.unet.infer_s_per_megapixel = 1000
    await door.unet_runner.warm_up()
    door.unet.forget()
    late = await door.post(image(PEEL), path=PATH, headers=within(1000 * (10 * SECONDS - PATIENCE_S)))
    problem(late, "deadline_unreachable")
    assert (door.unet.prepares, door.unet.encodes) == (0, [])
    in_time = await door.post(image(PEEL), path=PATH, headers=within(1000 * (10 * SECONDS + PATIENCE_S)))
    assert len(checked(in_time, semantic.SemanticOut).objects) == 2


async def test_the_more_urgent_go_first(door: Door) -> None:
    busy = await door.hold_unet()
    calls = []
    for mark, urgency in enumerate((7, 0, 4)):
        headers = {"priority": f"u={urgency}"}
        calls.append(door.start(image(peel_image(mark)), path=PATH, headers=headers))
        await door.unet_runner.images.reach(1 + len(calls))
    door.let_go()
    await asyncio.gather(busy, *calls)
    assert door.unet.encoded == [HELD, 1, 2, 0]


async def test_a_caller_who_leaves_the_queue_is_dropped_before_anything_is_run(door: Door) -> None:
    busy = await door.hold_unet()
    leaving = Caller(image(peel_image(1)), path=PATH)
    call = asyncio.create_task(door.app(leaving.scope, leaving.receive, leaving.send))
    await door.unet_runner.images.reach(2)
    staying = asyncio.create_task(door.semantic(peel_image(2)))
    await door.unet_runner.images.reach(3)
    leaving.hang_up()
    await call
    door.let_go()
    await asyncio.gather(busy, staying)
    assert door.unet.encoded == [HELD, 2]


async def test_prompts_and_classes_do_not_wait_for_each_other(door: Door) -> None:
    busy = await door.hold_unet()
    assert only(await door.segment(image(), asked(BOX))).box == (32, 16, 64, 48)
    assert not busy.done()
    door.let_go()
    await busy

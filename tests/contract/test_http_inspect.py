"""`/v1/inspect`, as callers meet it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from service.http.semantic_schema import SemanticModelRef

from models import images
from models.backends.base import Embedding
from models.errors import BackendError
from models.masks import Rle, decode_png, decode_rle
from models.polygons import decode_polygons
from models.sam.prompts import PackedPrompts
from models.types import BinaryMask, Logits, Size
from service.api import schema
from service.http import inspect_schema as inspection
from tests.contract.door import HELD, Door, Parts, checked, image, open_door, plain, problem
from tests.contract.test_http_deadlines import Caller, within
from tests.contract.test_http_semantic import served
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    PATIENCE_S,
    SECOND,
    FakePeel,
    FakeSam,
    FakeUNet,
    encode_image,
    image_bytes,
    make_pipelines,
    make_settings,
    rectangle,
    with_votes,
)

PATH = "/v1/inspect"
SIZE = Size(224, 448)
"""A cell of what the U-Net sees is a pixel of such a image_bytes."""

Box = tuple[int, int, int, int]

CLEAN: Box = (40, 40, 140, 140)
SICK: Box = (240, 60, 340, 160)
SPOT: Box = (250, 70, 290, 90)
"""8 of 100 hundredths of the fruit around it."""


def fruit_image(*fruits: Box, spots: Sequence[Box] = (), mark: int = 0) -> bytes:
    """Healthy fruits, infected in spots, as `FakeUNet` sees them."""
    pixels = np.zeros((SIZE.height, SIZE.width, 3), np.uint8)
    for boxes, channel in ((fruits, 1), (spots, 0)):
        for x0, y0, x1, y1 in boxes:
            pixels[y0:y1, x0:x1, :2] = 0
            pixels[y0:y1, x0:x1, channel] = 255
    pixels[..., 2] = mark
    return encode_image(pixels)


TWO = fruit_image(CLEAN, SICK, spots=[SPOT])
BLACK = fruit_image()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door() as opened:  # the images here are larger than the other tests' limit
        yield opened


async def inspect(
    door: Door, data: bytes = TWO, headers: dict[str, str] | None = None, **fields: Any
) -> inspection.InspectOut:
    return checked(await post(door, data, headers, **fields), inspection.InspectOut)


async def post(door: Door, data: bytes = TWO, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return await door.post(image(data), plain("request", json.dumps(fields)), path=PATH, headers=headers)


def from_rle(mask: Any) -> BinaryMask:
    return decode_rle(Rle(mask.size, mask.counts))


def from_png(mask: Any) -> BinaryMask:
    return decode_png(base64.b64decode(mask.png, validate=True))


def from_polygons(mask: Any) -> BinaryMask:
    return decode_polygons(mask.polygons, SIZE)


async def test_fast_tells_every_fruit_its_infected_share_its_class_and_its_grade(door: Door) -> None:
    answer = await inspect(door, mode="fast")
    assert answer.image == schema.ImageOut(id=images.content_id(TWO), width=448, height=224)
    assert answer.models.unet == SemanticModelRef(
        name=LOADED_UNET.name, revision="0d" * 6, input_width=448, input_height=224
    )
    assert answer.models.sam is None
    assert (answer.mode, answer.degraded, answer.reason, answer.overlay) == ("fast", False, None, None)
    clean, sick = answer.fruits
    assert (clean.id, clean.box, clean.area, clean.name, clean.grade) == (1, CLEAN, 10_000, "healthy", "A")
    assert (sick.id, sick.box, sick.area, sick.name, sick.grade) == (2, SICK, 10_000, "infected", "C")
    assert (clean.infected_fraction, sick.infected_fraction) == (0, 0.08)
    np.testing.assert_array_equal(from_rle(clean.mask), rectangle(*CLEAN, SIZE))
    np.testing.assert_array_equal(from_rle(sick.mask), rectangle(*SICK, SIZE))
    np.testing.assert_array_equal(from_rle(sick.infected_mask), rectangle(*SPOT, SIZE))
    assert not from_rle(clean.infected_mask).any()
    # A logit of 8 against those of background and the other class, 0 and -8.
    assert [fruit.confidence for fruit in answer.fruits] == pytest.approx([1 / (1 + np.exp(-8))] * 2, abs=1e-4)
    assert [(fruit.truncated, fruit.refined) for fruit in answer.fruits] == [(False, False)] * 2
    assert answer.batch == inspection.InspectBatch(infer=1, encode=0, prompt=0)
    assert door.sam.encodes == []


async def test_accurate_lets_the_sam_draw_the_outlines_and_counts_what_of_them_is_infected(door: Door) -> None:
    answer = await inspect(door, mode="accurate")
    assert answer.models.sam == schema.ModelRef(name=LOADED.name, revision="0a" * 6, input_size=1024, padding="none")
    assert (answer.mode, answer.degraded, answer.reason) == ("accurate", False, None)
    clean, sick = answer.fruits
    assert clean.refined
    assert sick.refined
    # The fake SAM's mask is the box that it is asked for: the fruit's, grown by the same on all sides.
    grown = 240 - sick.box[0]
    assert sick.box == (240 - grown, 60 - grown, 340 + grown, 160 + grown)
    assert 0 < grown < 10
    assert (from_rle(sick.mask) != rectangle(*sick.box, SIZE)).sum() <= 4  # interpolation rounds the corners
    assert sick.area == from_rle(sick.mask).sum()
    assert sick.infected_fraction == 800 / sick.area
    np.testing.assert_array_equal(from_rle(sick.infected_mask), rectangle(*SPOT, SIZE))
    assert answer.batch == inspection.InspectBatch(infer=1, encode=1, prompt=2)
    assert (door.unet.encodes, door.sam.encodes) == ([1], [1])
    assert [frame.original for frame in door.sam.frames] == [SIZE]


async def test_auto_is_accurate_where_nothing_hinders(door: Door) -> None:
    answer = await inspect(door)
    assert (answer.mode, answer.degraded, answer.reason) == ("accurate", False, None)
    again = await inspect(door, mode="auto", headers=within(60_000))
    assert (again.mode, again.fruits) == ("accurate", answer.fruits)


@dataclass
class LostSam(FakeSam):
    """Sees nothing anywhere."""

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        logits, scores = super().decode(embeddings, image_index, prompts)
        return np.full_like(logits, -9), scores


async def test_where_the_sam_sees_something_else_the_u_nets_outline_stays(door: Door) -> None:
    sam = LostSam()
    async with served(door, make_pipelines(sam, unet=FakeUNet(device="fake:2", clock=sam.clock))):
        answer = await inspect(door, mode="accurate")
    assert answer.mode == "accurate"
    assert [(fruit.box, fruit.refined) for fruit in answer.fruits] == [(CLEAN, False), (SICK, False)]
    assert answer.fruits[1].infected_fraction == 0.08


@dataclass
class VotingUNet(FakeUNet):
    """Cells of the same blue are one fruit."""

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        outputs = super().infer(prepared)
        numbers = [peel.pixels[..., 2].astype(np.int32) for peel in prepared]
        return [with_votes(one[:3], number) for one, number in zip(outputs, numbers, strict=True)]


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_fruits_that_touch_are_apart_and_share_no_pixel(door: Door, mode: str) -> None:
    boxes = [(40, 40, 140, 140), (140, 40, 240, 140), (90, 140, 190, 220)]
    pixels = np.zeros((SIZE.height, SIZE.width, 3), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        pixels[y0:y1, x0:x1] = (0, 255, 40 * number)
    pixels[140:150, 90:190] = (255, 0, 120)  # only the third is infected
    sam = FakeSam()
    async with served(door, make_pipelines(sam, unet=VotingUNet(device="fake:2", clock=sam.clock))):
        answer = await inspect(door, encode_image(pixels), mode=mode)
    masks = [from_rle(fruit.mask) for fruit in answer.fruits]
    assert len(masks) == 3
    assert np.sum(masks, axis=0).max() == 1
    left, middle, right = answer.fruits
    if mode == "fast":
        assert [fruit.box for fruit in answer.fruits] == [boxes[0], boxes[2], boxes[1]]
        assert middle.infected_fraction == 1000 / 8000
    assert (left.infected_fraction, right.infected_fraction) == (0, 0)
    assert (left.name, middle.name, right.name) == ("healthy", "infected", "healthy")
    assert all(fruit.refined is (mode == "accurate") for fruit in answer.fruits)


@pytest.mark.parametrize(
    ("name", "kind", "decode"),
    [
        ("rle", schema.RleMask, from_rle),
        ("png", schema.PngMask, from_png),
        ("polygons", schema.PolygonsMask, from_polygons),
    ],
)
async def test_each_format_decodes_to_the_same_masks(door: Door, name: str, kind: Any, decode: Any) -> None:
    _, sick = (await inspect(door, mode="fast", format=name)).fruits
    assert type(sick.mask) is type(sick.infected_mask) is kind
    np.testing.assert_array_equal(decode(sick.mask), rectangle(*SICK, SIZE))
    np.testing.assert_array_equal(decode(sick.infected_mask), rectangle(*SPOT, SIZE))


@pytest.mark.parametrize(
    ("grades", "given"),
    [
        ([("fine", 0), ("fair", 0.08)], ["fine", "fair"]),
        ([("fine", 0), ("fair", 0.0799)], ["fine", "reject"]),
        ([("fine", 0.08)], ["fine", "fine"]),
        ([("fine", 0.079), ("fair", 0.0801), ("poor", 1)], ["fine", "fair"]),
    ],
)
async def test_grades_are_those_of_the_request(door: Door, grades: Any, given: list[str]) -> None:
    asked = [{"grade": name, "max_infected_fraction": most} for name, most in grades]
    answer = await inspect(door, mode="fast", grades=asked)
    assert [fruit.grade for fruit in answer.fruits] == given


async def test_without_grades_those_of_the_settings_are_taken() -> None:
    async with open_door(grades="fine:0.07,fair:0.08") as door:
        assert [fruit.grade for fruit in (await inspect(door, mode="fast")).fruits] == ["fine", "fair"]


async def test_what_a_camera_says_of_a_frame_is_told_again(door: Door) -> None:
    told: dict[str, Any] = {"frame_id": "cam2-0007 ü", "trigger_id": "", "captured_at_ns": 2**63 - 1}
    answer = await inspect(door, mode="fast", **told)
    assert answer.frame.model_dump() == told
    nothing = await inspect(door, mode="fast")
    assert nothing.frame == inspection.FrameOut(frame_id=None, trigger_id=None, captured_at_ns=None)


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_an_overlay_is_a_png_of_the_images_size_with_the_fruits_drawn_in(door: Door, mode: str) -> None:
    answer = await inspect(door, mode=mode, overlay=True)
    assert answer.overlay is not None
    drawn = PIL.Image.open(io.BytesIO(base64.b64decode(answer.overlay, validate=True)))
    assert (drawn.format, drawn.size) == ("PNG", (448, 224))
    pixels = np.asarray(drawn.convert("RGB"))
    plain_image = np.asarray(PIL.Image.open(io.BytesIO(TWO)))
    changed = (pixels != plain_image).any(axis=2)
    for fruit in answer.fruits:
        left, _, right, bottom = fruit.box
        assert changed[bottom - 1, left + 1 : right - 1].all()
    assert changed[70:90, 250:290].all()  # tinted
    assert not changed[165:].any()
    without = await inspect(door, mode=mode)
    assert without.fruits == answer.fruits


@pytest.mark.parametrize("mode", ["fast", "accurate", "auto"])
async def test_a_image_without_fruit_has_none(door: Door, mode: str) -> None:
    answer = await inspect(door, BLACK, mode=mode, overlay=True)
    assert answer.fruits == []
    assert answer.mode == ("fast" if mode == "fast" else "accurate")
    assert answer.batch.prompt == 0


async def test_fruits_lie_in_the_image_after_its_orientation(door: Door) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    with PIL.Image.open(io.BytesIO(TWO)) as opened:
        data = encode_image(np.asarray(opened), exif=exif.tobytes())
    answer = await inspect(door, data, mode="fast")
    assert (answer.image.width, answer.image.height) == (224, 448)
    x0, y0, x1, y1 = SICK
    assert {fruit.box for fruit in answer.fruits if fruit.name == "infected"} == {(224 - y1, x0, 224 - y0, x1)}


async def test_a_fruit_at_the_edge_is_truncated(door: Door) -> None:
    answer = await inspect(door, fruit_image((0, 40, 60, 140), (100, 40, 200, 140)), mode="fast")
    assert [fruit.truncated for fruit in answer.fruits] == [True, False]


async def test_the_models_that_are_named_answer(door: Door) -> None:
    answer = await inspect(door, mode="accurate", model=LOADED_UNET.name, sam_model=SECOND.name)
    assert answer.models.sam is not None
    assert (answer.models.sam.name, answer.models.sam.padding) == (SECOND.name, "square")
    assert (door.sam.encodes, door.second.encodes) == ([], [1])


async def test_where_no_sam_is_loaded_auto_is_fast_and_says_why_and_accurate_is_refused(door: Door) -> None:
    async with served(door, make_pipelines(unet=FakeUNet())):
        answer = await inspect(door)
        assert (answer.mode, answer.degraded, len(answer.fruits)) == ("fast", False, 2)
        assert answer.reason is not None
        assert "No SAM is loaded" in answer.reason
        assert (await inspect(door, mode="fast")).reason is None
        body = problem(await post(door, mode="accurate"), "model_not_loaded")
        assert "POMONA_MODELS=peel-unet,orange-sam would load one" in body.detail
        problem(await post(door, sam_model=LOADED.name), "model_not_loaded")
    async with served(door, make_pipelines(FakeSam())):
        problem(await post(door), "model_not_loaded")


async def test_more_fruits_than_prompts_are_allowed_leave_the_smallest_as_the_u_net_sees_them() -> None:
    fruits = [(10, 10, 60, 60), (80, 10, 150, 80), (180, 10, 240, 70)]
    async with open_door(max_prompts=2) as door:
        answer = await inspect(door, fruit_image(*fruits), mode="accurate")
    assert [fruit.refined for fruit in answer.fruits] == [False, True, True]
    assert answer.fruits[0].box == fruits[0]


async def test_a_image_as_the_body_is_answered_as_a_part_is(door: Door) -> None:
    options = {"request": json.dumps({"mode": "fast", "frame_id": "7"})}
    raw = await door.client.post(PATH, content=TWO, params=options, headers={"content-type": "image/png"})
    answer = checked(raw, inspection.InspectOut)
    assert ([fruit.box for fruit in answer.fruits], answer.frame.frame_id) == ([CLEAN, SICK], "7")


async def test_a_request_without_the_field_request_is_answered_with_the_defaults(door: Door) -> None:
    answer = checked(await door.post(image(TWO), path=PATH), inspection.InspectOut)
    assert answer.mode == "accurate"
    assert isinstance(answer.fruits[0].mask, schema.RleMask)


@pytest.mark.parametrize(("mode", "parts"), [("fast", {"infer"}), ("accurate", {"infer", "encode", "prompt"})])
async def test_the_parts_of_the_time_lie_within_the_whole(door: Door, mode: str, parts: set[str]) -> None:
    door.sam.flexible = True
    timings = (await inspect(door, mode=mode, overlay=True)).timing_ms.model_dump()
    total = timings.pop("total")
    assert {name for name in ("infer", "encode", "prompt") if timings[name] > 0} == parts
    assert timings["decode"] > 0 < timings["postprocess"]
    assert timings["queue"] >= 0
    assert max(timings.values()) <= total + 0.05  # rounded to 0.01; models on two devices run at once here


async def test_an_answer_leaves_one_line_with_its_facts(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.http")
    answer = await inspect(door, mode="fast", frame_id="cam-1")
    (line,) = (vars(record) for record in caplog.records)
    assert (line["path"], line["status"], line["model"], line["fruits"]) == (PATH, 200, LOADED_UNET.name, 2)
    assert (line["mode"], line["degraded"], line["frame_id"]) == ("fast", False, "cam-1")
    assert "trigger_id" not in line
    assert line["timing_ms"] == answer.timing_ms.model_dump()


# deadlines and load


async def learn(door: Door, mode: str = "fast") -> None:
    """Both models' times, and those of the work around them; what comes first is tried in any case.

    While the SAM encodes, the tests' clock leaps for whatever else is timed: `accurate` is for SAMs that take no time.
    """
    await door.learn()
    await door.unet_runner.warm_up()
    await inspect(door, fruit_image(CLEAN, mark=99), mode=mode)
    door.sam.forget()
    door.unet.forget()


async def test_auto_is_fast_where_the_deadline_leaves_no_time_for_the_sam_and_says_so(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 1000
    await learn(door)
    answer = await inspect(door, headers=within(60_000))
    assert (answer.mode, answer.degraded) == ("fast", True)
    assert answer.reason is not None
    assert "after its deadline" in answer.reason
    assert [(fruit.box, fruit.refined) for fruit in answer.fruits] == [(CLEAN, False), (SICK, False)]
    assert (door.sam.prepares, door.sam.encodes, door.unet.encodes) == (0, [], [1])
    problem(await post(door, mode="accurate", headers=within(60_000)), "deadline_unreachable")
    assert door.sam.encodes == []
    assert (await inspect(door, headers=within(3_600_000))).mode == "accurate"


async def test_fast_is_held_to_its_deadline_too(door: Door) -> None:
    door.unet.infer_s_per_megapixel = 1000
    await learn(door)
    for mode in ("fast", "auto"):
        problem(await post(door, mode=mode, headers=within(60_000)), "deadline_unreachable")
    assert (door.unet.prepares, door.unet.encodes) == (0, [])
    assert (await inspect(door, mode="fast", headers=within(600_000))).mode == "fast"


async def test_auto_reckons_with_as_many_prompts_as_images_have_fruits(door: Door) -> None:
    door.sam.decode_s_per_prompt = 100
    await learn(door, mode="accurate")
    # One fruit was seen before: that there are two, for which there is no time, is found after the door.
    answer = await inspect(door, headers=within(150_000))
    assert (answer.mode, answer.degraded) == ("fast", True)
    assert (door.sam.prepares, door.sam.decodes) == (1, [])
    # By now images have two.
    assert (await inspect(door, headers=within(150_000))).degraded
    assert (door.sam.prepares, door.sam.decodes) == (1, [])
    assert (await inspect(door, headers=within(300_000))).mode == "accurate"


async def test_auto_falls_back_on_what_the_u_net_saw_where_the_sam_takes_longer_than_it_should(door: Door) -> None:
    await inspect(door)
    door.sam.blocks = threading.Event()
    began = time.monotonic()
    answer = await inspect(door, headers=within(800))
    assert time.monotonic() - began < 0.8
    assert (answer.mode, answer.degraded, answer.models.sam) == ("fast", True, None)
    assert answer.reason is not None
    assert [fruit.box for fruit in answer.fruits] == [CLEAN, SICK]
    problem(await post(door, mode="accurate", headers=within(300)), "deadline_exceeded")
    door.let_go()
    assert (await inspect(door)).mode == "accurate"


async def test_with_input_size_auto_the_sam_sees_less_before_it_sees_nothing() -> None:
    async with open_door(input_size="auto") as door:
        door.sam.encode_s_per_megapixel = 1000
        await learn(door)
        smaller = await inspect(door, headers=within(300_000))
        assert (smaller.mode, smaller.degraded) == ("accurate", True)
        assert smaller.models.sam is not None
        assert smaller.models.sam.input_size == 512
        assert smaller.reason == "To be in time, the SAM saw the image at 512 pixels."
        largest = await inspect(door)
        assert (largest.mode, largest.degraded) == ("accurate", False)


async def test_auto_is_fast_where_the_sams_queue_is_full() -> None:
    async with open_door(max_queued=1) as door:
        busy = await door.hold()
        waiting = door.start(image(image_bytes(1)), path="/v1/embed")
        await door.runner.images.reach(2)
        answer = await inspect(door)
        assert (answer.mode, answer.degraded) == ("fast", True)
        problem(await post(door, mode="accurate"), "overloaded")
        door.let_go()
        await asyncio.gather(busy, waiting)


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_a_deadline_that_passes_in_the_queue_is_answered_at_once_and_nothing_is_run(
    door: Door, mode: str
) -> None:
    busy = await door.hold_unet()
    began = time.monotonic()
    problem(await post(door, mode=mode, headers=within(300)), "deadline_exceeded")
    assert 0.3 <= time.monotonic() - began < PATIENCE_S / 2
    door.let_go()
    await busy
    assert door.unet.encoded == [HELD]


async def test_the_more_urgent_go_first(door: Door) -> None:
    busy = await door.hold_unet()
    calls = []
    for mark, urgency in enumerate((7, 0, 4)):
        parts: Parts = [image(fruit_image(CLEAN, mark=mark)), plain("request", '{"mode": "fast"}')]
        calls.append(door.start(*parts, path=PATH, headers={"priority": f"u={urgency}"}))
        await door.unet_runner.images.reach(1 + len(calls))
    door.let_go()
    await asyncio.gather(busy, *calls)
    assert door.unet.encoded == [HELD, 1, 2, 0]


async def test_a_caller_who_leaves_takes_the_work_along(door: Door) -> None:
    busy = await door.hold_unet()
    sam_busy = await door.hold()
    leaving = Caller(image(fruit_image(CLEAN, mark=1)), path=PATH)
    call = asyncio.create_task(door.app(leaving.scope, leaving.receive, leaving.send))
    await door.unet_runner.images.reach(2)
    leaving.hang_up()
    await call
    door.let_go()
    await asyncio.gather(busy, sam_busy)
    assert (door.unet.encoded, door.sam.encoded) == ([HELD], [HELD])


@pytest.mark.parametrize("device", ["unet", "sam"])
async def test_a_failing_device_leaks_nothing_and_the_next_caller_notices_nothing(door: Door, device: str) -> None:
    failing: FakeUNet | FakeSam = getattr(door, device)
    failing.fails = BackendError("CUDA: secret path /srv/weights")
    answer = await post(door)
    problem(answer, "internal_error")
    assert "secret" not in answer.text
    failing.fails = None
    assert len((await inspect(door)).fruits) == 2


async def test_images_that_wait_share_batches_and_each_gets_its_own_answer(door: Door) -> None:
    door.unet.image_batches = (1, 2, 4)
    door.unet.infer_s_per_batch = 1
    await door.unet_runner.warm_up()
    door.unet.forget()
    busy = await door.hold_unet()
    first = door.unet_runner.images.count
    calls = [asyncio.create_task(inspect(door, data, mode="fast")) for data in (TWO, BLACK, fruit_image(CLEAN))]
    await door.unet_runner.images.reach(first + 3)
    door.let_go()
    await busy
    together = await asyncio.gather(*calls)
    assert [answer.batch.infer for answer in together] == [3, 3, 3]
    assert [len(answer.fruits) for answer in together] == [2, 0, 1]


async def test_inspections_are_counted_under_their_own_path(door: Door) -> None:
    from prometheus_client import REGISTRY

    from service.observability.metrics import PrometheusObserver

    door.app.state.observer = PrometheusObserver()

    def answered() -> float:
        labels = {"endpoint": PATH, "model": LOADED_UNET.name, "outcome": "ok"}
        return REGISTRY.get_sample_value("pomona_requests_total", labels) or 0.0

    before = answered()
    await inspect(door, mode="fast")
    assert answered() == before + 1


def test_the_settings_grades_are_those_of_the_models() -> None:
    assert [str(grade) for grade in make_settings().grades] == ["A:0.01", "B:0.05", "C:0.25"]

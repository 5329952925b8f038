"""`/v1/inspect`: fruit, infected fractions and grades; what mode `auto` does in want of time."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from models import images
from models.backends.base import Embedding
from models.confidence import FractionIntervals, FractionRange
from models.sam.prompts import PackedPrompts
from models.types import BinaryMask, Logits
from models.unet.letterbox import unet_letterbox
from models.unet.scales import unet_scales
from service.api import schema
from service.runners.base import Runner
from service.runners.unet import UNetRunner
from service.scheduler.queue import DeviceQueue
from tests.contract.door import Door, image, open_door, problem, serving, within
from tests.contract.doors import pixels_of
from tests.contract.scenes import CLEAN, FRUIT_SIZE, NO_FRUIT, SICK, SPOT, TWO, Corners, fruit_image, fruit_mask, turned
from tests.contract.test_answers import overlay_pixels
from tests.fake_detector import LOADED_DETECTOR, FakeDetector, WatchedDetectorRunner
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
    with_votes,
)


def pixels(mask: schema.Outline) -> BinaryMask:
    return pixels_of(mask.model_dump(mode="json"), FRUIT_SIZE)


async def test_fast_returns_every_fruit_with_infected_fraction_class_and_grade(door: Door) -> None:
    answer = await door.inspect(mode="fast")
    assert answer.image == schema.Image(id=images.content_id(TWO), width=448, height=224)
    assert answer.models.unet == schema.UnetModel(
        name=LOADED_UNET.name, revision="0d" * 6, input_width=448, input_height=224
    )
    assert answer.models.sam is None
    assert (answer.mode, answer.degraded, answer.reason, answer.overlay) == ("fast", False, None, None)
    clean, sick = answer.fruits
    assert (clean.id, clean.box, clean.area, clean.pixel_class, clean.grade) == (1, CLEAN, 10_000, "healthy", "A")
    assert (sick.id, sick.box, sick.area, sick.pixel_class, sick.grade) == (2, SICK, 10_000, "infected", "C")
    assert (clean.infected_fraction, sick.infected_fraction) == (0, 0.08)
    np.testing.assert_array_equal(pixels(clean.mask), fruit_mask(CLEAN))
    np.testing.assert_array_equal(pixels(sick.mask), fruit_mask(SICK))
    np.testing.assert_array_equal(pixels(sick.infected_mask), fruit_mask(SPOT))
    assert not pixels(clean.infected_mask).any()
    # A logit of 8 against those of background and the other class, 0 and -8.
    assert [fruit.confidence for fruit in answer.fruits] == pytest.approx([1 / (1 + np.exp(-8))] * 2, abs=1e-4)
    assert [(fruit.truncated, fruit.refined) for fruit in answer.fruits] == [(False, False)] * 2
    assert [(fruit.infected_fraction_interval, fruit.grade_certain) for fruit in answer.fruits] == [(None, False)] * 2
    assert answer.batch == schema.Batch(infer=1, encode=0, prompt=0)
    assert door.sam.encodes == []


async def test_accurate_takes_the_sams_outlines_and_their_infected_fraction(door: Door) -> None:
    answer = await door.inspect(mode="accurate")
    assert answer.models.sam == schema.SamModel(name=LOADED.name, revision="0a" * 6, input_size=1024, padding="none")
    assert (answer.mode, answer.degraded, answer.reason) == ("accurate", False, None)
    _, sick = answer.fruits
    assert [fruit.refined for fruit in answer.fruits] == [True, True]
    # The fake SAM's mask is the box of its prompt: the fruit's, grown by the same on all sides.
    grown = 240 - sick.box[0]
    assert sick.box == (240 - grown, 60 - grown, 340 + grown, 160 + grown)
    assert 0 < grown < 10
    assert (pixels(sick.mask) != fruit_mask(sick.box)).sum() <= 4  # interpolation rounds the corners
    assert sick.area == pixels(sick.mask).sum()
    assert sick.infected_fraction == 800 / sick.area
    np.testing.assert_array_equal(pixels(sick.infected_mask), fruit_mask(SPOT))
    assert answer.batch == schema.Batch(infer=1, encode=1, prompt=2)
    assert (door.unet.encodes, door.sam.encodes) == ([1, 1, 1], [1])
    assert [letterbox.original for letterbox in door.sam.frames] == [FRUIT_SIZE]


@pytest.mark.parametrize("mode", ["accurate", "auto"])
async def test_where_a_sam_follows_the_unet_sees_three_scales(door: Door, mode: str) -> None:
    await door.inspect(mode=mode)
    assert door.unet.frames == list(unet_scales(FRUIT_SIZE))


async def test_fast_shows_the_unet_one_scale(door: Door) -> None:
    await door.inspect(mode="fast")
    assert door.unet.frames == [unet_letterbox(FRUIT_SIZE)]


async def test_auto_is_accurate_where_there_is_time(door: Door) -> None:
    answer = await door.inspect()
    assert (answer.mode, answer.degraded, answer.reason) == ("accurate", False, None)
    again = await door.inspect(mode="auto", headers=within(60_000))
    assert (again.mode, again.fruits) == ("accurate", answer.fruits)


@dataclass
class LostSam(FakeSam):
    """Sees nothing anywhere."""

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        logits, scores = super().decode(embeddings, image_index, prompts)
        return np.full_like(logits, -9), scores


@dataclass
class UnsureUNet(FakeUNet):
    """Gives fruit a probability of 0.82, and of 0.88 in every fourth row: enough to be found."""

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        outputs = super().infer(prepared)
        for output in outputs:
            output[:] *= 1.5 / 8
            output[:, ::4] *= 2 / 1.5
        return outputs


async def test_fruit_that_neither_u_net_nor_sam_is_sure_of_is_none_unless_a_detector_sees_it(door: Door) -> None:
    sam = LostSam()

    def finder(queue_of: Callable[[str], DeviceQueue]) -> Mapping[str, Runner]:
        detector = FakeDetector(device="fake:3", clock=sam.clock)
        return {LOADED_DETECTOR.name: WatchedDetectorRunner(LOADED_DETECTOR, detector, queue_of(detector.device))}

    unsure = UnsureUNet(device="fake:2", clock=sam.clock)
    async with serving(door, make_pipelines(sam, unet=unsure, more=finder)):
        answer = await door.inspect(mode="accurate", finder="unet")
        assert (answer.mode, answer.fruits, answer.dismissed) == ("accurate", [], 2)
        answer = await door.inspect(mode="accurate", finder="both")
        assert [(fruit.box, fruit.refined) for fruit in answer.fruits] == [(CLEAN, False), (SICK, False)]
        assert answer.dismissed == 0


async def test_where_the_sam_disagrees_the_outline_of_a_sure_u_net_stays(door: Door) -> None:
    sam = LostSam()
    async with serving(door, make_pipelines(sam, unet=FakeUNet(device="fake:2", clock=sam.clock))):
        answer = await door.inspect(mode="accurate")
    assert [(fruit.box, fruit.refined) for fruit in answer.fruits] == [(CLEAN, False), (SICK, False)]
    assert (answer.fruits[1].infected_fraction, answer.dismissed) == (0.08, 0)


@dataclass
class VotingUNet(FakeUNet):
    """Cells of the same blue are one fruit."""

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        outputs = super().infer(prepared)
        numbers = [peel.pixels[..., 2].astype(np.int32) for peel in prepared]
        return [with_votes(one[:3], number) for one, number in zip(outputs, numbers, strict=True)]


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_fruits_that_touch_are_separate_and_share_no_pixel(door: Door, mode: str) -> None:
    boxes = [(40, 40, 140, 140), (140, 40, 240, 140), (90, 140, 190, 220)]
    scene = np.zeros((FRUIT_SIZE.height, FRUIT_SIZE.width, 3), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        scene[y0:y1, x0:x1] = (0, 255, 40 * number)
    scene[140:150, 90:190] = (255, 0, 120)  # only the third is infected
    sam = FakeSam()
    async with serving(door, make_pipelines(sam, unet=VotingUNet(device="fake:2", clock=sam.clock))):
        answer = await door.inspect(encode_image(scene), mode=mode)
    masks = [pixels(fruit.mask) for fruit in answer.fruits]
    assert len(masks) == 3
    assert np.sum(masks, axis=0).max() == 1
    left, middle, right = answer.fruits
    if mode == "fast":
        assert [fruit.box for fruit in answer.fruits] == [boxes[0], boxes[2], boxes[1]]
        assert middle.infected_fraction == 1000 / 8000
    assert (left.infected_fraction, right.infected_fraction) == (0, 0)
    assert (left.pixel_class, middle.pixel_class, right.pixel_class) == ("healthy", "infected", "healthy")
    assert all(fruit.refined is (mode == "accurate") for fruit in answer.fruits)


@pytest.mark.parametrize("name", ["rle", "png", "polygons"])
async def test_each_format_decodes_to_the_same_masks(door: Door, name: str) -> None:
    _, sick = (await door.inspect(mode="fast", format=name)).fruits
    assert set(sick.mask.model_dump()) == ({"size", "counts"} if name == "rle" else {name})
    np.testing.assert_array_equal(pixels(sick.mask), fruit_mask(SICK))
    np.testing.assert_array_equal(pixels(sick.infected_mask), fruit_mask(SPOT))


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
    wanted = [{"grade": name, "max_infected_fraction": most} for name, most in grades]
    answer = await door.inspect(mode="fast", grades=wanted)
    assert [fruit.grade for fruit in answer.fruits] == given


async def test_grades_of_the_settings_are_the_default() -> None:
    assert [str(grade) for grade in make_settings().grades] == ["A:0.01", "B:0.05", "C:0.25"]
    async with open_door(grades="fine:0.07,fair:0.08") as door:
        assert [fruit.grade for fruit in (await door.inspect(mode="fast")).fruits] == ["fine", "fair"]


@pytest.mark.parametrize(
    ("below", "above", "interval", "certain"),
    [(-0.01, 0.1, [0.07, 0.18], True), (-0.05, 0.1, [0.03, 0.18], False), (-0.01, 0.5, [0.07, 0.58], False)],
)
async def test_a_calibrated_model_says_how_far_its_fraction_may_be_off_and_whether_the_grade_depends_on_that(
    door: Door, below: float, above: float, interval: list[float], certain: bool
) -> None:
    runner = door.pipelines.engine.runner(UNetRunner, None)
    runner.intervals = FractionIntervals("0d" * 32, 0.9, None, (FractionRange(1.0, below, above, 50),))
    _, sick = (await door.inspect(mode="fast")).fruits
    assert sick.infected_fraction_interval == pytest.approx(interval)
    assert (sick.grade, sick.grade_certain) == ("C", certain)


async def test_the_frames_identifiers_are_returned(door: Door) -> None:
    frame: dict[str, Any] = {"frame_id": "cam2-0007 ü", "trigger_id": "", "captured_at_ns": 2**63 - 1}
    assert (await door.inspect(mode="fast", **frame)).frame.model_dump() == frame
    nothing = await door.inspect(mode="fast")
    assert nothing.frame == schema.Frame(frame_id=None, trigger_id=None, captured_at_ns=None)


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_an_overlay_is_a_png_of_the_images_size_with_the_fruit_drawn_in(door: Door, mode: str) -> None:
    answer = await door.inspect(mode=mode, overlay=True)
    with PIL.Image.open(io.BytesIO(TWO)) as opened:
        changed = (overlay_pixels(answer.overlay, (448, 224)) != np.asarray(opened)).any(axis=2)
    for fruit in answer.fruits:
        left, _, right, bottom = fruit.box
        assert changed[bottom - 1, left + 1 : right - 1].all()
    assert changed[70:90, 250:290].all()  # tinted
    assert not changed[165:].any()
    assert (await door.inspect(mode=mode)).fruits == answer.fruits


@pytest.mark.parametrize("mode", ["fast", "accurate", "auto"])
async def test_an_image_without_fruit_has_none(door: Door, mode: str) -> None:
    answer = await door.inspect(NO_FRUIT, mode=mode, overlay=True)
    assert (answer.fruits, answer.mode) == ([], "fast" if mode == "fast" else "accurate")
    assert answer.batch.prompt == 0


async def test_fruit_lies_in_the_image_after_its_orientation(door: Door) -> None:
    with PIL.Image.open(io.BytesIO(TWO)) as opened:
        answer = await door.inspect(turned(np.asarray(opened)), mode="fast")
    assert (answer.image.width, answer.image.height) == (224, 448)
    x0, y0, x1, y1 = SICK
    assert {one.box for one in answer.fruits if one.pixel_class == "infected"} == {(224 - y1, x0, 224 - y0, x1)}


async def test_fruit_at_the_edge_is_truncated(door: Door) -> None:
    answer = await door.inspect(fruit_image((0, 40, 60, 140), (100, 40, 200, 140)), mode="fast")
    assert [fruit.truncated for fruit in answer.fruits] == [True, False]


async def test_the_models_that_are_named_answer(door: Door) -> None:
    answer = await door.inspect(mode="accurate", model=LOADED_UNET.name, sam_model=SECOND.name)
    assert answer.models.sam is not None
    assert (answer.models.sam.name, answer.models.sam.padding) == (SECOND.name, "square")
    assert (door.sam.encodes, door.second.encodes) == ([], [1])


async def test_without_a_sam_auto_is_fast_and_says_why_and_accurate_is_refused(door: Door) -> None:
    async with serving(door, make_pipelines(unet=FakeUNet())):
        answer = await door.inspect()
        assert (answer.mode, answer.degraded, len(answer.fruits)) == ("fast", False, 2)
        assert answer.reason == "No SAM is loaded, so the U-Net's outlines are the best there are."
        assert (await door.inspect(mode="fast")).reason is None
        body = problem(await door.post_inspect(mode="accurate"), "model_not_loaded")
        assert "POMONA_MODELS=peel-unet,orange-sam loads one" in body.detail
        problem(await door.post_inspect(sam_model=LOADED.name), "model_not_loaded")
    async with serving(door, make_pipelines(FakeSam())):
        problem(await door.post_inspect(), "model_not_loaded")


async def test_beyond_the_limit_of_prompts_the_smallest_fruits_keep_the_u_nets_outlines() -> None:
    fruits: list[Corners] = [(10, 10, 60, 60), (80, 10, 150, 80), (180, 10, 240, 70)]
    async with open_door(max_prompts=2) as door:
        answer = await door.inspect(fruit_image(*fruits), mode="accurate")
    assert [fruit.refined for fruit in answer.fruits] == [False, True, True]
    assert answer.fruits[0].box == fruits[0]


@pytest.mark.parametrize(("mode", "parts"), [("fast", {"infer"}), ("accurate", {"infer", "encode", "prompt"})])
async def test_the_time_of_each_model_is_in_the_answer(door: Door, mode: str, parts: set[str]) -> None:
    timings = (await door.inspect(mode=mode, overlay=True)).timing_ms.model_dump()
    total = timings.pop("total")
    assert {name for name in ("infer", "encode", "prompt") if timings[name] > 0} == parts
    assert timings["decode"] > 0 < timings["postprocess"]
    # Rounded to 0.01; two devices run at once here.
    assert max(timings.values()) <= total + 0.05


# In want of time.


async def learn(door: Door, mode: str = "fast") -> None:
    """Learn both models' times, and those of the work around them.

    While the SAM encodes, the tests' clock leaps for whatever else is timed: `accurate` is for SAMs that take no time.
    """
    await door.learn()
    await door.inspect(fruit_image(CLEAN, mark=99), mode=mode)
    door.forget()


async def test_auto_is_fast_where_the_deadline_leaves_no_time_for_the_sam(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 1000
    await learn(door)
    answer = await door.inspect(headers=within(60_000))
    assert (answer.mode, answer.degraded) == ("fast", True)
    assert answer.reason is not None
    assert answer.reason.startswith("The SAM's outlines would have been late.")
    assert [(fruit.box, fruit.refined) for fruit in answer.fruits] == [(CLEAN, False), (SICK, False)]
    assert (door.sam.prepares, door.sam.encodes, door.unet.encodes) == (0, [], [1])
    problem(await door.post_inspect(mode="accurate", headers=within(60_000)), "deadline_unreachable")
    assert door.sam.encodes == []
    assert (await door.inspect(headers=within(3_600_000))).mode == "accurate"


async def test_a_u_net_sees_as_much_as_it_was_trained_for_but_in_mode_fast(door: Door) -> None:
    _trained_for_large_images(door)
    assert _seen(await door.inspect(mode="accurate")) == (896, 448)
    assert _seen(await door.inspect(mode="auto")) == (896, 448)
    assert _seen(await door.inspect(mode="fast")) == (448, 224)


async def test_auto_sees_no_more_than_fast_where_there_is_no_time_for_the_sam(door: Door) -> None:
    _trained_for_large_images(door)
    door.sam.encode_s_per_megapixel = 1000
    await learn(door)
    answer = await door.inspect(headers=within(60_000))
    assert (answer.mode, _seen(answer)) == ("fast", (448, 224))
    assert [fruit.box for fruit in answer.fruits] == [CLEAN, SICK]


def _trained_for_large_images(door: Door) -> None:
    runner = door.pipelines.engine.runner(UNetRunner, None)
    runner.entry = replace(runner.entry, input_area=4 * 448 * 224)


def _seen(answer: schema.InspectResponse) -> tuple[int, int]:
    return answer.models.unet.input_width, answer.models.unet.input_height


async def test_fast_must_meet_its_deadline_too(door: Door) -> None:
    door.unet.infer_s_per_megapixel = 1000
    await learn(door)
    for mode in ("fast", "auto"):
        problem(await door.post_inspect(mode=mode, headers=within(60_000)), "deadline_unreachable")
    assert (door.unet.prepares, door.unet.encodes) == (0, [])
    assert (await door.inspect(mode="fast", headers=within(600_000))).mode == "fast"


async def test_auto_predicts_as_many_prompts_as_images_lately_had_fruits(door: Door) -> None:
    door.sam.decode_s_per_prompt = 100
    await learn(door, mode="accurate")
    # One fruit was seen before: that there are two, for which there is no time, is found once the U-Net has run.
    answer = await door.inspect(headers=within(150_000))
    assert (answer.mode, answer.degraded) == ("fast", True)
    assert (door.sam.prepares, door.sam.decodes) == (1, [])
    # By now images have two.
    assert (await door.inspect(headers=within(150_000))).degraded
    assert (door.sam.prepares, door.sam.decodes) == (1, [])
    assert (await door.inspect(headers=within(300_000))).mode == "accurate"


async def test_auto_answers_with_the_u_nets_fruit_where_the_sam_takes_longer_than_predicted(door: Door) -> None:
    await door.inspect()
    door.sam.blocks = threading.Event()
    began = time.monotonic()
    # Long enough for a busy machine to come as far as the SAM, and the shortest time that is waited for it.
    answer = await door.inspect(headers=within(2_500))
    assert time.monotonic() - began < PATIENCE_S
    assert (answer.mode, answer.degraded, answer.models.sam) == ("fast", True, None)
    assert answer.reason is not None
    assert [fruit.box for fruit in answer.fruits] == [CLEAN, SICK]
    # By what is learned on a busy machine it may be refused on arrival.
    assert (await door.post_inspect(mode="accurate", headers=within(300))).status_code == 504
    door.let_go()
    assert (await door.inspect()).mode == "accurate"


async def test_auto_tries_the_sam_again_after_it_was_slow(door: Door) -> None:
    await learn(door)
    door.sam.encode_s_per_megapixel = 1000
    await door.embed(fruit_image(CLEAN, mark=98))  # teaches the encoder's time alone
    assert (await door.inspect(headers=within(60_000))).mode == "fast"
    door.sam.encode_s_per_megapixel = 0
    assert (await door.inspect(headers=within(60_000))).mode == "fast"
    door.sam.clock.leap(4 * 590 + 60)  # four times as long as it took
    for _ in range(2):
        assert (await door.inspect(headers=within(60_000))).mode == "accurate"


async def test_with_input_size_auto_the_sam_sees_a_smaller_image_before_it_is_left_out() -> None:
    async with open_door(input_size="auto") as door:
        door.sam.encode_s_per_megapixel = 1000
        await learn(door)
        smaller = await door.inspect(headers=within(300_000))
        assert (smaller.mode, smaller.degraded) == ("accurate", True)
        assert smaller.models.sam is not None
        assert smaller.models.sam.input_size == 512
        assert smaller.reason == "To be in time, the SAM saw the image at 512 pixels."
        largest = await door.inspect()
        assert (largest.mode, largest.degraded) == ("accurate", False)


async def test_auto_is_fast_where_the_sams_queue_is_full() -> None:
    async with open_door(max_queued=1) as door:
        busy = await door.hold()
        waiting = door.start(image(image_bytes(1)), path="/v1/embed")
        await door.runner.images.reach(2)
        answer = await door.inspect()
        assert (answer.mode, answer.degraded) == ("fast", True)
        problem(await door.post_inspect(mode="accurate"), "overloaded")
        door.let_go()
        await asyncio.gather(busy, waiting)

"""Input size and padding, as callers turn them."""

from __future__ import annotations

from typing import Any

import pytest

from models.letterbox import Padding, letterbox_for
from service.api import schema
from tests.contract.door import BOX, IMAGE, Door, asked, image, only, open_door, plain, problem
from tests.fakes import SECOND, SIZE, UNPADDED, image_bytes


def used(answer: schema.SegmentResponse | schema.EmbedResponse) -> tuple[int, str]:
    return answer.model.input_size, answer.model.padding


@pytest.mark.parametrize("side", [1024, 768, 512])
@pytest.mark.parametrize("padding", ["none", "square"])
async def test_the_encoder_sees_what_was_asked_for_and_the_answer_says_it(
    door: Door, side: int, padding: Padding
) -> None:
    dials: dict[str, Any] = {"input_size": side, "padding": padding}
    answer = await door.segment(image(), asked(BOX, **dials))
    assert door.sam.frames == [letterbox_for(SIZE, side, padding)]
    assert used(answer) == (side, padding)
    assert only(answer).box == (32, 16, 64, 48)
    assert used(await door.embed(image_bytes(1), **dials)) == (side, padding)
    assert door.sam.frames == [letterbox_for(SIZE, side, padding)] * 2


async def test_without_dials_it_is_the_largest_size_without_padding(door: Door) -> None:
    assert used(await door.embed()) == (1024, "none")
    assert used(await door.segment(image(image_bytes(1)), asked(BOX, input_size=None, padding=None))) == (1024, "none")
    assert set(door.sam.frames) == {UNPADDED}


async def test_the_setting_is_the_size_of_requests_that_name_none() -> None:
    async with open_door(input_size=512) as door:
        assert used(await door.embed()) == (512, "none")
        assert used(await door.embed(input_size=1024)) == (1024, "none")


async def test_embeddings_of_different_sizes_are_kept_apart(door: Door) -> None:
    dials: list[dict[str, Any]] = [
        {},
        {"input_size": 512},
        {"padding": "square"},
        {"input_size": 512, "padding": "square"},
    ]
    for dial in dials:
        assert (await door.embed(**dial)).timing_ms.encode > 0
    for dial in dials:
        assert (await door.embed(**dial)).timing_ms.encode == 0
        assert (await door.segment(image(), asked(BOX, **dial))).timing_ms.encode == 0
    assert door.sam.encodes == [1] * 4


async def test_an_id_finds_the_size_that_was_embedded_without_naming_it(door: Door) -> None:
    embedded = await door.embed(input_size=512)
    by_id = plain("image_id", embedded.image.id)
    fitting: list[dict[str, Any]] = [{}, {"input_size": 512}, {"input_size": "auto"}, {"padding": "none"}]
    for fields in fitting:
        answer = await door.segment(by_id, asked(BOX, **fields))
        assert used(answer) == (512, "none")
        assert only(answer).box == (32, 16, 64, 48)
    others: list[dict[str, Any]] = [{"input_size": 1024}, {"padding": "square"}]
    for fields in others:
        problem(await door.post(by_id, asked(BOX, **fields)), "unknown_image_id")
    await door.embed()
    assert used(await door.segment(by_id, asked(BOX))) == (1024, "none")
    assert used(await door.segment(by_id, asked(BOX, input_size=512))) == (512, "none")
    assert door.sam.encodes == [1, 1]


@pytest.mark.parametrize(("seconds", "side"), [(None, 1024), (125, 1024), (110, 768), (75, 768), (35, 512)])
async def test_a_size_that_is_left_open_is_the_largest_that_meets_the_deadline(
    door: Door, seconds: float | None, side: int
) -> None:
    # The encoder takes about 80, 45 and 20 seconds.
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    headers = {} if seconds is None else {"x-deadline-ms": str(1000 * seconds)}
    answer = await door.segment(image(), asked(BOX, input_size="auto"), headers=headers)
    assert used(answer) == (side, "none")
    assert answer.degraded is (side < 1024)
    assert only(answer).box == (32, 16, 64, 48)
    assert door.sam.frames == [letterbox_for(SIZE, side, "none")]


async def test_a_smaller_size_that_was_asked_for_or_was_at_hand_is_no_degradation(door: Door) -> None:
    assert not (await door.segment(image(), asked(BOX, input_size=512))).degraded
    at_hand = await door.segment(image(), asked(BOX, input_size="auto"))
    assert used(at_hand) == (512, "none")
    assert not at_hand.degraded


async def test_where_no_size_meets_the_deadline_it_is_refused(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    answer = await door.post(image(), asked(BOX, input_size="auto"), headers={"x-deadline-ms": "10000"})
    problem(answer, "deadline_unreachable")
    assert door.sam.frames == []


async def test_a_model_of_one_size_answers_at_this_size_and_refuses_others(door: Door) -> None:
    others: list[dict[str, Any]] = [{"input_size": 512}, {"padding": "none"}]
    for fields in others:
        body = problem(await door.post(image(), asked(BOX, model=SECOND.name, **fields)), "unsupported_input")
        assert "1024" in body.detail
    assert door.second.frames == []
    fitting: list[dict[str, Any]] = [{}, {"input_size": 1024}, {"input_size": "auto"}, {"padding": "square"}]
    for fields in fitting:
        answer = await door.segment(image(), asked(BOX, model=SECOND.name, **fields))
        assert used(answer) == (1024, "square")
        assert only(answer).box == (32, 16, 64, 48)
    assert door.second.frames == [letterbox_for(SIZE)]


async def test_logits_of_one_size_are_a_prompt_at_the_same_size_only(door: Door) -> None:
    earlier = only(await door.segment(image(), asked(BOX, format="logits", input_size=512)))
    guess = {"mask": earlier.mask.model_dump(), "multimask": False}
    assert only(await door.segment(image(), asked(guess, input_size=512))).box == (32, 16, 64, 48)
    refused = problem(await door.post(image(), asked(guess)), "malformed_prompt")
    assert f"must have {UNPADDED.logits.width} x {UNPADDED.logits.height} cells" in refused.detail


async def test_the_id_of_a_image_does_not_depend_on_the_dials(door: Door) -> None:
    ids = {(await door.embed(IMAGE, input_size=side)).image.id for side in (1024, 768, 512)}
    assert len(ids) == 1

"""Input size and padding of SAMs, as callers choose them."""

from __future__ import annotations

from typing import Any

import pytest

from models.letterbox import Padding, letterbox_for
from models.types import Size
from service.api import schema
from tests.contract.door import BOX, Door, image, only, open_door, plain, problem, prompted, within
from tests.fakes import SECOND, SIZE, UNPADDED, image_bytes


def used(answer: schema.SegmentResponse | schema.EmbedResponse) -> tuple[int, str]:
    return answer.model.input_size, answer.model.padding


@pytest.mark.parametrize("side", [1024, 768, 512])
@pytest.mark.parametrize("padding", ["none", "square"])
async def test_the_encoder_sees_the_requested_size_and_the_answer_names_it(
    door: Door, side: int, padding: Padding
) -> None:
    chosen: dict[str, Any] = {"input_size": side, "padding": padding}
    answer = await door.segment(image(), prompted(BOX, **chosen))
    letterbox = letterbox_for(SIZE, side, padding)
    assert used(answer) == (side, padding)
    assert only(answer).box == (32, 16, 64, 48)
    assert used(await door.embed(image_bytes(1), **chosen)) == (side, padding)
    assert door.sam.frames == [letterbox] * 2


async def test_by_default_it_is_the_largest_size_without_padding(door: Door) -> None:
    assert used(await door.embed()) == (1024, "none")
    assert used(await door.segment(image(image_bytes(1)), prompted(BOX, input_size=None, padding=None))) == (
        1024,
        "none",
    )
    assert set(door.sam.frames) == {UNPADDED}


async def test_the_setting_is_the_size_of_requests_without_one() -> None:
    async with open_door(input_size=512) as door:
        assert used(await door.embed()) == (512, "none")
        assert used(await door.embed(input_size=1024)) == (1024, "none")
        # A model with one input size keeps it.
        assert used(await door.embed(model=SECOND.name)) == (1024, "square")


async def test_embeddings_of_different_sizes_are_kept_apart_under_one_id(door: Door) -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"input_size": 512},
        {"padding": "square"},
        {"input_size": 512, "padding": "square"},
    ]
    embedded = [await door.embed(**choice) for choice in choices]
    assert len({answer.image.id for answer in embedded}) == 1
    for choice in choices:
        assert (await door.embed(**choice)).timing_ms.encode == 0
        assert (await door.segment(image(), prompted(BOX, **choice))).timing_ms.encode == 0
    assert door.sam.encodes == [1] * 4


async def test_an_id_finds_the_largest_embedding_that_fits_the_request(door: Door) -> None:
    for choice in ({"input_size": 512, "padding": "square"}, {"input_size": 1024}):
        by_id = plain("image_id", (await door.embed(**choice)).image.id)
    large, small = (1024, "none"), (512, "square")
    fitting: list[tuple[dict[str, Any], tuple[int, str]]] = [
        ({}, large),
        ({"input_size": "auto"}, large),
        ({"input_size": 1024}, large),
        ({"padding": "none"}, large),
        ({"input_size": 512}, small),
        ({"padding": "square"}, small),
        ({"input_size": "auto", "padding": "square"}, small),
    ]
    for choice, expected in fitting:
        assert used(await door.segment(by_id, prompted(BOX, **choice))) == expected
    others: list[dict[str, Any]] = [
        {"input_size": 768},
        {"input_size": 1024, "padding": "square"},
        {"input_size": 512, "padding": "none"},
    ]
    for choice in others:
        body = problem(await door.post(by_id, prompted(BOX, **choice)), "unknown_image_id")
        assert "at this input size" in body.detail


@pytest.mark.parametrize("padding", ["none", "square"])
async def test_a_square_image_is_found_whatever_padding_it_was_sent_with(door: Door, padding: Padding) -> None:
    data = image_bytes(1, Size(96, 96))
    by_id = plain("image_id", (await door.embed(data, padding=padding)).image.id)
    for other in ("none", "square"):
        await door.segment(by_id, prompted(BOX, padding=other))
        assert (await door.embed(data, padding=other)).timing_ms.encode == 0
    assert door.sam.encodes == [1]


@pytest.mark.parametrize(("seconds", "side"), [(None, 1024), (125, 1024), (110, 768), (75, 768), (35, 512)])
async def test_auto_takes_the_largest_size_that_meets_the_deadline(
    door: Door, seconds: float | None, side: int
) -> None:
    # The encoder takes about 80, 45 and 20 seconds; a quarter of the time is kept where a smaller size could do.
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    headers = {} if seconds is None else within(1000 * seconds)
    answer = await door.segment(image(), prompted(BOX, input_size="auto"), headers=headers)
    assert used(answer) == (side, "none")
    assert answer.degraded is (side < 1024)
    assert only(answer).box == (32, 16, 64, 48)
    assert door.sam.frames == [letterbox_for(SIZE, side, "none")]


async def test_auto_is_refused_where_no_size_meets_the_deadline(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    answer = await door.post(image(), prompted(BOX, input_size="auto"), headers=within(10_000))
    problem(answer, "deadline_unreachable")
    assert door.sam.frames == []


async def test_a_smaller_size_that_was_requested_or_is_cached_is_no_degradation(door: Door) -> None:
    assert not (await door.segment(image(), prompted(BOX, input_size=512))).degraded
    cached = await door.segment(image(), prompted(BOX, input_size="auto"))
    assert (used(cached), cached.degraded) == ((512, "none"), False)
    assert used(await door.embed(input_size="auto")) == (512, "none")
    assert len(door.sam.frames) == 1


async def test_a_model_with_one_size_answers_at_this_size_and_refuses_others(door: Door) -> None:
    others: list[dict[str, Any]] = [
        {"input_size": 512},
        {"input_size": 768, "padding": "square"},
        {"padding": "none"},
        {"input_size": "auto", "padding": "none"},
    ]
    for choice in others:
        body = problem(await door.post(image(), prompted(BOX, model=SECOND.name, **choice)), "unsupported_input")
        assert "1024" in body.detail
    assert door.second.frames == []
    fitting: list[dict[str, Any]] = [{}, {"input_size": 1024}, {"input_size": "auto"}, {"padding": "square"}]
    for choice in fitting:
        answer = await door.segment(image(), prompted(BOX, model=SECOND.name, **choice))
        assert used(answer) == (1024, "square")
        assert only(answer).box == (32, 16, 64, 48)
    assert door.second.frames == [letterbox_for(SIZE)]


async def test_logits_of_one_size_are_a_prompt_at_the_same_size_only(door: Door) -> None:
    earlier = only(await door.segment(image(), prompted(BOX, format="logits", input_size=512)))
    guess = {"mask": earlier.mask.model_dump(mode="json"), "multimask": False}
    assert only(await door.segment(image(), prompted(guess, input_size=512))).box == (32, 16, 64, 48)
    body = problem(await door.post(image(), prompted(guess)), "malformed_prompt")
    assert f"{UNPADDED.logits.width} x {UNPADDED.logits.height}" in body.detail

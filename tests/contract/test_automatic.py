"""`/v1/automatic` and `/v1/edges`: masks of squares that can be worked out by hand, through every door."""

from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import replace
from typing import Any, Final

import numpy as np
import PIL.Image
import pytest

from service.api import proposals
from tests.contract.door import BOX, Door, checked, fields, image, problem, prompted, within
from tests.contract.doors import Request, comparable, everywhere, pixels_of, refused_everywhere
from tests.contract.grpc_door import Caller, open_grpc, refused
from tests.contract.messages import to_json, to_message
from tests.contract.scenes import IMAGE
from tests.fakes import LOADED_UNET, SECOND, SIZE, rectangle

ALL: Final = {"points_per_side": 4}
"""Of the three masks at each of 16 points, the one with the score 0.9 passes."""

CENTRES: Final = [(16.0 + 32 * column, 12.0 + 24 * row) for row in range(4) for column in range(4)]
HALF: Final = 7
"""Of such a mask's side, in pixels of the image: half of 128 model pixels less twice the token's inset of 8."""


def automatic(data: bytes | None = IMAGE, deadline: str | None = None, **more: Any) -> Request:
    return Request("automatic", {**ALL, **more}, data, deadline=deadline)


def edges(data: bytes | None = IMAGE, deadline: str | None = None, **more: Any) -> Request:
    return Request("edges", {"points_per_side": 4, **more}, data, deadline=deadline)


def square_at(x: float, y: float) -> tuple[int, int, int, int]:
    return (int(x) - HALF, int(y) - HALF, int(x) + HALF, int(y) + HALF)


async def found(door: Door, **more: Any) -> proposals.AutomaticResponse:
    answer = await door.post(image(), fields(**ALL | more), path="/v1/automatic")
    return checked(answer, proposals.AutomaticResponse)


async def test_every_point_of_the_grid_finds_its_square_through_every_door(caller: Caller) -> None:
    body = await everywhere(caller, automatic())
    assert sorted(tuple(mask["box"]) for mask in body["masks"]) == sorted(square_at(x, y) for x, y in CENTRES)
    for mask in body["masks"]:
        assert np.array_equal(pixels_of(mask["mask"]), rectangle(*mask["box"]))
        assert mask["area"] == (2 * HALF) ** 2
        assert square_at(*mask["point"]) == tuple(mask["box"])
        assert (mask["score"], mask["stability_score"]) == (pytest.approx(0.9), 1.0)
    assert (body["points_done"], body["points_total"], body["degraded"]) == (16, 16, False)
    assert len(caller.door.encodes) == 1


@pytest.mark.parametrize("mask_format", ["rle", "png", "polygons"])
async def test_masks_come_in_the_format_that_was_asked_for(caller: Caller, mask_format: str) -> None:
    body = await everywhere(caller, automatic(format=mask_format, overlay=True))
    for mask in body["masks"]:
        assert np.array_equal(pixels_of(mask["mask"], SIZE), rectangle(*mask["box"]))
    with PIL.Image.open(io.BytesIO(base64.b64decode(body["overlay"]))) as overlay:
        assert overlay.size == (SIZE.width, SIZE.height)


async def test_an_image_that_was_sent_before_is_not_encoded_again(caller: Caller) -> None:
    embedded = await caller.door.embed()
    body = await everywhere(caller, replace(automatic(data=None), image_id=embedded.image.id))
    assert len(body["masks"]) == 16
    assert len(caller.door.encodes) == 1


async def test_the_presets_differ_in_their_points(door: Door) -> None:
    asked = {}
    for preset in ("full", "fast"):
        answer = await found(door, preset=preset, points_per_side=None, pred_iou_threshold=1.0)
        asked[preset] = answer.points_total
    assert asked == {"full": 1024, "fast": 256}


async def test_the_thresholds_decide(door: Door) -> None:
    assert (await found(door, pred_iou_threshold=0.91)).masks == []
    # Squares of three sizes at each point: the boxes of neighbouring sizes have an IoU of 0.73 and 0.69.
    assert len((await found(door, pred_iou_threshold=0.6)).masks) == 32
    loose = await found(door, pred_iou_threshold=0.6, box_nms_threshold=0.8)
    assert len(loose.masks) == 48
    strict = await found(door, pred_iou_threshold=0.6, mask_nms_threshold=0.4)
    assert len(strict.masks) == 16


async def test_masks_that_are_too_small_or_too_large_are_left_out(door: Door) -> None:
    area, side = (2 * HALF) ** 2, 2 * HALF
    for limits, count in (
        ({"min_area": area}, 16),
        ({"min_area": area + 1}, 0),
        ({"max_area": area}, 16),
        ({"max_area": area - 1}, 0),
        ({"min_side": side}, 16),
        ({"min_side": side + 1}, 0),
        ({"max_side": side}, 16),
        ({"max_side": side - 1}, 0),
        ({"max_masks": 5}, 5),
    ):
        assert len((await found(door, **limits)).masks) == count, limits


async def test_crops_are_encoded_each_for_itself(caller: Caller) -> None:
    body = await everywhere(caller, automatic(crop_layers=1, points_per_side=2))
    assert (body["points_done"], body["points_total"]) == (20, 20)
    caller.door.forget()
    answer = await found(caller.door, crop_layers=1, points_per_side=2)
    assert len(caller.door.encodes) == 4  # the whole image was known
    # A square of a crop has half the side, since the crop is encoded at twice the scale or so.
    assert {mask.area for mask in answer.masks} > {(2 * HALF) ** 2}
    for mask in answer.masks:
        x0, y0, x1, y1 = mask.box
        assert 0 <= x0 < x1 <= SIZE.width
        assert 0 <= y0 < y1 <= SIZE.height


async def test_prompts_of_others_are_decoded_between_the_chunks(door: Door) -> None:
    await door.learn()
    await door.embed()
    door.sam.decode_s_per_prompt = 1.0
    order: list[str] = []

    async def whole() -> None:
        await found(door, points_per_side=16)
        order.append("automatic")

    search = asyncio.create_task(whole())
    await door.runner.requests.reach(1)
    assert (await door.segment(image(), prompted(BOX))).results
    order.append("segment")
    await search
    assert order == ["segment", "automatic"]
    assert max(call.prompts for call in door.sam.decodes) <= door.runner.prompts_at_once + 1


async def test_a_deadline_ends_the_search_with_the_best_found_so_far(door: Door) -> None:
    await door.learn()
    await door.embed()
    door.sam.decode_s_per_batch = 10.0
    parts = (image(), fields(points_per_side=8))
    answer = await door.post(*parts, path="/v1/automatic", headers=within(75_000))
    body = checked(answer, proposals.AutomaticResponse)
    assert body.degraded
    assert 0 < body.points_done < body.points_total
    assert 0 < len(body.masks) <= body.points_done


async def test_a_deadline_that_leaves_time_for_nothing_is_refused(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 1000
    await door.learn()
    answer = await door.post(image(), fields(**ALL), path="/v1/automatic", headers=within(10_000))
    problem(answer, "deadline_unreachable")
    assert door.encodes == []


async def test_the_request_timeout_ends_the_search_like_a_deadline() -> None:
    async with open_grpc(request_timeout_s=40) as caller:
        await caller.door.embed()
        caller.door.sam.decode_s_per_batch = 10.0
        answer = await caller.door.post(image(), fields(**ALL | {"points_per_side": 8}), path="/v1/automatic")
        body = checked(answer, proposals.AutomaticResponse)
        assert body.degraded
        assert 0 < body.points_done < 64


async def test_a_stream_reports_masks_as_they_are_found_and_then_answers(caller: Caller) -> None:
    caller.door.sam.decode_s_per_batch = 10.0  # by the clock; reports come at most every half second
    message = to_message("AutomaticRequest", ALL, image=IMAGE)
    replies = [reply async for reply in caller.stub.AutomaticStream(message)]
    *progress, last = replies
    assert progress
    assert [reply.WhichOneof("update") for reply in progress] == ["progress"] * len(progress)
    done = [reply.progress.points_done for reply in progress]
    assert done == sorted(done)
    assert {reply.progress.points_total for reply in progress} == {16}
    seen = [tuple(to_json(mask.box)) for reply in progress for mask in reply.progress.found]
    assert len(seen) == len(set(seen)) == done[-1]
    unary = await caller.stub.Automatic(message)
    assert comparable(to_json(last.response)) == comparable(to_json(unary))


async def test_a_stream_that_is_refused_says_why(caller: Caller) -> None:
    message = to_message("AutomaticRequest", {"points_per_side": 100}, image=IMAGE)

    async def read() -> None:
        async for _ in caller.stub.AutomaticStream(message):
            raise AssertionError("it was answered")

    await refused(read(), "too_many_prompts")


# Edges.


async def edge_map(caller: Caller, request: Request) -> Any:
    body = await everywhere(caller, request)
    with PIL.Image.open(io.BytesIO(base64.b64decode(body["edges"]))) as opened:
        return body, np.asarray(opened).astype(np.float64)


async def test_edges_lie_along_the_squares(caller: Caller) -> None:
    body, levels = await edge_map(caller, edges(thick=True))
    assert levels.shape == (SIZE.height, SIZE.width)
    assert levels.max() == 255
    assert (body["points_done"], body["points_total"], body["degraded"]) == (16, 16, False)
    assert body["masks"] == 32
    near = np.zeros(levels.shape, np.bool_)
    for x, y in CENTRES:
        for half in (5, HALF, HALF - 1):
            x0, y0, x1, y1 = int(x) - half, int(y) - half, int(x) + half, int(y) + half
            near[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = True
    assert (levels[~near] == 0).all()
    assert all(levels[int(y), int(x)] == 0 for x, y in CENTRES)


async def test_thin_edges_are_a_part_of_the_thick_ones(caller: Caller) -> None:
    _, thick = await edge_map(caller, edges(thick=True))
    _, thin = await edge_map(caller, edges())
    assert 0 < np.count_nonzero(thin) < np.count_nonzero(thick)
    assert (thick[thin > 0] > 0).all()


async def test_sixteen_bits_hold_the_same_edges(caller: Caller) -> None:
    _, coarse = await edge_map(caller, edges())
    _, fine = await edge_map(caller, edges(depth="16"))
    assert fine.max() == 65535
    assert np.abs(fine / 65535 - coarse / 255).max() <= 0.5 / 255 + 1e-9


async def test_a_deadline_ends_the_search_for_edges_too(door: Door) -> None:
    await door.learn()
    await door.embed()
    door.sam.decode_s_per_batch = 10.0
    answer = await door.post(image(), fields(points_per_side=8), path="/v1/edges", headers=within(75_000))
    body = checked(answer, proposals.EdgesResponse)
    assert body.degraded
    assert 0 < body.points_done < body.points_total


# What is refused.

REFUSED: Final = {
    "no points": ("malformed_request", "points_per_side", automatic(points_per_side=0)),
    "too many points a side": ("malformed_request", "points_per_side", automatic(points_per_side=129)),
    "too many points": ("too_many_prompts", "POMONA_MAX_GRID_POINTS", automatic(points_per_side=100)),
    "too many points of crops": ("too_many_prompts", "21 images", automatic(points_per_side=30, crop_layers=2)),
    "too many crops": ("malformed_request", "crop_layers", automatic(crop_layers=3)),
    "a score above 1": ("malformed_request", "pred_iou_threshold", automatic(pred_iou_threshold=1.5)),
    "no number": ("malformed_request", "box_nms_threshold", automatic(box_nms_threshold=float("nan"))),
    "an area below 0": ("malformed_request", "min_area", automatic(min_area=-1)),
    "no masks": ("malformed_request", "max_masks", automatic(max_masks=0)),
    "too many masks": ("malformed_request", "max_masks", automatic(max_masks=1001)),
    "no image": ("no_image", "image", automatic(data=None)),
    "not an image": ("not_an_image", "image format", automatic(data=b"an orange")),
    "a deadline that is none": ("malformed_request", "X-Deadline-Ms", automatic(deadline="soon")),
    "a U-Net": ("wrong_model_family", "needs a SAM", automatic(model=LOADED_UNET.name)),
    "an input size": ("unsupported_input", "input_size", automatic(model=SECOND.name, input_size=512)),
    "an unknown id": ("unknown_image_id", "again", replace(automatic(data=None), image_id="0" * 32)),
    "crops of an id": (
        "malformed_request",
        "crop_layers needs",
        replace(automatic(data=None, crop_layers=1), image_id="0" * 32),
    ),
    "an overlay of an id": (
        "malformed_request",
        "overlay needs",
        replace(automatic(data=None, overlay=True), image_id="0" * 32),
    ),
    "edges without points": ("malformed_request", "points_per_side", edges(points_per_side=0)),
    "edges at too many points": ("too_many_prompts", "POMONA_MAX_GRID_POINTS", edges(points_per_side=100)),
    "edges without an image": ("no_image", "image", edges(data=None)),
    "edges of what is no image": ("not_an_image", "image format", edges(data=b"an orange")),
    "edges by a U-Net": ("wrong_model_family", "needs a SAM", edges(model=LOADED_UNET.name)),
    "edges of an unknown id": ("unknown_image_id", "again", replace(edges(data=None), image_id="0" * 32)),
    "edges too late": ("malformed_request", "X-Deadline-Ms", edges(deadline="-1")),
}


@pytest.mark.parametrize(("code", "says", "request_"), REFUSED.values(), ids=REFUSED)
async def test_bad_requests_are_refused_alike_through_every_door(
    caller: Caller, code: str, says: str, request_: Request
) -> None:
    for refusal in (await refused_everywhere(caller, request_, code)).values():
        assert says in refusal.detail
    assert caller.door.sam.decodes == []


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/v1/automatic", {"format": "logits"}),
        ("/v1/automatic", {"preset": "slow"}),
        ("/v1/automatic", {"points": 5}),
        ("/v1/edges", {"depth": "12"}),
        ("/v1/edges", {"overlay": True}),
    ],
)
async def test_what_json_alone_can_get_wrong_is_refused(door: Door, path: str, given: dict[str, Any]) -> None:
    answer = await door.post(image(), fields(**given), path=path)
    assert answer.status_code in (400, 422)
    assert next(iter(given)) in answer.json()["detail"]

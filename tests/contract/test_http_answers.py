from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pydantic import BaseModel

from models import images
from models.masks import EncodedLogits, Rle, decode_logits, decode_png, decode_rle, encode_rle
from models.polygons import decode_polygons
from models.types import BinaryMask
from service.api import schema
from tests.contract.door import BOX, BOX_MASK, IMAGE, POINT, Door, asked, checked, image, only, plain
from tests.fakes import (
    CATALOGUE,
    LOADED,
    SECOND,
    SIZE,
    UNPADDED,
    DecodeCall,
    image_bytes,
    rectangle,
)


async def test_a_image_and_a_point_go_in_and_three_masks_with_their_figures_come_out(door: Door) -> None:
    answer = await door.segment(image(), asked(POINT))
    assert answer.image == schema.ImageOut(id=images.content_id(IMAGE), width=128, height=96)
    assert answer.model == schema.ModelRef(name=LOADED.name, revision="0a" * 6, input_size=1024, padding="none")
    assert answer.overlay is None
    assert len(answer.results) == 1
    masks = answer.results[0].masks
    assert [mask.box for mask in masks] == [(57, 41, 71, 55), (58, 42, 70, 54), (59, 43, 69, 53)]
    assert [mask.area for mask in masks] == [196, 144, 100]
    assert [mask.score for mask in masks] == pytest.approx([0.9, 0.8, 0.7])
    assert [mask.stability_score for mask in masks] == [1, 1, 1]
    for mask in masks:
        assert isinstance(mask.mask, schema.RleMask)
        decoded = decode_rle(Rle(mask.mask.size, mask.mask.counts))
        np.testing.assert_array_equal(decoded, rectangle(*mask.box))


def from_rle(mask: Any) -> BinaryMask:
    return decode_rle(Rle(mask.size, mask.counts))


def from_png(mask: Any) -> BinaryMask:
    data = base64.b64decode(mask.png, validate=True)
    assert PIL.Image.open(io.BytesIO(data)).mode == "1"
    return decode_png(data)


def from_polygons(mask: Any) -> BinaryMask:
    return decode_polygons(mask.polygons, SIZE)


def from_logits(mask: Any) -> BinaryMask:
    logits = decode_logits(EncodedLogits(mask.shape, mask.dtype, base64.b64decode(mask.data)))
    assert logits.shape == (UNPADDED.logits.height, UNPADDED.logits.width)
    # Of what the encoder saw, four of its pixels to a cell; eight are one of this image's.
    inside: BinaryMask = logits[: 96 * 2, : 128 * 2] > 0
    return inside[::2, ::2]


@pytest.mark.parametrize(
    ("name", "kind", "decode"),
    [
        ("rle", schema.RleMask, from_rle),
        ("png", schema.PngMask, from_png),
        ("polygons", schema.PolygonsMask, from_polygons),
        ("logits", schema.LogitsMask, from_logits),
    ],
)
async def test_each_format_decodes_to_the_same_mask(
    door: Door, name: str, kind: type[BaseModel], decode: Callable[[Any], BinaryMask]
) -> None:
    answer = only(await door.segment(image(), asked(BOX, format=name)))
    assert type(answer.mask) is kind
    np.testing.assert_array_equal(decode(answer.mask), BOX_MASK)
    assert (answer.box, answer.area) == ((32, 16, 64, 48), 32 * 32)


async def test_rle_is_what_is_sent_where_no_format_was_asked_for(door: Door) -> None:
    answer = only(await door.segment(image(), asked(BOX)))
    assert isinstance(answer.mask, schema.RleMask)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WebP", "BMP", "TIFF"])
async def test_each_image_format_is_read(door: Door, file_format: str) -> None:
    answer = await door.segment(image(image_bytes(file_format=file_format)), asked(BOX))
    assert (answer.image.width, answer.image.height) == (128, 96)
    assert only(answer).box == (32, 16, 64, 48)


@pytest.mark.parametrize(
    ("prompt", "boxes"),
    [
        ({"points": [[64, 48]], "multimask": False}, [(56, 40, 72, 56)]),
        ({"points": [[64.0, 48.0], [1, 1]], "labels": [1, 0], "multimask": False}, [(56, 40, 72, 56)]),
        ({"points": [[64, 48]], "labels": None, "box": None, "mask": None, "multimask": False}, [(56, 40, 72, 56)]),
        ({"points": [[64, 48]], "box": [32, 16, 64, 48], "multimask": False}, [(32, 16, 64, 48)]),
        ({"box": [32, 16, 64, 48]}, [(33, 17, 63, 47), (34, 18, 62, 46), (35, 19, 61, 45)]),
        ({"points": [], "box": [0, 0, 128, 96], "multimask": False}, [(0, 0, 128, 96)]),
    ],
)
async def test_points_boxes_and_points_with_a_box_are_prompts(
    door: Door, prompt: Mapping[str, Any], boxes: list[tuple[int, ...]]
) -> None:
    answer = await door.segment(image(), asked(prompt))
    assert [mask.box for mask in answer.results[0].masks] == boxes


async def test_an_earlier_answers_logits_and_a_mask_as_rle_are_prompts(door: Door) -> None:
    earlier = only(await door.segment(image(), asked(BOX, format="logits")))
    by_logits = {"mask": earlier.mask.model_dump(), "multimask": False}
    rle = encode_rle(BOX_MASK)
    by_rle = {"mask": {"size": rle.size, "counts": rle.counts}, "multimask": False}
    answer = await door.segment(image(), asked(by_logits, by_rle, {**by_rle, "points": [[1, 1]]}))
    for result in answer.results:
        assert [mask.box for mask in result.masks] == [(32, 16, 64, 48)]
    assert door.sam.decodes[-1] == DecodeCall(3, with_masks=True)


async def test_many_prompts_share_one_image_and_are_answered_in_their_order(door: Door) -> None:
    prompts = [{"box": [x, 0, x + 32, 32], "multimask": False} for x in (64, 0, 32)]
    answer = await door.segment(image(), asked(*prompts))
    assert [result.masks[0].box for result in answer.results] == [(x, 0, x + 32, 32) for x in (64, 0, 32)]
    assert door.sam.encodes == [1]


async def test_an_overlay_is_a_png_of_the_images_size_with_something_drawn_in(door: Door) -> None:
    answer = await door.segment(image(), asked(BOX, overlay=True))
    assert answer.overlay is not None
    drawn = PIL.Image.open(io.BytesIO(base64.b64decode(answer.overlay, validate=True)))
    assert (drawn.format, drawn.size) == ("PNG", (128, 96))
    pixels = np.asarray(drawn.convert("RGB"))
    assert pixels[20:44, 36:60].any(axis=2).all()
    assert not pixels[60:].any()


async def test_an_embedded_image_is_prompted_by_its_id_without_the_encoder(door: Door) -> None:
    embedded = await door.embed()
    assert embedded.image == schema.ImageOut(id=images.content_id(IMAGE), width=128, height=96)
    assert embedded.model.name == LOADED.name
    assert embedded.timing_ms.encode > 0
    answer = await door.segment(plain("image_id", embedded.image.id), asked(BOX))
    assert answer.image == embedded.image
    assert only(answer).box == (32, 16, 64, 48)
    assert answer.timing_ms.encode == answer.timing_ms.decode == 0
    assert door.sam.encodes == [1]
    assert (await door.embed()).timing_ms.encode == 0


async def test_the_id_of_a_segmented_image_serves_as_well(door: Door) -> None:
    first = await door.segment(image(), asked(BOX))
    again = await door.segment(plain("image_id", first.image.id), asked(BOX))
    assert again.results == first.results
    assert door.sam.encodes == [1]


async def test_the_model_that_is_named_answers(door: Door) -> None:
    embedded = await door.post(image(), plain("request", '{"model": "lemon-sam"}'), path="/v1/embed")
    assert checked(embedded, schema.EmbedResponse).model == schema.ModelRef(
        name=SECOND.name, revision="0b" * 6, input_size=1024, padding="square"
    )
    answer = await door.segment(image(), asked(BOX, model="lemon-sam"))
    assert answer.model.name == SECOND.name
    assert (door.sam.encodes, door.second.encodes) == ([], [1])


async def test_models_are_listed_the_loaded_ones_first(door: Door) -> None:
    listed = checked(await door.client.get("/v1/models"), schema.ModelsOut).models
    assert [model.name for model in listed] == list(CATALOGUE)
    assert listed[0] == schema.ModelOut(
        name=LOADED.name,
        family="sam",
        revision="0a" * 6,
        licence="CC0-1.0",
        loaded=True,
        device="fake:0",
        backend="torch",
    )
    assert (listed[1].loaded, listed[1].device, listed[1].backend) == (True, "fake:1", "openvino")
    assert (listed[2].loaded, listed[2].device, listed[2].family) == (True, "fake:2", "unet")
    assert (listed[3].loaded, listed[3].device, listed[3].backend) == (False, None, None)
    assert [model.family for model in listed[3:]] == ["sam", "unet"]


async def test_the_parts_of_the_time_lie_within_the_whole(door: Door) -> None:
    timings = (await door.segment(image(), asked(POINT))).timing_ms.model_dump()
    total = timings.pop("total")
    assert set(timings) == {"decode", "queue", "encode", "prompt", "postprocess"}
    assert all(value >= 0 for value in timings.values())
    assert timings["decode"] > 0 < timings["postprocess"]
    assert sum(timings.values()) <= total + 0.05  # each is rounded to 0.01
    embedded = (await door.embed(image_bytes(1))).timing_ms.model_dump()
    assert set(embedded) == {"decode", "queue", "encode", "total"}


async def test_an_answer_tells_how_many_ran_together_and_0_where_nothing_ran(door: Door) -> None:
    first = await door.segment(image(), asked(BOX, POINT))
    assert first.batch == schema.SegmentBatch(encode=1, prompt=2)
    again = await door.segment(image(), asked(BOX))
    assert again.batch == schema.SegmentBatch(encode=0, prompt=1)
    assert (await door.embed(image_bytes(1))).batch == schema.EmbedBatch(encode=1)
    assert (await door.embed(image_bytes(1))).batch == schema.EmbedBatch(encode=0)


async def test_form_fields_that_were_left_empty_are_as_if_absent(door: Door) -> None:
    by_image = await door.segment(image(), plain("image_id", ""), asked(BOX))
    by_id = await door.segment(image(b""), plain("image_id", by_image.image.id), asked(BOX))
    assert by_id.results == by_image.results

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pytest

from models.images import decode
from models.masks import Rle, decode_rle
from models.types import Size
from tests.contract.door import BOX, BOX_MASK, IMAGE, POINT, asked, image
from tests.contract.grpc_door import Caller
from tests.contract.oip_door import HTTP_JSON, WAYS, Inputs, http_answer, http_body, infer
from tests.fakes import (
    HEALTHY_BOX,
    INFECTED_BOX,
    LOADED,
    LOADED_UNET,
    SCORES,
    SECOND,
    UNPADDED,
    image_bytes,
    peel_image,
)

every_way = pytest.mark.parametrize("way", WAYS)

ONE: Final = np.array([False])
BOXED: Final[Inputs] = {"image": IMAGE, "boxes": np.array([[32, 16, 64, 48]], np.float32), "multimask": ONE}
POINTED: Final[Inputs] = {"image": IMAGE, "points": np.array([[[64, 48]]], np.float32)}


@every_way
async def test_a_box_is_answered_with_its_mask_and_figures(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED)
    outputs = answer.outputs
    assert list(outputs) == ["masks", "scores", "stability_scores", "boxes", "areas", "logits"]
    assert outputs["masks"].dtype == np.bool_
    assert np.array_equal(outputs["masks"], BOX_MASK[None, None])
    assert outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]
    assert outputs["areas"].tolist() == [[32 * 32]]
    assert outputs["scores"].tolist() == [[pytest.approx(SCORES[0])]]
    assert outputs["logits"].shape == (1, 1, UNPADDED.logits.height, UNPADDED.logits.width)
    assert (answer.model, answer.version) == (LOADED.name, LOADED.revision)
    assert answer.parameters == {"degraded": False}


@every_way
async def test_the_masks_are_those_of_segment(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, POINTED, "masks", mask_format="rle")
    over_http = await caller.door.segment(image(), asked(POINT))
    masks = [json.loads(text) for text in answer.outputs["masks"].ravel()]
    assert masks == [mask.mask.model_dump(mode="json") for mask in over_http.results[0].masks]
    pixels = await infer(caller, way, POINTED, "masks")
    decoded = [decode_rle(Rle(tuple(mask["size"]), mask["counts"])) for mask in masks]
    assert np.array_equal(pixels.outputs["masks"], np.array([decoded]))


@every_way
async def test_rows_of_points_are_prompts_and_labels_of_minus_one_fill_them_up(caller: Caller, way: str) -> None:
    points = np.array([[[64, 48], [0, 0]], [[20, 30], [90, 90]]], np.float32)
    labels = np.array([[1, -1], [1, 0]], np.int64)
    answer = await infer(caller, way, {"image": IMAGE, "points": points, "labels": labels}, "boxes", "scores")
    over_http = await caller.door.segment(image(), asked(POINT, {"points": [[20, 30], [90, 90]], "labels": [1, 0]}))
    masks = [[mask.box for mask in result.masks] for result in over_http.results]
    assert answer.outputs["boxes"].tolist() == [[list(box) for box in boxes] for boxes in masks]
    assert answer.outputs["scores"].shape == (2, 3)


@every_way
async def test_only_what_is_wanted_is_sent_in_the_order_in_which_it_is(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED, "areas", "scores")
    assert list(answer.outputs) == ["areas", "scores"]


@every_way
async def test_a_image_may_come_as_its_pixels(caller: Caller, way: str) -> None:
    pixels = decode(peel_image(size=Size(64, 96)), max_pixels=100_000).pixels
    by_pixels = await infer(caller, way, {"image": pixels}, model=LOADED_UNET.name)
    by_file = await infer(caller, way, {"image": peel_image(size=Size(64, 96))}, model=LOADED_UNET.name)
    assert by_file.outputs["class_map"].any()
    for name, array in by_file.outputs.items():
        assert np.array_equal(array, by_pixels.outputs[name])


@every_way
async def test_logits_of_an_answer_and_masks_of_ones_own_are_prompts(caller: Caller, way: str) -> None:
    first = await infer(caller, way, BOXED, "logits")
    guess = first.outputs["logits"][0]
    second = await infer(caller, way, {"image": IMAGE, "mask_input": guess, "multimask": ONE}, "masks", "logits")
    assert np.array_equal(second.outputs["logits"], first.outputs["logits"])
    assert np.array_equal(second.outputs["masks"], BOX_MASK[None, None])
    own = await infer(caller, way, {"image": IMAGE, "mask_input": BOX_MASK[None], "multimask": ONE}, "boxes")
    assert own.outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]


@every_way
async def test_a_unet_tells_the_class_of_every_pixel_and_the_fruits(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, {"image": peel_image()}, model=LOADED_UNET.name)
    outputs = answer.outputs
    assert list(outputs) == ["class_map", "object_boxes", "object_classes", "object_scores", "object_areas"]
    wanted = np.zeros((112, 224), np.uint8)
    for (x0, y0, x1, y1), number in ((HEALTHY_BOX, 1), (INFECTED_BOX, 2)):
        wanted[y0:y1, x0:x1] = number
    # The upsampling mixes cells across an edge.
    assert (outputs["class_map"] != wanted).mean() < 0.02
    semantic = await caller.door.semantic()
    assert [tuple(box) for box in outputs["object_boxes"].tolist()] == [found.box for found in semantic.objects]
    assert outputs["object_areas"].tolist() == [found.area for found in semantic.objects]
    assert outputs["object_classes"].tolist() == [{"healthy": 1, "infected": 2}[one.name] for one in semantic.objects]
    assert np.allclose(outputs["object_scores"], [found.score for found in semantic.objects])
    assert (answer.model, answer.version) == (LOADED_UNET.name, LOADED_UNET.revision)


@every_way
async def test_a_image_without_fruit_has_tensors_without_elements(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, {"image": IMAGE}, model=LOADED_UNET.name)
    assert not answer.outputs["class_map"].any()
    assert answer.outputs["object_boxes"].shape == (0, 4)
    assert answer.outputs["object_areas"].shape == (0,)


@every_way
async def test_an_id_and_a_version_are_told_again(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED, "areas", version=LOADED.revision, request_id="belt 7/42")
    assert (answer.id, answer.version) == ("belt 7/42", LOADED.revision)
    assert (await infer(caller, way, BOXED, "areas")).id == ""


@every_way
async def test_every_model_has_its_name(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED, "logits", model=SECOND.name)
    assert (answer.model, answer.outputs["logits"].shape) == (SECOND.name, (1, 1, 256, 256))


@every_way
async def test_the_input_size_and_the_padding_are_parameters(caller: Caller, way: str) -> None:
    await infer(caller, way, BOXED, "areas", input_size=512, padding="square")
    await infer(caller, way, {**BOXED, "image": image_bytes(7)}, "areas", input_size="auto")
    frames = [(frame.side, frame.padded) for frame in caller.door.sam.frames]
    assert frames == [(512, Size(512, 512)), (1024, UNPADDED.padded)]


async def test_what_is_not_wanted_is_not_encoded(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("encode_mask", "encode_class", "encode_class_map"):
        monkeypatch.setattr(f"service.rendering.{name}", never)
    await infer(caller, HTTP_JSON, BOXED)
    await infer(caller, HTTP_JSON, BOXED, "areas", mask_format="rle")
    await infer(caller, HTTP_JSON, {"image": peel_image()}, model=LOADED_UNET.name)


async def test_an_output_may_be_binary_by_itself(caller: Caller) -> None:
    text, _ = http_body(BOXED, (), {}, request_id="", raw=False)
    request = json.loads(text)
    for all_binary, special in ((False, True), (True, False)):
        request["parameters"] = {"binary_data_output": all_binary}
        request["outputs"] = [{"name": "scores"}, {"name": "masks", "parameters": {"binary_data": special}}]
        answer = await caller.door.client.post(f"/v2/models/{LOADED.name}/infer", json=request)
        assert np.array_equal(http_answer(answer).outputs["masks"], BOX_MASK[None, None])
        length = int(answer.headers["inference-header-content-length"])
        told = json.loads(answer.content[:length])["outputs"]
        assert ["data" in output for output in told] == [not all_binary, not special]


async def test_elements_may_lie_in_lists_in_lists_or_in_one(caller: Caller) -> None:
    request = json.loads(http_body(BOXED, ("boxes",), {}, request_id="", raw=False)[0])
    (boxes,) = [tensor for tensor in request["inputs"] if tensor["name"] == "boxes"]
    assert boxes["data"] == [[32, 16, 64, 48]]
    for data in ([[32, 16, 64, 48]], [32, 16, 64, 48]):
        boxes["data"] = data
        answer = await caller.door.client.post(f"/v2/models/{LOADED.name}/infer", json=request)
        assert http_answer(answer).outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]


async def test_what_the_protocol_may_add_is_let_be(caller: Caller) -> None:
    request = json.loads(http_body(BOXED, ("boxes",), {}, request_id="", raw=False)[0])
    request["model_name"] = LOADED.name
    request["inputs"][0] |= {"tags": [], "parameters": {"content_type": "image/png", "nested": {"a": [1]}}}
    answer = await caller.door.client.post(f"/v2/models/{LOADED.name}/infer", json=request)
    assert http_answer(answer).outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]


def test_the_prompts_of_this_file_are_those_of_the_other_doors() -> None:
    assert BOX["box"] == BOXED["boxes"][0].tolist()  # type: ignore[union-attr]
    assert POINT["points"] == POINTED["points"][0].tolist()  # type: ignore[union-attr]

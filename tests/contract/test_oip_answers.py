"""What models answer over the Open Inference Protocol, in listed elements and in raw bytes."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pytest

from models.images import decode
from models.types import Size
from tests.contract.grpc_door import Caller
from tests.contract.oip_door import HTTP_JSON, WAYS, Inputs, http_answer, http_body, infer
from tests.contract.scenes import BOX_MASK, IMAGE
from tests.fakes import (
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


@every_way
async def test_a_box_is_answered_with_its_mask_and_measures(caller: Caller, way: str) -> None:
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
async def test_only_the_requested_outputs_are_sent_in_their_order(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED, "areas", "scores")
    assert list(answer.outputs) == ["areas", "scores"]


@every_way
async def test_an_image_may_be_sent_as_pixels(caller: Caller, way: str) -> None:
    pixels = decode(peel_image(size=Size(64, 96)), max_pixels=100_000).pixels
    by_pixels = await infer(caller, way, {"image": pixels}, model=LOADED_UNET.name)
    by_file = await infer(caller, way, {"image": peel_image(size=Size(64, 96))}, model=LOADED_UNET.name)
    assert by_file.outputs["class_map"].any()
    for name, array in by_file.outputs.items():
        assert np.array_equal(array, by_pixels.outputs[name])


@every_way
async def test_logits_of_an_answer_and_binary_masks_are_prompts(caller: Caller, way: str) -> None:
    first = await infer(caller, way, BOXED, "logits")
    guess = first.outputs["logits"][0]
    second = await infer(caller, way, {"image": IMAGE, "mask_input": guess, "multimask": ONE}, "masks", "logits")
    assert np.array_equal(second.outputs["logits"], first.outputs["logits"])
    assert np.array_equal(second.outputs["masks"], BOX_MASK[None, None])
    own = await infer(caller, way, {"image": IMAGE, "mask_input": BOX_MASK[None], "multimask": ONE}, "boxes")
    assert own.outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]


@every_way
async def test_id_and_version_are_returned(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED, "areas", version=LOADED.revision, request_id="belt 7/42")
    assert (answer.id, answer.version) == ("belt 7/42", LOADED.revision)
    assert (await infer(caller, way, BOXED, "areas")).id == ""


@every_way
async def test_the_model_in_the_path_answers(caller: Caller, way: str) -> None:
    answer = await infer(caller, way, BOXED, "logits", model=SECOND.name)
    assert (answer.model, answer.outputs["logits"].shape) == (SECOND.name, (1, 1, 256, 256))


@every_way
async def test_the_input_size_and_the_padding_are_parameters(caller: Caller, way: str) -> None:
    await infer(caller, way, BOXED, "areas", input_size=512, padding="square")
    await infer(caller, way, {**BOXED, "image": image_bytes(7)}, "areas", input_size="auto")
    frames = [(frame.side, frame.padded) for frame in caller.door.sam.frames]
    assert frames == [(512, Size(512, 512)), (1024, UNPADDED.padded)]


async def test_masks_are_not_encoded_as_the_api_itself_has_them(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("segment.encode_mask", "semantic.encode_class", "semantic.encode_class_map"):
        monkeypatch.setattr(f"service.pipelines.{name}", never)
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
        outputs = json.loads(answer.content[:length])["outputs"]
        assert ["data" in output for output in outputs] == [not all_binary, not special]


async def test_elements_may_be_one_list_or_nested_lists(caller: Caller) -> None:
    request = json.loads(http_body(BOXED, ("boxes",), {}, request_id="", raw=False)[0])
    (boxes,) = [tensor for tensor in request["inputs"] if tensor["name"] == "boxes"]
    assert boxes["data"] == [[32, 16, 64, 48]]
    for data in ([[32, 16, 64, 48]], [32, 16, 64, 48]):
        boxes["data"] = data
        answer = await caller.door.client.post(f"/v2/models/{LOADED.name}/infer", json=request)
        assert http_answer(answer).outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]


async def test_additions_of_the_protocol_are_ignored(caller: Caller) -> None:
    request = json.loads(http_body(BOXED, ("boxes",), {}, request_id="", raw=False)[0])
    request["model_name"] = LOADED.name
    request["inputs"][0] |= {"tags": [], "parameters": {"content_type": "image/png", "nested": {"a": [1]}}}
    answer = await caller.door.client.post(f"/v2/models/{LOADED.name}/infer", json=request)
    assert http_answer(answer).outputs["boxes"].tolist() == [[[32, 16, 64, 48]]]

"""What the gRPC door answers is what HTTP answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from service.http.inspect_schema import InspectOut
from service.http.semantic_schema import SemanticOut

from models.masks import Rle, decode_png, decode_rle, encode_rle
from models.types import BinaryMask
from service.api import schema
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX as HTTP_BOX
from tests.contract.door import BOX_MASK, asked, checked, image, plain
from tests.contract.door import POINT as HTTP_POINT
from tests.contract.grpc_door import BOX, IMAGE, PEEL, POINT, Caller, corners, only
from tests.fakes import HEALTHY_BOX, INFECTED_BOX, LOADED, LOADED_UNET, NOT_LOADED, SECOND

FORMATS = {
    "rle": pb.MASK_FORMAT_RLE,
    "png": pb.MASK_FORMAT_PNG,
    "polygons": pb.MASK_FORMAT_POLYGONS,
    "logits": pb.MASK_FORMAT_LOGITS,
}


def mask_of(message: pb.EncodedMask) -> dict[str, Any] | None:
    """A mask as the JSON of HTTP has it."""
    kind = message.WhichOneof("mask")
    if kind == "rle":
        return {"size": [message.rle.height, message.rle.width], "counts": message.rle.counts.decode()}
    if kind == "png":
        return {"png": base64.b64encode(message.png).decode()}
    if kind == "polygons":
        return {
            "polygons": [
                [np.reshape(ring.coordinates, (-1, 2)).tolist() for ring in polygon.rings]
                for polygon in message.polygons.polygons
            ]
        }
    if kind == "logits":
        data = base64.b64encode(message.logits.data).decode()
        return {"shape": [message.logits.height, message.logits.width], "dtype": "float16", "data": data}
    return None


def pixels(message: pb.EncodedMask) -> BinaryMask:
    return decode_rle(Rle((message.rle.height, message.rle.width), message.rle.counts.decode()))


def as_json(model: Any) -> Any:
    return json.loads(model.model_dump_json(by_alias=True))


@pytest.mark.parametrize("name", FORMATS)
async def test_masks_are_those_of_http_in_every_format(caller: Caller, name: str) -> None:
    answer = await caller.segment(IMAGE, BOX, POINT, format=FORMATS[name], overlay=True)
    http = await caller.door.segment(image(), asked(HTTP_BOX, HTTP_POINT, format=name, overlay=True))
    assert [[mask_of(mask.mask) for mask in result.masks] for result in answer.results] == [
        [mask["mask"] for mask in result["masks"]] for result in as_json(http)["results"]
    ]
    figures = [mask for result in answer.results for mask in result.masks]
    assert [(mask.score, mask.stability_score, corners(mask.box), mask.area) for mask in figures] == [
        (mask.score, mask.stability_score, mask.box, mask.area) for result in http.results for mask in result.masks
    ]
    assert http.overlay is not None
    assert answer.overlay == base64.b64decode(http.overlay)
    assert (answer.image.id, answer.image.width, answer.image.height) == (http.image.id, 128, 96)
    assert (answer.model.name, answer.model.revision, answer.model.input_size) == (LOADED.name, "0a" * 6, 1024)
    assert answer.model.padding == pb.PADDING_NONE
    assert not answer.degraded


async def test_a_mask_as_png_is_the_file_itself(caller: Caller) -> None:
    answer = only(await caller.segment(format=pb.MASK_FORMAT_PNG))
    np.testing.assert_array_equal(decode_png(answer.mask.png), BOX_MASK)


async def test_rle_is_the_default_and_holds_the_counts_as_bytes(caller: Caller) -> None:
    answer = only(await caller.segment())
    np.testing.assert_array_equal(pixels(answer.mask), BOX_MASK)
    assert answer.mask.rle.counts == encode_rle(BOX_MASK).counts.encode()
    assert answer.area == BOX_MASK.sum()


async def test_a_known_image_is_prompted_by_its_id(caller: Caller) -> None:
    embedded = await caller.stub.Embed(pb.EmbedRequest(image=IMAGE))
    assert (embedded.batch.encode, embedded.model.name) == (1, LOADED.name)
    answer = await caller.stub.Segment(pb.SegmentRequest(image_id=embedded.image.id, prompts=[BOX]))
    assert corners(only(answer).box) == (32, 16, 64, 48)
    assert (answer.batch.encode, answer.batch.prompt) == (0, 1)
    assert caller.door.sam.encodes == [1]
    # What one door encoded is known at the other.
    http = await caller.door.segment(plain("image_id", embedded.image.id), asked(HTTP_BOX))
    assert http.results[0].masks[0].box == (32, 16, 64, 48)


async def test_one_mask_or_three_and_points_of_the_foreground_by_default(caller: Caller) -> None:
    one = pb.Prompt(points=[pb.Point(x=64, y=48)], multimask=False)
    labelled = pb.Prompt(points=[pb.Point(x=64, y=48, label=1), pb.Point(x=1, y=1, label=0)])
    answer = await caller.segment(IMAGE, POINT, one, labelled)
    assert [len(result.masks) for result in answer.results] == [3, 1, 3]
    assert answer.results[0].masks[0].box == answer.results[2].masks[0].box


@pytest.mark.parametrize("kind", ["rle", "logits"])
async def test_a_prompt_may_bring_an_earlier_guess(caller: Caller, kind: str) -> None:
    if kind == "rle":
        rle = encode_rle(BOX_MASK)
        guess = pb.Prompt(rle=pb.RleMask(height=96, width=128, counts=rle.counts.encode()), multimask=False)
    else:
        given = only(await caller.segment(format=pb.MASK_FORMAT_LOGITS)).mask.logits
        guess = pb.Prompt(logits=given, multimask=False)
    caller.door.sam.forget()
    answer = await caller.segment(IMAGE, guess)
    assert [call.with_masks for call in caller.door.sam.decodes] == [True]
    assert corners(only(answer).box) == (32, 16, 64, 48)


async def test_model_size_and_padding_are_chosen(caller: Caller) -> None:
    chosen = await caller.segment(model=LOADED.name, input_size=pb.INPUT_SIZE_512, padding=pb.PADDING_SQUARE)
    assert (chosen.model.input_size, chosen.model.padding) == (512, pb.PADDING_SQUARE)
    second = await caller.stub.Embed(pb.EmbedRequest(image=IMAGE, model=SECOND.name))
    assert (second.model.name, second.model.padding) == (SECOND.name, pb.PADDING_SQUARE)


@pytest.mark.parametrize("name", ["rle", "png", "polygons"])
async def test_classes_are_those_of_http_in_every_format(caller: Caller, name: str) -> None:
    answer = await caller.stub.Semantic(pb.SemanticRequest(image=PEEL, format=FORMATS[name], overlay=True))
    http = await caller.door.semantic(PEEL, format=name, overlay=True)
    assert [mask_of(one.mask) for one in answer.classes] == [one["mask"] for one in as_json(http)["classes"]]
    names = {pb.PIXEL_CLASS_HEALTHY: "healthy", pb.PIXEL_CLASS_INFECTED: "infected"}
    assert [(names[one.pixel_class], one.area) for one in answer.classes] == [
        (one.name, one.area) for one in http.classes
    ]
    assert [(names[one.pixel_class], corners(one.box), one.area, one.score) for one in answer.objects] == [
        (one.name, one.box, one.area, one.score) for one in http.objects
    ]
    assert [corners(one.box) for one in answer.objects] == [INFECTED_BOX, HEALTHY_BOX]
    assert http.overlay is not None
    assert answer.overlay == base64.b64decode(http.overlay)
    assert answer.HasField("class_map") == (name == "png")
    if http.class_map is not None:
        assert answer.class_map == base64.b64decode(http.class_map)
    assert (answer.model.name, answer.model.input_width, answer.model.input_height) == (LOADED_UNET.name, 448, 224)
    assert answer.batch.infer == 1


@pytest.mark.parametrize("name", ["rle", "png", "polygons"])
@pytest.mark.parametrize(("mode", "number"), [("fast", pb.INSPECT_MODE_FAST), ("accurate", pb.INSPECT_MODE_ACCURATE)])
async def test_fruits_are_those_of_http(caller: Caller, name: str, mode: str, number: Any) -> None:
    grades: list[dict[str, Any]] = [
        {"grade": "top", "max_infected_fraction": 0.1},
        {"grade": "juice", "max_infected_fraction": 1.0},
    ]
    answer = await caller.stub.Inspect(
        pb.InspectRequest(
            image=PEEL,
            mode=number,
            format=FORMATS[name],
            grades=[pb.Grade(**one) for one in grades],
            overlay=True,
            frame=pb.Frame(frame_id="cam2-1", trigger_id="lane3-1", captured_at_ns=2**63 - 1),
        )
    )
    fields = {"mode": mode, "format": name, "grades": grades, "overlay": True}
    http = checked(
        await caller.door.post(image(PEEL), plain("request", json.dumps(fields)), path="/v1/inspect"), InspectOut
    )
    names = {pb.PIXEL_CLASS_HEALTHY: "healthy", pb.PIXEL_CLASS_INFECTED: "infected"}
    assert [
        {
            "id": fruit.id,
            "box": list(corners(fruit.box)),
            "area": fruit.area,
            "mask": mask_of(fruit.mask),
            "infected_mask": mask_of(fruit.infected_mask),
            "infected_fraction": fruit.infected_fraction,
            "class": names[fruit.pixel_class],
            "confidence": fruit.confidence,
            "grade": fruit.grade,
            "truncated": fruit.truncated,
            "refined": fruit.refined,
        }
        for fruit in answer.fruits
    ] == as_json(http)["fruits"]
    assert [fruit.grade for fruit in answer.fruits] == ["top", "juice"]
    assert (answer.mode, answer.degraded, answer.HasField("reason")) == (number, False, False)
    assert answer.HasField("sam") == (mode == "accurate")
    assert http.overlay is not None
    assert answer.overlay == base64.b64decode(http.overlay)
    frame = answer.frame
    assert (frame.frame_id, frame.trigger_id, frame.captured_at_ns) == ("cam2-1", "lane3-1", 2**63 - 1)


async def test_what_a_camera_does_not_say_is_not_told_again(caller: Caller) -> None:
    answer = await caller.stub.Inspect(pb.InspectRequest(image=PEEL))
    assert [field.name for field, _ in answer.frame.ListFields()] == []
    assert len(answer.fruits) == 2
    zero = await caller.stub.Inspect(pb.InspectRequest(image=PEEL, frame=pb.Frame(captured_at_ns=0)))
    assert zero.frame.HasField("captured_at_ns")


async def test_the_models_are_those_of_http(caller: Caller) -> None:
    answer = await caller.stub.ListModels(pb.ListModelsRequest())
    http = checked(await caller.door.client.get("/v1/models"), schema.ModelsOut)
    families = {pb.MODEL_FAMILY_SAM: "sam", pb.MODEL_FAMILY_UNET: "unet"}
    assert [
        {
            "name": model.name,
            "family": families[model.family],
            "revision": model.revision,
            "licence": model.licence,
            "loaded": model.loaded,
            "device": model.device if model.HasField("device") else None,
            "backend": model.backend if model.HasField("backend") else None,
        }
        for model in answer.models
    ] == [model.model_dump() for model in http.models]
    assert NOT_LOADED.name in {model.name for model in answer.models if not model.loaded}


async def test_the_parts_of_the_time_lie_within_the_whole(caller: Caller) -> None:
    answer = await caller.stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=[BOX, POINT]))
    timing = {field.name: value for field, value in answer.timing.ListFields()}
    total = timing.pop("total_ms")
    assert timing.keys() >= {"decode_ms", "postprocess_ms"}
    assert "infer_ms" not in timing
    assert 0 < sum(timing.values()) <= total


async def test_logits_are_little_endian_halves_row_by_row(caller: Caller) -> None:
    logits = only(await caller.segment(format=pb.MASK_FORMAT_LOGITS)).mask.logits
    values = np.frombuffer(logits.data, "<f2").astype(np.float32).reshape(logits.height, logits.width)
    ys, xs = np.nonzero(values > 0)
    # Two of them are one pixel of the image.
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (64, 32, 128, 96)


async def test_semantic_takes_a_model_by_name(caller: Caller) -> None:
    answer = await caller.stub.Semantic(pb.SemanticRequest(image=PEEL, model=LOADED_UNET.name))
    http = checked(await caller.door.post(image(PEEL), path="/v1/semantic"), SemanticOut)
    assert answer.model.name == http.model.name

"""What is answered: the same through every door, and for `/v1/segment` worked out by hand."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from models import images
from service.api import schema
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.runners.sam import SamRunner
from tests.contract.door import ALL_MODELS, BOX, POINT, Door, checked, fields, image, only, plain, prompted
from tests.contract.doors import (
    Request,
    comparable,
    detect,
    embed,
    everywhere,
    inspect,
    instances,
    logits_of,
    mask_array,
    pixels_of,
    rle_of,
    segment,
    semantic,
    text,
)
from tests.contract.grpc_door import Caller, open_grpc
from tests.contract.messages import to_json
from tests.contract.scenes import BOX_MASK, HEALTHY, IMAGE, INFECTED, PEEL, TWO, turned
from tests.fake_detector import LOADED_DETECTOR
from tests.fakes import (
    HEALTHY_BOX,
    INFECTED_BOX,
    LOADED,
    LOADED_UNET,
    PEEL_SIZE,
    SECOND,
    SIZE,
    UNPADDED,
    DecodeCall,
    image_bytes,
    peel_image,
    rectangle,
)

ONE: Final = {"multimask": False}
GUESS: Final = np.where(rectangle(64, 32, 128, 96, UNPADDED.logits), 4, -4).astype(np.float32)
GRADES: Final = [{"grade": "top", "max_infected_fraction": 0.1}, {"grade": "juice", "max_infected_fraction": 1.0}]
FAR: Final = "3600000"

REQUESTS: Final[dict[str, Request]] = {
    "a box": segment(BOX),
    "a point, three masks": segment(POINT),
    "several points": segment(POINT, {"points": [[20, 30], [90, 90]], "labels": [1, 0]}, {"points": [[1, 1]]}),
    "points with a box": segment(BOX | {"points": [[40, 30]], "labels": [1]}),
    "a mask": segment(ONE | {"mask": rle_of(BOX_MASK)}),
    "logits": segment(ONE | {"mask": logits_of(GUESS)}),
    "a box with a mask": segment(BOX | {"mask": rle_of(BOX_MASK)}),
    "fractions of pixels": segment({"points": [[63.25, 47.75]]}),
    "another SAM": segment(BOX, model=SECOND.name),
    "a smaller input": segment(BOX, input_size=512, padding="square"),
    "the largest input that is in time": segment(POINT, input_size="auto"),
    "a distant deadline": segment(BOX, deadline=FAR),
    "a JPEG": segment(BOX, data=image_bytes(7, file_format="JPEG")),
    "a turned image": segment({"box": [16, 8, 80, 56]}, data=turned(np.zeros((96, 64, 3), np.uint8))),
    **{
        f"masks as {name}": segment(BOX, POINT, format=name, overlay=True)
        for name in ("rle", "png", "polygons", "logits")
    },
    "an embedding": embed(),
    "an embedding of another size": embed(input_size=512, padding="square", deadline=FAR),
    "an embedding by another SAM": embed(model=SECOND.name),
    "classes": semantic(),
    "classes by a model's name": semantic(model=LOADED_UNET.name),
    "classes of a JPEG": semantic(peel_image(file_format="JPEG", quality=95)),
    "classes without fruit": semantic(IMAGE),
    "classes with a distant deadline": semantic(deadline=FAR),
    **{f"classes as {name}": semantic(format=name, overlay=True) for name in ("rle", "png", "polygons")},
    "objects": detect(),
    "objects with a distant deadline": detect(deadline=FAR, score_threshold=0.6, nms_threshold=1.0, max_detections=1),
    "objects of a class, drawn": detect(classes=["Apples"], overlay=True),
    "objects where there are none": detect(IMAGE),
    "outlined objects": instances(),
    "outlined objects by another SAM": instances(sam_model=SECOND.name, max_instances=1, overlay=True),
    **{f"outlined objects as {name}": instances(format=name) for name in ("rle", "png", "polygons", "logits")},
    "outlined objects where there are none": instances(IMAGE, overlay=True),
    "what a text names": text("an orange and apples"),
    "what a text names, with clicks": text("oranges", points=[[40, 40], [30, 30]], labels=[1, 0], overlay=True),
    "fruit": inspect(),
    "fruit with a distant deadline": inspect(deadline=FAR),
    "fruit by another SAM": inspect(mode="accurate", sam_model=SECOND.name),
    "fruit of a frame": inspect(TWO, mode="fast", frame_id="7", trigger_id="lane 3", captured_at_ns=2**63 - 1),
    "fruit of the frame 0": inspect(TWO, mode="fast", frame_id="", captured_at_ns=0),
    **{
        f"fruit as {name}, {mode}": inspect(TWO, mode=mode, format=name, grades=GRADES, overlay=True)
        for name in ("rle", "png", "polygons")
        for mode in ("fast", "accurate")
    },
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_every_door_gives_the_same_answer(caller: Caller, request_: Request) -> None:
    body = await everywhere(caller, request_)
    if request_.operation in ("segment", "embed"):
        # Whichever door it came through first, the image was known to the others.
        assert len(caller.door.encodes) == 1
    for result in body.get("results", []):
        for mask in result["masks"]:
            assert 0 < mask["area"] < body["image"]["width"] * body["image"]["height"]


async def test_coordinates_are_those_of_the_image_after_its_orientation(caller: Caller) -> None:
    body = await everywhere(caller, REQUESTS["a turned image"])
    assert (body["image"]["width"], body["image"]["height"]) == (96, 64)
    assert pixels_of(body["results"][0]["masks"][0]["mask"]).shape == (64, 96)


async def test_an_image_that_one_door_encoded_is_known_by_its_id_at_the_others(caller: Caller) -> None:
    embedded = await caller.stub.Embed(pb.EmbedRequest(image=IMAGE))
    assert (embedded.batch.encode, embedded.model.name) == (1, LOADED.name)
    body = await everywhere(caller, Request("segment", {"prompts": [BOX]}, None, embedded.image.id))
    assert body["results"][0]["masks"][0]["box"] == [32, 16, 64, 48]
    assert (body["timing_ms"]["encode"], body["timing_ms"]["decode"], body["batch"]["encode"]) == (0, 0, 0)
    assert caller.door.sam.encodes == [1]


async def test_both_doors_list_the_same_models_the_loaded_ones_first(caller: Caller) -> None:
    answer = await caller.door.client.get("/v1/models")
    assert to_json(await caller.stub.ListModels(pb.ListModelsRequest())) == answer.json()
    listed = checked(answer, schema.ListModelsResponse).models
    loaded = (LOADED.name, SECOND.name, LOADED_UNET.name, LOADED_DETECTOR.name)
    assert [model.name for model in listed] == [*loaded, *(name for name in ALL_MODELS if name not in loaded)]
    assert listed[0] == schema.Model(
        name=LOADED.name,
        family="sam",
        revision="0a" * 6,
        licence="CC0-1.0",
        loaded=True,
        device="fake:0",
        backend="torch",
        revisions=[
            schema.Revision(
                revision="0a" * 6,
                state="loaded",
                active=True,
                architecture="mobile-sam",
                file=None,
                memory_mib=0,
                shadow=0,
                error=None,
            )
        ],
    )
    assert [(model.loaded, model.device, model.backend, model.family) for model in listed[1:]] == [
        (True, "fake:1", "openvino", "sam"),
        (True, "fake:2", "torch", "unet"),
        (True, "fake:3", "torch", "detector"),
        (False, None, None, "sam"),
        (False, None, None, "unet"),
        (False, None, None, "detector"),
    ]


async def test_a_messages_masks_are_bytes_and_absent_fields_are_absent(caller: Caller) -> None:
    png = await caller.segment(format="png")
    assert png.results[0].masks[0].mask.png.png.startswith(b"\x89PNG")
    logits = (await caller.segment(format="logits")).results[0].masks[0].mask.logits
    assert len(logits.data) == 2 * logits.shape[0] * logits.shape[1]
    assert not png.HasField("overlay")
    answer = await caller.stub.Inspect(pb.InspectRequest(image=PEEL, mode=pb.INSPECT_MODE_FAST))
    assert (answer.HasField("reason"), answer.models.HasField("sam"), answer.frame.ListFields()) == (False, False, [])
    zero = await caller.stub.Inspect(pb.InspectRequest(image=PEEL, captured_at_ns=0))
    assert zero.frame.HasField("captured_at_ns")


# /v1/segment


@pytest.mark.parametrize(("asked", "seen"), [({}, 512), ({"input_size": 1024}, 1024)])
async def test_a_sam_tuned_for_an_input_size_is_asked_at_that_unless_another_is_wanted(
    door: Door, asked: dict[str, Any], seen: int
) -> None:
    runner = door.pipelines.engine.runner(SamRunner, None)
    runner.entry = replace(runner.entry, input_size=512)
    assert (await door.segment(image(), prompted(POINT, **asked))).model.input_size == seen
    inspected = await door.inspect(mode="accurate")
    assert inspected.models.sam is not None
    assert inspected.models.sam.input_size == 512


async def test_a_point_is_answered_with_three_masks_and_their_measures(door: Door) -> None:
    answer = await door.segment(image(), prompted(POINT))
    assert answer.image == schema.Image(id=images.content_id(IMAGE), width=128, height=96)
    assert answer.model == schema.SamModel(name=LOADED.name, revision="0a" * 6, input_size=1024, padding="none")
    assert answer.overlay is None
    assert len(answer.results) == 1
    masks = answer.results[0].masks
    # The square around the point is 16 pixels wide; the tokens 2, 3 and 1 make it 1, 2 and 3 pixels smaller all around.
    assert [mask.box for mask in masks] == [(57, 41, 71, 55), (58, 42, 70, 54), (59, 43, 69, 53)]
    assert [mask.area for mask in masks] == [196, 144, 100]
    assert [mask.score for mask in masks] == pytest.approx([0.9, 0.8, 0.7])
    assert [mask.stability_score for mask in masks] == [1, 1, 1]
    for mask in masks:
        np.testing.assert_array_equal(pixels_of(mask.mask.model_dump(mode="json")), rectangle(*mask.box))


@pytest.mark.parametrize("name", ["rle", "png", "polygons", None])
async def test_each_format_decodes_to_the_same_mask(door: Door, name: str | None) -> None:
    answer = only(await door.segment(image(), prompted(BOX, **({} if name is None else {"format": name}))))
    mask = answer.mask.model_dump(mode="json")
    assert set(mask) == ({"size", "counts"} if name in ("rle", None) else {name})
    np.testing.assert_array_equal(pixels_of(mask, SIZE), BOX_MASK)
    assert (answer.box, answer.area) == ((32, 16, 64, 48), 32 * 32)


async def test_logits_are_halves_of_what_the_encoder_saw(door: Door) -> None:
    answer = only(await door.segment(image(), prompted(BOX, format="logits")))
    logits = mask_array(answer.mask.model_dump(mode="json"))
    assert logits.shape == (UNPADDED.logits.height, UNPADDED.logits.width)
    # Two of them are one pixel of the image.
    np.testing.assert_array_equal(logits[: 96 * 2 : 2, : 128 * 2 : 2] > 0, BOX_MASK)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WebP", "BMP", "TIFF"])
async def test_each_image_format_is_read(door: Door, file_format: str) -> None:
    answer = await door.segment(image(image_bytes(file_format=file_format)), prompted(BOX))
    assert (answer.image.width, answer.image.height) == (128, 96)
    assert only(answer).box == (32, 16, 64, 48)


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg; charset=binary", "application/octet-stream"])
async def test_the_body_may_be_the_image_itself(door: Door, content_type: str) -> None:
    answer = await door.client.post("/v1/embed", content=IMAGE, headers={"content-type": content_type})
    assert checked(answer, schema.EmbedResponse).image == (await door.embed()).image


@pytest.mark.parametrize(
    ("prompt", "boxes"),
    [
        ({"points": [[64, 48]], **ONE}, [(56, 40, 72, 56)]),
        ({"points": [[64.0, 48.0], [1, 1]], "labels": [1, 0], **ONE}, [(56, 40, 72, 56)]),
        ({"points": [[64, 48]], "labels": None, "box": None, "mask": None, **ONE}, [(56, 40, 72, 56)]),
        ({"points": [[64, 48]], "box": [32, 16, 64, 48], **ONE}, [(32, 16, 64, 48)]),
        ({"box": [32, 16, 64, 48]}, [(33, 17, 63, 47), (34, 18, 62, 46), (35, 19, 61, 45)]),
        ({"points": [], "box": [0, 0, 128, 96], **ONE}, [(0, 0, 128, 96)]),
    ],
)
async def test_points_boxes_and_points_with_a_box_are_prompts(
    door: Door, prompt: Mapping[str, Any], boxes: list[tuple[int, ...]]
) -> None:
    answer = await door.segment(image(), prompted(prompt))
    assert [mask.box for mask in answer.results[0].masks] == boxes


async def test_logits_of_an_answer_and_a_mask_as_rle_are_prompts(door: Door) -> None:
    earlier = only(await door.segment(image(), prompted(BOX, format="logits")))
    by_logits = {"mask": earlier.mask.model_dump(mode="json"), **ONE}
    by_rle = {"mask": rle_of(BOX_MASK), **ONE}
    answer = await door.segment(image(), prompted(by_logits, by_rle, {**by_rle, "points": [[1, 1]]}))
    for result in answer.results:
        assert [mask.box for mask in result.masks] == [(32, 16, 64, 48)]
    assert door.sam.decodes[-1] == DecodeCall(3, with_masks=True)


async def test_many_prompts_share_one_image_and_are_answered_in_their_order(door: Door) -> None:
    prompts = [{"box": [x, 0, x + 32, 32], **ONE} for x in (64, 0, 32)]
    answer = await door.segment(image(), prompted(*prompts))
    assert [result.masks[0].box for result in answer.results] == [(x, 0, x + 32, 32) for x in (64, 0, 32)]
    assert door.sam.encodes == [1]


async def test_an_overlay_is_a_png_of_the_images_size_with_the_mask_drawn_in(door: Door) -> None:
    pixels = overlay_pixels((await door.segment(image(), prompted(BOX, overlay=True))).overlay, (128, 96))
    assert pixels[20:44, 36:60].any(axis=2).all()
    assert not pixels[60:].any()


def overlay_pixels(overlay: bytes | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    assert overlay is not None
    opened = PIL.Image.open(io.BytesIO(overlay))
    assert (opened.format, opened.size) == ("PNG", size)
    return np.asarray(opened.convert("RGB"))


async def test_the_id_of_an_embedded_or_segmented_image_stands_for_it(door: Door) -> None:
    embedded = await door.embed()
    assert embedded.image == schema.Image(id=images.content_id(IMAGE), width=128, height=96)
    assert embedded.timing_ms.encode > 0
    answer = await door.segment(plain("image_id", embedded.image.id), prompted(BOX))
    assert answer.image == embedded.image
    assert only(answer).box == (32, 16, 64, 48)
    assert (await door.embed()).timing_ms.encode == 0
    first = await door.segment(image(image_bytes(1)), prompted(BOX))
    assert (await door.segment(plain("image_id", first.image.id), prompted(BOX))).results == first.results
    assert door.sam.encodes == [1, 1]


async def test_the_model_that_is_named_answers(door: Door) -> None:
    embedded = await door.embed(model="lemon-sam")
    assert embedded.model == schema.SamModel(name=SECOND.name, revision="0b" * 6, input_size=1024, padding="square")
    assert (await door.segment(image(), prompted(BOX, model="lemon-sam"))).model.name == SECOND.name
    assert (door.sam.encodes, door.second.encodes) == ([], [1])


@pytest.mark.parametrize(
    "request_",
    [segment(POINT), semantic(overlay=True), inspect(TWO, mode="fast"), embed(), detect(overlay=True), instances()],
)
async def test_the_parts_of_the_time_lie_within_the_whole(caller: Caller, request_: Request) -> None:
    used = {
        "segment": {"decode", "queue", "encode", "prompt", "postprocess"},
        "embed": {"decode", "queue", "encode"},
        "semantic": {"decode", "queue", "infer", "postprocess"},
        "inspect": {"decode", "queue", "infer", "postprocess"},
        "detect": {"decode", "queue", "infer", "postprocess"},
        "instances": {"decode", "queue", "encode", "prompt", "infer", "postprocess"},
    }
    body = (await everywhere(caller, request_))["timing_ms"]
    total = body.pop("total")
    assert set(body) == {"decode", "queue", "encode", "prompt", "infer", "postprocess"}
    assert all(value >= 0 for value in body.values())
    assert {name for name, value in body.items() if value} <= used[request_.operation]
    assert body["decode"] > 0
    assert sum(body.values()) <= total + 0.05  # each is rounded to 0.01


async def test_an_answer_says_how_many_items_ran_together_and_0_where_none_ran(door: Door) -> None:
    first = await door.segment(image(), prompted(BOX, POINT))
    assert first.batch == schema.Batch(encode=1, prompt=2, infer=0)
    assert (await door.segment(image(), prompted(BOX))).batch == schema.Batch(encode=0, prompt=1, infer=0)
    assert (await door.embed(image_bytes(1))).batch == schema.Batch(encode=1, prompt=0, infer=0)
    assert (await door.embed(image_bytes(1))).batch == schema.Batch(encode=0, prompt=0, infer=0)
    assert (await door.semantic()).batch == schema.Batch(encode=0, prompt=0, infer=1)


# /v1/semantic


async def test_an_image_is_answered_with_a_mask_per_class_and_its_fruit(door: Door) -> None:
    answer = await door.semantic()
    assert answer.image == schema.Image(id=images.content_id(PEEL), width=224, height=112)
    assert answer.model == schema.UnetModel(name=LOADED_UNET.name, revision="0d" * 6, input_width=448, input_height=224)
    assert [(one.pixel_class, one.area) for one in answer.classes] == [("healthy", 64 * 48), ("infected", 96 * 56)]
    assert [(one.pixel_class, one.box, one.area) for one in answer.objects] == [
        ("infected", INFECTED_BOX, 96 * 56),
        ("healthy", HEALTHY_BOX, 64 * 48),
    ]
    # All of it but the rim is fruit with a logit of 8 against 0.
    assert all(0.98 < one.score < 1 for one in answer.objects)
    assert (answer.class_map, answer.overlay) == (None, None)


@pytest.mark.parametrize("name", ["rle", "polygons"])
async def test_each_format_decodes_to_the_same_classes(door: Door, name: str) -> None:
    answer = await door.semantic(format=name)
    for one, expected in zip(answer.classes, (HEALTHY, INFECTED), strict=True):
        assert one.mask is not None
        np.testing.assert_array_equal(pixels_of(one.mask.model_dump(mode="json"), PEEL_SIZE), expected)


async def test_as_png_all_classes_come_in_one_indexed_image(door: Door) -> None:
    answer = await door.semantic(format="png")
    assert [(one.mask, one.area) for one in answer.classes] == [(None, 64 * 48), (None, 96 * 56)]
    assert answer.class_map is not None
    opened = PIL.Image.open(io.BytesIO(answer.class_map))
    assert (opened.format, opened.mode) == ("PNG", "P")
    np.testing.assert_array_equal(np.asarray(opened), HEALTHY + 2 * INFECTED.view(np.uint8))


async def test_an_overlay_tints_each_class(door: Door) -> None:
    pixels = overlay_pixels((await door.semantic(overlay=True)).overlay, (224, 112))
    assert not pixels[~(HEALTHY | INFECTED)].any()
    assert tuple(pixels[40, 48]) == (0, 192, 80)  # 0.55 of green and 0.45 of the class's colour
    assert pixels[40, 112].any()


async def test_an_image_without_fruit_has_empty_classes_and_no_objects(door: Door) -> None:
    answer = await door.semantic(IMAGE)
    assert [one.area for one in answer.classes] == [0, 0]
    assert answer.objects == []
    polygons = await door.semantic(IMAGE, format="polygons")
    assert [one.mask for one in polygons.classes] == [schema.PolygonsMask(polygons=[])] * 2


@pytest.mark.parametrize("overlay", [False, True])
async def test_classes_lie_in_the_image_after_its_orientation(door: Door, overlay: bool) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    answer = await door.semantic(peel_image(exif=exif.tobytes()), overlay=overlay)
    assert (answer.image.width, answer.image.height) == (112, 224)
    assert answer.classes[0].mask is not None
    np.testing.assert_array_equal(pixels_of(answer.classes[0].mask.model_dump(mode="json")), np.rot90(HEALTHY, -1))
    x0, y0, x1, y1 = HEALTHY_BOX
    assert answer.objects[1].box == (112 - y1, x0, 112 - y0, x1)


async def test_nothing_is_kept_of_a_classified_image(door: Door) -> None:
    for _ in range(2):
        assert (await door.semantic()).timing_ms.infer > 0
    assert door.unet.encodes == [1, 1]
    answer = await door.post(plain("image_id", images.content_id(PEEL)), prompted(BOX))
    assert answer.json()["code"] == "unknown_image_id"


@pytest.mark.parametrize("path", ["/v1/semantic", "/v1/inspect", "/v1/embed"])
async def test_without_the_part_request_the_defaults_are_used(door: Door, path: str) -> None:
    alone, empty = [await door.post(image(PEEL), *more, path=path) for more in ([], [fields()])]
    assert comparable(alone.json()) == comparable(empty.json())
    assert alone.status_code == 200


async def test_an_answer_may_be_larger_than_requests_may_be() -> None:
    async with open_grpc(max_upload_mib=0.01) as caller:
        assert (await caller.segment(IMAGE, POINT, format="logits")).ByteSize() > 0.01 * 2**20

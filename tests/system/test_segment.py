"""`/v1/segment` with the real model: every prompt, format and input size returns the fruit that was rendered."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from models.masks import encode_rle
from models.types import Pixels
from service.api import schema
from tests.contract.doors import mask_array, rle_of
from tests.fakes import encode_image
from tests.system.calls import ENTRY, FRUITS, SIZE, Scene, embed, iou, only, pixels_of, render_scene, segment, upsampled

pytestmark = pytest.mark.checkpoint

every_size = pytest.mark.parametrize("side", [1024, 768, 512])
every_padding = pytest.mark.parametrize("padding", ["none", "square"])


# Prompts.


def test_a_box_around_each_fruit_returns_the_fruit(client: httpx.Client, scene: Scene, known: str) -> None:
    prompts = [{"box": scene.box(number), "multimask": False} for number in range(1, FRUITS + 1)]
    for number, result in enumerate(segment(client, known, *prompts).results, start=1):
        assert iou(only(result), scene.fruit(number)) >= 0.9


def test_a_point_in_the_middle_of_each_fruit_returns_the_fruit_first_of_three(
    client: httpx.Client, scene: Scene, known: str
) -> None:
    prompts = [{"points": [scene.centre(number)]} for number in range(1, FRUITS + 1)]
    for number, result in enumerate(segment(client, known, *prompts).results, start=1):
        scores = [mask.score for mask in result.masks]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert iou(pixels_of(result.masks[0]), scene.fruit(number)) >= 0.9


def test_without_multimask_a_point_returns_one_mask(client: httpx.Client, scene: Scene, known: str) -> None:
    answer = segment(client, known, {"points": [scene.centre(1)], "labels": [1], "multimask": False})
    assert iou(only(answer.results[0]), scene.fruit(1)) >= 0.9


def test_points_with_a_box_return_the_fruit_without_what_a_background_point_excludes(
    client: httpx.Client, scene: Scene, known: str
) -> None:
    x0, y0, _, _ = scene.box(2)
    corner = [x0 + 2, y0 + 2]
    prompt = {"points": [scene.centre(2), corner], "labels": [1, 0], "box": scene.box(2), "multimask": False}
    pixels = only(segment(client, known, prompt).results[0])
    assert iou(pixels, scene.fruit(2)) >= 0.9
    assert not pixels[int(corner[1]), int(corner[0])]


def test_logits_of_an_answer_and_a_mask_are_prompts(client: httpx.Client, scene: Scene) -> None:
    # A mask alone is a weak prompt: it needs the square that the model was trained on, and a fruit that stands alone.
    box = {"box": scene.box(3), "multimask": False}
    earlier = segment(client, scene.data, box, format="logits", padding="square").results[0].masks[0]
    by_rle = {"mask": rle_of(scene.fruit(3)), "multimask": False}
    by_logits = {"mask": earlier.mask.model_dump(mode="json"), "multimask": False}
    prompts = [by_logits, by_rle, by_rle | {"points": [scene.centre(3)]}]
    for result in segment(client, scene.data, *prompts, padding="square").results:
        assert iou(only(result), scene.fruit(3)) >= 0.9


def test_prompts_of_every_kind_share_one_request_and_are_answered_in_order(
    client: httpx.Client, scene: Scene, known: str
) -> None:
    prompts: list[dict[str, Any]] = [
        {"points": [scene.centre(1)]},
        {"mask": rle_of(scene.fruit(3)), "points": [scene.centre(3)], "multimask": False},
        {"box": scene.box(2), "multimask": False},
        *({"points": [scene.centre(number)], "multimask": False} for number in (3, 2, 1)),
    ]
    answer = segment(client, known, *prompts)
    for number, result in zip((1, 3, 2, 3, 2, 1), answer.results, strict=True):
        assert iou(pixels_of(result.masks[0]), scene.fruit(number)) >= 0.9
    assert answer.timing_ms.encode == 0 < answer.timing_ms.prompt


# Input sizes.


@every_padding
@every_size
def test_every_input_size_and_padding_returns_the_fruit_and_its_logits_are_a_prompt(
    client: httpx.Client, scene: Scene, side: int, padding: str
) -> None:
    chosen: dict[str, Any] = {"input_size": side, "padding": padding}
    prompts = [{"box": scene.box(number), "multimask": False} for number in range(1, FRUITS + 1)]
    answer = segment(client, scene.data, *prompts, **chosen)
    assert (answer.model.input_size, answer.model.padding) == (side, padding)
    for number, result in enumerate(answer.results, start=1):
        assert iou(only(result), scene.fruit(number)) >= 0.9
    earlier = segment(client, scene.data, prompts[1], format="logits", **chosen).results[0].masks[0]
    prompt = {"mask": earlier.mask.model_dump(mode="json"), "points": [scene.centre(2)], "multimask": False}
    assert iou(only(segment(client, scene.data, prompt, **chosen).results[0]), scene.fruit(2)) >= 0.9


def test_a_point_at_the_smallest_size_returns_the_fruit_first_of_three(client: httpx.Client, scene: Scene) -> None:
    answer = segment(client, scene.data, {"points": [scene.centre(1)]}, input_size=512)
    assert len(answer.results[0].masks) == 3
    assert iou(pixels_of(answer.results[0].masks[0]), scene.fruit(1)) >= 0.9


def test_a_small_embedding_is_prompted_by_its_id(client: httpx.Client) -> None:
    new = render_scene(31)
    embedded = embed(client, new.data, input_size=512)
    assert (embedded.model.input_size, embedded.model.padding) == (512, "none")
    answer = segment(client, embedded.image.id, {"box": new.box(1), "multimask": False})
    assert answer.model == embedded.model
    assert answer.timing_ms.encode == 0
    assert iou(only(answer.results[0]), new.fruit(1)) >= 0.9


def test_auto_is_the_largest_size_where_there_is_no_deadline(client: httpx.Client) -> None:
    new = render_scene(32)
    answer = segment(client, new.data, {"box": new.box(1), "multimask": False}, input_size="auto")
    assert answer.model.input_size == 1024
    assert iou(only(answer.results[0]), new.fruit(1)) >= 0.9


# Embeddings, formats, images.


def test_a_new_image_is_encoded_once_and_then_known_by_its_bytes_and_its_id(client: httpx.Client) -> None:
    new = render_scene(11)
    box = {"box": new.box(1), "multimask": False}
    first = segment(client, new.data, box)
    assert first.model == schema.SamModel(name=ENTRY.name, revision=ENTRY.revision, input_size=1024, padding="none")
    assert (first.image.width, first.image.height) == (SIZE.width, SIZE.height)
    timings = first.timing_ms.model_dump()
    total = timings.pop("total")
    assert min(timings["decode"], timings["encode"], timings["prompt"], timings["postprocess"]) > 0
    assert sum(timings.values()) <= total + 0.05
    for again in (segment(client, new.data, box), segment(client, first.image.id, box)):
        assert again.results == first.results
        assert again.timing_ms.encode == again.timing_ms.decode == 0
    assert embed(client, new.data).timing_ms.encode == 0


def test_two_requests_at_once_for_a_new_image_encode_it_once(client: httpx.Client) -> None:
    new = render_scene(12)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: embed(client, new.data), range(2))
    waited, encoded = sorted((first.timing_ms.encode, second.timing_ms.encode))
    assert waited == 0 < encoded
    assert first.image == second.image


def test_all_formats_hold_the_same_mask(client: httpx.Client, scene: Scene, known: str) -> None:
    box = {"box": scene.box(1), "multimask": False}
    rle, png, polygons, logits = (
        segment(client, known, box, format=name).results[0].masks[0] for name in ("rle", "png", "polygons", "logits")
    )
    kinds = [type(answer.mask) for answer in (rle, png, polygons, logits)]
    assert kinds == [schema.RleMask, schema.PngMask, schema.PolygonsMask, schema.LogitsMask]
    assert rle.mask == schema.RleMask(size=(SIZE.height, SIZE.width), counts=encode_rle(pixels_of(rle)).counts)
    for other in (png, polygons):
        np.testing.assert_array_equal(pixels_of(other), pixels_of(rle))
    halves = mask_array(logits.mask.model_dump(mode="json"))
    assert iou(upsampled(halves), pixels_of(rle)) >= 0.999  # half precision moves single pixels


def test_an_overlay_is_the_image_with_the_fruit_tinted(client: httpx.Client, scene: Scene) -> None:
    answer = segment(client, scene.data, {"box": scene.box(1), "multimask": False}, overlay=True)
    assert answer.overlay is not None
    overlay = PIL.Image.open(io.BytesIO(answer.overlay))
    assert (overlay.format, overlay.size) == ("PNG", (SIZE.width, SIZE.height))
    changed = (np.asarray(overlay) != scene.sample.pixels).any(axis=2)
    assert changed[only(answer.results[0])].mean() > 0.99
    assert not changed[scene.fruit(2) | scene.fruit(3)].any()


def test_coordinates_are_those_of_the_image_after_its_orientation(client: httpx.Client, scene: Scene) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    lying: Pixels = np.ascontiguousarray(np.rot90(scene.sample.pixels))
    data = encode_image(lying, "JPEG", quality=95, exif=exif)
    answer = segment(client, data, {"box": scene.box(1), "multimask": False})
    assert (answer.image.width, answer.image.height) == (SIZE.width, SIZE.height)
    assert iou(only(answer.results[0]), scene.fruit(1)) >= 0.9


@pytest.mark.parametrize("file_format", ["JPEG", "WebP", "BMP", "TIFF"])
def test_each_image_format_is_read(client: httpx.Client, scene: Scene, file_format: str) -> None:
    answer = embed(client, encode_image(scene.sample.pixels, file_format))
    assert (answer.image.width, answer.image.height) == (SIZE.width, SIZE.height)

"""How prompts and pictures are read, and what goes into a request."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pomona import Box, Capture, Inspect, ListModels, Mask, PixelBox, Point, Prompt, Segment, Semantic, jpeg
from pomona.asks import Attempt, Call
from pomona.errors import InvalidArgument, MalformedPrompt, NoPrompt, UnreadableImage
from pomona.http_messages import request_of
from pomona.images import open_image, picture_of
from pomona.masks import Logits
from pomona.shapes import prompts_of
from pomona.testing import a_mask

P, Q = Point(5, 6), Point(7, 8, label=0)
B = Box(1, 2, 3, 4)
NOW = Attempt(seconds=10, connect=5)
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        (P, [Prompt((P,))]),
        ([P, Q], [Prompt((P, Q))]),
        ([P, B], [Prompt((P,), B)]),
        ([[P], [B]], [Prompt((P,)), Prompt((), B)]),
        (Prompt(box=B, multimask=False), [Prompt((), B, None, multimask=False)]),
        ([Prompt(box=B), [P]], [Prompt((), B), Prompt((P,))]),
        (PixelBox(1, 2, 3, 4), [Prompt((), B)]),
    ],
)
def test_prompts_are_a_shape_shapes_of_one_thing_or_a_list_for_each(asked: Any, read: list[Prompt]) -> None:
    assert list(prompts_of(asked)) == read


def test_masks_of_answers_arrays_and_masks_are_the_same_prompt() -> None:
    answered = a_mask((1, 1, 3, 3), size=(8, 8))
    for shape in (answered, answered.mask, answered.array):
        (prompt,) = prompts_of([P, shape], multimask=False)
        assert prompt == Prompt((P,), None, answered.mask, multimask=False)


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ([], NoPrompt, "would be one"),
        ([[]], NoPrompt, "points, a box or a mask"),
        ([B, B], MalformedPrompt, "own list"),
        ([np.ones((2, 2), bool)] * 2, MalformedPrompt, "one mask"),
        ([P, [B]], MalformedPrompt, "own list"),
        (["500,375"], InvalidArgument, "str is no point"),
        ("500,375", InvalidArgument, "str is no point"),
        (5, InvalidArgument, "int is no point"),
    ],
)
def test_prompts_that_mean_nothing_are_refused_before_they_are_sent(asked: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        Segment(asked)


def test_shapes_that_are_none_are_refused() -> None:
    with pytest.raises(MalformedPrompt, match="x0 < x1"):
        Box(3, 2, 3, 4)
    with pytest.raises(MalformedPrompt, match="y0 < y1"):
        Box(1, 4, 3, 2)
    with pytest.raises(MalformedPrompt, match="finite"):
        Point(float("nan"), 1)
    with pytest.raises(MalformedPrompt, match="label"):
        Point(1, 1, label=-1)
    with pytest.raises(InvalidArgument):
        Capture(captured_at_ns=-1)


def file_of(picture: PIL.Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_encoded_pictures_are_sent_as_they_are(tmp_path: Path, file_format: str) -> None:
    data = file_of(PIL.Image.fromarray(PIXELS), file_format)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data)):
        picture = picture_of(source)
        assert picture.data == data
        assert picture.media_type == f"image/{file_format.lower()}"


@pytest.mark.parametrize(
    "pixels", [PIXELS, PIXELS[..., 0], np.dstack([PIXELS, PIXELS[..., :1]]), PIXELS[::-1, ::2]], ids=str
)
def test_pixels_are_sent_without_loss(pixels: Any) -> None:
    for source in (pixels, PIL.Image.fromarray(np.ascontiguousarray(pixels))):
        picture = picture_of(source)
        assert picture.media_type == "image/png"
        with PIL.Image.open(io.BytesIO(picture.data)) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded), pixels)


def test_pixels_are_sent_as_they_are_seen_and_files_with_their_orientation() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = file_of(PIL.Image.fromarray(PIXELS), "JPEG", exif=exif.tobytes())
    with PIL.Image.open(io.BytesIO(data)) as lying:
        sent = picture_of(lying)
    with PIL.Image.open(io.BytesIO(sent.data)) as decoded:
        assert (decoded.size, dict(decoded.getexif())) == ((6, 4), {})
    assert open_image(data).size == (4, 6)  # as the service turns it


@pytest.mark.parametrize(
    "source",
    [
        "no such file.jpg",
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2), np.uint8),
        5,
        io.StringIO("text"),
        "a\x00b",
    ],
)
def test_what_is_no_picture_is_told_before_it_is_sent(source: Any) -> None:
    with pytest.raises(UnreadableImage):
        picture_of(source)


def test_frames_can_be_encoded_as_jpeg() -> None:
    picture = picture_of(jpeg(np.full((16, 16, 3), 90, np.uint8), quality=80))
    assert picture.media_type == "image/jpeg"
    with PIL.Image.open(io.BytesIO(picture.data)) as decoded:
        assert np.abs(np.asarray(decoded, int) - 90).max() <= 2


def test_short_requests_travel_beside_the_picture_as_the_body() -> None:
    call = Call(ask=Segment([P, Q, B], model="mobile-sam", input_size=512), picture=picture_of(PIXELS))
    attempt = Attempt(seconds=1, connect=1, deadline=0.25, urgency=2, request_id="r1")
    request = request_of(call, attempt)
    assert (request.method, request.path, request.parts) == ("POST", "/v1/segment", [])
    assert call.picture is not None
    assert request.content == call.picture.data
    assert request.headers == {
        "content-type": "image/png",
        "x-deadline-ms": "250.000",
        "priority": "u=2",
        "x-request-id": "r1",
    }
    assert json.loads(request.params["request"]) == {
        "prompts": [
            {"points": [[5.0, 6.0], [7.0, 8.0]], "labels": [1, 0], "box": [1.0, 2.0, 3.0, 4.0], "multimask": True}
        ],
        "model": "mobile-sam",
        "format": "rle",
        "input_size": 512,
    }


def test_long_requests_and_ids_travel_as_parts() -> None:
    noise = np.random.default_rng(3).random((80, 80)) < 0.5
    call = Call(ask=Segment(Mask.of(noise)), picture=picture_of(PIXELS))
    request = request_of(call, NOW)
    assert (request.content, request.params) == (None, {})
    parts = dict(request.parts)
    assert parts["image"][2] == "image/png"
    assert json.loads(parts["request"][1])["prompts"][0]["mask"]["size"] == [80, 80]
    known = dict(request_of(Call(ask=Segment(P), image_id="6ae3", picture=call.picture), NOW).parts)
    assert known["image_id"][1] == b"6ae3"
    assert "image" not in known


def test_logits_go_back_as_they_came() -> None:
    logits = Logits((2, 2), bytes(8), (2.0, 2.0))
    call = Call(ask=Segment(Mask((8, 8), logits)), picture=picture_of(PIXELS))
    sent = json.loads(request_of(call, NOW).params["request"])
    assert sent["prompts"][0]["mask"] == {"shape": [2, 2], "dtype": "float16", "data": "AAAAAAAAAAA="}


def test_an_inspection_says_grades_in_order_and_what_the_camera_said() -> None:
    ask = Inspect(mode="fast", grades={"A": 0, "B": 0.1}, overlay=True)
    call = Call(ask=ask, picture=picture_of(PIXELS), capture=Capture("7", None, 0))
    assert json.loads(request_of(call, NOW).params["request"]) == {
        "mode": "fast",
        "format": "rle",
        "grades": [{"grade": "A", "max_infected_fraction": 0.0}, {"grade": "B", "max_infected_fraction": 0.1}],
        "overlay": True,
        "frame_id": "7",
        "captured_at_ns": 0,
    }


def test_nothing_is_built_without_a_picture_where_one_is_needed() -> None:
    assert request_of(Call(ask=ListModels()), NOW).path == "/v1/models"
    with pytest.raises(InvalidArgument, match="neither"):
        request_of(Call(ask=Semantic()), NOW)

"""How prompts and images of callers are understood."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pomona import Box, Call, FrameInfo, Inspect, PixelBox, Point, Prompt, Segment, jpeg
from pomona.errors import InvalidArgument, MalformedPrompt, NoPrompt, UnreadableImage
from pomona.images import encode_image, open_image
from pomona.prompts import parse_prompts
from pomona.testing import a_mask, an_embedding

P, Q = Point(5, 6), Point(7, 8, label=0)
B = Box(1, 2, 3, 4)
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_prompts_are_a_shape_shapes_of_one_object_or_a_list_for_each(given: Any, expected: list[Prompt]) -> None:
    assert list(parse_prompts(given)) == expected


def test_masks_of_results_arrays_and_masks_are_the_same_prompt() -> None:
    answered = a_mask((1, 1, 3, 3), size=(8, 8))
    for shape in (answered, answered.mask, answered.array):
        (prompt,) = parse_prompts([P, shape], multimask=False)
        assert prompt == Prompt((P,), None, answered.mask, multimask=False)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], NoPrompt, "must not be empty"),
        ([[]], NoPrompt, "points, a box or a mask"),
        ([B, B], MalformedPrompt, "own list"),
        ([np.ones((2, 2), bool)] * 2, MalformedPrompt, "at most one mask"),
        ([P, [B]], MalformedPrompt, "own list"),
        (["500,375"], InvalidArgument, "got str"),
        ("500,375", InvalidArgument, "got str"),
        (5, InvalidArgument, "got int"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_before_they_are_sent(given: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Segment(given)


def test_shapes_with_bad_values_are_refused() -> None:
    with pytest.raises(MalformedPrompt, match="x0 < x1"):
        Box(3, 2, 3, 4)
    with pytest.raises(MalformedPrompt, match="y0 < y1"):
        Box(1, 4, 3, 2)
    with pytest.raises(MalformedPrompt, match="finite"):
        Point(float("nan"), 1)
    with pytest.raises(MalformedPrompt, match=r"must be 1 \(object\) or 0 \(background\), got -1"):
        Point(1, 1, label=-1)
    with pytest.raises(InvalidArgument, match="got -1"):
        FrameInfo(captured_at_ns=-1)


def file_of(image: PIL.Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_encoded_images_are_sent_as_they_are(tmp_path: Path, file_format: str) -> None:
    data = file_of(PIL.Image.fromarray(PIXELS), file_format)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data)):
        encoded = encode_image(source)
        assert encoded.data == data
        assert encoded.media_type == f"image/{file_format.lower()}"


@pytest.mark.parametrize(
    "pixels", [PIXELS, PIXELS[..., 0], np.dstack([PIXELS, PIXELS[..., :1]]), PIXELS[::-1, ::2]], ids=str
)
def test_pixels_are_sent_without_loss(pixels: Any) -> None:
    for source in (pixels, PIL.Image.fromarray(np.ascontiguousarray(pixels))):
        encoded = encode_image(source)
        assert encoded.media_type == "image/png"
        with PIL.Image.open(io.BytesIO(encoded.data)) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded), pixels)


def test_pixels_are_sent_as_they_are_seen_and_files_with_their_orientation() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = file_of(PIL.Image.fromarray(PIXELS), "JPEG", exif=exif.tobytes())
    with PIL.Image.open(io.BytesIO(data)) as rotated:
        sent = encode_image(rotated)
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
        PIL.Image.new("I", (2, 2), -1),
        PIL.Image.new("I", (2, 2), 1 << 16),
        PIL.Image.new("F", (2, 2)),
        PIL.Image.new("RGB", (0, 2)),
        np.zeros((2, 2, 3), np.uint16),
        "a\x00b",
    ],
)
def test_sources_that_cannot_be_sent_without_loss_are_refused(source: Any) -> None:
    with pytest.raises(UnreadableImage):
        encode_image(source)
    with pytest.raises(UnreadableImage):
        open_image(source)


SAMPLES = np.array([[0, 7], [4095, 4000]], np.uint16)  # of a camera with 12 bits


@pytest.mark.parametrize(
    "source",
    [
        SAMPLES,
        PIL.Image.fromarray(SAMPLES),
        PIL.Image.fromarray(SAMPLES.astype(np.int32)),
        PIL.Image.frombytes("I;16B", (2, 2), SAMPLES.astype(">u2").tobytes()),
    ],
    ids=["array", "I;16", "I", "I;16B"],
)
def test_16_bit_pixels_are_sent_without_loss_and_drawn_on_in_the_bits_they_have(source: Any) -> None:
    encoded = encode_image(source)
    with PIL.Image.open(io.BytesIO(encoded.data)) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), SAMPLES)
    # As the service scales them: 4095 becomes white.
    assert np.asarray(open_image(source))[..., 0].tolist() == [[0, 0], [255, 249]]
    with pytest.raises(UnreadableImage, match="8 bits"):
        jpeg(source)


def test_every_mode_of_pillow_is_sent_with_its_colours() -> None:
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        image = PIL.Image.new(mode, (2, 2))
        sent = encode_image(image)
        assert open_image(sent.data).size == open_image(image).size == (2, 2), mode
        np.testing.assert_array_equal(np.asarray(open_image(sent.data)), np.asarray(open_image(image)))
        assert jpeg(image).startswith(b"\xff\xd8")


def test_images_that_can_no_longer_be_read_are_refused(tmp_path: Path) -> None:
    data = file_of(PIL.Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")
    (tmp_path / "cut.png").write_bytes(data[:2000])
    with PIL.Image.open(tmp_path / "cut.png") as cut, pytest.raises(UnreadableImage, match="decoded"):
        encode_image(cut)
    closed = io.BytesIO(data)
    closed.close()
    with pytest.raises(UnreadableImage, match="closed"):
        encode_image(closed)


def test_frames_can_be_encoded_as_jpeg() -> None:
    encoded = encode_image(jpeg(np.full((16, 16, 3), 90, np.uint8), quality=80))
    assert encoded.media_type == "image/jpeg"
    with PIL.Image.open(io.BytesIO(encoded.data)) as decoded:
        assert np.abs(np.asarray(decoded, int) - 90).max() <= 2


def test_the_id_of_an_image_is_enough_for_prompts_alone() -> None:
    embedding = an_embedding((4, 6))
    call = Call.of(Segment(P), embedding)
    assert (call.image_id, call.image) == (embedding.image.id, None)
    assert Call.of(Segment(P), embedding.image).image_id == embedding.image.id
    for request in (Inspect(), Segment(P, overlay=True)):
        source = encode_image(PIXELS)
        sent = Call.of(request, type(embedding)(**{**vars(embedding), "source": source}))
        assert (sent.image_id, sent.image) == (None, source)
    with pytest.raises(InvalidArgument, match="not only its id"):
        Call.of(Inspect(), embedding)
    with pytest.raises(InvalidArgument, match="needs an image"):
        Call.of(Inspect(), None)

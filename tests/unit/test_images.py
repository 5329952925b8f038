import hashlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags

from models import images
from models.errors import (
    ImageError,
    NotAnImage,
    TooManyPixels,
    TruncatedImage,
    UnsupportedImageFormat,
)
from models.letterbox import letterbox_for, resize
from models.types import Size

LIMIT = 1_000_000


def scene(height: int = 37, width: int = 53) -> PIL.Image.Image:
    rows, columns = np.mgrid[:height, :width]
    channels = (rows * 255 // height, columns * 255 // width, (rows + columns) * 7 % 256)
    return PIL.Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(pil_image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    pil_image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 37, width: int = 53) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


ENCODINGS = {
    "jpeg": encoded(noise(), "JPEG"),
    "progressive jpeg": encoded(scene(), "JPEG", progressive=True),
    "jpeg with exif": encoded(
        scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    "mpo": encoded(scene(), "MPO", save_all=True, append_images=[noise()]),
    "png": encoded(noise(), "PNG"),
    "palette png": encoded(scene().quantize(16), "PNG", transparency=bytes(range(16))),
    "16-bit png": encoded(PIL.Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
    "webp": encoded(noise(), "WEBP"),
    "lossless webp": encoded(scene(), "WEBP", lossless=True),
    "bmp": encoded(scene(), "BMP"),
    "palette bmp": encoded(scene().quantize(16), "BMP"),
    "tiff": encoded(scene(), "TIFF"),
    "lzw tiff": encoded(scene(), "TIFF", compression="tiff_lzw"),
    "deflate tiff": encoded(noise(), "TIFF", compression="tiff_adobe_deflate"),
    "jpeg tiff": encoded(scene(), "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_decoded_pixels_are_contiguous_writable_rgb(name: str) -> None:
    image = images.decode(ENCODINGS[name], max_pixels=LIMIT)
    assert image.id == images.content_id(ENCODINGS[name]) == hashlib.sha256(ENCODINGS[name]).hexdigest()[:32]
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape == (image.size.height, image.size.width, 3)
    assert image.pixels.flags.c_contiguous
    assert image.pixels.flags.writeable
    if name in {"lossless webp", "bmp", "tiff", "lzw tiff"}:
        assert np.array_equal(image.pixels, np.asarray(scene()))


@pytest.mark.parametrize("height", [1, 63, 64, 65, 200])
def test_jpeg_is_decoded_at_full_size_as_pillow_does(height: int) -> None:
    data = encoded(noise(height, 31), "JPEG")
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)))
    assert np.array_equal(images.decode(data, max_pixels=LIMIT).pixels, expected)


def test_the_first_image_of_an_mpo_is_decoded() -> None:
    pixels = images.decode(ENCODINGS["mpo"], max_pixels=LIMIT).pixels
    difference = pixels.astype(int) - np.asarray(scene()).astype(int)
    assert np.abs(difference).mean() < 20


# Modes


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("LA", "TIFF"),
        ("P", "PNG"),
        ("P", "BMP"),
        ("P", "TIFF"),
        ("RGBA", "PNG"),
        ("RGBA", "TIFF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
        ("YCbCr", "JPEG"),
        ("LAB", "TIFF"),
    ],
)
def test_other_modes_become_rgb_as_pillow_converts_them(mode: str, kind: str) -> None:
    data = encoded(scene().convert(mode), kind)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(images.decode(data, max_pixels=LIMIT).pixels, expected)


def test_alpha_is_dropped_and_hidden_colours_stay() -> None:
    rgba = np.dstack((np.asarray(scene()), np.zeros((37, 53), np.uint8)))
    data = encoded(PIL.Image.fromarray(rgba), "PNG")
    assert np.array_equal(images.decode(data, max_pixels=LIMIT).pixels, np.asarray(scene()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    grey = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], np.uint16)
    pixels = images.decode(encoded(PIL.Image.fromarray(grey), kind), max_pixels=LIMIT).pixels
    expected = np.array([[0, 0, 1, 1], [128, 254, 255, 255]])
    assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        *((scene().quantize(16), "PNG", {"transparency": colour}) for colour in (3, bytes(range(16)), b"\0")),
        (scene().convert("L"), "PNG", {"transparency": 7}),
        (scene(), "PNG", {"transparency": (1, 2, 3)}),
    ],
)
def test_transparent_colours_are_kept_as_they_are(image: PIL.Image.Image, kind: str, options: dict[str, Any]) -> None:
    pixels = images.decode(encoded(image, kind, **options), max_pixels=LIMIT).pixels
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.frombytes("I;16B", (3, 1), np.array([[0, 257, 65535]], ">u2").tobytes()),
        PIL.Image.fromarray(np.array([[0, 257, 65535]], np.int32)),
    ],
    ids=["big-endian", "32 bits"],
)
def test_other_16_bit_grey_is_decoded_alike(image: PIL.Image.Image) -> None:
    pixels = images.decode(encoded(image, "TIFF"), max_pixels=LIMIT).pixels
    assert pixels[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    "values", [np.array([[-1, 5]], np.int32), np.array([[0, 65536]], np.int32), np.zeros((2, 2), np.float32)]
)
def test_pixels_beyond_16_bit_integers_are_unsupported(values: NDArray[np.generic]) -> None:
    with pytest.raises(UnsupportedImageFormat, match="Scale the image to 8 or 16 bits"):
        images.decode(encoded(PIL.Image.fromarray(values), "TIFF"), max_pixels=LIMIT)


def test_12_bit_grey_is_scaled_to_its_own_range() -> None:
    header = struct.pack("<2sHI", b"II", 42, 8)
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    data = (header + directory).ljust(200, b"\0") + bytes([0xFF, 0xF0, 0x00])
    assert images.decode(data, max_pixels=LIMIT).pixels[0, :, 0].tolist() == [255, 0]


# Orientation


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_applied_as_imageops_does(kind: str, orientation: int) -> None:
    data = encoded(scene(), kind, exif=oriented(orientation))
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    assert np.array_equal(images.decode(data, max_pixels=LIMIT).pixels, expected)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0nonsense that is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        # An orientation that is text, and one that is two numbers.
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0six\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x06\0\x06\0\0\0\0\0",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_fail_the_image(kind: str, exif: bytes) -> None:
    image = images.decode(encoded(scene(), kind, exif=exif), max_pixels=LIMIT)
    assert {image.size.height, image.size.width} == {37, 53}


# Refusals


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xd8",
        b"hello",
        b"BMW and other makes of cars",
        b"<html><svg></svg></html>",
        b"<!doctype html><p>no</p>",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypmp42\0\0\0\0",
        bytes(64),
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_bytes_of_no_image_format_are_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="Send"):
        images.decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(scene(), "GIF"), "GIF"),
        (b"8BPS\0\x01" + bytes(20), "PSD"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (encoded(scene(), "AVIF"), "AVIF"),
        (encoded(scene(), "ICO"), "ICO"),
        (encoded(scene(), "JPEG2000"), "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG"),
    ],
)
def test_unsupported_formats_are_named_with_the_supported_ones(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match=f"is {name}. Send JPEG, PNG, WebP, BMP or TIFF"):
        images.decode(data, max_pixels=LIMIT)


def test_the_pixel_limit_is_inclusive_and_both_numbers_are_named() -> None:
    data = ENCODINGS["jpeg"]
    assert images.decode(data, max_pixels=37 * 53).size.pixels == 37 * 53
    for read in (images.decode, images.load, images.read_size):
        with pytest.raises(TooManyPixels, match=r"1961 pixels \(53 x 37\); the limit is 1960"):
            read(data, max_pixels=37 * 53 - 1)
    # Pillow's own limit is 89 million pixels.
    large = encoded(PIL.Image.new("1", (10_000, 9_000)), "PNG")
    assert images.load(large, max_pixels=90_000_000).size == (10_000, 9_000)


def test_the_pixel_limit_is_checked_before_anything_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 10) + b"IDAT" + bytes(14)
    with pytest.raises(TooManyPixels, match="3600000000"):
        images.decode(data, max_pixels=LIMIT)


def test_a_tiff_whose_tiles_are_huge_is_refused() -> None:
    header = struct.pack("<2sHI", b"II", 42, 8)
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 65536),
        (323, 65536),
        (324, 200),
        (325, 16),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = (header + struct.pack("<H", len(tags)) + entries + bytes(4)).ljust(216, b"\0")
    with pytest.raises(TooManyPixels, match="TIFF tile"):
        images.decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_cut_header_and_half_a_file_are_a_truncated_image(name: str) -> None:
    data = ENCODINGS[name]
    whole = ENCODINGS["jpeg"] if name == "mpo" else data
    for cut in (*(data[:length] for length in (12, 14, 16, 20)), whole[: len(whole) // 2]):
        with pytest.raises(TruncatedImage, match="Send the whole file"):
            images.decode(cut, max_pixels=LIMIT)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_file_cut_anywhere_decodes_or_is_an_image_error(name: str) -> None:
    data = ENCODINGS[name]
    for length in [*range(min(200, len(data))), *range(200, len(data), max(1, len(data) // 60))]:
        decode_or_image_error(data[:length])


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(sorted(ENCODINGS)),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.none() | st.floats(0, 1),
)
def test_damaged_bytes_decode_or_are_an_image_error(
    name: str,
    near_the_start: list[tuple[int, int]],
    anywhere: list[tuple[float, int]],
    cut: float | None,
) -> None:
    data = bytearray(ENCODINGS[name])
    for at, value in near_the_start:
        data[at % len(data)] = value
    for share, value in anywhere:
        data[int(share * (len(data) - 1))] = value
    decode_or_image_error(bytes(data if cut is None else data[: int(cut * len(data))]))


def decode_or_image_error(data: bytes) -> None:
    try:
        image = images.decode(data, max_pixels=LIMIT)
    except ImageError as error:
        assert error.detail  # noqa: PT017 - either outcome is right
        assert "at 0x" not in error.detail  # noqa: PT017 - no addresses
    else:
        assert image.size.pixels <= LIMIT


def test_pillows_warnings_are_silenced_even_if_warnings_are_errors() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.decode(encoded(scene(), "JPEG", exif=exif), max_pixels=LIMIT)
        images.decode(ENCODINGS["palette png"], max_pixels=LIMIT)
        count = len(warnings.filters)
        images.decode(ENCODINGS["palette png"], max_pixels=LIMIT)
        assert len(warnings.filters) == count


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_read_from_the_header_is_the_size_of_the_decoded_image(kind: str, orientation: int) -> None:
    options = {} if kind == "BMP" else {"exif": oriented(orientation)}
    data = encoded(PIL.Image.new("RGB", (37, 23)), kind, **options)
    assert images.read_size(data, max_pixels=LIMIT) == images.decode(data, max_pixels=LIMIT).size


def test_the_size_of_an_image_cut_after_its_header_is_read() -> None:
    data = encoded(PIL.Image.new("RGB", (640, 480)), "JPEG")
    assert images.read_size(data[: len(data) * 3 // 4], max_pixels=LIMIT) == Size(480, 640)


# Decoding to the size of a model's input

MANY = 10_000_000


def photo(height: int, width: int) -> PIL.Image.Image:
    """Smooth colours with some grain, as in a photograph."""
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack((rows * 255 / height, columns * 255 / width, np.hypot(rows, columns) % 200), axis=-1)
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    return PIL.Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def oriented(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_decoding_to_a_size_equals_resizing_the_decoded_image(mode: str, orientation: int) -> None:
    image = photo(120, 170).convert("L").convert(mode) if mode == "I;16" else photo(120, 170).convert(mode)
    data = encoded(image, "PNG", exif=oriented(orientation))
    decoded = images.decode(data, max_pixels=MANY)
    letterbox = letterbox_for(decoded.size, 64)
    straight = images.decode_resized(data, letterbox.resized, max_pixels=MANY)
    assert np.array_equal(straight, resize(decoded.pixels, letterbox))


def test_a_scaled_jpeg_is_nearly_what_the_whole_one_gives() -> None:
    data = encoded(photo(900, 2080), "JPEG")
    wanted = letterbox_for(Size(900, 2080), 512).resized
    exact = images.decode_resized(data, wanted, max_pixels=MANY).astype(int)
    scaled = images.decode_resized(data, wanted, max_pixels=MANY, scaled=True).astype(int)
    assert not np.array_equal(exact, scaled)  # else nothing was scaled
    # Half of the coefficients are left out, of which the filter would keep next to nothing.
    assert np.abs(exact - scaled).mean() < 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_scaled_jpeg_is_turned_upright(orientation: int) -> None:
    data = encoded(photo(400, 1000), "JPEG", exif=oriented(orientation))
    wanted = Size(80, 200) if orientation == 1 else Size(200, 80)
    exact = images.decode_resized(data, wanted, max_pixels=MANY).astype(int)
    scaled = images.decode_resized(data, wanted, max_pixels=MANY, scaled=True).astype(int)
    assert scaled.shape == (*(wanted.height, wanted.width), 3)
    assert np.abs(exact - scaled).mean() < 2


@pytest.mark.parametrize(
    ("image", "wanted"), [(photo(300, 300), Size(76, 76)), (photo(400, 400).convert("L"), Size(40, 40))]
)
def test_small_and_grey_jpegs_are_decoded_at_full_size(image: PIL.Image.Image, wanted: Size) -> None:
    data = encoded(image, "JPEG")
    exact, scaled = (images.decode_resized(data, wanted, max_pixels=MANY, scaled=scaled) for scaled in (False, True))
    assert np.array_equal(exact, scaled)


def test_one_decode_gives_the_sizes_of_several_models() -> None:
    data, sizes = encoded(photo(300, 400), "JPEG"), [Size(60, 80), Size(150, 200)]
    together = images.decode_to_sizes(data, sizes, max_pixels=MANY)
    for pixels, size in zip(together, sizes, strict=True):
        assert np.array_equal(pixels, images.decode_resized(data, size, max_pixels=MANY))


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [
        ([Size(100, 200)], 4),
        ([Size(101, 200)], 2),  # the height would be less than twice
        ([Size(100, 200), Size(300, 100)], 1),  # a second model needs more
        ([Size(10, 20)], 8),
    ],
)
def test_a_scaled_jpeg_is_at_least_twice_as_large_as_what_the_models_see(sizes: list[Size], scale: int) -> None:
    assert images.decoding_scale(Size(800, 1600), sizes) == scale
    data = encoded(photo(800, 1600), "JPEG")
    size, whole = Size(800, 1600), images.decoding_bytes(data, Size(800, 1600))
    assert images.decoding_bytes(data, size, sizes) * scale**2 == whole
    draft = PIL.Image.open(io.BytesIO(data))
    draft.draft("RGB", (1600 // scale, 800 // scale))
    expected = [np.array(draft.resize((each.width, each.height), PIL.Image.Resampling.BILINEAR)) for each in sizes]
    for pixels, wanted in zip(images.decode_to_sizes(data, sizes, max_pixels=MANY, scaled=True), expected, strict=True):
        assert np.array_equal(pixels, wanted)


def test_decoding_to_a_size_rejects_what_decode_rejects() -> None:
    data = encoded(photo(400, 400), "JPEG")
    with pytest.raises(TooManyPixels):
        images.decode_resized(data, Size(40, 40), max_pixels=400 * 400 - 1, scaled=True)
    with pytest.raises(TruncatedImage):
        images.decode_resized(data[: len(data) // 2], Size(40, 40), max_pixels=MANY, scaled=True)

"""What an image may cost to decode, and how decoding ends early."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from loadtest.hostile_images import encode, jpeg_with_scans, tiff
from models import images
from models.errors import DecodingStopped, ImageError, ImageTooComplex, TruncatedImage
from models.headers.header import MAX_SCANNED_PIXELS, MAX_SCANS
from models.types import Size

MANY = 50_000_000


def test_ordinary_progressive_jpegs_are_decoded() -> None:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    for subsampling in (0, 2):
        data = encode(image, "JPEG", progressive=True, subsampling=subsampling)
        assert np.array_equal(images.decode(data, max_pixels=MANY).pixels, np.asarray(PIL.Image.open(io.BytesIO(data))))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    assert images.decode(jpeg_with_scans(64, MAX_SCANS - 12), max_pixels=MANY).size == Size(64, 64)
    with pytest.raises(ImageTooComplex, match=f"more than {MAX_SCANS} scans of 4096 pixels.*baseline JPEG"):
        images.decode(jpeg_with_scans(64, MAX_SCANS), max_pixels=MANY)


def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one() -> None:
    side = 3000
    extra = MAX_SCANNED_PIXELS // side**2  # with the six of any progressive JPEG, more than allowed
    assert extra < MAX_SCANS
    with pytest.raises(ImageTooComplex, match=rf"{extra + 6} scans of 9000000 pixels; .* at most {MAX_SCANNED_PIXELS}"):
        images.decode(jpeg_with_scans(side, extra), max_pixels=MANY)


def test_scans_are_found_behind_segments_and_not_within_them() -> None:
    plain = encode(PIL.Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    at = plain.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2 * MAX_SCANS + 20) + b"\xff\xda" * (MAX_SCANS + 10)
    assert images.decode(plain[:at] + comment + plain[at:], max_pixels=MANY).size == Size(64, 64)
    # What follows the image, such as a second one, does not count either.
    assert images.decode(plain + b"\xff\xda" * 2 * MAX_SCANS, max_pixels=MANY).size == Size(64, 64)


def jpeg_tiff(data: bytes, strips: int) -> bytes:
    """A TIFF whose strips are all the same JPEG."""
    side = 64
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side * strips),
        (258, 3, 1, 8),
        (259, 3, 1, 7),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    lists = [(273, 4, strips, 200), (278, 4, 1, side), (279, 4, strips, 200 + 4 * strips)]
    if strips == 1:
        lists = [(273, 4, 1, 208), (278, 4, 1, side), (279, 4, 1, len(data))]
    at = 200 + 8 * strips
    head = tiff(*tags, *lists).ljust(200, b"\0")
    return head + struct.pack(f"<{2 * strips}L", *[at] * strips, *[len(data)] * strips) + data


def test_scans_within_a_tiff_count_too() -> None:
    scans = MAX_SCANS - 12
    assert images.decode(jpeg_tiff(jpeg_with_scans(64, 0), 1), max_pixels=MANY).size == Size(64, 64)
    assert images.decode(jpeg_tiff(jpeg_with_scans(64, scans), 1), max_pixels=MANY).size == Size(64, 64)
    with pytest.raises(ImageTooComplex, match="TIFF's JPEG has more than"):
        images.decode(jpeg_tiff(jpeg_with_scans(64, MAX_SCANS), 1), max_pixels=MANY)
    with pytest.raises(TruncatedImage, match=r"strips have .* bytes together"):  # one JPEG for all
        images.decode(jpeg_tiff(jpeg_with_scans(64, scans), 50), max_pixels=MANY)


def test_tiles_that_stick_far_out_of_a_tiff_are_refused() -> None:
    tags = [(256, 4, 1, 1), (257, 4, 1, 4096 * 9), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(322, 4, 1, 4096), (323, 4, 1, 4096), (324, 4, 9, 200), (325, 4, 9, 240)]
    with pytest.raises(ImageTooComplex, match="got 9 tiles of 4096 x 4096"):
        images.decode(tiff(*tags) + bytes(300), max_pixels=MANY)
    with pytest.raises(TruncatedImage, match="tiles of 0 x 4096"):
        images.decode(tiff(*tags[:6], (322, 4, 1, 0), *tags[7:]) + bytes(300), max_pixels=MANY)


def test_a_large_run_length_encoded_bmp_is_refused() -> None:
    def bmp(width: int, height: int) -> bytes:
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 256, 0)
        palette = bytes(value for grey in range(256) for value in (grey, grey, grey, 0))
        return struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078) + head + palette + bytes((width, 7, 0, 1))

    assert images.decode(bmp(200, 1), max_pixels=MANY).pixels[0, 199].tolist() == [7, 7, 7]
    with pytest.raises(ImageTooComplex, match="run-length encoded BMP must have at most 4000000 pixels"):
        images.decode(bmp(200, 20_001), max_pixels=MANY)


LARGE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8))


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        ("JPEG", {}, "RGB"),
        ("JPEG", {"progressive": True}, "RGB"),
        ("PNG", {}, "RGB"),
        ("PNG", {}, "I;16"),
        ("BMP", {}, "RGB"),
        ("TIFF", {}, "RGB"),
        ("TIFF", {"compression": "tiff_lzw"}, "RGB"),
        ("WEBP", {}, "RGB"),
    ],
)
def test_decoding_ends_once_it_is_told_to_stop(kind: str, options: dict[str, object], mode: str) -> None:
    image = LARGE.convert("L").convert(mode) if mode == "I;16" else LARGE
    data = encode(image, kind, **options)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 10

    if kind == "WEBP" or options.get("compression"):  # decoded in one piece
        asked = 9
    for read in (
        lambda: images.decode(data, max_pixels=MANY, stop=stop),
        lambda: images.decode_resized(data, Size(90, 120), max_pixels=MANY, scaled=True, stop=stop),
    ):
        with pytest.raises(DecodingStopped):
            read()


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "JPEG"])
def test_libraries_write_nothing_about_damaged_files(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    for options in ({"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}):
        data = bytearray(encode(LARGE.resize((60, 40)), kind, **(options if kind == "TIFF" else {})))
        for at in range(0, len(data), max(1, len(data) // 40)):
            damaged = bytearray(data)
            damaged[at : at + 9] = b"\xff" * len(damaged[at : at + 9])
            for cut in (damaged, damaged[: 2 * at]):
                try:
                    images.decode(bytes(cut), max_pixels=MANY)
                except ImageError:
                    continue
    assert capfd.readouterr() == ("", "")


def wide_png(colour: int, samples: int) -> bytes:
    """64 x 48 pixels of 16 bits per sample, black."""
    rows = b"".join(b"\0" + bytes(2 * samples * 64) for _ in range(48))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    written = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(
    ("data", "bytes_per_pixel"),
    [
        (encode(PIL.Image.new("RGB", (64, 48)), "JPEG"), 8),
        (encode(PIL.Image.new("RGB", (64, 48)), "JPEG", progressive=True, subsampling="4:2:0"), 8),  # 4 and 3
        (encode(PIL.Image.new("RGB", (64, 48)), "JPEG", progressive=True, subsampling="4:4:4"), 10),
        (encode(PIL.Image.new("RGB", (64, 48)), "PNG"), 8),
        (wide_png(0, 1), 8),
        (wide_png(2, 3), 11),
        (wide_png(6, 4), 11),
    ],
    ids=["JPEG", "progressive, subsampled", "progressive", "PNG", "grey of 16 bits", "48 bits", "64 bits"],
)
def test_the_memory_of_a_decode_is_known_from_the_header(data: bytes, bytes_per_pixel: int) -> None:
    size = images.read_size(data, max_pixels=1 << 20)
    assert images.decoding_bytes(data, size) == bytes_per_pixel * size.pixels

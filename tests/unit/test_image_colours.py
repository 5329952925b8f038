"""What samples of more than 8 bits, ICC profiles and CMYK become."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ImageCms, TiffImagePlugin

from loadtest.hostile_images import png_chunk
from models import colour, images
from models.letterbox import letterbox_for, resize
from models.types import Pixels, Size

MANY = 10_000_000


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    return images.decode(data, max_pixels=MANY).pixels


# Samples of more than 8 bits


def png16(samples: NDArray[np.generic], *, significant: int | None = None) -> bytes:
    """A PNG of 16 bits: grey, grey with alpha, RGB or RGBA by the last axis."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    rows = samples.astype(">u2").tobytes()
    stride = width * channels * 2
    packed = zlib.compress(b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride)))
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    bits = b"" if significant is None else png_chunk(b"sBIT", bytes([significant] * channels))
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + bits + png_chunk(b"IDAT", packed) + png_chunk(b"IEND")


def tiff16(samples: NDArray[np.uint16], *, most: int | None = None, compression: str | None = None) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if most is not None:
        tags[281] = most
        tags.tagtype[281] = 3
    return encoded(PIL.Image.fromarray(samples), "TIFF", tiffinfo=tags, compression=compression)


def ramp(white: int) -> NDArray[np.uint16]:
    return np.linspace(0, white, 90 * 70).round().astype(np.uint16).reshape(90, 70)


def expected(samples: NDArray[np.uint16], white: int) -> NDArray[np.uint8]:
    return ((samples.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8)


@pytest.mark.parametrize(("depth", "white"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "LZW TIFF"])
def test_grey_of_a_camera_is_as_bright_in_16_bits_as_in_8(kind: str, depth: int, white: int) -> None:
    samples = ramp(white)
    data = png16(samples) if kind == "PNG" else tiff16(samples, compression="tiff_lzw" if "LZW" in kind else None)
    assert depth == white.bit_length()
    assert np.array_equal(decoded(data), np.repeat(expected(samples, white)[:, :, None], 3, axis=2))


def test_a_dark_image_is_scaled_by_the_depth_that_holds_its_brightest_sample() -> None:
    assert decoded(png16(ramp(1500))).max() == round(1500 * 255 / 4095)
    assert decoded(png16(ramp(5000))).max() == round(5000 * 255 / 16383)


def test_sbit_says_what_white_is_even_in_a_dark_image() -> None:
    dark = ramp(300)
    assert decoded(png16(dark)).max() == round(300 * 255 / 1023)
    assert decoded(png16(dark, significant=12)).max() == round(300 * 255 / 4095)


def test_samples_that_were_shifted_up_as_png_wants_it_are_not_shifted_again() -> None:
    for samples in (ramp(4095) * np.uint16(16), ramp(200) * np.uint16(16)):
        assert np.array_equal(decoded(png16(samples, significant=12))[..., 0], expected(samples, 65535))


def test_sbit_that_the_samples_exceed_does_not_count() -> None:
    assert decoded(png16(ramp(65535), significant=10)).max() == 255


@pytest.mark.parametrize(("most", "white"), [(4095, 4095), (3017, 4095), (65535, 65535), (255, 1023), (None, 1023)])
def test_max_sample_value_of_a_tiff_says_what_white_is(most: int | None, white: int) -> None:
    assert decoded(tiff16(ramp(600), most=most)).max() == round(600 * 255 / white)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("white", [255, 1023, 4095, 16383])
def test_colours_of_a_camera_are_as_bright_in_16_bits_as_in_8(channels: int, white: int) -> None:
    grey = ramp(white)
    colours = [grey] if channels == 2 else [grey, grey[::-1], grey[:, ::-1]]
    alpha = [] if channels == 3 else [np.full_like(grey, 65535)]
    wanted = expected(np.stack(colours, axis=-1), white)
    pixels = decoded(png16(np.stack(colours + alpha, axis=-1)))
    assert np.array_equal(pixels, np.broadcast_to(wanted, pixels.shape))


def test_colours_of_16_bits_keep_their_high_bytes() -> None:
    grey = ramp(65535)
    samples = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    assert np.array_equal(decoded(png16(samples)), samples >> 8)


def test_narrow_samples_agree_in_both_ways_to_decode() -> None:
    data = png16(ramp(4095))
    letterbox = letterbox_for(Size(90, 70), 32)
    small = images.decode_resized(data, letterbox.resized, max_pixels=MANY, scaled=True)
    assert np.array_equal(small, resize(decoded(data), letterbox))


# ICC profiles


XYZ = tuple[float, float, float]


def profile_with(red: XYZ, green: XYZ, blue: XYZ, gamma: float) -> bytes:
    """A matrix profile of a screen; primaries as XYZ relative to D50."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: XYZ) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"p\0" + bytes(4 + 4 + 2 + 1 + 67) + b"\0\0\0"
    white = (0.9642, 1.0, 0.8249)
    tags = {b"desc": text, b"wtpt": xyz(white), b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(body), len(padded))
        body += padded
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(fixed, white))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = profile_with((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841), 2.2)
"""Display P3's primaries, with a plain gamma of 2.2."""


def oranges() -> PIL.Image.Image:
    rows, columns = np.mgrid[:40, :60]
    return PIL.Image.fromarray(np.stack((150 + columns, 60 + rows, rows), axis=-1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_converted_to_srgb_by_the_profile_of_the_file(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(oranges(), kind, icc_profile=P3, **options)
    plain = PIL.Image.open(io.BytesIO(encoded(oranges(), kind, **options))).convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(P3))
    wanted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"))
    assert wanted is not None
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(plain)).max() > 20  # else nothing was converted
    assert np.array_equal(decoded(data), np.asarray(wanted))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_srgb_profile_changes_nothing(kind: str) -> None:
    assert np.array_equal(decoded(encoded(oranges(), kind, icc_profile=SRGB)), decoded(encoded(oranges(), kind)))
    assert colour.to_srgb(image := oranges(), SRGB) is image


@pytest.mark.parametrize(
    "profile",
    [b"", b"nonsense", P3[:200], P3[:128] + bytes(len(P3) - 128), P3[:16] + b"CMYK" + P3[20:], P3 + b"mpet"],
)
def test_a_profile_that_is_damaged_or_of_another_kind_is_ignored(profile: bytes) -> None:
    assert np.array_equal(decoded(encoded(oranges(), "PNG", icc_profile=profile)), np.asarray(oranges()))


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_palettes_and_colours_with_alpha_are_converted_too(mode: str) -> None:
    image = oranges().quantize(16) if mode == "P" else oranges().convert(mode)
    wanted = colour.to_srgb(image.convert("RGB"), P3)
    assert np.array_equal(decoded(encoded(image, "PNG", icc_profile=P3)), np.asarray(wanted))


def test_a_profile_in_several_segments_of_a_jpeg_is_put_together() -> None:
    plain, parts = encoded(oranges(), "JPEG"), (P3[:100], P3[100:])
    segments = [
        b"\xff\xe2" + struct.pack(">H", len(part) + 16) + b"ICC_PROFILE\0" + bytes((number, 2)) + part
        for number, part in enumerate(parts, 1)
    ]
    whole = decoded(encoded(oranges(), "JPEG", icc_profile=P3))
    assert np.array_equal(decoded(plain[:2] + segments[1] + segments[0] + plain[2:]), whole)
    assert np.array_equal(decoded(plain[:2] + segments[1] + plain[2:]), decoded(plain))


def test_converted_colours_agree_in_all_ways_to_decode() -> None:
    large = oranges().resize((600, 400), PIL.Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", icc_profile=P3)
    whole = PIL.Image.fromarray(decoded(data)).resize((60, 40), PIL.Image.Resampling.BILINEAR)
    exact = images.decode_resized(data, Size(40, 60), max_pixels=MANY)
    scaled = images.decode_resized(data, Size(40, 60), max_pixels=MANY, scaled=True)
    assert np.array_equal(exact, np.asarray(whole))
    assert np.abs(exact.astype(int) - scaled).mean() < 2


def test_only_recent_profiles_are_kept() -> None:
    for number in range(3 * colour.KEPT):
        profile = P3.replace(b"p\0", bytes((33 + number, 0)), 1)
        colour.to_srgb(PIL.Image.new("RGB", (1, 1)), profile)
    assert len(colour.TRANSFORMS) == colour.KEPT


# CMYK


def test_cmyk_is_inverted_only_if_adobe_wrote_it() -> None:
    """Pillow writes CMYK as Adobe does, inverted, with the segment APP14."""
    image = PIL.Image.new("CMYK", (16, 16), (0, 40, 200, 10))
    wanted = np.asarray(image.convert("RGB"))[0, 0].astype(int)
    adobe = encoded(image, "JPEG", quality=100)
    assert np.abs(decoded(adobe)[0, 0] - wanted).max() < 4
    at = adobe.index(b"\xff\xee")
    length = struct.unpack_from(">H", adobe, at + 2)[0]
    without = adobe[:at] + adobe[at + 2 + length :]
    inverted = PIL.Image.eval(image, lambda value: 255 - value).convert("RGB")
    assert np.abs(decoded(without)[0, 0] - np.asarray(inverted)[0, 0].astype(int)).max() < 4

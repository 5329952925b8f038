"""Size and orientation as read from the header, beside what Pillow makes of the same file."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from models import images
from models.errors import ImageTooComplex, NotAnImage, TruncatedImage
from models.headers.header import MAX_STEPS, QUICK_STEPS
from models.headers.read import read_header, read_short_header
from models.types import Size

LIMIT = 1_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def upright_size_by_pillow(data: bytes) -> Size:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
        width, height = PIL.ImageOps.exif_transpose(image).size
    return Size(height, width)


def check_as_pillow(data: bytes) -> None:
    expected = upright_size_by_pillow(data)
    assert images.read_size(data, max_pixels=LIMIT) == expected
    assert images.read_size_quickly(data, max_pixels=LIMIT) in {expected, None}
    assert images.decode(data, max_pixels=LIMIT).size == expected


def exif_with(orientation: int | None, *, others: int, order: str, prefix: bytes) -> bytes:
    """EXIF with tags around the orientation, which may be too long to be stored beside their names."""
    tags = [(40000 + number, 2, 10, b"ten chars\0") for number in range(others)]
    if orientation is not None:
        tags.insert(others // 2, (ExifTags.Base.Orientation, 3, 1, struct.pack(order + "HH", orientation, 0)))
    values, entries = b"", b""
    end = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        if len(value) > 4:
            entries += struct.pack(order + "HHLL", tag, kind, count, end + len(values))
            values += value
        else:
            entries += struct.pack(order + "HHL", tag, kind, count) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    return prefix + head + struct.pack(order + "H", len(tags)) + entries + bytes(4) + values


def xmp_with(orientation: int) -> bytes:
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="%d"/></x:xmpmeta>' % orientation


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(FORMATS),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(("1", "L", "RGB", "P", "RGBA", "CMYK", "I;16")),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(1, 8),
    st.integers(0, 80),
    st.sampled_from("<>"),
)
def test_size_and_orientation_are_those_that_pillow_finds(
    kind: str,
    size: tuple[int, int],
    mode: str,
    orientation: int | None,
    in_xmp: int | None,
    others: int,
    order: str,
) -> None:
    progressive = others % 3 == 0
    exif = exif_with(orientation, others=others, order=order, prefix=b"Exif\0\0")
    options: dict[str, object] = {}
    if kind in {"JPEG", "PNG", "WEBP"}:
        options["exif"] = exif
    if in_xmp is not None and kind in {"JPEG", "WEBP"}:
        options["xmp"] = xmp_with(in_xmp)
    if in_xmp is not None and kind == "PNG":
        options["pnginfo"] = text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp_with(in_xmp).decode(), zip=others % 2 == 0)
    if kind == "JPEG":
        options["progressive"] = progressive
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        if orientation:
            tags[ExifTags.Base.Orientation] = orientation
        if in_xmp is not None:
            tags[700] = xmp_with(in_xmp)
        options |= {"tiffinfo": tags, "compression": "tiff_lzw" if progressive else None}
    image = PIL.Image.new("L", size, 77)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    try:
        data = encoded(image, kind, **options)
    except (OSError, KeyError, RuntimeError):
        return  # a mode that the format does not have
    check_as_pillow(data)


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*extra: tuple[bytes, bytes], after: bool = False, size: tuple[int, int] = (3, 2)) -> bytes:
    """A grey PNG with chunks before or after its pixels."""
    more = b"".join(chunk(*one) for one in extra)
    pixels = zlib.compress(b"".join(b"\0" + bytes(size[0]) for _ in range(size[1])))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
        + (b"" if after else more)
        + chunk(b"IDAT", pixels)
        + (more if after else b"")
        + chunk(b"IEND")
    )


TURNED = exif_with(6, others=2, order=">", prefix=b"")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        (b"eXIf", TURNED),
        (b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % len(TURNED) + TURNED.hex().encode()),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      42\n" + TURNED.hex().encode())),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_with(8)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp_with(8))),
        (b"tEXt", b"Comment\0where eXIf is but a word"),
    ],
)
def test_a_png_tells_its_orientation_in_many_places(extra: tuple[bytes, bytes], after: bool) -> None:
    check_as_pillow(png(extra, after=after))


def test_exif_of_a_jpeg_may_have_two_segments() -> None:
    exif = exif_with(6, others=1, order="<", prefix=b"Exif\0\0")
    plain = encoded(PIL.Image.new("L", (3, 2)), "JPEG")
    first, second = exif[:20], b"Exif\0\0" + exif[20:]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in (first, second))
    data = plain[:2] + segments + plain[2:]
    assert images.read_size(data, max_pixels=LIMIT) == Size(3, 2)
    check_as_pillow(data)


def test_padding_and_junk_between_segments_are_passed_over() -> None:
    plain = encoded(PIL.Image.new("RGB", (30, 20)), "JPEG")
    check_as_pillow(plain[:2] + b"\xff" * 20 + plain[2:20] + b"\0\1\2" * 9 + plain[20:])


# Cost


def jpeg_of(segments: int) -> bytes:
    plain = encoded(PIL.Image.new("RGB", (16, 16)), "JPEG")
    return plain[:2] + b"\xff\xe5\0\2" * segments + plain[2:]


@pytest.mark.parametrize(
    ("name", "of"),
    [("JPEG", jpeg_of), ("PNG", lambda count: png(*[(b"prVt", b"")] * count))],
)
def test_a_short_header_is_read_at_once_a_long_one_elsewhere_and_an_endless_one_never(
    name: str, of: Callable[[int], bytes]
) -> None:
    most = MAX_STEPS[name]  # type: ignore[index]
    assert read_short_header(of(10)) == read_header(of(10))
    assert read_short_header(of(QUICK_STEPS + 1)) is None
    assert images.read_size(of(most - 100), max_pixels=LIMIT).pixels
    for read in (images.read_size, images.decode):
        with pytest.raises(ImageTooComplex, match=f"more than {most} parts"):
            read(of(most + 1), max_pixels=LIMIT)


def tiff(*tags: tuple[int, int, int, int], big: bool = False) -> bytes:
    """A TIFF of one directory with tags of type, count and value or offset."""
    entries = b"".join(struct.pack("<HHQQ" if big else "<HHLL", *tag) for tag in sorted(tags))
    if big:
        return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(tags)) + entries + bytes(8)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


SQUARE = ((256, 4, 1, 16), (257, 4, 1, 16))


@pytest.mark.parametrize("tag", [258, 277, 339, 338, 284])
def test_a_tiff_tag_of_millions_of_values_is_not_read(tag: int) -> None:
    values = 2_000_000
    with pytest.raises(ImageTooComplex, match="more than 1024 parts, or one with more than 65536 values"):
        images.read_size(tiff(*SQUARE, (tag, 3, values, 8)) + bytes(2 * values), max_pixels=LIMIT)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_many_tags_is_refused(big: bool) -> None:
    tags = [(40000 + number, 3, 1, 0) for number in range(MAX_STEPS["TIFF"])]
    with pytest.raises(ImageTooComplex):
        images.read_size(tiff(*SQUARE, *tags, big=big), max_pixels=LIMIT)


def test_metadata_is_not_shown_to_decoders() -> None:
    """A GPS directory of a million tags would take Pillow seconds, and its million texts memory."""
    plain = encoded(PIL.Image.new("RGB", (30, 20), (1, 2, 3)), "TIFF")
    directory = struct.unpack_from("<L", plain, 4)[0]
    count = struct.unpack_from("<H", plain, directory)[0]
    entries = plain[directory + 2 : directory + 2 + 12 * count]
    gps = struct.pack("<HHLL", 34853, 4, 1, len(plain))
    data = bytearray(plain + struct.pack("<H", 65535) + b"\1\0\1\0\1\0\0\0\0\0\0\0" * 65535)
    data[4:8] = struct.pack("<L", len(data) + len(data) % 2)
    data += bytes(len(data) % 2) + struct.pack("<H", count + 1) + entries + gps + bytes(4)
    assert np.array_equal(images.decode(bytes(data), max_pixels=LIMIT).pixels[0, 0], (1, 2, 3))
    assert 34853 not in images.load(bytes(data), max_pixels=LIMIT).tag_v2  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_cut_anywhere_is_read_or_refused(kind: str) -> None:
    data = encoded(PIL.Image.new("RGB", (37, 23)), kind, exif=TURNED)
    for length in range(len(data)):
        try:
            size = images.read_size(data[:length], max_pixels=LIMIT)
        except (TruncatedImage, NotAnImage):
            continue
        assert {size.width, size.height} == {37, 23}

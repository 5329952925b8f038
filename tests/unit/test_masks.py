import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from models import masks, polygons
from models.errors import MaskError
from models.masks import CroppedMask, EncodedLogits, Rle, bounding_box, encode_rle, intersection, png_of, rle_of
from models.polygons import encode_polygons, outlines_of
from models.types import BinaryMask, Logits, Size

# pycocotools decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def checkerboard(height: int, width: int) -> BinaryMask:
    rows, columns = np.indices((height, width))
    board: BinaryMask = (rows + columns) % 2 == 0
    return board


def nested_rings() -> BinaryMask:
    rows, columns = np.mgrid[:61, :83]
    distance = np.hypot(rows - 30, columns - 41)
    rings: BinaryMask = (distance.astype(int) // 6) % 2 == 0
    return rings


@st.composite
def blobs(draw: st.DrawFn) -> BinaryMask:
    """Rectangles added and removed: long runs, holes, and edges along the border."""
    height, width = draw(st.integers(1, 120)), draw(st.integers(1, 120))
    mask = np.full((height, width), draw(st.booleans()))
    for _ in range(draw(st.integers(0, 6))):
        y0, y1 = sorted((draw(st.integers(0, height)), draw(st.integers(0, height))))
        x0, x1 = sorted((draw(st.integers(0, width)), draw(st.integers(0, width))))
        mask[y0:y1, x0:x1] = draw(st.booleans())
    return mask


MASKS = blobs() | hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24))

SPECIAL: dict[str, BinaryMask] = {
    "empty": np.zeros((7, 9), np.bool_),
    "full": np.ones((7, 9), np.bool_),
    "one pixel, False": np.zeros((1, 1), np.bool_),
    "one pixel, True": np.ones((1, 1), np.bool_),
    "a row": checkerboard(1, 33),
    "a column": checkerboard(33, 1),
    "a full row": np.ones((1, 70000), np.bool_),
    "checkerboard": checkerboard(31, 44),
    "inverted checkerboard": ~checkerboard(31, 44),
    "nested rings": nested_rings(),
    "a diagonal": np.eye(20, dtype=np.bool_),
    "noise": np.random.default_rng(0).random((150, 131)) < 0.5,
    "a turned view": nested_rings().T,
    "a strided view": nested_rings()[::-1, ::2],
}


def by_coco(mask: BinaryMask) -> Rle:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return Rle(tuple(encoded["size"]), encoded["counts"].decode())


ROUND_TRIPS: dict[str, Callable[[BinaryMask], BinaryMask]] = {
    "rle": lambda mask: masks.decode_rle(masks.encode_rle(mask)),
    "png": lambda mask: masks.decode_png(masks.encode_png(mask)),
    "polygons": lambda mask: polygons.decode_polygons(polygons.encode_polygons(mask), Size(*mask.shape)),
}


def survives(mask: BinaryMask, round_trip: Callable[[BinaryMask], BinaryMask]) -> None:
    again = round_trip(mask)
    assert again.dtype == np.bool_
    assert again.flags.c_contiguous
    assert np.array_equal(again, mask)


def with_special_masks(test: Callable[[BinaryMask], None]) -> Callable[[BinaryMask], None]:
    for mask in SPECIAL.values():
        test = example(mask)(test)
    return test


@settings(deadline=None, max_examples=200)
@given(MASKS)
@with_special_masks
def test_any_mask_survives_every_round_trip(mask: BinaryMask) -> None:
    for round_trip in ROUND_TRIPS.values():
        survives(mask, round_trip)


# RLE


@settings(deadline=None, max_examples=200)
@given(MASKS)
@with_special_masks
def test_the_rle_of_any_mask_is_that_of_pycocotools(mask: BinaryMask) -> None:
    rle = masks.encode_rle(mask)
    assert rle == by_coco(mask)
    assert np.array_equal(coco.decode({"size": list(rle.size), "counts": rle.counts.encode()}).astype(bool), mask)


def test_the_limit_of_pixels_is_inclusive() -> None:
    mask = np.ones((10, 10), np.bool_)
    rle, png = masks.encode_rle(mask), masks.encode_png(mask)
    assert masks.decode_rle(rle, max_pixels=100).all()
    assert masks.decode_png(png, max_pixels=100).all()
    with pytest.raises(MaskError, match="at most 99 pixels"):
        masks.decode_rle(rle, max_pixels=99)
    with pytest.raises(MaskError, match="limit is 99"):
        masks.decode_png(png, max_pixels=99)


@pytest.mark.parametrize(
    ("rle", "match"),
    [
        (Rle((0, 4), "0"), "positive"),
        (Rle((-2, -2), "4"), "positive"),
        (Rle((2.0, 2), "4"), "whole"),  # type: ignore[arg-type]
        (Rle((True, 4), "4"), "whole"),
        (Rle((2, 2, 1), "4"), "whole"),  # type: ignore[arg-type]
        (Rle((2, 2), ""), "at least one"),
        (Rle((2, 2), "3"), "add up"),
        (Rle((2, 2), "41"), "add up"),
        (Rle((2, 2), "4/"), "from '0' to 'o'"),
        (Rle((2, 2), "p"), "from '0' to 'o'"),
        (Rle((2, 2), "4\n"), "from '0' to 'o'"),
        (Rle((2, 2), "\uff14"), "ASCII"),
        (Rle((2, 2), "T"), "within a number"),
        (Rle((2, 2), "O"), "negative"),
        (Rle((2, 2), "5O"), "negative"),
        (Rle((2, 2), "0" * 6), "at most 5 runs, got 6"),
        (Rle((2, 2), "T" + "P" * 6 + "0"), "digits"),
        (Rle((2, 2), "o" * 6 + "7" + "1"), "add up"),
        (Rle((100_000, 100_000), "0"), "at most 100000000 pixels"),
    ],
)
def test_a_wrong_rle_is_a_mask_error(rle: Rle, match: str) -> None:
    with pytest.raises(MaskError, match=match):
        masks.decode_rle(rle)


@settings(deadline=None, max_examples=300)
@given(
    st.tuples(st.integers(-1, 9), st.integers(-1, 9)),
    st.text(st.characters(min_codepoint=47, max_codepoint=112), max_size=12),
)
@example((1, 1), "oooooo?oooooo?oooooo?oooooo?")
def test_any_text_as_an_rle_decodes_or_is_a_mask_error(size: tuple[int, int], counts: str) -> None:
    try:
        mask = masks.decode_rle(Rle(size, counts))
    except MaskError:
        return
    assert mask.shape == size


# PNG


def test_a_mask_png_has_one_bit_per_pixel_and_white_is_the_mask() -> None:
    mask = nested_rings()
    data = masks.encode_png(mask)
    image = PIL.Image.open(io.BytesIO(data))
    assert image.mode == "1"
    assert data[24:26] == b"\x01\x00"  # depth, colour type
    assert np.array_equal(np.asarray(image.convert("L")), mask * np.uint8(255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_png_of_any_grey_is_read_as_not_zero(dtype: type[np.unsignedinteger]) -> None:
    mask = nested_rings()
    buffer = io.BytesIO()
    PIL.Image.fromarray(mask.astype(dtype)).save(buffer, "PNG")
    assert np.array_equal(masks.decode_png(buffer.getvalue()), mask)


def png_in(mode: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (3, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [*map(png_in, ["RGB", "RGBA", "LA", "P"]), b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"text"],
)
def test_bytes_that_are_not_a_greyscale_png_are_a_mask_error(data: bytes) -> None:
    with pytest.raises(MaskError, match="PNG"):
        masks.decode_png(data)


def test_a_mask_png_cut_anywhere_decodes_or_is_a_mask_error() -> None:
    data = masks.encode_png(nested_rings())
    for length in range(len(data)):
        try:
            mask = masks.decode_png(data[:length])
        except MaskError:
            continue
        assert np.array_equal(mask, nested_rings())


# Logits


def random_logits(scale: float) -> Logits:
    return np.random.default_rng(0).normal(0, scale, (256, 256)).astype(np.float32)


@pytest.mark.parametrize(("scale", "height"), [(0.1, 256), (8, 112), (1000, 1)])
def test_logits_survive_within_half_precision(scale: float, height: int) -> None:
    logits = random_logits(scale)[:height]
    encoded = masks.encode_logits(logits)
    assert (encoded.shape, encoded.dtype) == ((height, 256), "float16")
    assert encoded.data == logits.astype("<f2").tobytes()
    again = masks.decode_logits(encoded)
    assert again.dtype == np.float32
    assert again.flags.writeable
    np.testing.assert_allclose(again, logits, rtol=1 / 2048, atol=1e-7)
    assert np.array_equal(again > 0, logits > 0)
    assert masks.encode_logits(again) == encoded


def test_huge_logits_are_clipped() -> None:
    logits = np.full((256, 256), -1e9, np.float32)
    logits[0, 0] = np.inf
    again = masks.decode_logits(masks.encode_logits(logits))
    assert again[0, 0] == 65504
    assert again[1, 1] == -65504


GOOD = masks.encode_logits(random_logits(8))


@pytest.mark.parametrize(
    ("encoded", "match"),
    [
        (EncodedLogits((64, 64), "float16", GOOD.data), "must have 8192 bytes"),
        (EncodedLogits((0, 256), "float16", b""), "shape"),
        (EncodedLogits((256, 257), "float16", GOOD.data), "shape"),
        (EncodedLogits((256, 256, 1), "float16", GOOD.data), "shape"),  # type: ignore[arg-type]
        (EncodedLogits((256, 256), "float32", GOOD.data), "float16"),
        (EncodedLogits((256, 256), "float16", GOOD.data[:-4]), "bytes"),
        (EncodedLogits((256, 256), "float16", b"\0\x7e" * 65536), "finite"),
    ],
)
def test_wrong_logits_are_a_mask_error(encoded: EncodedLogits, match: str) -> None:
    with pytest.raises(MaskError, match=match):
        masks.decode_logits(encoded)


# Polygons


def test_a_lone_pixel_is_a_diamond_around_its_centre() -> None:
    mask = np.zeros((5, 7), np.bool_)
    mask[3, 2] = True
    [[ring]] = polygons.encode_polygons(mask)
    assert sorted(map(tuple, ring)) == [(2.0, 3.5), (2.5, 3.0), (2.5, 4.0), (3.0, 3.5)]


def test_holes_stay_with_the_polygon_around_them() -> None:
    mask = np.zeros((40, 80), np.bool_)
    mask[5:35, 5:35] = True
    mask[10:15, 10:15] = mask[20:30, 20:30] = False
    mask[22:24, 22:24] = True
    mask[5:35, 45:75] = True
    assert sorted(len(polygon) for polygon in polygons.encode_polygons(mask)) == [1, 1, 3]


@settings(deadline=None)
@given(MASKS)
def test_rings_turn_at_every_vertex_and_do_not_repeat_the_first(mask: BinaryMask) -> None:
    for polygon in polygons.encode_polygons(mask):
        for ring in polygon:
            points = np.array(ring)
            into = points - np.roll(points, 1, axis=0)
            out = np.roll(points, -1, axis=0) - points
            assert (into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]).all()
            assert (points * 2 == np.round(points * 2)).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 15), st.floats(-3, 15)), min_size=3, max_size=9))
def test_any_ring_is_filled_by_the_even_odd_rule(vertices: list[tuple[float, float]]) -> None:
    filled = polygons.decode_polygons([[vertices]], Size(12, 13))
    y, x = np.indices((12, 13)) + 0.5
    expected = np.zeros((12, 13), np.bool_)
    for (xa, ya), (xb, yb) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        if ya != yb:
            crosses = (min(ya, yb) <= y) & (y < max(ya, yb))
            expected ^= crosses & (x >= xa + (y - ya) * ((xb - xa) / (yb - ya)))
    assert np.array_equal(filled, expected)


def test_overlapping_polygons_are_united_while_rings_of_one_polygon_cancel() -> None:
    big = [[0, 0], [8, 0], [8, 8], [0, 8]]
    small = [[2, 2], [6, 2], [6, 6], [2, 6]]
    assert polygons.decode_polygons([[big], [small]], Size(8, 8)).all()
    assert polygons.decode_polygons([[big, small]], Size(8, 8)).sum() == 64 - 16


def test_parts_beyond_the_mask_are_cut_off() -> None:
    ring = [[-1e6, -1e6], [1e6, -1e6], [1e6, 1e6], [-1e6, 1e6]]
    assert polygons.decode_polygons([[ring]], Size(3, 4)).all()
    assert not polygons.decode_polygons([[[[9, 9], [12, 9], [12, 12]]]], Size(3, 4)).any()


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        [5],
        [[5]],
        [[[5]]],
        [[[[0, 0], [1, 1]]]],
        [[[]]],
        [[[[0, 0], [1, 1], [2]]]],
        [[[[0, 0], [1, 1], [2, 2, 2]]]],
        [[[[0, 0, 0], [1, 1, 1], [2, 2, 2]]]],
        [[[["0", "0"], ["1", "1"], ["2", "0"]]]],
        [[[[None, 0], [1, 1], [2, 0]]]],
        [[[[float("nan"), 0], [1, 1], [2, 0]]]],
        [[[[float("inf"), 0], [1, 1], [2, 0]]]],
        [[[[1e300, 0], [1, 1], [2, 0]]]],
        [[[[10**400, 0], [1, 1], [2, 0]]]],
        [[[{"x": 1, "y": 2}, {"x": 1, "y": 2}, {"x": 1, "y": 2}]]],
        None,
    ],
)
def test_wrong_polygons_are_a_mask_error(wrong: object) -> None:
    with pytest.raises(MaskError):
        polygons.decode_polygons(wrong, Size(4, 4))  # type: ignore[arg-type]


def test_polygons_too_intricate_for_their_mask_are_a_mask_error() -> None:
    zigzag = [[x, (x % 2) * 1000] for x in range(2000)]
    with pytest.raises(MaskError, match="simpler"):
        polygons.decode_polygons([[zigzag]], Size(1000, 1))


# Measures


@settings(deadline=None)
@given(MASKS)
def test_the_box_is_tight(mask: BinaryMask) -> None:
    x0, y0, x1, y1 = masks.bounding_box(mask)
    if not mask.any():
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)
        return
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    assert mask[y0].any()
    assert mask[y1 - 1].any()
    assert mask[:, x0].any()
    assert mask[:, x1 - 1].any()


# Cropped masks

SIZE = Size(30, 40)


def cropped(density: float, at: tuple[int, int, int, int], size: Size = SIZE, seed: int = 0) -> CroppedMask:
    """A random mask in a box of an image."""
    x0, y0, x1, y1 = at
    pixels: BinaryMask = np.random.default_rng(seed).random((y1 - y0, x1 - x0)) < density
    return CroppedMask(pixels, x0, y0, size)


def boxes(size: Size = SIZE) -> st.SearchStrategy[tuple[int, int, int, int]]:
    across = st.lists(st.integers(0, size.width), min_size=2, max_size=2, unique=True).map(sorted)
    down = st.lists(st.integers(0, size.height), min_size=2, max_size=2, unique=True).map(sorted)
    return st.builds(lambda xs, ys: (xs[0], ys[0], xs[1], ys[1]), across, down)


ANY = st.builds(cropped, st.sampled_from([0.0, 0.1, 0.5, 1.0]), boxes(), seed=st.integers(0, 99))


@settings(deadline=None)
@given(ANY)
@example(cropped(1, (0, 0, 40, 30)))
@example(cropped(0, (0, 0, 40, 30)))
@example(cropped(1, (39, 29, 40, 30)))
@example(cropped(1, (10, 0, 20, 30)))
@example(cropped(1, (0, 0, 1, 1), Size(1, 1)))
def test_rle_polygons_and_png_of_a_cropped_mask_are_those_of_the_whole_mask(part: CroppedMask) -> None:
    assert rle_of(part) == encode_rle(part.full())
    assert [[ring.tolist() for ring in rings] for rings in outlines_of(part)] == encode_polygons(part.full())
    assert png_of(part) == masks.encode_png(part.full())


@settings(deadline=None)
@given(ANY)
def test_the_whole_mask_is_empty_outside_the_box(part: CroppedMask) -> None:
    full = part.full()
    assert full.shape == (SIZE.height, SIZE.width)
    x0, y0, x1, y1 = part.box
    np.testing.assert_array_equal(full[y0:y1, x0:x1], part.pixels)
    assert full.sum() == part.pixels.sum() == part.area


@settings(deadline=None)
@given(ANY, boxes())
def test_the_part_within_a_box_is_that_of_the_whole_mask(part: CroppedMask, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    np.testing.assert_array_equal(part.within(box), part.full()[y0:y1, x0:x1])


@settings(deadline=None)
@given(ANY)
def test_a_tight_crop_has_the_same_mask_in_its_own_box(part: CroppedMask) -> None:
    tight = part.tight()
    np.testing.assert_array_equal(tight.full(), part.full())
    if part.area:
        assert tight.box == bounding_box(part.full())
    else:
        assert tight.pixels.shape == (1, 1)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        ((5, 5, 30, 30), (10, 10, 20, 20)),
        ((15, 0, 16, 12), (15, 10, 16, 12)),
        ((20, 10, 30, 20), None),
        ((0, 0, 40, 10), None),
    ],
)
def test_boxes_intersect_in_what_lies_in_both(
    other: tuple[int, int, int, int], shared: tuple[int, int, int, int] | None
) -> None:
    assert intersection((10, 10, 20, 20), other) == intersection(other, (10, 10, 20, 20)) == shared

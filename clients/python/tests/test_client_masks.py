"""Masks decode to what was encoded, and damaged ones are told."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from pomona import Mask
from pomona.brush import encode_brush
from pomona.errors import BadAnswer, InvalidArgument, UnreadableImage
from pomona.masks import Logits, Png, Polygons
from pomona.rle import Rle, decode_rle, encode_rle

RNG = np.random.default_rng(7)
MASKS = [
    np.zeros((4, 5), np.bool_),
    np.ones((4, 5), np.bool_),
    np.array([[True]]),
    np.array([[False, True, True]]),
    np.array([[True], [False], [True]]),
    RNG.random((37, 53)) < 0.5,
    RNG.random((200, 300)) < 0.001,
    np.indices((300, 400)).sum(axis=0) % 97 < 50,
]


def coco_by_the_letter(mask: NDArray[np.bool_]) -> str:
    """COCO's encoding as its definition says it, one run and one digit at a time."""
    runs, value, length = [], False, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    runs.append(length)
    text = ""
    for number, run in enumerate(runs):
        left = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            digit, left = left & 31, left >> 5
            more = left != (-1 if digit & 16 else 0)
            text += chr(48 + (digit | 32 if more else digit))
    return text


@pytest.mark.parametrize("mask", MASKS)
def test_rle_is_written_by_coco_s_letter_and_read_back(mask: NDArray[np.bool_]) -> None:
    rle = encode_rle(mask)
    assert rle == Rle((mask.shape[0], mask.shape[1]), coco_by_the_letter(mask))
    decoded = decode_rle(rle)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.flags.c_contiguous


def test_a_known_rle_is_read_as_the_service_documents_it() -> None:
    decoded = decode_rle(Rle((8, 16), "a05300000_2"))
    expected = np.zeros((8, 16), np.bool_)
    expected[1:6, 2:6] = True
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((4, 5), ""),
        ((4, 5), "!"),
        ((4, 5), "é"),
        ((4, 5), "P"),
        ((4, 5), "1"),
        ((4, 5), "00001"),
        ((0, 5), "0"),
        ((1 << 20, 1 << 20), "0"),
        ((4, 5), "ooooooooo0"),
        ((4, 5), "N" * 3),
    ],
)
def test_a_damaged_rle_is_told(size: tuple[int, int], counts: str) -> None:
    with pytest.raises(BadAnswer):
        _ = Mask(size, Rle(size, counts)).array


def test_a_mask_from_an_array_has_its_figures() -> None:
    array = np.zeros((8, 16), np.bool_)
    array[1:6, 2:6] = True
    mask = Mask.of(array)
    assert (mask.size, mask.box, mask.area) == ((8, 16), (2, 1, 6, 6), 20)
    np.testing.assert_array_equal(mask.array, array)
    with pytest.raises(ValueError, match="read-only"):
        mask.array[0, 0] = True
    assert Mask.of(np.zeros((3, 3), np.bool_)).box == (0, 0, 0, 0)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2), np.bool_), np.zeros((2, 2)), np.zeros((0, 2), np.bool_)])
def test_what_is_no_mask_is_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(InvalidArgument, match="bool array"):
        Mask.of(array)


def test_a_png_is_white_where_the_mask_is(tmp_path: Path) -> None:
    mask = Mask.of(MASKS[5])
    mask.save(tmp_path / "mask.png")
    with PIL.Image.open(tmp_path / "mask.png") as picture:
        assert (picture.mode, picture.size) == ("1", (53, 37))
    np.testing.assert_array_equal(Mask.open(tmp_path / "mask.png").array, MASKS[5])
    data = (tmp_path / "mask.png").read_bytes()
    np.testing.assert_array_equal(Mask((37, 53), Png(data)).array, MASKS[5])
    for broken, size in ((data[: len(data) // 2], (37, 53)), (b"", (37, 53)), (data, (37, 54))):
        with pytest.raises(BadAnswer):
            _ = Mask(size, Png(broken)).array
    with pytest.raises(InvalidArgument, match="cannot be written"):
        mask.save(tmp_path / "no" / "mask.png")
    with pytest.raises(UnreadableImage):
        Mask.open(tmp_path / "none.png")


def test_polygons_are_filled_with_their_holes_by_the_centres_of_pixels() -> None:
    outer = [[1.0, 1.0], [9.0, 1.0], [9.0, 7.0], [1.0, 7.0]]
    hole = [[3.0, 3.0], [5.0, 3.0], [5.0, 5.0], [3.0, 5.0]]
    beside = [[10.5, 0.0], [12.0, 0.0], [12.0, 2.0]]
    mask = Mask((8, 12), Polygons([[outer, hole], [beside]]))
    expected = np.zeros((8, 12), np.bool_)
    expected[1:7, 1:9] = True
    expected[3:5, 3:5] = False
    expected[0, 11] = True  # centre (11.5, 0.5): right of the edge from (10.5, 0) to (12, 2)
    np.testing.assert_array_equal(mask.array, expected)
    assert not Mask((8, 12), Polygons([])).array.any()
    assert not Mask((8, 12), Polygons([[[[20.0, 20.0], [30.0, 20.0], [30.0, 30.0]]]])).array.any()


@pytest.mark.parametrize("ring", [[[1, 1], [2, 2]], [[1, 1], [2], [3, 3]], [[1, 1], [2, 2], [float("nan"), 3]], "abc"])
def test_rings_that_are_none_are_told(ring: object) -> None:
    with pytest.raises(BadAnswer):
        _ = Mask((8, 8), Polygons([[ring]])).array  # type: ignore[list-item]


def test_logits_are_enlarged_without_their_padding() -> None:
    values = np.full((4, 4), -1.0, np.float32)
    values[:2, :2] = 1.0
    logits = Logits((4, 4), values.astype("<f2").tobytes(), window=(4.0, 2.0))
    mask = Mask((40, 20), logits)
    assert mask.array[:15, :15].all()  # the corner is rounded by interpolation in both directions
    assert mask.array[5, :18].all()  # of 20: the window ends at the second of four cells
    assert not mask.array[20:].any()
    np.testing.assert_array_equal(logits.values, values)
    with pytest.raises(BadAnswer):
        _ = Mask((40, 20), Logits((4, 4), b"123", (4, 4))).array


def unpacked(numbers: list[int]) -> NDArray[np.uint8]:
    """Label Studio's brush masks, bit by bit as the format says."""
    bits = "".join(f"{number:08b}" for number in numbers)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    words, word_bits, lengths = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < words:
        repeated, length = take(1), lengths[take(2)]
        count = take(length) + 1
        values += [take(word_bits)] * count if repeated else [take(word_bits) for _ in range(count)]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("mask", MASKS)
def test_a_brush_mask_unpacks_to_white_and_opaque_where_the_mask_is(mask: NDArray[np.bool_]) -> None:
    rgba = unpacked(encode_brush(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(rgba, np.repeat(mask[..., None] * np.uint8(255), 4, axis=2))


def test_pictures_of_many_kinds_can_be_a_mask_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.array([[0, 200], [3, 0]], np.uint8)).save(buffer, "PNG")
    (tmp_path / "grey.png").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(Mask.open(tmp_path / "grey.png").array, [[False, True], [True, False]])

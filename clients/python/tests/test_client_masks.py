"""Masks decode to what was encoded, and damaged ones are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from pomona import Mask
from pomona.errors import BadAnswer, InvalidArgument, UnreadableImage
from pomona.exports import encode_brush
from pomona.masks import Logits, Rle, decode_rle, encode_rle

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


def encode_by_definition(mask: NDArray[np.bool_]) -> str:
    """Encode as COCO defines it, one run and one digit at a time."""
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
def test_rle_is_encoded_as_coco_defines_it_and_decoded_back(mask: NDArray[np.bool_]) -> None:
    rle = encode_rle(mask)
    assert rle == Rle((mask.shape[0], mask.shape[1]), encode_by_definition(mask))
    decoded = decode_rle(rle)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.flags.c_contiguous


def test_the_rle_of_the_documentation_is_decoded() -> None:
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
def test_a_damaged_rle_is_a_bad_answer(size: tuple[int, int], counts: str) -> None:
    with pytest.raises(BadAnswer):
        _ = Mask(size, Rle(size, counts)).array


def test_a_mask_of_another_size_than_the_image_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer, match=r"must have the image's size \(8, 17\)"):
        _ = Mask((8, 17), Rle((8, 16), "a05300000_2")).array


def test_a_mask_from_an_array_knows_its_box_and_area() -> None:
    array = np.zeros((8, 16), np.bool_)
    array[1:6, 2:6] = True
    mask = Mask.of(array)
    assert (mask.size, mask.box, mask.area) == ((8, 16), (2, 1, 6, 6), 20)
    np.testing.assert_array_equal(mask.array, array)
    with pytest.raises(ValueError, match="read-only"):
        mask.array[0, 0] = True
    assert Mask.of(np.zeros((3, 3), np.bool_)).box == (0, 0, 0, 0)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2), np.bool_), np.zeros((2, 2)), np.zeros((0, 2), np.bool_)])
def test_arrays_that_are_not_masks_are_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(InvalidArgument, match="bool array"):
        Mask.of(array)


def test_a_saved_mask_is_white_inside_and_can_be_opened(tmp_path: Path) -> None:
    mask = Mask.of(MASKS[5])
    mask.save(tmp_path / "mask.png")
    with PIL.Image.open(tmp_path / "mask.png") as image:
        assert (image.mode, image.size) == ("1", (53, 37))
    np.testing.assert_array_equal(Mask.open(tmp_path / "mask.png").array, MASKS[5])
    with pytest.raises(InvalidArgument, match="cannot be written"):
        mask.save(tmp_path / "no" / "mask.png")
    with pytest.raises(UnreadableImage):
        Mask.open(tmp_path / "none.png")


def test_logits_are_upsampled_without_their_padding() -> None:
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
    """Unpack one of Label Studio's brush masks bit by bit, as the format defines it."""
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
def test_a_brush_mask_unpacks_to_opaque_white_inside(mask: NDArray[np.bool_]) -> None:
    rgba = unpacked(encode_brush(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(rgba, np.repeat(mask[..., None] * np.uint8(255), 4, axis=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_mask_file_may_be_grey_of_any_depth(tmp_path: Path, dtype: type[np.generic]) -> None:
    path = tmp_path / "grey.tif"
    PIL.Image.fromarray(np.array([[0, 200], [1, 0]], dtype)).save(path)
    np.testing.assert_array_equal(Mask.open(path).array, [[False, True], [True, False]])

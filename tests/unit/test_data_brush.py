from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from models.data.brush import decode_brush
from models.errors import DataError
from models.types import Size

ALPHA = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 255, 255, 255, 255, 255, 0, 0],
        [0, 0, 255, 100, 255, 255, 255, 0, 0],
        [0, 0, 255, 255, 127, 128, 255, 0, 0],
        [0, 0, 255, 255, 255, 255, 255, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 255],
    ],
    np.uint8,
)

# What label-studio-sdk 2.1.2 packs: alpha in all channels, and alpha with a colour, which needs lists of words.
GREY = "000000d8391bfe2b00c27ff7c023ff8d92dffdf009ffe37f8e023ffbe0184fff138047fe"
COLOURED = (
    "000000d8391bfe2b00032001e00f00ff032001e00f00ff032001e00f00ff032001e00f00ff032001e00f00ffbe00064003c01e01fe064003c0"
    "1e00c8064003c01e01fe064003c01e01fe064003c01e01ff7c000c8007803c03fc0c8007803c03fc0c8007803c01fc0c8007803c02000c8007"
    "803c03fef80019000f007807f819000f007807f819000f007807f819000f007807f819000f007807fe2700032001e00f00ff00"
)


def packed(words: NDArray[np.uint8], chunks: Sequence[int]) -> bytes:
    """Pack words, with a new chunk after each of `chunks` words in turn and where a repetition ends."""
    bits = [f"{words.size:032b}", f"{7:05b}", "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    at = 0
    for length in chunks:
        piece = words[at : at + length]
        at += length
        if not piece.size:
            break
        repeated = bool((piece == piece[0]).all())
        group = next(index for index, size in enumerate((3, 4, 8, 16)) if piece.size <= 1 << size)
        bits.append(f"{int(repeated)}{group:02b}{piece.size - 1:0{(3, 4, 8, 16)[group]}b}")
        bits += [f"{word:08b}" for word in (piece[:1] if repeated else piece)]
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


@pytest.mark.parametrize("data", [GREY, COLOURED], ids=["grey", "coloured"])
def test_masks_packed_by_label_studio_are_decoded(data: str) -> None:
    assert (decode_brush(bytes.fromhex(data), Size(6, 9)) == ALPHA).all()


@given(
    rgba=hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4)), elements=st.integers(0, 3)
    ),
    chunks=st.lists(st.integers(1, 300), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_any_chunks_give_back_alpha(rgba: NDArray[np.uint8], chunks: list[int]) -> None:
    data = packed(rgba.ravel(), chunks * rgba.size)
    assert (decode_brush(data, Size(rgba.shape[0], rgba.shape[1])) == rgba[..., 3]).all()


def test_runs_of_65536_words_are_read() -> None:
    words = np.full(4 * 150 * 150, 255, np.uint8)
    assert (decode_brush(packed(words, [65536, 24464]), Size(150, 150)) == 255).all()


@pytest.mark.parametrize("kept", [0, 6, 7, 12, 35])
def test_a_stream_that_ends_early_is_rejected(kept: int) -> None:
    with pytest.raises(DataError, match=r"too few|ends after"):
        decode_brush(bytes.fromhex(GREY)[:kept], Size(6, 9))


@pytest.mark.parametrize("repeated", [True, False])
def test_a_stream_with_too_many_words_is_rejected(repeated: bool) -> None:
    ten = np.zeros(10, np.uint8) if repeated else np.arange(10, dtype=np.uint8)
    data = bytearray(packed(ten, [10]))
    data[3] = 4  # of which one pixel takes four
    with pytest.raises(DataError, match="more than its 4 words"):
        decode_brush(bytes(data), Size(1, 1))


def test_another_size_is_rejected_before_memory_is_taken() -> None:
    with pytest.raises(DataError, match="has 216 words of 8 bits"):
        decode_brush(bytes.fromhex(GREY), Size(9999, 9999))
    with pytest.raises(DataError, match="at most"):
        decode_brush(bytes.fromhex(GREY), Size(100_000, 100_000))


@given(st.binary(min_size=0, max_size=60))
def test_noise_is_decoded_or_refused(noise: bytes) -> None:
    try:
        alpha = decode_brush(bytes.fromhex(GREY)[:7] + noise, Size(6, 9))
    except DataError:
        return
    assert alpha.shape == (6, 9)

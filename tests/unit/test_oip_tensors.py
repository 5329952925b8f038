"""Elements of tensors as bytes and as lists."""

from __future__ import annotations

import json
import struct
from typing import Any, Final

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from service.errors import MalformedRequest
from service.oip.tensors import DATATYPES, Header, Tensor, bytes_tensor, from_bytes, from_list, to_bytes, to_json

FIXED: Final = [name for name in DATATYPES if name != "BYTES"]
SHAPES: Final = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def drawn_array(draw: st.DataObject, datatype: str) -> NDArray[Any]:
    array: NDArray[Any] = draw.draw(arrays.arrays(DATATYPES[datatype], SHAPES))
    return array


def header(tensor: Tensor) -> Header:
    return Header(tensor.name, tensor.datatype, tensor.shape)


@given(st.data(), st.sampled_from(FIXED))
def test_a_tensor_written_as_bytes_is_read_back(data: st.DataObject, datatype: str) -> None:
    tensor = Tensor("any", datatype, drawn_array(data, datatype))
    read = from_bytes(header(tensor), to_bytes(tensor))
    assert (read.datatype, read.shape, read.array.dtype) == (datatype, tensor.shape, DATATYPES[datatype])
    assert np.array_equal(read.array, tensor.array, equal_nan=DATATYPES[datatype].kind == "f")


@given(st.data(), st.sampled_from(FIXED))
def test_a_tensor_written_as_a_list_is_read_back_also_from_nested_lists(data: st.DataObject, datatype: str) -> None:
    tensor = Tensor("any", datatype, drawn_array(data, datatype))
    deep = tensor.array.tolist() if tensor.array.ndim else [tensor.array.item()]
    for values in (json.loads(to_json(tensor)), deep):
        read = from_list(header(tensor), values)
        assert (read.shape, read.array.dtype) == (tensor.shape, DATATYPES[datatype])
        assert np.array_equal(read.array, tensor.array, equal_nan=DATATYPES[datatype].kind == "f")


@given(st.lists(st.binary(max_size=5), max_size=5))
def test_elements_of_bytes_are_read_back_with_their_zeros(elements: list[bytes]) -> None:
    tensor = bytes_tensor("any", elements, (1, len(elements)))
    read = from_bytes(header(tensor), to_bytes(tensor))
    assert read.array.tolist() == [elements]
    assert not read.text


def test_bytes_are_little_endian_and_a_boolean_is_one_byte() -> None:
    assert to_bytes(Tensor("any", "INT32", np.array([1, 256], ">i4"))) == b"\x01\0\0\0\0\x01\0\0"
    assert to_bytes(Tensor("any", "BOOL", np.array([True, False]))) == b"\x01\0"
    assert to_bytes(bytes_tensor("any", [b"ab", b""], (2,))) == b"\x02\0\0\0ab\0\0\0\0"
    read = from_bytes(Header("any", "BOOL", (3,)), b"\0\x01\xff")
    assert read.array.tolist() == [False, True, True]


def test_bytes_from_text_are_marked() -> None:
    read = from_list(Header("any", "BYTES", (1,)), ["größe"])
    assert (read.array.tolist(), read.text) == (["größe".encode()], True)
    assert not from_list(Header("any", "BYTES", (1,)), [b"\xff"]).text
    assert json.loads(to_json(read)) == ["größe"]


def test_integers_are_floats_too_and_numbers_beyond_the_range_are_infinite() -> None:
    assert from_list(Header("any", "FP32", (2,)), [1, 1e300]).array.tolist() == [1.0, np.inf]


@given(st.data(), st.sampled_from(FIXED))
def test_a_byte_more_or_less_is_refused(data: st.DataObject, datatype: str) -> None:
    tensor = Tensor("any", datatype, drawn_array(data, datatype))
    whole = to_bytes(tensor)
    for wrong in (whole + b"\0", whole[:-1] if whole else b"\0"):
        if len(wrong) != len(whole):
            with pytest.raises(MalformedRequest, match="bytes"):
                from_bytes(header(tensor), wrong)


@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_bytes_are_elements_or_refused(data: bytes, count: int) -> None:
    try:
        read = from_bytes(Header("any", "BYTES", (count,)), data)
    except MalformedRequest:
        return
    assert to_bytes(read) == data


def test_a_length_beyond_the_end_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="must be 1 elements"):
        from_bytes(Header("any", "BYTES", (1,)), struct.pack("<I", 2**32 - 1) + b"ab")


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "says"),
    [
        ("INT8", (1,), [128], "within the range of INT8"),
        ("UINT64", (1,), [-1], "within the range of UINT64"),
        ("INT64", (1,), [1.0], "must be INT64, got float"),
        ("INT64", (1,), [True], "must be INT64, got bool"),
        ("FP32", (1,), ["1"], "must be FP32, got str"),
        ("BOOL", (1,), [1], "must be BOOL, got int"),
        ("BYTES", (1,), [1], "must be BYTES, got int"),
        ("FP32", (2,), [1.0], "must have 2 elements, got 1"),
        ("FP32", (2, 2), [[1, 2], 3], "must have the shape"),
        ("FP32", (2, 2), [[1, 2], [3]], "must have the shape"),
        ("FP32", (2,), [[1], [2]], "must be FP32, got list"),
        ("FP32", (-1,), [1], "0 or more"),
        ("FP32", (0, 2**62), [], "at most 8 dimensions"),
        ("FP32", (1,) * 9, [1], "at most 8 dimensions"),
        ("BF16", (1,), [1], "must be one of BOOL"),
    ],
)
def test_a_list_that_is_not_of_its_type_and_shape_is_refused(
    datatype: str, shape: tuple[int, ...], values: list[Any], says: str
) -> None:
    with pytest.raises(MalformedRequest, match=says):
        from_list(Header("any", datatype, shape), values)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8"])
def test_tensors_of_many_elements_are_written_whole(datatype: str) -> None:
    array = (
        np.random.default_rng(3).integers(0, 2 if datatype == "BOOL" else 256, (300, 500)).astype(DATATYPES[datatype])
    )
    assert json.loads(to_json(Tensor("any", datatype, array))) == array.ravel().tolist()

"""The protocol's data types: bytes as they stand in its text, numbers as JSON may carry them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mcdrop.errors import InputError
from service.v2 import datatypes
from service.v2.datatypes import DATATYPES

WHOLE = [name for name in DATATYPES if "INT" in name]


@pytest.mark.parametrize(
    ("name", "buffer", "values"),
    [
        ("BOOL", "00 01", [False, True]),
        ("UINT8", "00 ff", [0, 255]),
        ("INT8", "80 7f", [-128, 127]),
        ("UINT16", "01 00 ff ff", [1, 65535]),
        ("INT16", "fe ff 00 01", [-2, 256]),
        ("UINT32", "00 00 00 80", [2**31]),
        ("INT32", "00 00 00 80", [-(2**31)]),
        ("UINT64", "ff ff ff ff ff ff ff ff", [2**64 - 1]),
        ("INT64", "ff ff ff ff ff ff ff ff 00 01 00 00 00 00 00 00", [-1, 256]),
        ("FP16", "00 3c 00 c0 ff 7b", [1.0, -2.0, 65504.0]),
        ("BF16", "80 3f 49 40", [1.0, 3.140625]),
        ("FP32", "00 00 80 3f db 0f 49 40", [1.0, 3.1415927410125732]),
        ("FP64", "18 2d 44 54 fb 21 09 40", [math.pi]),
    ],
)
def test_bytes_are_little_endian_and_without_gaps(name, buffer, values):
    datatype = DATATYPES[name]
    raw = bytes.fromhex(buffer)
    found = datatypes.from_bytes(memoryview(raw), datatype, [len(values)], name="x")
    assert found.dtype is datatype.dtype
    assert found.tolist() == values
    assert len(raw) == len(values) * datatype.itemsize


def test_a_tensor_read_from_bytes_is_a_copy():
    raw = bytearray(4)
    found = datatypes.from_bytes(memoryview(raw), DATATYPES["FP32"], [1], name="x")
    raw[:] = b"\xff" * 4
    assert found.tolist() == [0.0]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(data):
    """Every type but bool, whose bytes are 0 and 1: any shape, zero sizes included, any bits, NaN included."""
    datatype = data.draw(st.sampled_from([each for each in DATATYPES.values() if each.name not in ("BOOL", "BF16")]))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    array = data.draw(hnp.arrays(np.dtype(datatype.layout), shape))
    found = datatypes.from_bytes(memoryview(array.tobytes()), datatype, shape, name="x")
    assert found.shape == shape
    assert found.numpy().tobytes() == array.tobytes()
    assert datatypes.of_array(found.numpy()) is datatype


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whole_numbers_in_json_are_exact_flat_or_nested(data):
    datatype = DATATYPES[data.draw(st.sampled_from(WHOLE))]
    info = torch.iinfo(datatype.dtype)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3))
    numbers = st.one_of(st.integers(info.min, info.max), st.sampled_from([info.min, info.max]))
    flat = data.draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))
    nested = np.array(flat, dtype=object).reshape(shape).tolist()
    for given_data in (flat, nested):
        found = datatypes.from_json(given_data, datatype, shape, name="x")
        assert (found.dtype, found.tolist()) == (datatype.dtype, nested)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_beyond_the_type_are_refused(name):
    info = torch.iinfo(DATATYPES[name].dtype)
    for value in (info.min - 1, info.max + 1):
        with pytest.raises(InputError, match=rf"'x' holds {value}; {name} holds {info.min} to {info.max}"):
            datatypes.from_json([value], DATATYPES[name], [1], name="x")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("INT32", [1.5], "elements of type float"),
        ("INT32", [1.0], "elements of type float"),
        ("INT64", [float("nan")], "elements of type float"),
        ("INT64", [True], "elements of type bool"),
        ("FP32", [True], "elements of type bool"),
        ("FP32", ["1.5"], "elements of type str"),
        ("FP32", [None], "holds null"),
        ("FP32", [{}], "elements of type dict"),
        ("FP32", [[1.0], 2.0], "elements of type list"),
        ("FP32", 1.0, "no array in `data`; expected 1 values"),
        ("FP32", [], r"has 0 values .* takes 1"),
        ("FP32", [1.0, 2.0], r"has 2 values .* takes 1"),
        ("FP32", [[1.0]], r"array of shape \[1, 1\]"),
        ("FP32", [1e39], "1e[+]39, beyond what FP32 can hold"),
        ("FP64", [10**400], "beyond what FP64 can hold"),
        ("BOOL", [2], "BOOL holds 0 to 1"),
        ("BOOL", [0.5], "elements of type float"),
        ("FP16", [1.0], "JSON cannot carry"),
        ("BF16", [1.0], "JSON cannot carry"),
    ],
)
def test_what_is_not_of_the_type_is_refused(name, data, message):
    with pytest.raises(InputError, match=message):
        datatypes.from_json(data, DATATYPES[name], [1], name="x")


def test_json_booleans_may_be_words_or_digits():
    found = datatypes.from_json([True, 0, 1, False], DATATYPES["BOOL"], [2, 2], name="x")
    assert found.tolist() == [[True, False], [True, False]]


def test_nesting_has_to_be_that_of_the_shape():
    for data in ([[1.0, 2.0, 3.0]], [[[1.0], [2.0], [3.0]]], [[1.0, 2.0], [3.0]]):
        with pytest.raises(InputError, match="'x'"):
            datatypes.from_json(data, DATATYPES["FP32"], [3, 1], name="x")


def test_nesting_without_end_is_refused():
    data: list[object] = []
    for _ in range(500):
        data = [data]
    with pytest.raises(InputError, match="'x'"):
        datatypes.from_json(data, DATATYPES["FP32"], [1], name="x")


@pytest.mark.parametrize(("data", "shape"), [([], [0, 4]), ([[], []], [2, 0]), ([], [2, 0])])
def test_no_values_at_all_are_a_tensor(data, shape):
    assert datatypes.from_json(data, DATATYPES["FP32"], shape, name="x").shape == torch.Size(shape)


def test_another_byte_than_0_or_1_is_no_bool():
    with pytest.raises(InputError, match="byte 2 as BOOL"):
        datatypes.from_bytes(memoryview(b"\x00\x02"), DATATYPES["BOOL"], [2], name="x")


@pytest.mark.parametrize("name", ["FP8", "fp32", "", None, 3, ["FP32"], {}])
def test_another_name_is_no_datatype(name):
    with pytest.raises(InputError, match=r"datatype .*expected one of BOOL, UINT8"):
        datatypes.named(name, tensor="x")


def test_strings_are_known_and_refused():
    with pytest.raises(InputError, match="takes no strings"):
        datatypes.named("BYTES", tensor="x")

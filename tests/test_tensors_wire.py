"""Tensors as bytes: what comes back is what was sent, bit for bit, and nothing malformed is believed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mcdrop.errors import InputError
from mcdrop.wire.tensors_wire import BF16, DATATYPES, datatype_of, fit, join, read, read_all, split, write

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TENSORS = st.sampled_from(list(DATATYPES.values())).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))


@given(st.lists(TENSORS, max_size=4))
def test_a_message_gives_back_every_bit(tensors):
    written = [write(f"t{index}", tensor) for index, tensor in enumerate(tensors)]
    message, length = join({"inputs": [described for described, _ in written]}, [buffer for _, buffer in written])
    header, rest = split(message, str(length))
    found = read_all(header["inputs"], rest)
    assert list(found) == [f"t{index}" for index in range(len(tensors))]
    for tensor, copy in zip(tensors, found.values(), strict=True):
        assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
        assert copy.tobytes() == tensor.tobytes()


def test_the_bytes_are_those_of_the_protocol():
    described, buffer = write("x", np.array([[1, 2], [3, -np.inf]], ">f4").T)
    message, length = join({"inputs": [described]}, [buffer])
    assert message == (
        b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}]}'
        b"\x00\x00\x80\x3f\x00\x00\x40\x40\x00\x00\x00\x40\x00\x00\x80\xff"
    )
    assert length == len(message) - 16


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
def test_bf16_rounds_as_pytorch_does(array):
    described, buffer = write("x", array, BF16)
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(read(described, memoryview(buffer)), expected)


def test_bf16_rounds_ties_to_even():
    halfway = np.array([0x3F808000, 0x3F818000, 0x7F7F8000], np.uint32).view(np.float32)
    assert np.frombuffer(write("x", halfway, BF16)[1], "<u2").tolist() == [0x3F80, 0x3F82, 0x7F80]


@given(TENSORS, st.sampled_from([*DATATYPES, BF16]))
def test_a_cast_keeps_the_meaning_or_is_refused(array, datatype):
    with np.errstate(all="ignore"):
        try:
            result = fit(array, datatype, "x")
        except InputError:
            return
        target = np.dtype("f4") if datatype == BF16 else DATATYPES[datatype]
        assert (result.dtype, result.shape) == (target, array.shape)
        if array.size and target.kind in "biu":
            assert array.dtype.kind in "biu"
            assert result.tolist() == array.astype(object).tolist()
        elif array.size:
            assert np.array_equal(np.isfinite(result), np.isfinite(array.astype("f8")))


@pytest.mark.parametrize(
    ("array", "datatype", "fragment"),
    [
        (np.array([1.5]), "INT64", "expected whole numbers"),
        (np.array([300]), "UINT8", "holds 300; UINT8 holds 0 to 255"),
        (np.array([2]), "BOOL", "holds 2; BOOL holds 0 to 1"),
        (np.array([1e300]), "FP32", "beyond what FP32"),
    ],
)
def test_a_value_that_does_not_fit_is_named(array, datatype, fragment):
    with pytest.raises(InputError, match=fragment):
        fit(array, datatype, "x")


def test_an_empty_array_fits_anything():
    assert fit(np.zeros((0, 4)), "INT64", "x").dtype == np.int64


def test_what_has_no_name_is_refused():
    with pytest.raises(InputError, match="complex64 cannot be sent"):
        datatype_of(np.zeros(1, np.complex64))


X = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("tensors", "size", "fragment"),
    [
        ([X], 7, "expecting 1 additional bytes"),
        ([X], 9, "unexpected additional data: 1 bytes"),
        ([X, X], 16, "two tensors are named 'x'"),
        ([{**X, "shape": [3]}], 8, "FP32 of shape \\[3\\] takes 12"),
        ([{**X, "shape": [2**32, 2**32]}], 8, "takes 73786976294838206464"),
        ([{**X, "shape": [-1, -2]}], 8, "sizes of at least 0"),
        ([{**X, "shape": [True, 2]}], 8, "sizes of at least 0"),
        ([{**X, "datatype": "BYTES"}], 8, "datatype 'BYTES'"),
        ([{**X, "parameters": {"binary_data_size": -1}}], 8, "binary_data_size -1"),
        ([{**X, "parameters": {"binary_data_size": "8"}}], 8, "binary_data_size '8'"),
    ],
)
def test_sizes_that_do_not_agree_are_refused(tensors, size, fragment):
    with pytest.raises(InputError, match=fragment):
        read_all(tensors, memoryview(bytes(size)))


def test_bool_has_two_bytes_only():
    described = {"name": "x", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    assert read(described, memoryview(b"\x00\x01")).tolist() == [False, True]
    with pytest.raises(InputError, match="neither 0 nor 1"):
        read(described, memoryview(b"\x00\x02"))


@pytest.mark.parametrize("length", ["-1", "3.0", "", "99", "²", "1_0"])
def test_a_header_length_is_a_number_within_the_body(length):
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        split(b"{}", length)


def test_without_a_length_all_is_header():
    assert split(b"[1]", None)[0] == [1]
    with pytest.raises(InputError, match="no JSON|not JSON"):
        split(b"{]", None)

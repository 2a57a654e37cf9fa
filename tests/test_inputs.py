"""What people have becomes tensors, or an error that says what was expected."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcdrop.errors import InputError, SettingError
from mcdrop.graph.inputs import DTYPES, InputSpec, Signature, check_finite

IMAGE = Signature((InputSpec.parse("image: float32[batch, 1, 2, 2]"),))
TEXT = Signature(
    (InputSpec.parse("ids: int64[batch, length=2..5]"), InputSpec.parse("mask: bool[batch, length=2..5]")), keyword=True
)


def spec(text: str) -> Signature:
    return Signature((InputSpec.parse(text),))


# ---- specifications


@pytest.mark.parametrize(
    ("text", "shape", "bounds"),
    [
        ("x: float32[batch, 1, 28, 28]", ("batch", 1, 28, 28), {}),
        ("ids: int64[batch, length<=512]", ("batch", "length"), {"length": (1, 512)}),
        ("ids: int64[batch, length=2..512]", ("batch", "length"), {"length": (2, 512)}),
        ("x: bfloat16[batch, n>=3, n]", ("batch", "n", "n"), {"n": (3, None)}),
        ("x: bool[batch, h, w]", ("batch", "h", "w"), {"h": (1, None), "w": (1, None)}),
        ("table: float64[4, 4]", (4, 4), {}),
        ("scalar: float32[]", (), {}),
    ],
)
def test_specification_text_round_trips(text: str, shape: tuple[int | str, ...], bounds: dict[str, Any]) -> None:
    parsed = InputSpec.parse(text)
    assert (parsed.shape, parsed.bounds, str(parsed)) == (shape, bounds, text)
    assert InputSpec.parse(str(parsed)) == parsed


def test_specification_text_may_be_spaced_freely() -> None:
    assert str(InputSpec.parse(" ids :int64[ batch,length = 2 .. 5 ]")) == "ids: int64[batch, length=2..5]"


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.one_of(st.integers(1, 10**6), st.sampled_from(["height", "n", "_t"])), max_size=5),
    st.booleans(),
    st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(9, 99))),
)
def test_every_specification_round_trips(
    dtype: str, sizes: list[int | str], batched: bool, bounds: tuple[int, int | None]
) -> None:
    shape = ("batch",) * batched + tuple(sizes)
    built = InputSpec("x", DTYPES[dtype], shape, {"n": bounds} if "n" in sizes else {})
    assert InputSpec.parse(str(built)) == built


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("float32[batch]", "cannot be read"),
        ("x: float32", "cannot be read"),
        ("x: float31[batch]", "names dtype 'float31'"),
        ("x: float32[batch,,3]", "has the size ''"),
        ("x: float32[batch, -1]", "has the size '-1'"),
        ("x: float32[batch, 0]", "at least 1"),
        ("x: float32[3, batch]", "batch at axis 1"),
        ("x: float32[batch, n<=3, n<=4]", "bounds 'n' twice"),
        ("x: float32[batch, n=5..2]", "expected \\(least, most\\)"),
        ("x: float32[batch<=4]", "no dynamic size"),
        ("x y: float32[batch]", "cannot name an input"),
    ],
)
def test_a_wrong_specification_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        InputSpec.parse(text)


def test_a_signature_needs_distinct_names_and_one_meaning_per_size() -> None:
    with pytest.raises(SettingError, match="at least one"):
        Signature(())
    with pytest.raises(SettingError, match="two inputs are named 'x'"):
        Signature((InputSpec.parse("x: bool[batch]"), InputSpec.parse("x: bool[batch]")))
    with pytest.raises(SettingError, match="dynamic size 'n' has bounds"):
        Signature((InputSpec.parse("x: bool[batch, n<=3]"), InputSpec.parse("y: bool[batch, n<=4]")))
    assert TEXT.dims == {"length": (2, 5)}
    assert str(TEXT) == "ids: int64[batch, length=2..5]; mask: bool[batch, length=2..5]"


# ---- what is accepted


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"image": x}])
def test_one_input_comes_alone_or_wrapped(wrap: Any) -> None:
    x = torch.rand(3, 1, 2, 2)
    (bound,), as_numpy = IMAGE.bind(wrap(x))
    assert torch.equal(bound, x)
    assert not as_numpy
    (bound,), as_numpy = IMAGE.bind(wrap(x.numpy()))
    assert torch.equal(bound, x)
    assert as_numpy
    assert IMAGE.rows([bound]) == 3


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: {"mask": pair[1], "ids": pair[0]}])
def test_several_inputs_come_in_order_or_by_name(wrap: Any) -> None:
    ids, mask = [[1, 2, 3]], [[True, True, False]]
    bound, as_numpy = TEXT.bind(wrap([ids, mask]))
    assert [tensor.tolist() for tensor in bound] == [ids, mask]
    assert [tensor.dtype for tensor in bound] == [torch.int64, torch.bool]
    assert not as_numpy
    assert TEXT.bind(wrap([np.array(ids), mask]))[1]
    assert not TEXT.bind(wrap([np.array(ids), torch.tensor(mask)]))[1]


def test_positional_inputs_of_one_row_of_numbers() -> None:
    (bound,), _ = IMAGE.bind([[[[1, 2], [3, 4]]]])
    assert bound.tolist() == [[[[1.0, 2.0], [3.0, 4.0]]]]
    assert bound.dtype is torch.float32


@pytest.mark.parametrize("value", [[], np.empty(0), np.empty((0, 1, 2, 2)), torch.empty(0, 1, 2, 2)])
def test_an_empty_batch_is_a_batch(value: Any) -> None:
    (bound,), _ = IMAGE.bind(value)
    assert bound.shape == (0, 1, 2, 2)
    assert bound.dtype is torch.float32


def test_an_empty_batch_of_several_inputs() -> None:
    bound, _ = TEXT.bind([[], []])
    assert [tuple(tensor.shape) for tensor in bound] == [(0, 2), (0, 2)]
    bound, _ = TEXT.bind([torch.empty(0, 4, dtype=torch.int64), []])
    assert [tuple(tensor.shape) for tensor in bound] == [(0, 4), (0, 4)]


def test_arrays_of_every_memory_layout() -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    frozen = x.copy()
    frozen.setflags(write=False)
    for array in (x, x.astype(">f4"), np.asfortranarray(x), x[:, :, ::-1][:, :, ::-1], frozen):
        assert IMAGE.bind(array)[0][0].flatten().tolist() == [0, 1, 2, 3]
    (flipped,), _ = IMAGE.bind(x[:, :, ::-1])
    assert flipped.flatten().tolist() == [2, 3, 0, 1]


def test_gradients_do_not_follow() -> None:
    (bound,), _ = IMAGE.bind(torch.rand(1, 1, 2, 2, requires_grad=True))
    assert not bound.requires_grad


# ---- casts


@pytest.mark.parametrize(
    ("source", "target", "values"),
    [
        ("float64", "float32", [0.5, float("nan"), float("inf")]),
        ("float32", "float64", [0.5]),
        ("float32", "bfloat16", [0.5]),
        ("float16", "float32", [0.5]),
        ("int64", "float32", [3]),
        ("uint8", "float16", [255]),
        ("bool", "float32", [True]),
        ("bool", "int64", [True, False]),
        ("int64", "bool", [0, 1]),
        ("uint8", "bool", [0, 1]),
        ("int32", "int64", [-(2**31)]),
        ("int64", "int32", [2**31 - 1]),
        ("int64", "uint8", [0, 255]),
        ("uint16", "int64", [65535]),
        ("uint64", "int64", [2**63 - 1]),
        ("int64", "uint16", [65535]),
        ("float32", "complex64", [0.5]),
    ],
)
def test_casts_that_keep_the_meaning(source: str, target: str, values: list[float]) -> None:
    (bound,), _ = spec(f"x: {target}[batch]").bind(torch.tensor(values, dtype=DTYPES[source]))
    assert bound.dtype is DTYPES[target]
    np.testing.assert_array_equal(np.array(bound.tolist()), np.array(values))


@pytest.mark.parametrize(
    ("source", "target", "values", "message"),
    [
        ("float32", "int64", [1.0], "dtype float32; expected whole numbers: x: int64"),
        ("float32", "bool", [1.0], "dtype float32; expected whole numbers"),
        ("float64", "float32", [1e300], "holds 1e\\+300, beyond what float32 can hold"),
        ("float32", "float16", [1e30], "beyond what float16"),
        ("int64", "int32", [2**31], "holds 2147483648 as int64; int32 holds"),
        ("int64", "uint8", [-1], "holds -1 as int64; uint8 holds 0 to 255"),
        ("int8", "uint8", [-1], "holds -1 as int8"),
        ("int64", "bool", [2], "holds 2 as int64; bool holds 0 to 1"),
        ("uint64", "int64", [2**63], "holds 9223372036854775808 as uint64"),
        ("complex64", "float32", [1j], "complex numbers"),
    ],
)
def test_casts_that_would_change_a_value_are_errors(source: str, target: str, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec(f"x: {target}[batch]").bind(torch.tensor(values, dtype=DTYPES[source]))


# ---- what is refused


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.rand(1, 2, 2), "input 'image' has 3 axes, shape \\[1, 2, 2\\]; expected 4: .*batch axis: x\\[None\\]"),
        (torch.rand(1, 1, 1, 2, 2), "has 5 axes.*one batch at a time"),
        (torch.rand(2, 3, 2, 2), "has size 3 at axis 1, shape \\[2, 3, 2, 2\\]; expected 1: image: float32"),
        ([[1.0], [2.0, 3.0]], "differ in length"),
        ([["a"]], "holds strings; expected image: float32"),
        ([[None]], "holds objects"),
        ("abc", "is of type str"),
        (None, "is of type NoneType"),
        ([2**70], "whole numbers beyond 64 bits"),
        ([torch.rand(1, 2, 2), torch.rand(1, 2, 2)], "list of tensors.*torch.stack"),
        (torch.rand(1, 1, 2, 2).to_sparse(), "expected a dense image: float32"),
        (torch.empty(1, 1, 2, 2, device="meta"), "on meta; expected a dense"),
        (np.zeros((1, 1, 2, 2), dtype="M8[s]"), "holds dates"),
        ({"picture": 1}, "unknown: 'picture'; missing: image"),
        ({}, "missing: image"),
    ],
)
def test_a_value_that_does_not_fit_says_why(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        IMAGE.bind(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), "has 2 inputs and got one Tensor.*a dict by name"),
        ([[[1, 2]]], "has 2 inputs and got 1 values"),
        ({"ids": [[1, 2]]}, "missing: mask"),
        ({"ids": [[1, 2]], "mask": [[1, 1]], 3: 0}, "unknown: 3"),
        (([[1, 2]], [[1, 1, 1]]), "'mask' has length 3 at axis 1, but input 'ids' has length 2"),
        (([[1, 2]], [[1, 1], [1, 1]]), "'mask' has batch 2 at axis 0, but input 'ids' has batch 1"),
        (([[1]], [[1]]), "'ids' has length 1 at axis 1; expected 2 to 5"),
        (([[1] * 6], [[1] * 6]), "'ids' has length 6 at axis 1; expected 2 to 5"),
    ],
)
def test_several_inputs_have_to_agree(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TEXT.bind(value)


def test_a_size_named_twice_in_one_input() -> None:
    with pytest.raises(InputError, match="has n 3 at axis 2, but an earlier axis has n 2"):
        spec("x: float32[batch, n, n]").bind(torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="expected at least 1"):
        spec("x: float32[batch, n]").bind(torch.zeros(1, 0))


def test_inputs_without_rows() -> None:
    table = spec("table: float32[2]")
    (bound,), _ = table.bind([1.0, 2.0])
    assert table.rows([bound]) is None
    assert spec("scalar: float32[]").bind(3)[0][0].shape == ()


def test_finite_values_only() -> None:
    check_finite([torch.tensor([1.0]), torch.tensor([True]), torch.tensor([3])])
    with pytest.raises(InputError, match="input 'b' holds nan at index \\[1, 0\\]"):
        check_finite([torch.zeros(1), torch.tensor([[0.0], [float("nan")]])], names=("a", "b"))
    with pytest.raises(InputError, match="input '0' holds -inf"):
        check_finite([torch.tensor([-float("inf")])])

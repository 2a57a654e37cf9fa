"""Inputs from files and predictions to files."""

import csv
import io
import json
import math
import pickle

import numpy as np
import pytest

from mcdrop.command_line.datafiles import as_json, check_output, read_arrays, read_inputs, write_csv, write_fields
from mcdrop.errors import InputError, SettingError
from mcdrop.graph.inputs import InputSpec, Signature

IMAGE = Signature((InputSpec.parse("image: float32[batch, 2, 3]"),))
TOKENS = Signature((InputSpec.parse("ids: int64[batch, length<=8]"),))
PAIR = Signature((InputSpec.parse("left: float32[batch, 3]"), InputSpec.parse("right: float32[batch, 3]")))


def test_arrays_come_as_they_are(tmp_path):
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.save(tmp_path / "a.npy", image)
    np.savez(tmp_path / "one.npz", anything=image)
    np.savez(tmp_path / "two.npz", left=image[0], right=image[1])
    assert np.array_equal(read_inputs(tmp_path / "a.npy", IMAGE), image)
    assert np.array_equal(read_inputs(tmp_path / "one.npz", IMAGE), image)
    assert set(read_inputs(tmp_path / "two.npz", PAIR)) == {"left", "right"}


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps("no array"))
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 truncated")
    for name in ("a.npy", "b.npy", "c.npz"):
        with pytest.raises(InputError, match=f"{name} cannot be read as NumPy arrays"):
            read_arrays(tmp_path / name)


@pytest.mark.parametrize("header", ["", "a,b,c,d,e,f\n", "\ufeffa,b,c,d,e,f\n"])
def test_a_csv_row_is_one_input(tmp_path, header):
    (tmp_path / "a.csv").write_text(header + "0,1,2,3,4,5\n6,7,8,9,10,1.5e1\n", encoding="utf-8")
    expected = np.array([[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 15]]], dtype=np.float64)
    assert np.array_equal(read_inputs(tmp_path / "a.csv", IMAGE), expected)


def test_a_dynamic_size_follows_from_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,3\n4,5,9007199254740993\n")
    ids = read_inputs(tmp_path / "a.csv", TOKENS)
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, 2, 3], [4, 5, 9007199254740993]]


@pytest.mark.parametrize(
    ("text", "signature", "message"),
    [
        ("1,2,3\n", IMAGE, r"has 3 numbers in each row; expected 6 for image: float32\[batch, 2, 3\]"),
        ("1,2,3,4,5,6\n1,2\n", IMAGE, "cannot be read as a table of numbers"),
        ("1,2,3,4,5,6\n1,2,x,4,5,6\n", IMAGE, "'x'"),
        ("1.5,2\n", TOKENS, "Expected comma-separated integers"),
        ("", IMAGE, "has no row of numbers"),
        ("a,b,c\n", IMAGE, "has no row of numbers"),
        ("1,2,3\n", PAIR, r"2 inputs \(left, right\).*Give an .npz file"),
    ],
)
def test_a_csv_that_does_not_fit_says_why(tmp_path, text, signature, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_inputs(tmp_path / "a.csv", signature)


def test_missing_and_unknown_files(tmp_path):
    for name in ("a.npy", "a.npz", "a.csv"):
        with pytest.raises(InputError, match=f"there is no data file .*{name}"):
            read_inputs(tmp_path / name, IMAGE)
    with pytest.raises(InputError, match=r"expected .npy, .npz, .csv"):
        read_inputs(tmp_path / "a.parquet", IMAGE)
    with pytest.raises(SettingError, match=r"end it with .npz, .csv, .json"):
        check_output(tmp_path / "a.txt")


FIELDS = {
    "label": np.array([1, 0]),
    "entropy": np.array([0.5, -math.inf]),
    "mean": np.array([[0.25, 0.75], [0.5, 0.5]]),
}
FACTS = {"num_samples": 10, "seed": 7}


def test_csv_has_a_column_for_each_number():
    text = io.StringIO()
    write_csv(text, FIELDS, class_names=("cat", "dog, small"))
    rows = list(csv.reader(io.StringIO(text.getvalue())))
    assert rows == [
        ["row", "label", "entropy", "mean[cat]", "mean[dog, small]"],
        ["0", "1", "0.5", "0.25", "0.75"],
        ["1", "0", "-inf", "0.5", "0.5"],
    ]
    text = io.StringIO()
    write_csv(text, {"mean": np.zeros((0, 2, 1))}, class_names=None)
    assert text.getvalue() == 'row,"mean[0,0]","mean[1,0]"\n'


def test_csv_refuses_what_nobody_can_read():
    with pytest.raises(SettingError, match=r"Write an \.npz file"):
        write_csv(io.StringIO(), {"mean": np.zeros((1, 101, 100))}, class_names=None)


def test_json_has_no_number_that_json_lacks():
    assert json.loads(as_json(FIELDS, facts=FACTS)) == {
        "num_samples": 10,
        "seed": 7,
        "label": [1, 0],
        "entropy": [0.5, None],
        "mean": [[0.25, 0.75], [0.5, 0.5]],
    }


def test_every_format_is_written(tmp_path):
    for name in ("a.npz", "a.csv", "a.json"):
        write_fields(tmp_path / name, FIELDS, facts=FACTS, class_names=None)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {*FIELDS, *FACTS}
        assert int(arrays["seed"]) == 7
        assert np.array_equal(arrays["mean"], FIELDS["mean"])
    assert json.loads((tmp_path / "a.json").read_text())["num_samples"] == 10
    assert (tmp_path / "a.csv").read_text().startswith("row,label,entropy,mean[0],mean[1]\n")
    with pytest.raises(SettingError, match="cannot be written"):
        write_fields(tmp_path / "no" / "a.csv", FIELDS, facts=FACTS, class_names=None)

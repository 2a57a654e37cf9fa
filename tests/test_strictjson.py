"""JSON that could be read in two ways, or without end, is refused."""

import math
from dataclasses import dataclass
from typing import Literal

import pytest

from mcdrop.disk.strictjson import Refused, from_json, loads, to_json


@dataclass(frozen=True)
class Record:
    count: int
    share: float | None
    kind: Literal["round", "flat"]
    shape: tuple[int | str, ...]
    label: str | None
    active: bool
    since: int = 2


RECORD = Record(count=3, share=0.5, kind="round", shape=("batch", 4), label=None, active=True)


def test_plain_json_is_read() -> None:
    assert loads('{"a": [1, -2.5, null, true, "é 𝄞"]}'.encode()) == {"a": [1, -2.5, None, True, "é 𝄞"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no JSON"),
        (b'{"a": ', "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "Infinity is no number"),
        (b"[1e999]", "beyond a float"),
        (b"[9223372036854775808]", "64 bits"),
        (b"[" + b"9" * 10_000 + b"]", "64 bits"),
        (b'["\\ud800"]', "no JSON"),
    ],
)
def test_what_the_standard_reader_lets_pass(text: bytes, message: str) -> None:
    with pytest.raises(Refused, match=message):
        loads(text)


def test_records_round_trip() -> None:
    assert from_json(Record, to_json(RECORD)) == RECORD
    infinite = Record(count=0, share=math.inf, kind="flat", shape=(), label="x", active=False)
    assert from_json(Record, to_json(infinite)) == infinite


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", "3"),
        ("count", True),
        ("count", 3.0),
        ("share", "0.5"),
        ("share", {"float": "1e9"}),
        ("kind", "square"),
        ("shape", ["batch", 1.5]),
        ("shape", "batch"),
        ("label", 4),
        ("label", "x" * 5000),
        ("active", 1),
        ("unknown", 1),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(Refused, match="Record"):
        from_json(Record, {**to_json(RECORD), field: value})


def test_a_field_younger_than_the_file_has_its_default() -> None:
    document = to_json(RECORD)
    del document["since"]
    assert from_json(Record, document) == RECORD


def test_a_missing_field_is_refused() -> None:
    document = to_json(RECORD)
    del document["label"]
    with pytest.raises(Refused, match="should have the fields count, share"):
        from_json(Record, document)

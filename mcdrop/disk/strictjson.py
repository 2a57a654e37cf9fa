"""JSON read strictly, and flat dataclasses as JSON.

`loads` refuses what the standard reader lets pass: keys given twice (two readers may see two values), NaN and infinity,
whole numbers beyond 64 bits, nesting without end, texts that are no valid Unicode. What is not as it should be is
`Refused` with the reason; the caller knows the file and adds it.
"""

import dataclasses
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

__all__ = ["FLOATS", "Refused", "as_list", "as_text", "as_whole", "encode_float", "from_json", "loads", "to_json"]

Record = TypeVar("Record")

MAX_TEXT = 4096
MAX_LENGTH = 100_000

FLOATS: Mapping[str, float] = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
"""Floats that JSON has no number for, written as {"float": name}."""


class Refused(ValueError):
    """What was read breaks a rule; the text says which, and where."""


def loads(data: bytes) -> Any:
    """The JSON value of UTF-8 bytes."""
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
        )
        if "\\u" in text:  # lone surrogates come in only by escapes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"it is no JSON: {str(error)[:200] or type(error).__name__}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise Refused(f"the key {key!r:.80} is given twice")
    return result


def _no_constant(name: str) -> float:
    raise Refused(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(f"the number {text[:40]} is beyond a float")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20:
        raise Refused("a whole number does not fit into 64 bits")
    return as_whole(int(text))


def encode_float(value: float) -> float | dict[str, str]:
    """The number itself, or its name where JSON has no number for it."""
    return float(value) if math.isfinite(value) else {"float": str(float(value))}


def as_list(value: object, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise Refused(f"{what} should be a list of at most {most}")
    return value


def as_text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Refused(f"{what} should be a text of at most {MAX_TEXT} characters, not {value!r:.80}")
    return value


def as_whole(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise Refused("a whole number does not fit into 64 bits")
    return value


# ---- records: flat frozen dataclasses, field by field, checked against their annotations


def to_json(record: Any) -> dict[str, Any]:
    """A frozen dataclass of plain values (numbers, texts, tuples of them) as a JSON object."""
    return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}


def from_json(kind: type[Record], document: object) -> Record:
    """The reverse of `to_json`. Fields with a default may be missing, as in files older than the field.

    Raises `Refused` for another missing field, an unknown one, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    needed = {
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]  # `Record` is a dataclass wherever it is used
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if not isinstance(document, dict) or not needed <= set(document) <= set(hints):
        raise Refused(f"a {kind.__name__} should have the fields {', '.join(hints)}")
    return kind(**{name: _as(hints[name], value, f"{kind.__name__}.{name}") for name, value in document.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return encode_float(value) if isinstance(value, float) else value


def _as(hint: Any, value: Any, what: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in options:
            try:
                return _as(option, value, what)
            except Refused:
                continue
    elif origin is Literal:
        if any(value == option and type(value) is type(option) for option in options):
            return value
    elif origin is tuple and len(options) == 2 and options[1] is Ellipsis:
        return tuple(_as(options[0], item, what) for item in as_list(value, what, MAX_LENGTH))
    elif hint is float:
        if isinstance(value, dict) and list(value) == ["float"] and value["float"] in FLOATS:
            return FLOATS[value["float"]]
        if isinstance(value, float) or type(value) is int:
            return float(value)
    elif hint is int and type(value) is int:
        return as_whole(value)
    elif hint is str:
        return as_text(value, what)
    elif value is None if hint is type(None) else (hint is bool and isinstance(value, bool)):
        return value
    raise Refused(f"{what} cannot be {value!r:.80}")

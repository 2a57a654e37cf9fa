"""JSON objects of the protocol, and the flat `parameters` that they may carry."""

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import orjson

from service.errors import InvalidRequestError, MalformedBodyError


def parse_object(text: bytes, expected: str) -> dict[str, Any]:
    """A JSON object. NaN, Infinity and -Infinity are read too, since tritonclient writes them."""
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            content = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise MalformedBodyError(f"The JSON of the body cannot be read: {error}. Expected {expected}.") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"The body is a JSON {type(content).__name__}; expected {expected}.")
    return content


def read_parameters(holder: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `parameters` of an object: flat, with values that are strings, 64-bit numbers or bool."""
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"parameters of {where} is {type(parameters).__name__}; expected an object.")
    for name, value in parameters.items():
        whole = isinstance(value, int) and -(2**63) <= value < 2**64
        if not (whole or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))):
            raise InvalidRequestError(
                f"parameter {name!r} of {where} is {reprlib.repr(value)}; expected a string, a finite 64-bit number, "
                "true or false."
            )
    return parameters


def flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """A parameter that is true or false."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name!r} is {reprlib.repr(value)}; expected true or false.")
    return value

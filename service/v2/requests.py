"""What a body asks for: JSON, the buffers after it, and the rules that both have to keep.

The length of the JSON stands in the header Inference-Header-Content-Length, counted in the decompressed body; without
it the whole body is JSON, and 0 means that there is none: the body is the model's only input. The Content-Type tells
nothing, since real clients send any or none. Members that are not known are ignored; everything known is checked.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mcdrop.predictor import MCDropout
from service.errors import InvalidRequestError
from service.settings import Settings
from service.v2.inputs import Inputs, read_raw
from service.v2.outputs import Wanted, read_outputs
from service.v2.parameters import flag, parse_object, read_parameters
from service.wire import PredictRequest

_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_PLAIN = (
    "num_samples",
    "seed",
    "deadline_ms",
    "allow_partial",
    "determinism",
    "tolerance",
    "certified",
    "until",
)  # fmt: skip; as in the native API


@dataclass(frozen=True)
class InferRequest:
    """A request for a prediction: what to compute, and how to write the answer."""

    asked: PredictRequest
    id: str | None
    wanted: tuple[Wanted, ...]  # none: every output that is computed
    binary: bool  # outputs that do not say otherwise


def read(body: bytes, header_length: str | None, mc: MCDropout, settings: Settings) -> InferRequest:
    """The request in a decompressed body. Raises what becomes 400 or 413; allocates nothing that is only claimed."""
    length = _header_length(header_length, len(body))
    if length == 0 and header_length is not None:
        inputs = {mc.signature.names[0]: read_raw(body, mc.signature, settings)}
        return InferRequest(_checked({"inputs": inputs}), None, (), True)
    content = parse_object(body[:length], 'a request with {"inputs": [...]}')
    parameters = read_parameters(content, "the request")
    wanted = read_outputs(content.get("outputs"), mc)
    tensors = Inputs(memoryview(body)[length:], header_length is not None, mc.signature, settings)
    inputs = tensors.read(content.get("inputs"))
    identifier = content.get("id")
    if identifier is not None and not (isinstance(identifier, str) and _is_text(identifier)):
        raise InvalidRequestError(f"id is {reprlib.repr(identifier)}; expected a string.")
    asked = _checked({"inputs": inputs, **_options(parameters, wanted)})
    return InferRequest(asked, identifier, wanted, flag(parameters, "binary_data_output", False))


def _checked(asked: Mapping[str, Any]) -> PredictRequest:
    try:
        return PredictRequest.model_validate(asked)
    except ValidationError as error:
        sentences = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}." for item in error.errors()]
        raise InvalidRequestError(" ".join(sentences)) from error


def _header_length(given: str | None, body_length: int) -> int:
    if given is None:
        return body_length
    if _LENGTH.fullmatch(given) is None or int(given) > body_length:
        raise InvalidRequestError(
            f"The header Inference-Header-Content-Length is {given!r}; expected the length of the JSON at the start of "
            f"the body, 0 to {body_length} bytes."
        )
    return int(given)


def _options(parameters: Mapping[str, Any], wanted: Sequence[Wanted]) -> dict[str, Any]:
    """The fields of a native request, from the parameters and from which outputs are wanted."""
    if sequences := sorted(name for name in parameters if name.startswith("sequence_")):
        raise InvalidRequestError(f"parameter {sequences[0]!r}: this server keeps no sequences. Leave it out.")
    options = {name: parameters[name] for name in _PLAIN if name in parameters}
    if "timeout" in parameters:  # microseconds, 0 for none
        microseconds = parameters["timeout"]
        if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
            raise InvalidRequestError(f"parameter 'timeout' is {microseconds!r}; expected microseconds, at least 0.")
        if microseconds:
            options.setdefault("deadline_ms", microseconds / 1000)
    options["outputs"] = list(dict.fromkeys(output.field for output in wanted))
    if "quantiles" in parameters and (not wanted or "quantiles" in options["outputs"]):
        options["quantiles"] = _levels(parameters["quantiles"])
    return options


def _levels(text: object) -> list[float]:
    try:
        return [float(level) for level in str(text).split(",")]
    except ValueError as error:
        raise InvalidRequestError(
            f"parameter 'quantiles' is {text!r}; expected levels such as '0.05,0.5,0.95'."
        ) from error


def _is_text(text: str) -> bool:
    """Whether it can be written again: JSON escapes can spell half a surrogate pair, which UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)

"""NaN and infinity in answers: counted, and refused where the setting `nonfinite` says so.

JSON has neither, so both protocols write null; binary tensors carry them as they are. The entropy of a regression
without variance is minus infinity and counts.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import NonFiniteError
from service.outcome import Outcome
from service.settings import Settings, raise_limit

Write = Callable[[Outcome], bytes]


def count_nonfinite(arrays: Iterable[NDArray[Any]]) -> int:
    """How many values are NaN or infinite."""
    return sum(array.size - int(np.isfinite(array).sum()) for array in arrays if array.dtype.kind == "f")


def finite_only(write: Write, settings: Settings) -> Write:
    """`write`, which raises NonFiniteError before it writes such a value, where the setting asks for that.

    Estimates that hold one become no bytes: later ones, and the answer, need not.
    """
    if settings.nonfinite == "null":
        return write

    def checked(outcome: Outcome) -> bytes:
        for name, value in outcome.fields.items():
            count = count_nonfinite(each_array(value))
            if count and not outcome.final:
                return b""
            if count:
                raise NonFiniteError(
                    f"The answer's {name} holds {count} values that are NaN or infinite. Look at the inputs' range, "
                    f"or change {raise_limit('nonfinite')} to null."
                )
        return write(outcome)

    return checked


def each_array(value: Any) -> list[NDArray[Any]]:
    """The arrays in one field of an answer."""
    if isinstance(value, Mapping):
        return [np.asarray(part) for part in value.values()]
    return [np.asarray(part) for part in value] if isinstance(value, list) else [np.asarray(value)]

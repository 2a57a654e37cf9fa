"""The check of a rate at the door of every layer."""

from mcdrop.errors import SettingError

__all__ = ["check_rate"]


def check_rate(p: float, *, one: bool = True) -> float:
    """`p` as a float: a probability of dropping from 0 to 1; without `one`, below 1.

    Raises:
        SettingError: it is no such number.
    """
    if isinstance(p, bool) or not isinstance(p, float | int) or not (0 <= p < 1 or (one and p == 1)):
        raise SettingError(
            f"p is {p!r}; give the probability of dropping, a number from 0 to 1{'' if one else ', less than 1'}. "
            "It is the share that is dropped, not the share that is kept."
        )
    return float(p)

"""When a request is sent again, and how long it may take in all. Nothing here waits: callers are told how long to.

    sent again      connections that fail or break, 429, 500, 502, 503, and what `x-should-retry: true` asks for
    never           501, 504, other answers, and what `x-should-retry: false` forbids
    first wait      what `retry-after-ms` or `Retry-After` says, to the letter; beyond 120 s the caller decides
    otherwise       0.5 s, 1 s, 2 s, ... at most 8 s, each shortened at random by up to a quarter

A wait that would outlast the deadline is not begun: the last failure is raised instead.
"""

import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

AGAIN = frozenset({429, 500, 502, 503})
NEVER = frozenset({501, 504})
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds
JITTER = 0.25  # share of a wait that is drawn at random, so that clients do not come back together
LONGEST_RETRY_AFTER = 120.0  # seconds


def backoff(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait after the attempt of this number, counted from 0; `draw` gives a number between 0 and 1."""
    wait = min(FIRST_WAIT * 2.0 ** min(attempt, 30), LONGEST_WAIT)
    return wait * (1 - JITTER * draw())


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds after which the server wants to see the request again; None where it does not say.

    `retry-after-ms` counts first. `Retry-After` is seconds or a date, for which `now` tells the time of day.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now())
    except (TypeError, ValueError, OverflowError):
        return None


def wait_after(
    status: int, headers: Mapping[str, str], attempt: int, draw: Callable[[], float] = random.random
) -> float | None:
    """Seconds to wait before a request that was answered with `status` is sent again; None for not at all."""
    wish = headers.get("x-should-retry", "").strip().lower()
    if wish == "false" or status in NEVER or not (wish == "true" or status in AGAIN):
        return None
    asked = retry_after(headers)
    if asked is None:
        return backoff(attempt, draw)
    return asked if asked <= LONGEST_RETRY_AFTER else None


@dataclass
class Deadline:
    """What is left of the time for one call, with all its requests, answers and waits.

    Args:
        seconds: how long the caller waits.
        useful: seconds after which the answer is of no use to the caller; the server is told, and may answer until
            then with what it has.
    """

    seconds: float
    useful: float = math.inf
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def passed(self) -> float:
        """Seconds since the call began."""
        return self.clock() - self.started

    def left(self) -> float:
        """Seconds until the caller gives up."""
        return self.seconds - self.passed()

    def allows(self, wait: float) -> bool:
        """Whether an answer after `wait` more seconds can still be of use."""
        return self.passed() + wait < min(self.seconds, self.useful)

    def useful_ms(self) -> int:
        """Milliseconds in which an answer is of use, at least 1: what is sent as `deadline_ms`."""
        return max(1, int(1000 * (min(self.seconds, self.useful) - self.passed())))

"""When requests are sent again, with a clock that only moves when told to."""

import email.utils
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrop.wire.retries import Deadline, backoff, retry_after, wait_after


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_eight_seconds():
    assert [backoff(attempt, draw=lambda: 0) for attempt in range(7)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [backoff(attempt, draw=lambda: 1) for attempt in range(3)] == [0.375, 0.75, 1.5]


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_jitter_shortens_a_wait_by_a_quarter_at_most(attempt, draw):
    full = min(0.5 * 2 ** min(attempt, 10), 8)
    assert 0.75 * full <= backoff(attempt, draw=lambda: draw) <= full


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": email.utils.formatdate(1030, usegmt=True)}, 30),
        ({"retry-after": email.utils.formatdate(970, usegmt=True)}, 0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_milliseconds_seconds_or_a_date(headers, seconds):
    assert retry_after(headers, now=lambda: 1000) == seconds


@given(st.text())
def test_no_header_makes_the_reading_fail(text):
    seconds = retry_after({"retry-after": text, "retry-after-ms": text})
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("status", range(400, 600))
def test_what_is_sent_again(status):
    again = status in (429, 500, 502, 503)
    assert wait_after(status, {}, 0, draw=lambda: 0) == (0.5 if again else None)
    assert wait_after(status, {"x-should-retry": "false"}, 0) is None
    wanted = wait_after(status, {"x-should-retry": "true"}, 0, draw=lambda: 0)
    assert wanted == (None if status in (501, 504) else 0.5)


def test_the_servers_word_counts_up_to_two_minutes():
    assert wait_after(429, {"retry-after": "120"}, 5) == 120
    assert wait_after(429, {"retry-after": "121"}, 0) is None
    assert wait_after(504, {"retry-after": "1"}, 0) is None


def test_a_deadline_counts_from_its_beginning():
    clock = Clock()
    deadline = Deadline(10, 6, clock)
    assert (deadline.left(), deadline.useful_ms()) == (10, 6000)
    clock.now += 2.5
    assert (deadline.passed(), deadline.left(), deadline.useful_ms()) == (2.5, 7.5, 3500)
    assert deadline.allows(3.4)
    assert not deadline.allows(3.5)
    clock.now += 10
    assert deadline.left() < 0
    assert deadline.useful_ms() == 1  # the server refuses 0


@given(st.floats(0.001, 1e4), st.floats(0.001, 1e4), st.floats(0, 1e4))
def test_the_server_is_never_given_more_than_the_caller_waits(seconds, useful, passed):
    clock = Clock(0)
    deadline = Deadline(seconds, useful, clock)
    clock.now = passed
    assert 1 <= deadline.useful_ms() <= max(1, 1000 * (min(seconds, useful) - passed))

"""Server-sent events come out the same however the body is cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mcdrop.wire.events import Event, EventReader

BODY = (
    '\ufeff: heartbeat\n\nevent: estimate\ndata: {"a":\ndata: 1}\n\n'
    ": heartbeat\r\nevent:result\r\ndata:ä\r\n\r\nid: 3\rdata: plain\r\rretry\n\nevent: cut\ndata: off\n"
).encode()
EVENTS = [Event("estimate", '{"a":\n1}'), Event("result", "ä"), Event("message", "plain")]


def events(pieces: list[bytes]) -> list[Event]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_events_names_data_and_comments():
    assert events([BODY]) == EVENTS


@given(st.lists(st.integers(0, len(BODY))))
def test_pieces_may_end_anywhere(cuts):
    edges = [0, *sorted(cuts), len(BODY)]
    assert events([BODY[start:end] for start, end in itertools.pairwise(edges)]) == EVENTS


def test_an_event_is_given_as_soon_as_its_empty_line_is_there():
    reader = EventReader()
    assert list(reader.feed(b"data: 1\r\n\r")) == [Event("message", "1")]
    assert list(reader.feed(b"\ndata: 2\n")) == []
    assert list(reader.feed(b"\n")) == [Event("message", "2")]


@given(st.binary())
def test_no_body_makes_the_reading_fail(body):
    for event in events([body]):
        assert event.name

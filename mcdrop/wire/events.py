"""Server-sent events, read as their bytes arrive (WHATWG HTML, section 9.2: "text/event-stream").

    event: estimate             one event, ended by an empty line; several `data` lines are joined by line breaks
    data: {"mean": ...}
                                lines that begin with a colon are comments: heartbeats
    : heartbeat

Lines end with LF, CR or CR LF, and a piece of the body may end anywhere, also between CR and LF.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """`name` is "message" where the server gives none."""

    name: str
    data: str


class EventReader:
    """Takes a body piece by piece and gives the events that are complete; an unfinished last one is dropped."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._line: list[str] = []  # pieces of a line whose end has not come
        self._ended_by_return = False
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that end in this piece."""
        text = self._decode(piece)
        if self._ended_by_return and text:
            text = text.removeprefix("\n")
            self._ended_by_return = False
        self._ended_by_return = self._ended_by_return or text.endswith("\r")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines[:-1]:
            whole = "".join([*self._line, line])
            self._line.clear()
            yield from self._take(whole)
        if lines[-1]:
            self._line.append(lines[-1])

    def _take(self, line: str) -> Iterator[Event]:
        if not line:
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data))
            self._name, self._data = "", []
            return
        field, _, value = line.partition(":")  # a comment has an empty field
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)

"""Every request that was sent and what came of it, held against the server's log and its metrics."""

import re
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from chaos_requests import Ask
from chaos_wire import Answer

PREDICTING = re.compile(r"/(predict|stream|infer)$")
DOCUMENTED = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 501, 503, 504}  # README, "Error codes"


@dataclass
class Ledger:
    """One line for each request id."""

    memory_runs_out: bool = False  # by intention, so that 503 is an honest answer
    sent: dict[str, str] = field(default_factory=dict)  # id -> kind
    answered: dict[str, int] = field(default_factory=dict)  # id -> status
    ended: Counter[tuple[str, int]] = field(default_factory=Counter)  # (kind, status) -> requests
    complaints: list[str] = field(default_factory=list)

    def issue(self, kind: str) -> str:
        """The id of a request that is about to be sent."""
        self.sent[request_id := f"{kind.replace(' ', '-')}-{len(self.sent)}"] = kind
        return request_id

    def settle(self, request_id: str, ask: Ask, answer: Answer | None) -> int:
        """Take an answer in, and complain of what is wrong with it. Returns its status, 0 for none."""
        if answer is None:
            self.complain(request_id, "no answer")
            return 0
        if answer.headers.get("x-request-id") != request_id:
            self.complain(request_id, f"the answer to {answer.headers.get('x-request-id')}")
        if request_id in self.answered:
            self.complain(request_id, "a second answer")
        status, wrong = answer.status, None
        if b"event: error\ndata: " in answer.body:
            status = orjson.loads(answer.body.rpartition(b"event: error\ndata: ")[2])["status"]
        if status == 200:
            wrong = ask.check(answer)
        elif status == 503 and self.memory_runs_out:
            wrong = None if b"memory" in answer.body else f"503 for another reason: {answer.body!r}"
        elif status not in ask.statuses:
            wrong = f"status {status}: {answer.body[:300]!r}"
        elif status == 429 and not 1 <= int(answer.headers.get("retry-after", "0")) <= 60:
            wrong = f"429 with Retry-After {answer.headers.get('retry-after')}"
        if wrong:
            self.complain(request_id, wrong)
        self.answered[request_id] = answer.status
        self.ended[ask.kind, status] += 1
        return status

    def complain(self, request_id: str, what: str) -> None:
        """Note a fault of the server."""
        self.complaints.append(f"{request_id}: {what}")

    def logged(self, log: Path) -> dict[str, list[int]]:
        """Statuses by request id of the requests for predictions that have ended, by the server's log."""
        found: dict[str, list[int]] = {}
        for line in log.read_bytes().splitlines():
            entry = orjson.loads(line)
            if PREDICTING.search(entry.get("path", "")):
                found.setdefault(entry["request_id"], []).append(entry["status"])
        return found

    def compare_with_log(self, log: Path, turned_away: Container[str] = ()) -> None:
        """Complain unless each answer is logged once, as it was given, and who left at most once."""
        logged = self.logged(log)
        for request_id, statuses in logged.items():
            if request_id not in self.sent:
                self.complain(request_id, f"logged as {statuses} and never sent")
            if request_id in turned_away:
                self.complain(request_id, f"accepted, logged as {statuses}, and not answered")
            if len(statuses) > 1:
                self.complain(request_id, f"ended several times: {statuses}")
        for request_id, status in self.answered.items():
            if logged.get(request_id) != [status]:
                self.complain(request_id, f"answered with {status} and logged as {logged.get(request_id)}")

    def table(self) -> Iterable[str]:
        """Requests by kind and status."""
        for kind in sorted({kind for kind, _ in self.ended}):
            counts = sorted((status, n) for (name, status), n in self.ended.items() if name == kind)
            yield f"{kind:12s} " + "  ".join(f"{status}: {n}" for status, n in counts)


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of all series of a metric that have these labels."""
    found = 0.0
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(f'{key}="{word}"' in series for key, word in labels.items()):
            found += float(value)
    return found

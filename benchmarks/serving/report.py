"""Results as plain text and as JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import table
from benchmarks.serving.cases import CONTENDERS
from benchmarks.serving.measure import FairnessResult, HttpResult, LoadResult

__all__ = ["Result", "Results"]

Result = LoadResult | HttpResult | FairnessResult
_KINDS: dict[str, type[Result]] = {"load": LoadResult, "http": HttpResult, "fairness": FairnessResult}


class Results:
    """Everything found so far; what is measured again replaces what was found before."""

    def __init__(self, conditions: Mapping[str, Any]) -> None:
        self.conditions = dict(conditions)
        self._found: dict[tuple[Any, ...], Result] = {}

    @classmethod
    def read(cls, file: Path | None, conditions: Mapping[str, Any]) -> "Results":
        """Those of a file, where there is one and it was measured under the same conditions."""
        results = cls(conditions)
        if file is not None and file.exists():
            content = json.loads(file.read_text())
            if content["conditions"] == results.conditions:
                for name, kind in _KINDS.items():
                    for values in content[name]:
                        results.add(kind(**{field: value for field, value in values.items() if field != "mcdrop_is"}))
        return results

    def add(self, result: Result) -> None:
        """Note a result."""
        place = (result.contender, result.clients) if isinstance(result, LoadResult) else ()
        self._found[type(result), result.case, *place] = result

    def of(self, kind: type[Result]) -> list[Any]:
        """Results of one kind, in a fixed order."""
        names = [contender.name for contender in CONTENDERS]
        found = [each for each in self._found.values() if isinstance(each, kind)]
        if kind is LoadResult:
            found.sort(key=lambda r: (r.case, r.clients or 10**9, names.index(r.contender)))  # type: ignore[union-attr]
        return found

    def times(self, result: LoadResult) -> float | None:
        """How many times as many requests mcdrop answers with as many clients; None where that was not measured."""
        if result.clients is None:
            return None
        mcdrop = self._found.get((LoadResult, result.case, CONTENDERS[0].name, result.clients))
        return mcdrop.rate / result.rate if isinstance(mcdrop, LoadResult) and result.rate else None

    def as_json(self) -> dict[str, Any]:
        """Rates per second, times in milliseconds; `mcdrop_is` so many times as fast."""
        content: dict[str, Any] = {"conditions": self.conditions}
        for name, kind in _KINDS.items():
            content[name] = [asdict(each) for each in self.of(kind)]
        for values, result in zip(content["load"], self.of(LoadResult), strict=True):
            values["mcdrop_is"] = self.times(result)
        return content

    def text(self) -> str:
        """Tables, a blank line between them."""
        load: dict[str, Callable[[Any], str]] = {
            "case": lambda r: r.case,
            "server": lambda r: r.contender,
            "loop": lambda r: r.loop if r.offered is None else f"open, {r.offered:.0f}/s",
            "clients": lambda r: "" if r.clients is None else str(r.clients),
            "requests/s": lambda r: f"{r.rate:.1f}",
            "p50 ms": lambda r: f"{r.p50:.2f}",
            "p99 ms": lambda r: f"{r.p99:.2f}",
            "disturbed": lambda r: f"{r.disturbed:.0%}",
            "failed": lambda r: str(r.failed),
            "mcdrop is": lambda r: "" if (times := self.times(r)) is None else f"{times:.1f} x",
        }
        http: dict[str, Callable[[Any], str]] = {
            "case": lambda r: r.case,
            "body": lambda r: r.body,
            "request ms": lambda r: f"{r.request:.2f}",
            "library call ms": lambda r: f"{r.library:.2f}",
            "HTTP alone ms": lambda r: f"{r.cost:.2f}",
        }
        fairness: dict[str, Callable[[Any], str]] = {
            "case": lambda r: r.case,
            "1 row beside": lambda r: f"{r.rows} rows, {r.body}, {r.large:.0f} ms",
            "requests": lambda r: str(r.requests),
            "alone ms": lambda r: f"{r.alone:.2f}",
            "slice ms": lambda r: f"{r.slice:.0f}",
            "p99 ms": lambda r: f"{r.p99:.2f}",
            "limit ms": lambda r: f"{r.limit:.2f}",
        }
        parts = (load, LoadResult), (http, HttpResult), (fairness, FairnessResult)
        return "\n\n".join(table(columns, found) for columns, kind in parts if (found := self.of(kind)))

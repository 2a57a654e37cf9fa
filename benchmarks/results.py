"""What is measured, as JSON and back. Times are in seconds, memory in MiB; ratios are not kept but made from them.

A file belongs to one machine and one set of versions. Case by case adds to it: what is measured again is replaced.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.floor import PRODUCT, Floor

__all__ = ["FORMAT", "CaseResult", "MemoryResult", "Result", "Results", "load", "merged", "save"]

FORMAT = 2
_ORDER = {case.name: number for number, case in enumerate(CASES)}


@dataclass(frozen=True)
class Result:
    """One case at one point.

    Attributes:
        case, rows, num_samples: what was asked for.
        rounds: of which times are medians; of calls that take more than half a second, three.
        seconds: mcdrop's "first", "warm" and "new seed" (each call another), those of each baseline by name, of
            "one pass" of the deterministic network and of the "product" of two 2048 x 2048 matrices in float32.
        peak: growth of memory during the first call, of "mcdrop" and of baselines.
        operations: floating-point operations that a warm call of mcdrop took.
        failed: baselines that cannot compute this, with their error.
    """

    case: str
    rows: int
    num_samples: int
    rounds: int
    seconds: Mapping[str, float]
    peak: Mapping[str, float] = field(default_factory=dict)
    operations: float = 0.0
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def baselines(self) -> list[str]:
        """The baselines that were timed."""
        return [name for name in self.seconds if name not in ("first", "warm", "new seed", "one pass", "product")]

    def lead(self, name: str, column: str = "warm") -> float:
        """The time of a baseline, or of "one pass", over mcdrop's."""
        return self.seconds[name] / self.seconds[column]

    def of_floor(self, floor: Floor) -> float:
        """The time that the least operations take at the rate of the product, over that of a warm call."""
        return floor.least(self.rows, self.num_samples) / PRODUCT * self.lead("product")

    def saved(self, floor: Floor) -> float | None:
        """(1 - t / t_rep) / (1 - F / F_rep): the time of the replicated batch that a warm call saves, as a share, over
        the share of its operations that it saves; None where it saves none.
        """
        operations = self.operations / floor.plain(self.rows, self.num_samples)
        return (1 - 1 / self.lead("replicated")) / (1 - operations) if operations < 1 else None


@dataclass(frozen=True)
class CaseResult:
    """What holds at every point of a case: its floor, and for each way what is wrong with it ("" is right)."""

    case: str
    floor: Floor
    verdicts: Mapping[str, str]


@dataclass(frozen=True)
class MemoryResult:
    """Seconds and MiB of one prediction: growth of resident memory, what it may be, and the size of all samples."""

    case: str
    rows: int
    num_samples: int
    seconds: float
    max_memory: float
    growth: float
    samples: float


@dataclass(frozen=True)
class Results:
    """All that one machine has measured."""

    conditions: Mapping[str, str | int]
    cases: tuple[CaseResult, ...] = ()
    results: tuple[Result, ...] = ()
    scaling: tuple[Result, ...] = ()
    memory: tuple[MemoryResult, ...] = ()

    def floor(self, name: str) -> Floor:
        """The floor of a case."""
        return next(case.floor for case in self.cases if case.case == name)

    def fault(self, name: str, way: str) -> str:
        """What is wrong with a way to sample a case; "" where nothing is known to be."""
        return next((case.verdicts.get(way, "") for case in self.cases if case.case == name), "")

    def quantity(self, result: Result, name: str) -> float | None:
        """A target of `cases`: a lead, "floor" or "saved"; larger is better. None where it is unknown."""
        if name == "floor":
            return result.of_floor(self.floor(result.case))
        if name == "saved":
            return result.saved(self.floor(result.case)) if "replicated" in result.seconds else None
        return result.lead(name) if name in result.seconds else None


def merged(old: Results, new: Results) -> Results:
    """Both; of what both have, the new.

    Raises:
        ValueError: they were not measured under the same conditions.
    """
    differing = [name for name in new.conditions if old.conditions.get(name) != new.conditions[name]]
    if differing:
        raise ValueError(
            f"the file was measured with other {', '.join(differing)}. Give another file, or remove it and measure all."
        )
    return replace(
        new,
        cases=_joined(old.cases, new.cases),
        results=_joined(old.results, new.results),
        scaling=_joined(old.scaling, new.scaling),
        memory=_joined(old.memory, new.memory),
    )


def _joined(old: Iterable[Any], new: Iterable[Any]) -> tuple[Any, ...]:
    each = {_key(item): item for item in (*old, *new)}
    return tuple(each[key] for key in sorted(each))


def _key(item: Any) -> tuple[int, int, int]:
    return _ORDER.get(item.case, len(_ORDER)), getattr(item, "rows", 0), getattr(item, "num_samples", 0)


def save(results: Results, path: Path) -> None:
    """Write a file."""
    path.write_text(json.dumps({"format": FORMAT} | asdict(results), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read a file.

    Raises:
        ValueError: it has another format.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != FORMAT:
        raise ValueError(f"{path} has format {found.get('format', 1)}; this reads {FORMAT}. Measure it again.")
    return Results(
        conditions=found["conditions"],
        cases=tuple(CaseResult(**{**case, "floor": Floor(**case["floor"])}) for case in found["cases"]),
        results=tuple(Result(**each) for each in found["results"]),
        scaling=tuple(Result(**each) for each in found["scaling"]),
        memory=tuple(MemoryResult(**each) for each in found["memory"]),
    )

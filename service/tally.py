"""What the Open Inference Protocol's statistics are made of: counts and durations of one model since it was loaded."""

import threading
import time
from dataclasses import dataclass, field


@dataclass
class Total:
    """How often something happened, and nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


@dataclass(frozen=True)
class Counts:
    """A tally at one moment. `batches` has executions by size, each size counted as the power of two that holds it."""

    last_inference_ms: int  # since the epoch; 0 for never
    rows: int
    success: Total
    fail: Total
    queue: Total
    compute: Total
    executions: int
    batches: dict[int, Total]


@dataclass
class Tally:
    """Counts of one model, added to by the thread that computes and read by the event loop."""

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _last_ms: int = 0
    _rows: int = 0
    _success: Total = field(default_factory=Total)
    _fail: Total = field(default_factory=Total)
    _queue: Total = field(default_factory=Total)
    _compute: Total = field(default_factory=Total)
    _executions: int = 0
    _batches: dict[int, Total] = field(default_factory=dict)

    def success(self, queue_ns: int, compute_ns: int, rows: int) -> None:
        """One request was answered: how long it waited, how long it was computed, and its rows."""
        with self._lock:
            self._last_ms = time.time_ns() // 1_000_000
            self._rows += rows
            self._success.add(queue_ns + compute_ns)
            self._queue.add(queue_ns)
            self._compute.add(compute_ns)

    def fail(self, ns: int) -> None:
        """One request failed after this time."""
        with self._lock:
            self._fail.add(ns)

    def execution(self, batch_size: int, compute_ns: int) -> None:
        """The network ran once over a batch of that many rows, of one request or of several."""
        with self._lock:
            self._executions += 1
            size = 1 << max(batch_size - 1, 0).bit_length()  # few sizes, whatever clients send
            self._batches.setdefault(size, Total()).add(compute_ns)

    def counts(self) -> Counts:
        """Everything as it is now."""
        with self._lock:
            return Counts(
                self._last_ms,
                self._rows,
                Total(self._success.count, self._success.ns),
                Total(self._fail.count, self._fail.ns),
                Total(self._queue.count, self._queue.ns),
                Total(self._compute.count, self._compute.ns),
                self._executions,
                {size: Total(total.count, total.ns) for size, total in sorted(self._batches.items())},
            )

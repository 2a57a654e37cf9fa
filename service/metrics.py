"""What the server counts, for Prometheus.

Labels are names that the server itself knows: models it serves, route templates, words of a short list. What a client
wrote never becomes a label, so the number of series is bounded. Each application has its own registry; there is one
process per server, so the multi-process mode of prometheus_client (PROMETHEUS_MULTIPROC_DIR) is not used: it would
lose the gauges and what is said of the process.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

import mcdrop
from service.histograms import ArrayHistogram

OUTCOMES = ("ok", "invalid", "rejected", "timeout", "cancelled", "oom", "error")
MODEL = ("model", "version")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)  # OpenTelemetry's
COSTS = tuple(float(4**power) for power in range(12))  # 1 to 4 million rows x passes
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
NATS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
SIGNED_NATS = (-10.0, -5.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
OF_CLASSES = {"label", "confidence", "mutual_information"}  # one of these is in each prediction that has classes


class Metrics:
    """Every number of one application. The methods are cheap, and safe to call from any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, what: str, labels: Iterable[str] = MODEL) -> Counter:
            return Counter(f"mcdrop_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"mcdrop_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: Iterable[float] = SECONDS) -> Histogram:
            return Histogram(f"mcdrop_{name}", what, MODEL, buckets=tuple(buckets), registry=registry)

        def array_histogram(name: str, what: str, bounds: tuple[float, ...]) -> ArrayHistogram:
            registry.register(made := ArrayHistogram(f"mcdrop_{name}", what, MODEL, bounds))
            return made

        self._http = counter("http_requests", "Requests of every kind, as answered.", ("method", "route", "status"))
        self._accepted = counter("accepted_requests", "Prediction requests that passed all checks.")
        self._requests = counter("requests", "Prediction requests that have ended.", (*MODEL, "outcome"))
        self._request_seconds = histogram("request_duration_seconds", "From a request's headers to its answer.")
        self._queue_seconds = histogram("queue_duration_seconds", "From a request's arrival to its first computation.")
        self._compute_seconds = histogram("compute_duration_seconds", "One execution.")
        self._rows = counter("rows", "Rows computed, counted once per execution.")
        self._passes = counter("passes", "Stochastic passes computed, for however many rows.")
        self._executions = counter("executions", "Executions: slices of passes for one batch.")
        self._batch_cost = histogram("batch_cost", "Rows x passes of one execution.", COSTS)
        self._batch_requests = histogram("batch_requests", "Requests that one execution computes for.", REQUESTS)
        self._releases = counter("batch_release", "Executions by why they began when they did.", ("reason",))
        self._pending_requests = gauge("pending_requests", "Requests that wait or are computed.")
        self._pending_cost = gauge("pending_cost", "Predicted seconds of computing that wait or are computed.")
        self._inflight = gauge("inflight_requests", "Requests that are computed.")
        self._saved = counter("cancelled_samples", "Passes that were spared because nobody waited.", ("model",))
        self._nonfinite = counter("nonfinite_outputs", "Numbers in answers that are NaN or infinite.", ("model",))
        self._ready = gauge("model_ready", "1 while the model answers requests, else 0.", MODEL)
        self._load_seconds = gauge("model_load_seconds", "How long loading and warming took.", MODEL)
        self._load_failures = counter("model_load_failures", "Loads and reloads that failed.", ("model",))
        self._entropy = array_histogram("answer_entropy_nats", "Entropy of predictions of classes.", NATS)
        self._differential = array_histogram(
            "answer_differential_entropy_nats", "Entropy of predictions of values.", SIGNED_NATS
        )
        self._information = array_histogram(
            "answer_mutual_information_nats", "How much the passes of a prediction disagree.", NATS
        )
        self._confidence = array_histogram("answer_confidence", "Probability of the predicted class.", PROBABILITIES)
        build = {"version": mcdrop.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
        Info("mcdrop_build", "What is running.", registry=registry).info(build)
        ProcessCollector(registry=registry)
        registry.register(_Surroundings())

    # ---- requests

    def http(self, method: str, route: str, status: int) -> None:
        """A request of any kind was answered."""
        self._http.labels(method, route, str(status)).inc()

    def arrived(self, model: str, version: str) -> None:
        """A prediction request passed all checks and goes to the scheduler."""
        self._accepted.labels(model, version).inc()

    def answered(self, model: str, version: str, outcome: str, seconds: float) -> None:
        """A prediction request has ended, in one of OUTCOMES. Names are empty for a model that is not served."""
        self._requests.labels(model, version, outcome).inc()
        self._request_seconds.labels(model, version).observe(seconds)

    # ---- computing

    def started(self, model: str, version: str, queue_seconds: float) -> None:
        """The first computation for a request began."""
        self._queue_seconds.labels(model, version).observe(queue_seconds)

    def computed(
        self,
        model: str,
        version: str,
        rows: int,
        passes: float,
        requests: int,
        cost: float,
        seconds: float,
        reason: str,
    ) -> None:
        """One execution has ended."""
        self._executions.labels(model, version).inc()
        self._rows.labels(model, version).inc(rows)
        self._passes.labels(model, version).inc(passes)
        self._batch_requests.labels(model, version).observe(requests)
        self._batch_cost.labels(model, version).observe(cost)
        self._compute_seconds.labels(model, version).observe(seconds)
        self._releases.labels(reason).inc()

    def pending(self, requests: int, cost: float, inflight: int) -> None:
        """What waits and what is computed now."""
        self._pending_requests.set(requests)
        self._pending_cost.set(cost)
        self._inflight.set(inflight)

    def saved_samples(self, model: str, count: int) -> None:
        """Passes that were not computed because their client left or their deadline passed."""
        self._saved.labels(model).inc(count)

    # ---- answers

    def nonfinite(self, model: str, count: int) -> None:
        """Numbers of an answer that JSON cannot hold."""
        self._nonfinite.labels(model).inc(count)

    def uncertainty(self, model: str, version: str, fields: Mapping[str, ArrayLike]) -> None:
        """Take the uncertainty of an answer into the histograms that show drift.

        Reads `entropy`, `mutual_information` and `confidence` as far as `fields` has them. Entropies of values, which
        may be negative, are kept apart from those of classes, which come with one of OF_CLASSES.
        """
        entropy = self._entropy if OF_CLASSES & fields.keys() else self._differential
        histograms = {"entropy": entropy, "mutual_information": self._information, "confidence": self._confidence}
        for name, histogram in histograms.items():
            if name in fields:
                histogram.observe((model, version), fields[name])

    # ---- models

    def model_ready(self, model: str, version: str, ready: bool) -> None:
        """A model begins or ceases to answer."""
        self._ready.labels(model, version).set(ready)

    def model_loaded(self, model: str, version: str, seconds: float) -> None:
        """A model was loaded and warmed."""
        self._load_seconds.labels(model, version).set(seconds)

    def load_failed(self, model: str) -> None:
        """A load or reload failed."""
        self._load_failures.labels(model).inc()

    def text(self, accept: str) -> tuple[bytes, str]:
        """What Prometheus scrapes, in the format that `accept` asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Surroundings(Collector):
    """What is looked up at the moment of the scrape: operating-system threads and the memory of CUDA devices."""

    def collect(self) -> Iterable[Any]:
        try:
            threads = len(os.listdir("/proc/self/task"))
        except OSError:  # not Linux
            pass
        else:
            yield GaugeMetricFamily("mcdrop_process_threads", "Threads of the process.", value=threads)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # not by us: that takes memory itself
            family = GaugeMetricFamily(
                "mcdrop_device_memory_bytes", "Memory of devices that compute.", labels=("device", "kind")
            )
            for index in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(index)
                kinds = {
                    "allocated": torch.cuda.memory_allocated(index),
                    "reserved": torch.cuda.memory_reserved(index),
                    "free": free,
                    "total": total,
                }
                for kind, size in kinds.items():
                    family.add_metric((f"cuda:{index}", kind), size)
            yield family

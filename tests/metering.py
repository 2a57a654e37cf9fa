"""Metrics in which everything has been counted once."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics


def everything() -> Metrics:
    """Each method called once."""
    metrics = Metrics()
    metrics.http("GET", "/", 200)
    metrics.arrived("m", "1")
    metrics.answered("m", "1", "ok", 0.02)
    metrics.started("m", "1", 0.001)
    metrics.computed("m", "1", rows=3, passes=64, requests=2, cost=192, seconds=0.004, reason="idle")
    metrics.pending(requests=5, cost=900.0, inflight=2)
    metrics.saved_samples("m", 40)
    metrics.nonfinite("m", 7)
    metrics.uncertainty("m", "1", {"entropy": [0.3], "mutual_information": [0.1], "confidence": [0.9]})
    metrics.uncertainty("values", "1", {"entropy": [-1.0]})
    metrics.model_ready("m", "1", True)
    metrics.model_loaded("m", "1", 1.5)
    metrics.load_failed("m")
    return metrics


def described() -> Iterator[dict[str, str]]:
    """The metrics of mcdrop's own as the documentation lists them."""
    for family in text_string_to_metric_families(everything().text("")[0].decode()):
        if family.name.startswith("mcdrop_") and not family.name.endswith("_created"):
            labels = dict.fromkeys(f"`{name}`" for sample in family.samples for name in sample.labels if name != "le")
            name = family.name + "_total" * (family.type == "counter")
            yield {"metric": f"`{name}`", "labels": ", ".join(labels), "what": family.documentation}

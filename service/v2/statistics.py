"""The statistics extension: a model's tally as clients and load generators read it.

mcdrop copies inputs and writes outputs as part of a request's computation, so `compute_infer` has all of it and
`compute_input` and `compute_output` count the same requests with no time. There is no cache.
"""

from typing import Any

from service.model import ServedModel
from service.tally import Total


def model_statistics(model: ServedModel) -> dict[str, Any]:
    """One entry of `model_stats`."""
    counts = model.tally.counts()
    nothing = Total(counts.compute.count)
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last_inference_ms,
        "inference_count": counts.rows,
        "execution_count": counts.executions,
        "inference_stats": {
            "success": _duration(counts.success),
            "fail": _duration(counts.fail),
            "queue": _duration(counts.queue),
            "compute_input": _duration(nothing),
            "compute_infer": _duration(counts.compute),
            "compute_output": _duration(nothing),
            "cache_hit": _duration(Total()),
            "cache_miss": _duration(Total()),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(Total(total.count)),
                "compute_infer": _duration(total),
                "compute_output": _duration(Total(total.count)),
            }
            for size, total in counts.batches.items()
        ],
        "memory_usage": [],
    }


def _duration(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}

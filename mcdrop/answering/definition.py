"""What a model is, whatever runs it and wherever it is kept."""

from dataclasses import dataclass

from mcdrop.capturing.captured import Captured
from mcdrop.graph.inputs import Signature
from mcdrop.outputs.tasks import Task

__all__ = ["Definition"]


@dataclass(frozen=True)
class Definition:
    """What a model is: a captured network, what it takes and what its outputs mean, defaults and names."""

    captured: Captured
    task: Task
    signature: Signature
    num_samples: int
    seed: int
    masks: str
    name: str | None
    version: str

"""What a server and its models say about themselves, in the protocol's terms; -1 stands for a size that may vary.

`outputs` are the tensors of an answer to a request that names none. Those that a request may name besides stand in
`parameters` in the same form, so that a client that asks for everything listed does not ask for every sample.
"""

from typing import Any

import mcdrop
from mcdrop.graph.inputs import InputSpec
from service.model import ServedModel
from service.outcome import ROWS_SECOND
from service.v2.datatypes import of_array, of_dtype
from service.wire import ALWAYS

PLATFORM = "mcdrop"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")


def server_metadata() -> dict[str, Any]:
    """GET /v2."""
    return {"name": "mcdrop", "version": mcdrop.__version__, "extensions": EXTENSIONS}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """GET /v2/models/{name}; raises NotReadyError while the model is being loaded."""
    mc = model.loaded
    outputs = _outputs(model)
    always = [output for output in outputs if output["name"] in ALWAYS]
    parameters: dict[str, Any] = {
        "task": mc.task.name,
        "num_samples": mc.num_samples,
        "seed": mc.seed,
        "optional_outputs": [output for output in outputs if output["name"] not in ALWAYS],
    }
    if mc.task.class_names:
        parameters["class_names"] = list(mc.task.class_names)
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [
            {"name": spec.name, "datatype": of_dtype(spec.dtype).name, "shape": _sizes(spec)}
            for spec in mc.signature.inputs
        ],
        "outputs": always,
        "parameters": parameters,
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """GET /v2/models/{name}/config: Triton's model configuration, whose `dims` leave the batch out."""
    mc = model.loaded
    batched = all(spec.batched for spec in mc.signature.inputs)
    first = 1 if batched else 0
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": model.settings.max_rows if batched else 0,
        "input": [
            {"name": spec.name, "data_type": f"TYPE_{of_dtype(spec.dtype).name}", "dims": _sizes(spec)[first:]}
            for spec in mc.signature.inputs
        ],
        "output": [
            {"name": output["name"], "data_type": f"TYPE_{output['datatype']}", "dims": output["shape"][first:]}
            for output in _outputs(model)
            if output["name"] in ALWAYS
        ],
        "dynamic_batching": {},
    }


def _outputs(model: ServedModel) -> list[dict[str, Any]]:
    """As seen while warming up. A model with variable sizes may give any others there, save for the classes."""
    mc, outputs = model.loaded, []
    for name, array in model.seen.items():
        before = array.shape[:1] if name.partition(".")[0] in ROWS_SECOND else ()
        sizes = list(array.shape[len(before) :])
        if mc.signature.dims:
            has_classes = mc.task.name in ("classification", "multilabel")
            kept = mc.task.axis(len(sizes)) if has_classes and len(sizes) == model.seen["mean"].ndim else None
            sizes = [size if axis == kept else -1 for axis, size in enumerate(sizes)]
        shape = [*(-1 for _ in before), -1, *sizes[1:]]
        outputs.append({"name": name, "datatype": of_array(array).name, "shape": shape})
    return outputs


def _sizes(spec: InputSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]

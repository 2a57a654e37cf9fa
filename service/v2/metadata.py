"""What a server and its models say about themselves, in the protocol's terms; -1 stands for a size that may vary.

`outputs` are the tensors of an answer to a request that names none. Those that a request may name besides stand in
`parameters`, so that a client that asks for everything listed does not ask for every sample.
"""

from typing import Any

import mcdrop
from mcdrop.inputs import InputSpec
from service.model import ServedModel
from service.v2.datatypes import of_array, of_dtype
from service.v2.outputs import output_names

PLATFORM = "mcdrop"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")


def server_metadata() -> dict[str, Any]:
    """GET /v2."""
    return {"name": "mcdrop", "version": mcdrop.__version__, "extensions": EXTENSIONS}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """GET /v2/models/{name}; raises NotReadyError while the model is being loaded."""
    mc = model.loaded
    outputs = _outputs(model)
    listed = [output["name"] for output in outputs]
    parameters: dict[str, Any] = {
        "task": mc.task.name,
        "num_samples": mc.num_samples,
        "seed": mc.seed,
        "optional_outputs": [name for name in output_names(mc.task) if name not in listed],
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
        "outputs": outputs,
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
        ],
        "dynamic_batching": {},
    }


def _outputs(model: ServedModel) -> list[dict[str, Any]]:
    """As seen while warming up. A model with variable sizes may give any others there, save for the classes."""
    mc, outputs = model.loaded, []
    for name, array in model.seen.items():
        sizes = list(array.shape)
        if mc.signature.dims:
            same_layout = len(sizes) == len(model.seen["mean"].shape)
            has_classes = mc.task.name in ("classification", "multilabel") and name in ("mean", "variance")
            kept = mc.task.axis(len(sizes)) if has_classes and same_layout else None
            sizes = [size if axis == kept else -1 for axis, size in enumerate(sizes)]
        outputs.append({"name": name, "datatype": of_array(array).name, "shape": [-1, *sizes[1:]]})
    return outputs


def _sizes(spec: InputSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]

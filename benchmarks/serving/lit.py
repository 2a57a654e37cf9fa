"""LitServe with its batching: `python -m benchmarks.serving.lit CASE PORT`."""

import sys
from typing import Any

import litserve
import torch

from benchmarks.serving.baselines import answer, replicated
from benchmarks.serving.cases import NUM_SAMPLES, case


class Api(litserve.LitAPI):
    """One network; requests of one row each."""

    def __init__(self, name: str) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.002)
        self.name = name

    def setup(self, device: str) -> None:
        self.method = replicated(case(self.name).build(), NUM_SAMPLES)

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        return torch.tensor(request["inputs"])

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(inputs)

    def predict(self, rows: torch.Tensor) -> dict[str, Any]:
        return answer(self.method, rows)

    def unbatch(self, output: dict[str, Any]) -> list[dict[str, Any]]:
        return [{name: value[row : row + 1] for name, value in output.items()} for row in range(len(output["label"]))]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return {name: value.tolist() for name, value in output.items()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(sys.argv[1]), accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)

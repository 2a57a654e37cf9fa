"""The server that one writes first: `python -m benchmarks.serving.naive CASE PORT`."""

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.baselines import answer, loop
from benchmarks.serving.cases import NUM_SAMPLES, case


class Body(BaseModel):
    """A batch of rows."""

    inputs: list[list[float]]


def create_app(name: str) -> FastAPI:
    """One endpoint, which computes in its handler."""
    app, method = FastAPI(), loop(case(name).build(), NUM_SAMPLES)

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        return {field: value.tolist() for field, value in answer(method, torch.tensor(body.inputs)).items()}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", access_log=False)

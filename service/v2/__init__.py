"""The Open Inference Protocol, version 2, as Triton, KServe and their clients speak it.

    body -> requests.read -> PredictRequest -> the same work as for the native API -> Outcome -> answers.Writer -> body

Tensors travel as JSON or, after the JSON, as raw little-endian buffers. Routes are in `service/routes/v2.py`.
"""

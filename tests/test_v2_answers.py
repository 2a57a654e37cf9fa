"""Answers of the Open Inference Protocol, byte by byte."""

import numpy as np
import pytest

from service.errors import InvalidRequestError, NonFiniteError
from service.nonfinite import finite_only
from service.outcome import Outcome
from service.settings import load_settings
from service.v2.answers import Writer
from service.v2.outputs import Wanted
from service.v2.requests import InferRequest
from service.wire import PredictRequest

MEAN = np.array([[1.0, -2.0]], np.float32)
OUTCOME = Outcome(
    model="m",
    version="2",
    num_samples=8,
    seed=-3,
    fields={
        "mean": MEAN,
        "entropy": np.array([-np.inf], np.float64),
        "label": np.array([1]),
        "standard_errors": {"mean": MEAN / 2, "entropy": np.array([np.nan], np.float32)},
        "samples": [np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32)],
    },
    quantile_levels=(0.25, 0.5),
    partial=True,
    queue_ms=1.23456,
    compute_ms=2,
)
HEAD = b'{"model_name":"m","model_version":"2",'
FACTS = b'"num_samples":8,"seed":-3,"queue_ms":1.235,"compute_ms":2'


def writer(*wanted: Wanted, binary: bool = False, identifier: str | None = None) -> Writer:
    return Writer(InferRequest(PredictRequest.model_validate({"inputs": []}), identifier, wanted, binary))


def test_a_json_answer():
    write = writer(Wanted("label"), Wanted("entropy"), identifier="é")
    assert write(OUTCOME).decode() == (
        HEAD + '"id":"é","parameters":{'.encode() + FACTS + b',"nonfinite_count":1,"quantile_levels":"0.25,0.5",'
        b'"partial":true},"outputs":[{"name":"label","shape":[1],"datatype":"INT64","data":[1]},'
        b'{"name":"entropy","shape":[1],"datatype":"FP64","data":[null]}]}'
    ).decode()  # fmt: skip
    assert (write.media_type, write.headers) == ("application/json", {})


def test_a_binary_answer():
    write = writer(Wanted("mean"), Wanted("label", binary=False), Wanted("entropy"), binary=True)
    text = (
        HEAD + b'"parameters":{' + FACTS + b',"nonfinite_count":1,"quantile_levels":"0.25,0.5","partial":true},'
        b'"outputs":[{"name":"mean","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}},'
        b'{"name":"label","shape":[1],"datatype":"INT64","data":[1]},'
        b'{"name":"entropy","shape":[1],"datatype":"FP64","parameters":{"binary_data_size":8}}]}'
    )
    assert write(OUTCOME) == text + bytes.fromhex("0000803f 000000c0 000000000000f0ff")
    assert write.media_type == "application/octet-stream"
    assert write.headers == {"Inference-Header-Content-Length": str(len(text))}


def test_empty_tensors_may_be_binary():
    empty = Outcome("m", "1", 8, 0, {"mean": np.empty((0, 2), np.float32)})
    write = writer(binary=True)
    assert write(empty).endswith(b'"parameters":{"binary_data_size":0}}]}')
    assert write.media_type == "application/octet-stream"


def test_arrays_that_are_views_are_written_in_their_order():
    turned = Outcome("m", "1", 8, 0, {"mean": np.arange(6, dtype=np.float32).reshape(2, 3).T})
    assert b'"shape":[3,2],"datatype":"FP32","data":[0.0,3.0,1.0,4.0,2.0,5.0]' in writer()(turned)
    assert writer(binary=True)(turned).endswith(np.array([0, 3, 1, 4, 2, 5], "<f4").tobytes())


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ((), ["mean", "entropy", "label", "standard_errors.mean", "standard_errors.entropy", "samples.mean",
              "samples.log_variance"]),
        (("samples", "mean"), ["samples.mean", "samples.log_variance", "mean"]),
        (("standard_errors.entropy",), ["standard_errors.entropy"]),
    ],
)  # fmt: skip
def test_fields_of_several_arrays_are_several_tensors(wanted, names):
    written = writer(*map(Wanted, wanted))(OUTCOME).decode()
    assert [part.partition('"')[0] for part in written.split('{"name":"')[1:]] == names


def test_a_part_that_the_network_does_not_give_is_refused():
    single = Outcome("m", "1", 8, 0, {"samples": MEAN})
    with pytest.raises(InvalidRequestError, match=r"no 'samples.mean'; ask for 'samples'"):
        writer(Wanted("samples.mean"))(single)


def test_the_setting_nonfinite_names_the_field():
    strict = load_settings(nonfinite="error")
    for fields, name in (
        ({"mean": MEAN, "entropy": np.array([np.nan])}, "entropy"),
        ({"standard_errors": {"mean": np.array([np.inf])}}, "standard_errors"),
        ({"samples": [MEAN, MEAN * np.nan]}, "samples"),
    ):
        outcome = Outcome("m", "1", 8, 0, fields)
        with pytest.raises(NonFiniteError, match=f"answer's {name} holds"):
            finite_only(writer(), strict)(outcome)
        assert finite_only(writer(), load_settings())(outcome)
    assert finite_only(writer(), strict)(Outcome("m", "1", 8, 0, {"mean": MEAN, "label": np.array([1])}))

"""Other people's clients against a running server: tritonclient, sync and asyncio, and curl."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from mcdrop.predictor import MCDropout
from serving import live, model, models_folder
from v2_requests import unusual_folder

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to answer for
]

ROWS = np.array([[0.1, -0.5, 2.0, 1.5], [3.0, 0.0, -1.0, 0.25]], np.float32)
ALWAYS = ("mean", "variance", "entropy", "label")


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(models=models_folder(), max_rows=500) as client:
        yield client


@pytest.fixture
def address(http: httpx.Client) -> str:
    return f"{http.base_url.host}:{http.base_url.port}"


@pytest.fixture
def triton(address: str) -> Iterator[Any]:
    with triton_http().InferenceServerClient(address, concurrency=16) as client:
        yield client


def triton_http() -> Any:
    return pytest.importorskip("tritonclient.http", exc_type=ImportError)


@asynccontextmanager
async def triton_aio(address: str) -> AsyncIterator[Any]:
    triton_http()
    import tritonclient.http.aio as aio

    async with aio.InferenceServerClient(address) as client:
        yield client


def rows(array: np.ndarray = ROWS, *, name: str = "input", binary: bool = True) -> Any:
    http = triton_http()
    kinds = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "bool": "BOOL"}
    given = http.InferInput(name, list(array.shape), kinds[array.dtype.name])
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def wanted(*names: str, binary: bool) -> list[Any]:
    return [triton_http().InferRequestedOutput(name, binary_data=binary) for name in names]


def check_answer(result: Any, array: np.ndarray = ROWS, **keywords: Any) -> None:
    """The library's numbers."""
    prediction = model("one")(array, **keywords)
    for name in ALWAYS:
        expected = np.asarray(getattr(prediction, name))
        found = result.as_numpy(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "binary": lambda: {"inputs": [rows()]},
    "JSON": lambda: {"inputs": [rows(binary=False)], "outputs": wanted(*ALWAYS, binary=False)},
    "JSON in, binary out": lambda: {"inputs": [rows(binary=False)], "outputs": wanted(*ALWAYS, binary=True)},
    "binary in, JSON out": lambda: {"inputs": [rows()], "outputs": wanted(*ALWAYS, binary=False)},
    "float64": lambda: {"inputs": [rows(ROWS.astype(np.float64))]},
    "gzip": lambda: {"inputs": [rows()], "request_compression_algorithm": "gzip",
                     "response_compression_algorithm": "gzip"},
    "deflate": lambda: {"inputs": [rows()], "request_compression_algorithm": "deflate",
                        "response_compression_algorithm": "deflate"},
    "a version": lambda: {"inputs": [rows()], "model_version": "3"},
    "a timeout and a priority": lambda: {"inputs": [rows()], "timeout": 30_000_000, "priority": 1},
}  # fmt: skip


# ---- tritonclient


def test_health_and_metadata(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("insects")
    assert triton.is_model_ready("insects", "3")
    assert not triton.is_model_ready("insects", "4")
    assert not triton.is_model_ready("nope")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata("insects")["inputs"][0]["shape"] == [-1, 4]
    assert triton.get_model_config("insects")["input"][0]["data_type"] == "TYPE_FP32"
    assert {each["name"]: each["state"] for each in triton.get_model_repository_index()} == dict.fromkeys(
        ("insects", "slope", "pair"), "READY"
    )


@pytest.mark.parametrize("call", CALLS)
def test_infer(triton, call):
    result = triton.infer("insects", **CALLS[call](), request_id=f"id of {call}")
    check_answer(result)
    assert result.get_response()["id"] == f"id of {call}"
    assert result.get_response()["parameters"]["num_samples"] == 20


def test_parameters_and_optional_outputs(triton):
    chosen = {"num_samples": 30, "seed": 7}
    check_answer(triton.infer("insects", [rows()], parameters=chosen), num_samples=30, seed=7)
    names = ("mutual_information", "standard_errors.mean", "samples")
    for binary in (True, False):
        result = triton.infer("insects", [rows()], outputs=wanted(*names, binary=binary), parameters=chosen)
        prediction = model("one")(ROWS, num_samples=30, seed=7, standard_errors=True, samples=True)
        for name, expected in zip(
            names, (prediction.mutual_information, prediction.standard_errors["mean"], prediction.samples)
        ):
            np.testing.assert_allclose(result.as_numpy(name), expected, rtol=1e-3, atol=1e-5)


def test_a_large_json_answer_comes_compressed(triton):
    many = np.resize(ROWS, (400, 4))
    given = {"outputs": wanted("samples", binary=False), "response_compression_algorithm": "gzip"}
    assert triton.infer("insects", [rows(many)], **given).as_numpy("samples").shape == (20, 400, 3)


def test_several_inputs(triton):
    left, right = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[0.0, 1.0, 0.5]], np.float32)
    result = triton.infer("pair", [rows(right, name="right"), rows(left, name="left", binary=False)])
    np.testing.assert_allclose(result.as_numpy("mean"), model("pair")((left, right)).mean, rtol=1e-5)


def test_whole_numbers_bools_and_no_rows(triton):
    check_answer(triton.infer("insects", [rows(ROWS[:0])]), ROWS[:0])
    with live(models=unusual_folder() / "words") as other:
        ids, counts = np.array([[1, 2, 3]]), np.array([[True, False, True]])
        expected = MCDropout.load(unusual_folder() / "words")({"ids": ids, "counts": counts}).mean
        with triton_http().InferenceServerClient(f"127.0.0.1:{other.base_url.port}") as client:
            for binary in (True, False):
                inputs = [rows(ids, name="ids", binary=binary), rows(counts, name="counts", binary=binary)]
                np.testing.assert_allclose(client.infer("words", inputs).as_numpy("mean"), expected, rtol=1e-5)


def test_minus_infinity_survives_in_bytes_and_is_nan_from_json(triton):
    zeros = np.zeros((1, 2), np.float32)
    assert triton.infer("slope", [rows(zeros)]).as_numpy("entropy").tolist() == [[-np.inf]]
    from_json = triton.infer("slope", [rows(zeros, binary=False)], outputs=wanted("entropy", binary=False))
    assert np.isnan(from_json.as_numpy("entropy")).all()


ERRORS: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "unknown model": (lambda: {"model_name": "nope", "inputs": [rows()]}, "404", "no model 'nope'"),
    "unknown version": (lambda: {"inputs": [rows()], "model_version": "9"}, "404", "no version '9'"),
    "wrong shape": (lambda: {"inputs": [rows(ROWS[:, :3].copy())]}, "400", "expected 4"),
    "wrong name": (lambda: {"inputs": [rows(name="x")]}, "400", "no input 'x'"),
    "unknown output": (lambda: {"inputs": [rows()], "outputs": wanted("nope", binary=True)}, "400", "no output 'nope'"),
    "NaN in JSON": (lambda: {"inputs": [rows(ROWS * np.nan, binary=False)]}, "400", "finite"),
    "NaN in bytes": (lambda: {"inputs": [rows(ROWS * np.nan)]}, "400", "finite"),
    "a sequence": (lambda: {"inputs": [rows()], "sequence_id": 3}, "400", "sequence"),
    "too many rows": (lambda: {"inputs": [rows(np.resize(ROWS, (501, 4)))]}, "400", "max_rows"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_read_by_both_clients(triton, address, case):
    make, status, sentence = ERRORS[case]
    call = {"model_name": "insects", **make()}
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException

    async def ask() -> None:
        async with triton_aio(address) as client:
            await client.infer(**{"model_name": "insects", **make()})

    for attempt in (lambda: triton.infer(**call), lambda: asyncio.run(ask())):
        with pytest.raises(exception, match=re.escape(sentence)) as caught:
            attempt()
        assert caught.value.status() == status


def test_models_are_not_changed_unless_the_server_offers_it(triton):
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    for change in (triton.load_model, triton.unload_model):
        with pytest.raises(exception) as caught:
            change("insects")
        assert caught.value.status() == "403"  # no admin key here


def test_statistics(triton):
    before = triton.get_inference_statistics("insects")["model_stats"][0]
    triton.infer("insects", [rows()])
    after = triton.get_inference_statistics("insects", "3")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert len(triton.get_inference_statistics()["model_stats"]) == 3


def test_64_at_once_from_threads(address):
    many = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    expected = np.asarray(model("one")(many).mean)
    with triton_http().InferenceServerClient(address, concurrency=64) as client:
        asked = [client.async_infer("insects", [rows(many[k : k + 1])], request_id=str(k + 1)) for k in range(64)]
        for k, each in enumerate(asked):
            result = each.get_result()
            assert result.get_response()["id"] == str(k + 1)
            np.testing.assert_allclose(result.as_numpy("mean")[0], expected[k], rtol=1e-4, atol=1e-6)


def test_the_session_of_the_readme(tmp_path, monkeypatch):
    triton_http()
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    session = re.search(
        r"^```py\n([^`]*?tritonclient[^`]*)^```\n\n```text\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL
    )
    assert example is not None
    assert session is not None
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        exec(example[1], {})
    printed = StringIO()
    with live(models=tmp_path / "models" / "quadrants") as server, redirect_stdout(printed):
        exec(session[1].replace("127.0.0.1:8000", f"127.0.0.1:{server.base_url.port}"), {})
    found, wanted = (
        [float(number) for number in re.findall(r"[0-9.e-]+", text)] for text in (printed.getvalue(), session[2])
    )
    assert len(found) == 6
    np.testing.assert_allclose(found, wanted, rtol=0.03, atol=0.03)  # weights trained here differ in their last digits


# ---- tritonclient.http.aio


def test_asyncio_client(address):
    async def talk() -> None:
        async with triton_aio(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("insects")
            assert (await client.get_server_metadata())["name"] == "mcdrop"
            assert (await client.get_model_metadata("insects", "3"))["versions"] == ["3"]
            assert (await client.get_model_config("pair"))["input"][1]["name"] == "right"
            assert len(await client.get_model_repository_index()) == 3
            assert (await client.get_inference_statistics())["model_stats"]
            for call in CALLS.values():
                check_answer(await client.infer("insects", **call()))
            many = np.resize(ROWS, (400, 4))  # aiohttp accepts compressed answers without being told to
            large = await client.infer("insects", [rows(many)], outputs=wanted("samples", binary=False))
            assert large.as_numpy("samples").shape == (20, 400, 3)

    asyncio.run(talk())


def test_64_at_once_from_asyncio(address):
    many = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    expected = np.asarray(model("one")(many).mean)

    async def talk() -> list[Any]:
        async with triton_aio(address) as client:
            return await asyncio.gather(
                *(client.infer("insects", [rows(many[k : k + 1])], request_id=str(k + 1)) for k in range(64))
            )

    for k, result in enumerate(asyncio.run(talk())):
        assert result.get_response()["id"] == str(k + 1)
        np.testing.assert_allclose(result.as_numpy("mean")[0], expected[k], rtol=1e-4, atol=1e-6)


# ---- curl


def test_curl(address, tmp_path):
    curl = shutil.which("curl")
    assert curl is not None, "the tier needs curl"

    def run(*arguments: str) -> bytes:
        return subprocess.run([curl, "-sS", "--noproxy", "*", *arguments], check=True, capture_output=True).stdout

    url = f"http://{address}/v2/models/insects/infer"
    body = tmp_path / "request.json"
    data = {"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP32", "data": ROWS.tolist()}]}
    body.write_text(json.dumps(data))
    expected = np.asarray(model("one")(ROWS).mean)
    mean = json.loads(run(url, "-d", f"@{body}"))["outputs"][0]
    np.testing.assert_allclose(np.reshape(mean["data"], mean["shape"]), expected, rtol=1e-5)
    raw = tmp_path / "row.bin"
    raw.write_bytes(ROWS[:1].tobytes())
    heads = tmp_path / "heads"
    length = "Inference-Header-Content-Length"
    answer = run(url, "--data-binary", f"@{raw}", "-H", f"{length}: 0", "-D", str(heads))
    found = re.search(rf"(?i){length}: (\d+)", Path(heads).read_text())
    assert found is not None
    np.testing.assert_allclose(np.frombuffer(answer[int(found[1]) :][:12], "<f4"), expected[0], rtol=1e-5)
    assert json.loads(run(f"http://{address}/v2/health/ready/"))["ready"] is True


def test_many_threads_with_a_client_each(address):
    """geventhttpclient's own pool is left out: each thread connects by itself."""

    def ask(_: int) -> None:
        with triton_http().InferenceServerClient(address) as client:
            check_answer(client.infer("insects", [rows()]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(32)))

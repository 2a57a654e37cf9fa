"""The client against a real server by bytes and by JSON: the same numbers, and by bytes all of them."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from mcdrop.client import AsyncClient, BadRequest, Client, NotFound, PayloadTooLarge
from service.server import serving
from serving import CLASSES, model, settings

ROWS = np.array([[0.1, -0.5, 2.0, 1.5], [3.0, 0.0, -1.0, 0.25]], np.float32)
MANY = np.random.default_rng(0).standard_normal((50, 4))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(settings(default_model="insects", max_rows=100, max_body_bytes=100_000)) as url:
        yield url


@pytest.fixture(scope="module")
def clients(url: str) -> Iterator[tuple[Client, Client]]:
    with Client(url) as binary, Client(url, binary=False) as plain:
        assert binary.predict(ROWS).raw["outputs"]
        yield binary, plain


def test_bytes_and_json_give_the_same_prediction(clients):
    options = {
        "num_samples": 32, "seed": 7, "quantiles": [0.1, 0.5],
        "outputs": ["std", "mutual_information", "standard_errors", "samples", "label"],
    }  # fmt: skip
    one, other = (client.predict(ROWS, **options) for client in clients)
    assert set(one.fields) == set(other.fields)
    assert (one.class_names, one.quantile_levels, one.num_samples, one.seed, one.version) == (
        other.class_names, other.quantile_levels, other.num_samples, other.seed, other.version
    )  # fmt: skip
    assert one.class_names == CLASSES
    for name in set(one.fields) - {"standard_errors"}:
        assert one.fields[name].dtype == other.fields[name].dtype
        np.testing.assert_allclose(one.fields[name], other.fields[name], rtol=1e-5, atol=1e-6)
    assert set(one.standard_errors) == set(other.standard_errors)
    np.testing.assert_allclose(one.mean, model("one")(ROWS, num_samples=32, seed=7).mean, rtol=1e-4)


def test_bytes_keep_infinities(clients):
    one, other = (client.predict(np.zeros((1, 2)), model="slope").entropy for client in clients)
    assert np.isneginf(one).all()
    assert np.isnan(other).all()


def test_inputs_are_cast_to_what_the_model_takes(clients):
    inputs = {"left": np.ones((1, 3), int), "right": [[0, 0, 0]]}
    one, other = (client.predict(inputs, model="pair", seed=1) for client in clients)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)
    assert len(clients[0].predict(np.zeros((0, 4)))) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "fragment"),
    [
        ({"inputs": ROWS, "model": "nope"}, NotFound, "no model 'nope'"),
        ({"inputs": ROWS, "model": "insects", "version": "99"}, NotFound, "99"),
        ({"inputs": ROWS[:, :2]}, BadRequest, "size 2 at axis 1"),
        ({"inputs": {"nope": ROWS}}, BadRequest, "nope"),
        ({"inputs": ROWS, "outputs": ["nope"]}, BadRequest, "no output 'nope'|no 'nope'"),
        ({"inputs": np.zeros((101, 4))}, BadRequest, "101 rows"),
        ({"inputs": np.zeros((9000, 4))}, PayloadTooLarge, "bytes"),
    ],
)
def test_what_the_server_refuses_is_a_typed_error(clients, arguments, error, fragment):
    with pytest.raises(error, match=fragment) as caught:
        clients[0].predict(arguments.pop("inputs"), **arguments)
    assert caught.value.request_id


def test_many_rows_of_many_tasks(url, clients):
    whole = clients[0].predict(MANY, seed=3)
    parts = clients[0].predict_many(MANY, batch_size=7, concurrency=4, seed=3)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5, atol=1e-6)

    async def ask() -> np.ndarray:
        async with AsyncClient(url) as client:
            return (await client.predict_many(MANY, batch_size=7, concurrency=4, seed=3)).mean

    np.testing.assert_allclose(asyncio.run(ask()), whole.mean, rtol=1e-5, atol=1e-6)


def test_times_of_both_sides(clients):
    timings = clients[0].predict(ROWS, num_samples=500).timings
    assert 0 <= timings.compute_ms <= timings.total_ms
    assert 0 <= timings.queue_ms <= timings.total_ms

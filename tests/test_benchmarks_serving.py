"""The load benchmark: what its servers compute, what its clients see, and how results are put together."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.serving import __main__ as command
from benchmarks.serving.baselines import METHODS, answer
from benchmarks.serving.cases import CASES, CONTENDERS, Contender
from benchmarks.serving.load import Load, Target, asyncio_closed_loop, open_loop, percentile
from benchmarks.serving.measure import FairnessResult, HttpResult, LoadResult, _calmest
from benchmarks.serving.processes import running
from benchmarks.serving.report import Results


def _result(contender: str, rate: float, *, clients: int | None = 8, disturbed: float = 0.0) -> LoadResult:
    loop, offered = ("open", 5.0) if clients is None else ("closed", None)
    return LoadResult("lenet", contender, loop, clients, offered, 10, 0, rate, 1.0, 2.0, disturbed, [rate])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_baseline_samples_the_same_distribution(method):
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)).eval()
    rows = torch.randn(2, 3)
    torch.manual_seed(0)
    found = answer(METHODS[method](network, 4000), rows)
    torch.manual_seed(1)
    other = answer(METHODS["loop"](network, 4000), rows)
    assert found["mean"].shape == (2, 2)
    assert found["label"].shape == found["entropy"].shape == (2,)
    # probabilities have a standard deviation of at most 1/2: 10 standard errors of the difference of two means
    assert abs(found["mean"] - other["mean"]).max() < 10 * 0.5 * (2 / 4000) ** 0.5
    assert (found["variance"] > 0).all()


def test_a_percentile_is_one_of_the_values():
    assert percentile([5, 1, 3], 50) == 3
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7], 99) == 7


SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(404 if body == b"x" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """A process that answers 404 to a POST of x and 200 to all others."""
    contender = Contender("tiny", "", lambda name, folder, port: [sys.executable, "-c", SERVER, str(port)])
    with running(contender, "tiny", tmp_path / "models", b"1") as started:
        yield started.port


def test_clients_count_answers_and_failures(server):
    good = asyncio_closed_loop(Target(server, "/", b"1"), clients=2, seconds=0.2)
    assert good.requests > 0
    assert good.failed == 0
    assert 0 < good.p50 <= good.p99
    failing = open_loop(Target(server, "/", b"x"), rate=50, seconds=0.4)
    assert failing.failed == failing.requests > 0
    assert failing.rate == 0


def test_a_closed_loop_that_is_over_before_any_answer_waits_for_one(server):
    assert asyncio_closed_loop(Target(server, "/", b"1"), clients=2, seconds=0).requests > 0


def test_each_body_has_a_number_of_its_own_where_the_target_counts():
    bodies = Target(1, "/", b"[", b"]", counts=True).bodies()
    assert [next(bodies) for _ in range(3)] == [b"[1]", b"[2]", b"[3]"]


def test_the_least_disturbed_round_counts_and_all_rates_are_kept():
    runs = [
        _result("mcdrop", 5, disturbed=0.4),
        _result("mcdrop", 7, disturbed=0.1),
        _result("mcdrop", 9, disturbed=0.2),
    ]
    assert _calmest(runs).rate == 7
    assert _calmest(runs).rates == [5, 7, 9]


def test_results_are_added_to_those_of_the_same_conditions(tmp_path: Path):
    file = tmp_path / "results.json"
    first = Results({"cores": 2})
    for result in (_result("mcdrop", 60), _result("naive", 2), _result("mcdrop", 4, clients=None)):
        first.add(result)
    first.add(HttpResult("lenet", "binary", 1.5, 0.9, 0.6, [1.5], [0.9]))
    first.add(FairnessResult("lenet", 10_000, "binary", 1500.0, 40, 1.5, 50.0, 60.0, 101.5))
    file.write_text(json.dumps(first.as_json()))
    second = Results.read(file, {"cores": 2})
    second.add(_result("naive", 3))
    assert [each["mcdrop_is"] for each in second.as_json()["load"]] == [1, 20, None]
    assert "20.0 x" in second.text()
    assert second.as_json()["http"] == first.as_json()["http"]
    assert second.as_json()["fairness"] == first.as_json()["fairness"]
    assert Results.read(file, {"cores": 4}).as_json()["load"] == []


def test_every_network_takes_rows_of_784_floats():
    for case in CASES.values():
        assert case.build()(case.rows(2)).shape == (2, 10)
        assert torch.equal(case.build()(case.rows(1)), case.build()(case.rows(1)))


def test_the_command_refuses_servers_that_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        command.main(["lenet", "--servers", "apache"])
    told = capsys.readouterr().err
    assert all(contender.name in told for contender in CONTENDERS)


def test_load_counts_good_answers_only():
    assert Load(requests=10, failed=4, seconds=2, p50=1, p99=1).rate == 3

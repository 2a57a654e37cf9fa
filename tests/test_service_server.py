"""Running the server: addresses, and an end in order."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mcdrop.errors import PortError
from service.server import address, listen, serve, serving
from serving import models_folder, settings

PROGRAM = """
import gc
import sys
from service.server import serve
from service.settings import load_settings
serve(load_settings(models=sys.argv[1], port=0, log_level="error", device="cpu", max_num_samples=10**9, max_cost=10**9,
                    shutdown_timeout=sys.argv[2], shutdown_delay=sys.argv[3]),
      on_ready=lambda url: print(url, gc.get_freeze_count(), flush=True))
print("ended in order", flush=True)
"""
REQUEST = {"inputs": [[0.0, 0.0, 0.0, 0.0]], "num_samples": 3000}


@contextmanager
def process(shutdown_timeout: int = 30, shutdown_delay: int = 0) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server of its own process, once it is ready, and its URL."""
    here = Path(__file__).parent.parent
    paths = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(here)]).strip(os.pathsep)
    command = [sys.executable, "-c", PROGRAM, str(models_folder() / "one"), str(shutdown_timeout), str(shutdown_delay)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as server:
        try:
            assert server.stdout is not None
            url, frozen = server.stdout.readline().split()
            assert int(frozen) > 10_000  # what was loaded, which no garbage collection looks through again
            yield server, url
        finally:
            server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(number):
    with process() as (server, url):
        assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
        server.send_signal(number)
        out, _ = server.communicate(timeout=60)
    assert (server.returncode, out) == (0, "ended in order\n")


def test_after_sigterm_balancers_are_told_before_connections_are_refused():
    with process(shutdown_delay=2) as (server, url), httpx.Client(base_url=url, trust_env=False) as http:
        server.send_signal(signal.SIGTERM)
        while (ready := http.get("/health/ready")).status_code == 200:  # until the signal has arrived
            pass
        assert (ready.status_code, ready.json()["code"]) == (503, "not-ready")
        answer = httpx.post(f"{url}/v1/predict", json=REQUEST, trust_env=False)
        assert answer.status_code == 200
        out, _ = server.communicate(timeout=60)
    assert (server.returncode, out) == (0, "ended in order\n")


def test_a_request_in_progress_is_answered_before_the_end():
    """The request is under way for certain: the server has its connection and headers, but not all its body."""
    with process() as (server, url), httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        signalled = threading.Event()

        def body() -> Iterator[bytes]:
            yield b'{"inputs": [[0, 0, 0, 0]], "num_samples": 3000'
            assert http_probe(url) == 200  # the server answers others meanwhile, so it has seen this request begin
            server.send_signal(signal.SIGTERM)
            signalled.set()
            yield b"}"

        answer = http.post("/v1/predict", content=body(), headers={"content-type": "application/json"})
        assert signalled.is_set()
        assert (answer.status_code, answer.json()["num_samples"]) == (200, 3000)
        out, _ = server.communicate(timeout=60)
    assert (server.returncode, out) == (0, "ended in order\n")


def http_probe(url: str) -> int:
    return httpx.get(f"{url}/health/live", trust_env=False).status_code


def test_a_request_that_takes_too_long_does_not_hold_the_end_up():
    with process(shutdown_timeout=1) as (server, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            body = b'{"inputs": [[0, 0, 0, 0]], "num_samples": 1000000000}'
            headers = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(f"POST /v1/predict HTTP/1.1\r\n{headers}\r\n".encode() + body)
            assert http_probe(url) == 200
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
            status, _, rest = connection.makefile("rb").read().partition(b"\r\n")
    assert server.returncode == 0
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["code"] == "not-ready"


def test_a_taken_port_is_told(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=rf"Port {port} on 127.0.0.1 is in use.*--port 0"):
            serve(settings(port=port))
        with pytest.raises(PortError, match="in use"), serving(settings(port=port)):
            pass


def test_a_host_that_is_not_this_machine_is_told():
    with pytest.raises(PortError, match=r"Cannot listen on 192.0.2.1"):
        listen("192.0.2.1", 0)
    with pytest.raises(PortError, match="no address of this machine"):
        listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")]
)
def test_the_address_is_one_that_works_from_here(host, expected):
    with listen(host, 0) as sock:
        assert address(host, sock) == f"http://{expected}:{sock.getsockname()[1]}"

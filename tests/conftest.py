"""Two processes share the tests (see pyproject.toml), so each computes with one thread."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import pytest


def pytest_configure() -> None:
    """Interrupts work in what tests start, though shells start jobs in the background with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-minutes", type=float, default=5, help="how long the tier of chaos takes; at length, 20")


@pytest.fixture(scope="session")
def everything() -> Iterator[httpx.Client]:
    """A server of every model that the tests of the Open Inference Protocol ask, which takes a while to start."""
    from serving import live  # here, since it loads torch, which reads the variable above
    from v2_requests import ADMIN_KEY, everything_folder

    with live(models=everything_folder(), admin_keys=ADMIN_KEY) as client:
        yield client

"""CPU threads under the limits that containers set, in both versions of control groups."""

import logging
import math

import pytest
import torch

from service import quota

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the service says, also where a server in this process has taken its log over."""
    monkeypatch.setattr(logging.getLogger("service"), "propagate", True)
    caplog.set_level(logging.INFO, "service")
    return caplog


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, math.inf),
        ({f"{V2}/cpu.max": "max 100000"}, math.inf),
        ({f"{V2}/cpu.max": "400000 100000"}, 4),
        ({f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
        ({f"{V2}/cpu.max": "20000 100000"}, 0.2),
        ({f"{V2}/cpu.max": "garbage"}, math.inf),
        ({f"{V2}/cpu.max": "1 0"}, math.inf),
        ({f"{V1}/cpu.cfs_quota_us": "250000", f"{V1}/cpu.cfs_period_us": "100000"}, 2.5),
        ({f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, math.inf),
        # a service of systemd: the own group, and one above it
        ({"proc/self/cgroup": "0::/a.slice/b.service", f"{V2}/a.slice/b.service/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.service\n",
                f"{V2}/a.slice/b.service/cpu.max": "max 100000",
                f"{V2}/a.slice/cpu.max": "200000 100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1\n0::/\n",
                f"{V1}/docker/1/cpu.cfs_quota_us": "300000",
                f"{V1}/docker/1/cpu.cfs_period_us": "100000",
                f"{V1}/x/cpu.cfs_quota_us": "100000",
                f"{V1}/x/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        # the path of the host, of which a container sees nothing
        ({"proc/self/cgroup": "0::/../../docker/1", f"{V2}/cpu.max": "400000 100000"}, 4),
    ],
)
def test_the_smallest_limit_counts(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota.quota(tmp_path) == cpus


@pytest.mark.parametrize(
    ("cpus", "threads"), [(math.inf, 7), (0.2, 1), (1, 1), (1.9, 1), (2, 1), (2.5, 1), (3, 2), (4.99, 3), (64, 7)]
)
def test_one_cpu_is_left_to_the_event_loop(monkeypatch, log, cpus, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(quota, "quota", lambda: cpus)
    monkeypatch.setattr(quota, "_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert quota.threads_within_quota() == threads
    assert (f"{cpus:.2f} CPUs, so {threads} CPU threads" in log.text) == (cpus < math.inf)


def test_omp_num_threads_decides(monkeypatch, log):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(quota, "quota", lambda: 2.0)
    assert quota.threads_within_quota() is None
    assert "OMP_NUM_THREADS=3" in log.text


def test_here_it_works():
    assert quota.quota() > 0
    assert quota._cores() >= 1

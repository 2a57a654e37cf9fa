"""Memory that tensors have freed: it comes again without faults."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from mcdrop.surroundings.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    results = [torch.ones(4 * 2**20, dtype=torch.uint8) for _ in range(3)]
    del results
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(5)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_freed_memory_is_kept() -> None:
    faults = {
        each: int(subprocess.run([sys.executable, "-c", FAULTS, each], capture_output=True, check=True).stdout)
        for each in ("kept", "as it comes")
    }
    assert faults["kept"] < 200 < 2000 < faults["as it comes"]

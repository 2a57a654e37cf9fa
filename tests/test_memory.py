"""Memory that tensors have freed stays with the process, so that the next ones find it."""

import ctypes
import subprocess
import sys

import pytest

MAPPED = """
import ctypes, torch
from mcdrop.surroundings.memory import keep_freed_memory

class Facts(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Facts
keep_freed_memory()
before = library.mallinfo2().hblks
result = torch.empty(7 * 2**20, dtype=torch.uint8)
print(library.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="other allocators have other rules")
def test_results_of_a_few_megabytes_are_not_mapped_anew() -> None:
    """A block that is mapped goes back to the system when it is freed."""
    found = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, check=True, text=True)
    assert found.stdout == "0\n"

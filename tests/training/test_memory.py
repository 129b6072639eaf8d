"""Tests that the process keeps freed memory for reuse."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# The median of page faults per round is used, as the heap still grows in some rounds, when a small object
# is placed in freed memory. A block from the C library itself is the last one of the heap, which is
# trimmed unless trimming is disabled. The block of a tensor need not be the last one, and is mapped unless
# mapping is disabled.
_FAULTS = """
import ctypes, json, resource, statistics, sys, torch
from pyro_zf.training.memory import keep_freed_memory

c = ctypes.CDLL("libc.so.6")
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
size = 2**26

def block():
    address = c.malloc(size)
    c.memset(address, 1, size)
    c.free(address)

def tensor():
    torch.ones(size // 4)

def usual(take):
    faults = []
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        take()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(faults)

handed_back = [usual(block), usual(tensor)]
assert keep_freed_memory()
print(json.dumps([handed_back, [usual(block), usual(tensor)]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True
    )
    for handed_back, kept in zip(*json.loads(done.stdout), strict=True):
        assert kept < 100 < handed_back

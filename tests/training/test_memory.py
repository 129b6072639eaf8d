"""Freed memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, torch
from pyro_zf.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is asked")
def test_freed_memory_is_used_again() -> None:
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "hand back")
    }
    # A little allocation may come to lie in what was freed, and the heap then grows once more: how
    # often depends on where the kernel put it. Handed back, every page is new in all ten rounds.
    assert 4 * faults["keep"] < faults["hand back"]

"""How this process keeps memory."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library keep what is freed, for the process, instead of handing it back at once.

    Every update allocates the same large tensors. Handed back and asked for again, their pages are
    cleared by the kernel each time, which takes as long as computing on them. The process then stays
    at its peak of memory until it ends.

    Returns:
        bool: whether it could be asked for; it can with glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

"""Configuration of the memory allocator of the C library."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory in the process instead of returning it to the operating system.

    Every update allocates the same large tensors. If their memory is returned and requested again, the kernel
    clears the pages each time, which takes as long as the computation itself. With this setting, the process
    retains its peak memory until it ends.

    Returns:
        bool: whether the allocator accepted the setting; glibc does.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

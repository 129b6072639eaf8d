"""Graceful stop on a signal, between two updates."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stop", "stop_on_signal"]


class Stop:
    """Flags that signals set.

    Args:
        requested: whether to stop after the present update.
        save: whether to save a checkpoint after the present update, and go on.
    """

    requested = False
    save = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Request a stop after the current update instead of interrupting it while parameters are written.

    SIGINT, SIGTERM and SIGHUP request a stop, and a second one stops at once; SIGUSR1 requests a checkpoint.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, before[number])  # a second signal stops immediately

    def request_save(number: int, frame: Any) -> None:
        stop.save = True

    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if (number := getattr(signal, name, None)) is not None:
                before[int(number)] = signal.signal(number, request)
        if (number := getattr(signal, "SIGUSR1", None)) is not None:
            before[int(number)] = signal.signal(number, request_save)
    except ValueError:  # not in the main thread, so the caller handles signals
        pass
    try:
        yield stop
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)

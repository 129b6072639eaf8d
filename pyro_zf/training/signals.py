"""Graceful stop on a signal, between two updates."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stop", "stop_on_signal"]


class Stop:
    """Flag that is set when a stop is requested."""

    requested = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Request a stop after the current update instead of interrupting it while parameters are written."""
    stop = Stop()
    before: dict[int, Any] = {}

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, before[number])  # a second signal stops immediately

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread, so the caller handles signals
        pass
    try:
        yield stop
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)

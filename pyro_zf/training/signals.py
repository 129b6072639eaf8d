"""Stopping when one is told to, between two updates."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stop", "stop_on_signal"]


class Stop:
    """Whether one is to stop."""

    requested = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Ask the loop to stop after the update under way, whose parameters are half written."""
    stop = Stop()
    before: dict[int, Any] = {}

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, before[number])  # a second one stops at once

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: the caller handles signals
        pass
    try:
        yield stop
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)

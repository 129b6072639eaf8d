"""Progress bars for long operations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

__all__ = ["always_shown", "counted", "progress_bar"]

T = TypeVar("T")

_always = ContextVar("always_shown", default=False)


@contextmanager
def always_shown() -> Iterator[None]:
    """Show progress bars in a ``with`` block even if standard error is not a terminal."""
    token = _always.set(True)
    try:
        yield
    finally:
        _always.reset(token)


def progress_bar(what: str, unit: str, total: int) -> tqdm:
    """Create a progress bar on standard error. It is hidden if that is not a terminal."""
    watched = sys.stderr.isatty()
    return tqdm(
        total=total, unit=unit, desc=what, disable=not (watched or _always.get()),
        mininterval=0.1 if watched else 10.0,  # in a log, update only occasionally
    )  # fmt: skip


def counted(items: Iterable[T], what: str, unit: str, total: int) -> Iterator[T]:
    """The items, with a progress bar while they are used."""
    with progress_bar(what, unit, total) as bar:
        for item in items:
            yield item
            bar.update()

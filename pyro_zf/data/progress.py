"""A bar for what takes its time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

__all__ = ["always_shown", "progress_bar"]

_always = ContextVar("always_shown", default=False)


@contextmanager
def always_shown() -> Iterator[None]:
    """Show bars in a ``with`` block even where nobody may be watching."""
    token = _always.set(True)
    try:
        yield
    finally:
        _always.reset(token)


def progress_bar(what: str, unit: str, total: int) -> tqdm:
    """A bar on the standard error; hidden where that is no terminal."""
    watched = sys.stderr.isatty()
    return tqdm(
        total=total, unit=unit, desc=what, disable=not (watched or _always.get()),
        mininterval=0.1 if watched else 10.0,  # in a log, a line now and then
    )  # fmt: skip

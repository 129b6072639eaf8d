"""Noise of a batch, or of some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["noise_of_rows", "standard_normal", "uniform"]

Rows = tuple[Tensor, int, torch.Generator | None]
_rows: ContextVar[Rows | None] = ContextVar("rows", default=None)


@contextmanager
def noise_of_rows(
    rows: Sequence[int], total: int, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Context in which a batch consists of some rows of a larger batch.

    :func:`standard_normal` and :func:`uniform` then draw the noise of the whole batch and return that of
    these rows. Several processes that share a batch thus use the noise that a single process would use,
    and their generators stay in the same state.

    Args:
        rows: indices of the rows.
        total: number of rows of the whole batch.
        generator: generator that draws the noise; by default that of PyTorch.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> whole = standard_normal((2, 5, 3), torch.zeros(1))
        >>> _ = torch.manual_seed(0)
        >>> with noise_of_rows([1, 3], 5):
        ...     part = standard_normal((2, 2, 3), torch.zeros(1))
        >>> torch.equal(part, whole[:, [1, 3]])
        True
    """
    token = _rows.set((torch.tensor(rows), total, generator))
    try:
        yield
    finally:
        _rows.reset(token)


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise of shape (..., batch, size), with the device and type of ``like``."""
    return _drawn(torch.randn, shape, like)


def uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform noise in 0..1 of shape (..., batch, size), with the device and type of ``like``."""
    return _drawn(torch.rand, shape, like)


def _drawn(draw: Callable[..., Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    part = _rows.get()
    if part is None or len(shape) < 2 or shape[-2] != len(part[0]):
        return draw(tuple(shape), dtype=like.dtype, device=like.device)
    rows, total, generator = part
    whole = (*shape[:-2], total, shape[-1])
    noise = draw(whole, dtype=like.dtype, device=like.device, generator=generator)
    return noise.index_select(-2, rows.to(noise.device))

"""Functions of all steps, computed a few steps at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["by_chunks"]


def by_chunks(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], chunk: int | None
) -> Tensor:
    """Compute ``function(*tensors)`` in chunks, where all tensors and the result have time first.

    Each chunk has ``chunk`` steps, and only its result is kept: intermediate values are recomputed in the
    backward pass. This saves memory in proportion to the number of steps, at the cost of one more forward
    pass.

    Args:
        function: a function of tensors over some of the steps; no step may depend on another. Random
            numbers are reproduced in the recomputation, except while a CUDA graph is recorded, when none
            may be drawn.
        tensors: tensors over all steps.
        chunk: number of steps at a time, or None for all.
    """
    if chunk is None or len(tensors[0]) <= chunk:
        return function(*tensors)
    parts = zip(*(x.split(chunk) for x in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts])
    # Recomputation reproduces the random numbers of custom modules; while a CUDA graph is captured, the
    # state of the generator cannot be read.
    captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return torch.cat(
        [
            checkpoint(function, *part, use_reentrant=False, preserve_rng_state=not captured)
            for part in parts
        ]
    )

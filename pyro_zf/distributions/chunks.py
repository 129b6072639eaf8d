"""Functions of all steps, computed some steps at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["by_chunks"]


def by_chunks(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], chunk: int | None
) -> Tensor:
    """``function(*tensors)``, where all tensors, and what it gives, have time first.

    In pieces of ``chunk`` steps, of which only the results are kept: what lies between is computed
    again in the backward. That saves memory in proportion to the steps, for one more forward.

    Args:
        function: of tensors over some of the steps; no step may look at another. One that draws random
            numbers draws them again, but not while a CUDA graph is recorded: none may be drawn there.
        tensors: over all steps.
        chunk: steps at a time, or None for all.
    """
    if chunk is None or len(tensors[0]) <= chunk:
        return function(*tensors)
    parts = zip(*(x.split(chunk) for x in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts])
    # Random numbers of a module of one's own come again in the recomputation; a CUDA graph that is
    # being captured cannot be asked for the state of its generator.
    captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return torch.cat(
        [
            checkpoint(function, *part, use_reentrant=False, preserve_rng_state=not captured)
            for part in parts
        ]
    )

"""States carried from one batch to the next, for truncated back-propagation through time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_zf.batch import SequenceBatch

__all__ = ["CarriedState", "continued"]


def continued(batch: SequenceBatch, end: tuple[Tensor, ...] | None) -> SequenceBatch:
    """Attach the initial state ``end`` to a batch that continues another.

    Raises:
        ValueError: if the batch continues another and ``end`` is None.
    """
    if not batch.continues:
        return batch
    if end is None:
        raise ValueError(
            "the batch continues another, but the model returned no state to start it from: begin with "
            "the first batch, and use a program that returns its last state, as those of the package do"
        )
    return replace(batch, carried=end)


class CarriedState:
    """Keeps the final state of a model on each batch, for the batch that continues it.

    The state is detached. If an objective draws several particles, the state of the first one is kept:
    the loss of each batch is a bound given its initial state.

    Args:
        program: a model program that returns its last state.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch, ZForcing
        >>> from pyro_zf.infer import SVI, Trace_ELBO
        >>> zf = ZForcing(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> carried = CarriedState(zf.model)
        >>> svi = SVI(carried.model, zf.guide, torch.optim.Adam(zf.parameters()), Trace_ELBO())
        >>> first = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> second = SequenceBatch(torch.ones(3, 5, 4), torch.ones(3, 5, 4), continues=True)
        >>> for batch in (first, second):
        ...     batch = carried.given_to(batch)
        ...     loss = svi.step(batch)
        ...     carried.keep([batch])
        >>> [x.shape for x in carried.state]
        [torch.Size([3, 8]), torch.Size([3, 8])]
    """

    def __init__(self, program: Callable[[SequenceBatch], Any]) -> None:
        self.program = program
        self.state: tuple[Tensor, ...] | None = None
        self._left: dict[int, tuple[Tensor, ...]] = {}

    def model(self, batch: SequenceBatch) -> tuple[Tensor, ...]:
        """Run the program and record the state that it returns."""
        end = self.program(batch)
        self.leave(batch, end)
        return end

    def left(self, batch: SequenceBatch) -> tuple[Tensor, ...]:
        """Return the recorded state of a batch and remove it from the record."""
        return self._left.pop(id(batch))

    def leave(self, batch: SequenceBatch, end: tuple[Tensor, ...]) -> None:
        """Record the final state of a batch."""
        self._left[id(batch)] = end

    def given_to(self, batch: SequenceBatch) -> SequenceBatch:
        """Attach the kept state to a batch that continues another."""
        return continued(batch, self.state)

    def split(self, batches: Sequence[SequenceBatch]) -> list[SequenceBatch]:
        """Attach the kept state to the parts of a batch, in their order."""
        if self.state is None:
            return [continued(batch, None) for batch in batches]
        sizes = [batch.num_sequences for batch in batches]
        states = zip(*(x.split(sizes) for x in self.state), strict=True)
        return [continued(batch, end) for batch, end in zip(batches, states, strict=True)]

    def keep(self, batches: Sequence[SequenceBatch]) -> None:
        """Keep the final states of all parts of a batch."""
        ends = [self._left[id(batch)] for batch in batches]
        self._left.clear()
        firsts = [tuple(x.reshape(-1, *x.shape[-2:])[0] for x in end) for end in ends]
        self.state = tuple(torch.cat(parts) for parts in zip(*firsts, strict=True))

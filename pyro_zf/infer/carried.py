"""States that go from a batch to the one that continues it: truncated back-propagation through time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_zf.batch import SequenceBatch

__all__ = ["CarriedState", "continued"]


def continued(batch: SequenceBatch, end: tuple[Tensor, ...] | None) -> SequenceBatch:
    """The batch, with the state that it begins with if it continues another.

    Raises:
        ValueError: if it does and there is no such state.
    """
    if not batch.continues:
        return batch
    if end is None:
        raise ValueError(
            "the batch continues another, and the model returned no state to begin it with: start at "
            "the first batch, and with a program that returns its last state as those of the package do"
        )
    return replace(batch, carried=end)


class CarriedState:
    """Keeps the state in which a model leaves each batch, for the batch that continues it.

    The state is without its gradient. Where an objective draws several particles, it is that of the
    first: each batch's loss is a bound given the state that it begins with.

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
        """The program; the state that it returns is remembered."""
        end = self.program(batch)
        self.leave(batch, end)
        return end

    def left(self, batch: SequenceBatch) -> tuple[Tensor, ...]:
        """The state in which the program left a batch, handed out once."""
        return self._left.pop(id(batch))

    def leave(self, batch: SequenceBatch, end: tuple[Tensor, ...]) -> None:
        """Note it for a batch."""
        self._left[id(batch)] = end

    def given_to(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch, with the state that was kept if it continues another."""
        return continued(batch, self.state)

    def keep(self, batches: Sequence[SequenceBatch]) -> None:
        """Keep the state in which the parts of a batch were left."""
        ends = [self._left[id(batch)] for batch in batches]
        self._left.clear()
        firsts = [tuple(x.reshape(-1, *x.shape[-2:])[0] for x in end) for end in ends]
        self.state = tuple(torch.cat(parts) for parts in zip(*firsts, strict=True))

"""Corruptions of a batch that make training harder and the latents more useful."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pyro_zf.batch import SequenceBatch
from pyro_zf.distributions.noise import uniform
from pyro_zf.nn.mlp import Dropout

__all__ = ["InputDropout", "WordDropout"]


@dataclass(frozen=True)
class WordDropout:
    r"""Replace inputs at random steps, so that the decoder cannot rely on them.

    The method is from Bowman et al. 2016 (https://arxiv.org/abs/1511.06349), section 3.1. The start
    symbol is unchanged, and so are the targets, including those that the posterior reads. (The backward
    network of SRNN also reads the deterministic network, so it is affected.) The cost that scores inputs
    (:math:`\log p(u_t \mid b_t)`) scores the uncorrupted ones. Use this for training only: bounds on
    a corrupted batch are not bounds on the data.

    Args:
        rate: probability of replacing the input of a step.
        replacement: the replacement value: the index of the unknown word, or 0 for numeric inputs.

    Raises:
        ValueError: if the rate lies outside 0..1.

    Example:
        >>> import torch
        >>> batch = SequenceBatch.from_targets(torch.ones(2, 4, 3))
        >>> WordDropout(1.0)(batch).inputs.sum().item()
        0.0
    """

    rate: float
    replacement: float | int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"the rate of word dropout is a probability, not {self.rate}")

    def __call__(self, batch: SequenceBatch) -> SequenceBatch:
        if self.rate == 0:
            return batch
        inputs = batch.inputs
        numbers = torch.empty(0, device=inputs.device)  # of the default precision
        dropped = uniform(inputs.shape[:2], numbers) < self.rate
        if batch.has_start_symbol:
            dropped[:, 0] = False
        dropped = dropped.reshape(dropped.shape + (1,) * (inputs.dim() - 2))
        corrupted = torch.where(dropped, torch.full_like(inputs, self.replacement), inputs)
        return replace(batch, inputs=corrupted, uncorrupted=batch.clean_inputs)


@dataclass(frozen=True)
class InputDropout:
    """Dropout on the values that the forward network reads.

    Unlike :class:`WordDropout`, which hides the input of a whole step, this sets each value of a numeric input
    to zero on its own, and scales the others by ``1 / (1 - rate)``, as :class:`~pyro_zf.nn.Dropout` does. It makes
    a network that overfits rely less on single values. The targets are unchanged, including those that the
    posterior reads, and so are the inputs that a cost scores. Use this for training only.

    Args:
        rate: probability that a value is set to zero, below 1.

    Raises:
        ValueError: if the rate is out of range, or (when called) the inputs are symbols.

    Example:
        >>> import torch
        >>> batch = SequenceBatch.from_targets(torch.ones(2, 4, 3))
        >>> sorted(set(InputDropout(0.5)(batch).inputs.flatten().tolist()))
        [0.0, 2.0]
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(
                f"the rate of input dropout is at least 0 and below 1, not {self.rate}"
            )

    def __call__(self, batch: SequenceBatch) -> SequenceBatch:
        if self.rate == 0:
            return batch
        inputs = batch.inputs
        if not inputs.is_floating_point():
            raise ValueError(
                "the inputs are symbols, which have no values to drop: use WordDropout"
            )
        # The noise of a batch has the sequences in its last dimension but one.
        dropped = Dropout(self.rate)(inputs.transpose(0, 1)).transpose(0, 1)
        return replace(batch, inputs=dropped, uncorrupted=batch.clean_inputs)

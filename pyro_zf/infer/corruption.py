"""Corruptions of a batch that make training harder and the latents more useful."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pyro_zf.batch import SequenceBatch
from pyro_zf.distributions.noise import uniform

__all__ = ["WordDropout"]


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

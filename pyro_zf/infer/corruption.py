"""Changes to a batch that make training harder and the latents more useful."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pyro_zf.batch import SequenceBatch

__all__ = ["WordDropout"]


@dataclass(frozen=True)
class WordDropout:
    r"""Replace inputs at random steps, so that the decoder cannot rely on them.

    Bowman et al. 2016 (https://arxiv.org/abs/1511.06349), section 3.1. The targets, and so what
    the posterior reads of them, stay as they are, and so does the start symbol (the backward network
    of SRNN reads the deterministic network too, and notices); what scores inputs (the cost
    :math:`\log p(u_t \mid b_t)`) scores the true ones. For training only: bounds of a corrupted
    batch are no bounds of the data.

    Args:
        rate: probability of replacing the input of a step.
        replacement: what takes its place: the unknown word's index, or 0 for values.

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
        dropped = torch.rand(inputs.shape[:2], device=inputs.device) < self.rate
        if batch.has_start_symbol:
            dropped[:, 0] = False
        dropped = dropped.reshape(dropped.shape + (1,) * (inputs.dim() - 2))
        corrupted = torch.where(dropped, torch.full_like(inputs, self.replacement), inputs)
        return replace(batch, inputs=corrupted, uncorrupted=batch.clean_inputs)

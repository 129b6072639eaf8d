"""What a model generates, and what its latents carry."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from pyro import poutine
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Categorical

from pyro_zf.batch import SequenceBatch
from pyro_zf.data import Values
from pyro_zf.models import SequenceModel
from pyro_zf.models.base import local_parameters

__all__ = ["Reconstruction", "reconstruct", "sample"]


class Reconstruction(NamedTuple):
    """Data beside what the latents of their posterior say of them.

    ``teacher_forced`` are the means of :math:`p(y_t \\mid h_t)` where each step has seen the true
    past. ``from_latents`` are drawn with the same z, but each step sees what the model itself drew
    before: it shows how much of a sequence z alone carries.
    """

    targets: Shaped[Tensor, "batch time ..."]
    teacher_forced: Shaped[Tensor, "batch time ..."]
    from_latents: Shaped[Tensor, "batch time ..."]


def sample(
    model: SequenceModel, values: Values, num_sequences: int, num_steps: int
) -> Shaped[Tensor, "batch time ..."]:
    """Sequences from the prior, after the start symbol of the data."""
    like = next(model.parameters())
    return model.generate(values.start_symbol(num_sequences, like), num_steps)


@torch.no_grad()
def reconstruct(model: SequenceModel, batch: SequenceBatch) -> Reconstruction:
    """Draw z from the posterior of each sequence and decode it in both ways.

    The mean of a distribution over symbols is the most probable one.
    """
    assert batch.targets is not None
    with poutine.block(), local_parameters(), model.using_layout("steps"):
        posterior = poutine.trace(model.guide).get_trace(batch)
        latents: dict[str, Any] = {
            name: posterior.nodes[name]["value"] for name in posterior.stochastic_nodes
        }
        forced = poutine.trace(poutine.condition(model.model, data=latents)).get_trace(batch)
        start = SequenceBatch.to_generate(batch.inputs[:, 0], batch.num_steps)
        free = poutine.trace(poutine.condition(model.model, data=latents)).get_trace(start)
    names = [f"y_{t}" for t in range(1, batch.num_steps + 1)]
    means: list[Any] = [forced.nodes[name]["fn"] for name in names]
    drawn: list[Any] = [free.nodes[name]["value"] for name in names]
    return Reconstruction(
        batch.targets, torch.stack([_mean(y) for y in means], dim=1), torch.stack(drawn, dim=1)
    )


def _mean(distribution: Any) -> Tensor:
    """Of the distribution of a step, which may be masked."""
    while isinstance(distribution, MaskedDistribution):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        return distribution.logits.argmax(-1)
    try:
        return distribution.mean
    except NotImplementedError:  # not every emission knows it
        return distribution.sample()

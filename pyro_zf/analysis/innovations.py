"""Mutual information of sequences and what their latents add to the past."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel

__all__ = ["mutual_information"]


@torch.no_grad()
def mutual_information(model: LatentSequenceModel, batch: SequenceBatch) -> float | None:
    r"""Mutual information of sequences and innovations under the posterior, in nats.

    .. math::
        \frac 1N \sum_i \Big[ \log q(\epsilon^{(i)} \mid x^{(i)})
        - \log \frac 1N \sum_j q(\epsilon^{(i)} \mid x^{(j)}) \Big], \qquad
        \epsilon_t = (z_t - \mu^{(p)}_t) / \sigma^{(p)}_t

    for the whole path, one draw of each of the N sequences: the estimate of Hoffman and Johnson 2016
    (http://approximateinference.org/accepted/HoffmanJohnson2016.pdf) with the posteriors of these
    sequences as the aggregate. It cannot exceed log N, which it reaches where each sequence can be told
    from all others by its latents. Under a standard normal prior the innovation is z.

    Behind the end of a sequence its innovations are noise of the prior. A latent that follows z
    (:math:`\tilde b` of Variational Bi-LSTM) is put at its mean.

    Args:
        model: with posterior and prior as modules.
        batch: the sequences, in memory N times N at a time.

    Returns:
        float | None: None where the prior is no Gaussian, or the guide is one's own.
    """
    if type(model)._guide_time is not LatentSequenceModel._guide_time or (
        type(model).guide is not LatentSequenceModel.guide
    ):
        return None
    number = batch.num_sequences
    recurrence = model._recurrence(batch)
    posterior, contexts = model._posterior(recurrence)
    prior, transition, start = model._prior(), model.transition, recurrence.start
    step = transition.stepper()
    # Along the path of each sequence (rows), by what the networks know of each (columns).
    state = transition.initial((number, number), start.state)
    read = None if start.read is None else start.read.expand(number, number, -1)
    inputs = model._stepwise(recurrence.inputs)
    total = torch.zeros(number, number, device=batch.inputs.device)
    for t, ((u, projected), context) in enumerate(zip(inputs, contexts.unbind(0), strict=True)):
        if transition.lag:
            state = step(projected, model._read_before(read, state), state)
        x = transition.seen(u, state[0])
        p: Any = prior(x)
        if not (isinstance(p, Independent) and isinstance(p.base_dist, Normal)):
            return None
        p = p.base_dist
        z = posterior(_own(x), context).sample()
        innovation = (z - _own(p.loc)) / _own(p.scale)
        if batch.mask is not None:
            alive = batch.mask[:, t]
            innovation = torch.where(alive.unsqueeze(-1), innovation, torch.randn_like(innovation))
        innovation = innovation.unsqueeze(1)
        z = p.loc + p.scale * innovation
        log_q = posterior(x, context.expand(*x.shape[:-1], -1)).log_prob(z)
        log_q = log_q + p.scale.log().sum(-1)
        if batch.mask is not None:
            noise = Normal(0.0, 1.0).log_prob(innovation).sum(-1)
            log_q = torch.where(alive, log_q, noise)
        total = total + log_q
        b_tilde = None if model.echo is None else model.echo(z).mean
        read = model.embed_latent(z, b_tilde)
        if not transition.lag:
            state = step(projected, read, state)
    information = total.diagonal() - torch.logsumexp(total, dim=1) + math.log(number)
    return information.mean().item()


def _own(values: Shaped[Tensor, "sequences sequences _"]) -> Shaped[Tensor, "sequences _"]:
    """Along the path of each sequence, by what is known of itself."""
    return values.diagonal(dim1=0, dim2=1).T

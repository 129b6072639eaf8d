"""Mutual information of sequences and what their latents add to the past."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
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
    drawn: list[Tensor] = []

    def draw(t: int, q: Any, p: Normal) -> Tensor:
        z = q.sample()
        innovation = (z - p.loc) / p.scale
        if batch.mask is not None:
            alive = batch.mask[:, t].unsqueeze(-1)
            innovation = torch.where(alive, innovation, torch.randn_like(innovation))
        drawn.append(innovation)
        return p.loc + p.scale * innovation

    if not _walk(model, batch, (number,), draw):
        return None
    total = torch.zeros(number, number, device=batch.inputs.device)

    def score(t: int, q: Any, p: Normal) -> Tensor:
        nonlocal total
        innovation = drawn[t].unsqueeze(1)
        z = p.loc + p.scale * innovation
        log_q = q.log_prob(z) + p.scale.log().sum(-1)
        if batch.mask is not None:
            noise = Normal(0.0, 1.0).log_prob(innovation).sum(-1)
            log_q = torch.where(batch.mask[:, t], log_q, noise)
        total = total + log_q
        return z

    _walk(model, batch, (number, number), score)
    information = total.diagonal() - torch.logsumexp(total, dim=1) + math.log(number)
    return information.mean().item()


def _walk(
    model: LatentSequenceModel,
    batch: SequenceBatch,
    shape: tuple[int, ...],
    choose: Callable[[int, Any, Normal], Tensor],
) -> bool:
    """Move the forward network along latents that are chosen step by step, from q and p.

    False, without a step, where the prior is no Gaussian.
    """
    recurrence = model._recurrence(batch)
    posterior, contexts = model._posterior(recurrence)
    prior, transition, start = model._prior(), model.transition, recurrence.start
    step = transition.stepper()
    state = transition.initial(shape, start.state)
    read = None if start.read is None else start.read.expand(*shape, -1)
    inputs = model._stepwise(recurrence.inputs)
    for t, ((u, projected), context) in enumerate(zip(inputs, contexts.unbind(0), strict=True)):
        if transition.lag:
            state = step(projected, model._read_before(read, state), state)
        x = transition.seen(u, state[0])
        p = prior(x)
        if not (isinstance(p, Independent) and isinstance(p.base_dist, Normal)):
            return False
        z = choose(t, posterior(x, context.expand(*x.shape[:-1], -1)), p.base_dist)
        b_tilde = None if model.echo is None else model.echo(z).mean
        read = model.embed_latent(z, b_tilde)
        if not transition.lag:
            state = step(projected, read, state)
    return True

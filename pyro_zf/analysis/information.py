"""Mutual information between sequences and the deviations of their latents from the prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.sequence import Recurrence, at_steps, unroll

__all__ = ["mutual_information"]


@torch.no_grad()
def mutual_information(model: LatentSequenceModel, batch: SequenceBatch) -> float | None:
    r"""Mutual information between sequences and the standardised deviations of their latents, in nats.

    .. math::
        \frac 1N \sum_i \Big[ \log q(\epsilon^{(i)} \mid x^{(i)})
        - \log \frac 1N \sum_j q(\epsilon^{(i)} \mid x^{(j)}) \Big], \qquad
        \epsilon_t = (z_t - \mu^{(p)}_t) / \sigma^{(p)}_t

    This is the estimate of Hoffman and Johnson 2016
    (http://approximateinference.org/accepted/HoffmanJohnson2016.pdf) for whole paths, with one sample for
    each of the N sequences and the mixture of their posteriors as the aggregate posterior. It cannot
    exceed log N, which it reaches if the latents identify each sequence. Under a standard normal prior
    :math:`\epsilon` equals z.

    After the end of a sequence, :math:`\epsilon` is sampled from the prior. A latent without a KL term
    (:math:`\tilde b` of Variational Bi-LSTM) is set to its mean.

    Args:
        model: a model whose posterior and prior are modules.
        batch: the N sequences. Memory grows with N squared.

    Returns:
        float | None: the estimate; None if the prior is not Gaussian, if latents other than z have a KL
            term, or if the guide is a custom program.
    """
    if not model.programs_are_derived:
        return None
    latents = model.latents
    if [name for name, x in latents.items() if x.posterior is not None] != ["z"]:
        return None
    number, run = batch.num_sequences, Recurrence(model, batch)
    context, u = run.context.unbind(0), run.u.unbind(0)
    c = at_steps(run.c, len(u))
    # Log-density of the path of each sequence (rows) under the posterior of each sequence (columns).
    total = torch.zeros(number, number, device=batch.inputs.device)

    def choose(t: int, h: Tensor) -> Tensor:
        nonlocal total
        known = {"state": h, "input": u[t]}
        x = latents["z"].features(known, c[t]).expand(number, number, -1)
        p: Any = latents["z"].prior(x)
        if not (isinstance(p, Independent) and isinstance(p.base_dist, Normal)):
            raise NotImplementedError
        p, q = p.base_dist, latents["z"].posterior
        if model.latent_source != "posterior":
            q = _FromPrior(latents["z"].prior)
        assert q is not None
        z = q(_own(x), context[t]).sample()
        noise = (z - _own(p.loc)) / _own(p.scale)
        if batch.mask is not None:
            alive = batch.mask[:, t]
            noise = torch.where(alive.unsqueeze(-1), noise, torch.randn_like(noise))
        noise = noise.unsqueeze(1)
        z = p.loc + p.scale * noise
        log_q = q(x, context[t].expand(*x.shape[:-1], -1)).log_prob(z) + p.scale.log().sum(-1)
        if batch.mask is not None:
            log_q = torch.where(alive, log_q, Normal(0.0, 1.0).log_prob(noise).sum(-1))
        total = total + log_q
        values = {"z": z}
        for name, latent in latents.items():
            if name != "z":
                values[name] = latent.prior(latent.features({**known, **values}, c[t])).mean
        return model.cell_inputs(values)

    start = model.cell.initial((number, number), run.cell_start)
    try:
        unroll(model.cell, run.cell_u.unbind(0), start, choose)
    except NotImplementedError:
        return None
    information = total.diagonal() - torch.logsumexp(total, dim=1) + math.log(number)
    return information.mean().item()


class _FromPrior(nn.Module):
    """A prior with the interface of a posterior."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, context: Tensor) -> Any:
        return self.prior(x)


def _own(values: Shaped[Tensor, "sequences sequences _"]) -> Shaped[Tensor, "sequences _"]:
    """Values along the path of each sequence that were computed for that sequence itself."""
    return values.diagonal(dim1=0, dim2=1).T

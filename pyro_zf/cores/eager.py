"""The recurrence as a loop of ordinary PyTorch operations, for any posterior module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_zf.batch import with_particles
from pyro_zf.nn.lstm import Transition
from pyro_zf.nn.posteriors import gives_moments

__all__ = ["Path", "sample_path"]


class Path(NamedTuple):
    """A latent path and the states along it, time first.

    ``q_mean`` and ``q_log_scale`` are None for a posterior that does not give them as it goes.
    """

    h: Float[Tensor, "time *particles batch hidden"]
    z: Float[Tensor, "time *particles batch latent"]
    q_mean: Float[Tensor, "time *particles batch latent"] | None
    q_log_scale: Float[Tensor, "time *particles batch latent"] | None


def sample_path(
    transition: Transition,
    latent_embedding: nn.Module,
    posterior: nn.Module,
    inputs: Float[Tensor, "time batch input"],
    b: Float[Tensor, "time batch backward"],
    batch_shape: torch.Size,
) -> Path:
    r"""Draw :math:`z_t \sim q(z_t \mid h_{t-1}, b_t)` and step to :math:`h_t`, for t = 1..T.

    Noise is drawn step by step, in the order in which a program with one site a step draws it: the
    same seed gives the same path in both layouts.

    Args:
        transition: the forward recurrence.
        latent_embedding: applied to z before it enters the recurrence.
        posterior: see :mod:`pyro_zf.nn.posteriors`.
        inputs: embedded inputs.
        b: states of the backward network.
        batch_shape: particles and sequences, for example ``(25, 64)``.
    """
    step = transition.stepper()
    state = transition.initial(batch_shape)
    projected = transition.project(inputs).unbind(0)
    if gives_moments(posterior):
        moments, context = posterior.stepper(), posterior.project(b)
    else:
        moments = None
        context = with_particles(b, len(batch_shape) - 1).expand(-1, *batch_shape, -1)
    zs, hs, means, log_scales = [], [], [], []
    # `unbind`, never `b[t]`: the backward of an index fills a tensor of T steps with zeros, T times.
    for u_t, b_t in zip(projected, context.unbind(0), strict=True):
        if moments is not None:
            mean, log_scale = moments(state[0], b_t)
            z = mean + torch.exp(log_scale) * torch.empty_like(mean).normal_()
            means.append(mean)
            log_scales.append(log_scale)
        else:
            z = posterior(state[0], b_t)()
        state = step(u_t, latent_embedding(z), state)
        zs.append(z)
        hs.append(state[0])
    return Path(
        torch.stack(hs),
        torch.stack(zs),
        torch.stack(means) if means else None,
        torch.stack(log_scales) if log_scales else None,
    )

"""The recurrence as a loop of ordinary PyTorch operations, for any posterior module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_zf.batch import with_particles
from pyro_zf.cores.path import Path, draw_noise, lagged, shielded
from pyro_zf.nn.lstm import State, Transition
from pyro_zf.nn.posteriors import gives_moments

__all__ = ["sample_at_once", "sample_eagerly"]


def sample_eagerly(
    transition: Transition,
    embed_latent: Callable[..., Tensor],
    posterior: nn.Module,
    inputs: Float[Tensor, "time batch input"],
    context: Float[Tensor, "time batch context"],
    batch_shape: torch.Size,
    echo: nn.Module | None = None,
    skip: Bool[Tensor, "time *particles batch 1"] | None = None,
    carried: State | None = None,
    carried_read: Tensor | None = None,
) -> Path:
    """A path, one step after the other; see :func:`pyro_zf.cores.sample_path`."""
    step = transition.stepper()
    state = transition.initial(batch_shape, carried)
    read = None if carried_read is None else carried_read.expand(*batch_shape, -1)
    # `unbind`, never `b[t]`: the backward of an index fills a tensor of T steps with zeros, T times.
    projected = transition.project(inputs).unbind(0)
    skips = [None] * len(projected) if skip is None else skip.unbind(0)
    hoisted = posterior if gives_moments(posterior) else None
    if hoisted is None or skip is not None:
        context = with_particles(context, len(batch_shape) - 1).expand(-1, *batch_shape, -1)
        context = shielded(context, skip)
    moments = None
    if hoisted is not None:  # without coins, once for all particles
        moments, context = hoisted.stepper(), hoisted.project(context)
    zs, hs, means, log_scales, echoes = [], [], [], [], []
    for u_t, i_t, c_t, s_t in zip(
        projected, inputs.unbind(0), context.unbind(0), skips, strict=True
    ):
        if transition.lag:
            if read is None:
                read = state[0].new_zeros(*batch_shape, transition.latent_size)
            state = step(u_t, read, state)
        x = shielded(transition.seen(i_t, state[0]), s_t)
        if moments is not None:
            mean, log_scale = moments(x, c_t)
            z = mean + torch.exp(log_scale) * torch.empty_like(mean).normal_()
            means.append(mean)
            log_scales.append(log_scale)
        else:
            z = posterior(x, c_t)()
        if echo is None:
            read = embed_latent(z)
        else:
            echoes.append(echo(z)())
            read = embed_latent(z, echoes[-1])
        if not transition.lag:
            state = step(u_t, read, state)
        zs.append(z)
        hs.append(state[0])
    return Path(
        torch.stack(hs),
        torch.stack(zs),
        torch.stack(means) if means else None,
        torch.stack(log_scales) if log_scales else None,
        torch.stack(echoes) if echoes else None,
        state,
    )


def sample_at_once(
    transition: Transition,
    embed_latent: Callable[..., Tensor],
    posterior: Any,
    inputs: Tensor,
    context: Tensor,
    batch_shape: torch.Size,
    echo: Any,
    skip: Tensor | None,
    carried: State | None,
    carried_read: Tensor | None,
) -> Path | None:
    """All steps together, where the posterior does not look at the state and is Gaussian."""
    context = with_particles(context, len(batch_shape) - 1).expand(-1, *batch_shape, -1)
    h = transition.initial(batch_shape, carried)[0].expand(len(context), *batch_shape, -1)
    q = posterior(h, shielded(context, skip))
    if not (isinstance(q, Independent) and isinstance(q.base_dist, Normal)):
        return None
    mean, scale = q.base_dist.loc, q.base_dist.scale
    sizes = (mean.shape[-1],) if echo is None else (mean.shape[-1], echo.size)
    noise = draw_noise(len(inputs), batch_shape, sizes, mean)
    z = mean + scale * noise[0]
    b_tilde = None
    if echo is not None:
        echo_mean, echo_log_scale = echo.moments(z)
        b_tilde = echo_mean + torch.exp(echo_log_scale) * noise[1]
    read = embed_latent(z) if b_tilde is None else embed_latent(z, b_tilde)
    h, last = transition.run(inputs, lagged(read, transition.lag, carried_read), carried)
    return Path(h, z, mean, torch.log(scale), b_tilde, last, noise=noise[0])

"""The recurrence as a loop of ordinary PyTorch operations, for any posterior module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_zf.batch import with_particles
from pyro_zf.nn.lstm import State, Transition
from pyro_zf.nn.posteriors import gives_moments

__all__ = ["Path", "lagged", "sample_path", "shielded"]


class Path(NamedTuple):
    """A latent path and the states along it, time first.

    ``last`` is the whole state after the last step. ``q_mean`` and ``q_log_scale`` are None for a posterior that does not give them as it goes,
    ``b_tilde`` where there is no such latent.
    """

    h: Float[Tensor, "time *particles batch hidden"]
    z: Float[Tensor, "time *particles batch latent"]
    q_mean: Float[Tensor, "time *particles batch latent"] | None
    q_log_scale: Float[Tensor, "time *particles batch latent"] | None
    b_tilde: Float[Tensor, "time *particles batch backward"] | None = None
    last: State = ()


def sample_path(
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
    r"""Draw :math:`z_t \sim q(z_t \mid h_{t-1}, b_t)` and step to :math:`h_t`, for t = 1..T.

    Noise is drawn step by step, in the order in which a program with one site a step draws it: the
    same seed gives the same path in both layouts.

    Args:
        transition: the forward recurrence.
        embed_latent: applied to z, and to :math:`\tilde b` where there is one, before they enter it.
        posterior: see :mod:`pyro_zf.nn.posteriors`.
        inputs: embedded inputs.
        context: what the posterior reads beside the state.
        batch_shape: particles and sequences, for example ``(25, 64)``.
        echo: maps :math:`z_t` to the distribution of :math:`\tilde b_t`, drawn after it.
        skip: where the gradient with respect to state and context is skipped.
        carried: the state to begin with; zeros without it.
        carried_read: what a transition with lag reads at the first step; zeros without it.
    """
    if getattr(posterior, "ignores_state", False):
        at_once = _sample_at_once(
            transition, embed_latent, posterior, inputs, context, batch_shape, echo, skip, carried,
            carried_read,
        )  # fmt: skip
        if at_once is not None:
            return at_once
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


def _sample_at_once(
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
    noise: list[list[Tensor]] = [[], []]
    for _ in range(len(inputs)):
        noise[0].append(torch.empty_like(mean[0]).normal_())
        if echo is not None:
            noise[1].append(mean.new_empty(*batch_shape, echo.size).normal_())
    z = mean + scale * torch.stack(noise[0])
    b_tilde = None
    if echo is not None:
        echo_mean, echo_log_scale = echo.moments(z)
        b_tilde = echo_mean + torch.exp(echo_log_scale) * torch.stack(noise[1])
    read = embed_latent(z) if b_tilde is None else embed_latent(z, b_tilde)
    h, last = transition.run(inputs, lagged(read, transition.lag, carried_read), carried)
    return Path(h, z, mean, torch.log(scale), b_tilde, last)


def shielded(x: Tensor, skip: Tensor | None) -> Tensor:
    """The same values, without their gradient where ``skip`` is True."""
    return x if skip is None else torch.where(skip, x.detach(), x)


def lagged(
    read: Float[Tensor, "time *batch latent"], lag: int, carried: Tensor | None = None
) -> Float[Tensor, "time *batch latent"]:
    """Each step's latent, ``lag`` steps late; before the first what is carried over, or zeros."""
    if not lag:
        return read
    first = torch.zeros_like(read[:lag]) if carried is None else carried.expand_as(read[:lag])
    return torch.cat([first, read[:-lag]])

"""A latent path by the fastest recurrence that knows the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyro_zf.batch import with_particles
from pyro_zf.cores.eager import sample_at_once, sample_eagerly
from pyro_zf.cores.fused_chain import run_chain
from pyro_zf.cores.fused_lstm import run_lstm
from pyro_zf.cores.path import Path, draw_noise, shielded
from pyro_zf.cores.standard import StandardParts, standard_parts
from pyro_zf.nn.lstm import LSTMTransition, State, Transition

__all__ = ["CORES", "Core", "recurrence_in_use", "sample_path"]

Core = Literal["auto", "eager", "fused"]
CORES: tuple[Core, ...] = ("auto", "eager", "fused")


def sample_path(
    transition: Transition,
    embed_latent: Callable[..., Tensor],
    posterior: nn.Module,
    inputs: Float[Tensor, "time batch input"],
    context: Float[Tensor, "time batch context"],
    batch_shape: torch.Size,
    echo: Any = None,
    skip: Bool[Tensor, "time *particles batch 1"] | None = None,
    carried: State | None = None,
    carried_read: Tensor | None = None,
    latent_layer: nn.Module | None = None,
    core: Core = "auto",
) -> Path:
    r"""Draw :math:`z_t \sim q(z_t \mid h_{t-1}, b_t)` and step to :math:`h_t`, for t = 1..T.

    On a CPU noise is drawn in the order in which a program with one site a step draws it: the same
    seed gives the same path in both layouts, and by every core.

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
        latent_layer: the layer on z that ``embed_latent`` consists of, if it is one; it may then be
            followed by :math:`\tilde b`.
        core: ``"fused"`` has its backward by hand, and knows an LSTM (or a chain of latents) with a
            Gaussian posterior of one hidden layer; its gradients have no gradients. ``"eager"`` is a
            loop of PyTorch operations. ``"auto"`` takes the first where it can.

    Raises:
        ValueError: if the fused core is asked for and does not know the parts.
    """
    if getattr(posterior, "ignores_state", False):
        at_once = sample_at_once(
            transition, embed_latent, posterior, inputs, context, batch_shape, echo, skip, carried,
            carried_read,
        )  # fmt: skip
        if at_once is not None:
            return at_once
    parts = _standard_parts(transition, latent_layer, posterior, echo)
    if core != "eager" and isinstance(parts, StandardParts):
        return _sample_fused(parts, inputs, context, batch_shape, echo, skip, carried, carried_read)
    if core == "fused":
        raise _unknown(parts)
    return sample_eagerly(
        transition, embed_latent, posterior, inputs, context, batch_shape, echo, skip, carried,
        carried_read,
    )  # fmt: skip


def _standard_parts(
    transition: Transition, latent_layer: nn.Module | None, posterior: nn.Module, echo: Any
) -> StandardParts | str:
    """What the fused core makes of the parts, or in a few words why it cannot."""
    # A b~ that the transition does not read follows afterwards.
    read = getattr(transition, "read", None) == getattr(transition, "latent_size", None)
    return standard_parts(transition, latent_layer, posterior, echo if read else None)


def recurrence_in_use(networks: Any) -> str:
    """How the paths of a model are drawn, in a few words.

    Args:
        networks: see :class:`pyro_zf.recurrence.RecurrentNetworks`; with a posterior, or None for one
            whose guide has a way of its own.

    Raises:
        ValueError: if the fused core is asked for and does not know the parts.
    """
    if networks.posterior is None:
        return "that of its own guide"
    if getattr(networks.posterior, "ignores_state", False):
        return "all steps at once"
    if networks.core == "eager":
        return "eager"
    parts = _standard_parts(
        networks.transition, networks.latent_layer, networks.posterior, networks.echo
    )
    if isinstance(parts, StandardParts):
        return "fused"
    if networks.core == "fused":
        raise _unknown(parts)
    return f"eager, since {parts}"


def _unknown(reason: object) -> ValueError:
    return ValueError(f"core='fused' does not know this model: {reason}; take core='auto'")


def _sample_fused(
    parts: StandardParts,
    inputs: Tensor,
    context: Tensor,
    batch_shape: torch.Size,
    echo: Any,
    skip: Tensor | None,
    carried: State | None,
    carried_read: Tensor | None,
) -> Path:
    transition, device = parts.transition, inputs.device.type
    like = parts.posterior.second.weight
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    layout = parts.layout(low, kept=torch.is_grad_enabled())
    latent_size = parts.posterior.second.out_features // 2
    sizes = (latent_size,) if echo is None else (latent_size, echo.size)
    noise, *echo_noise = draw_noise(len(inputs), batch_shape, sizes, like)
    particles = len(batch_shape) - 1
    context, seen = with_particles(context, particles), with_particles(inputs, particles)
    keep = None
    if skip is not None:
        context, seen = (shielded(x.expand(-1, *batch_shape, -1), skip) for x in (context, seen))
        keep = (~skip).to(like.dtype)
    first = parts.context(context, seen).expand(-1, *batch_shape, -1)
    with torch.autocast(device, enabled=False):
        weights = parts.weights()
    state = transition.initial(batch_shape, carried)
    if not isinstance(transition, LSTMTransition):
        before, h, z, mean, log_scale = run_chain(layout, first, state[0], noise, keep, weights)
        return Path(h, z, mean, log_scale, None, (h[-1],), before, noise)
    if transition.lag:  # the first step is taken here, and the last state is that before the last z
        read = carried_read
        if read is None:
            read = like.new_zeros(transition.latent_size)
        step = transition.stepper()
        state = step(transition.project(inputs[:1])[0], read.expand(*batch_shape, -1), state)
        inputs = inputs[1:]
    gates = with_particles(parts.gates(inputs), particles).expand(-1, *batch_shape, -1)
    h_0, c_0 = state
    before, h, z, mean, log_scale, c, *b_tilde = run_lstm(
        layout, first, gates, (h_0, c_0), noise, echo_noise[0] if parts.echo is not None else None,
        keep, weights,
    )  # fmt: skip
    if echo is not None and parts.echo is None:
        echo_mean, echo_log_scale = echo.moments(z)
        b_tilde = [echo_mean + torch.exp(echo_log_scale) * echo_noise[0]]
    if transition.lag:
        h = before
    return Path(h, z, mean, log_scale, b_tilde[0] if b_tilde else None, (h[-1], c), before, noise)

r"""The recurrence of latents that are their own state, with its backward by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_zf.cores.step import Layout, Steps, Weights, differentiated, given_out

__all__ = ["run_chain"]


def run_chain(
    layout: Layout,
    context: Tensor,
    state: Tensor,
    noise: Tensor,
    keep: Tensor | None,
    weights: Weights,
) -> tuple[Tensor, ...]:
    r"""Draw :math:`z_t` given :math:`z_{t-1}`, or its embedding, for t = 1..T.

    Args and returns as for :func:`run_lstm`; the state is (the embedding of) the latent, there is no c.
    """
    with torch.autocast(noise.device.type, enabled=False):  # it is the layout that says
        outputs: tuple[Tensor, ...] = _Chain.apply(layout, context, state, noise, keep, *weights)
    return outputs


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        context: Tensor,
        state: Tensor,
        noise: Tensor,
        keep: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        weights = Weights(*tensors)
        batch_shape = state.shape[:-1]
        s = Steps(layout, noise, state, weights.hidden.shape[0], weights)
        if layout.kept:
            s.pre.unflatten(1, batch_shape).copy_(context)
        else:
            contexts = context.unbind(0)
        for t in range(s.steps):
            if not layout.kept:
                s.pre_at[t].unflatten(0, batch_shape).copy_(contexts[t])
            s.by_hidden.add(s.hidden_at[t], s.pre_at[t])
            z = s.draw.forward(t, s.pre_at[t])
            if layout.embedding is None:
                s.hidden_at[t + 1].copy_(z)
            else:
                s.embedding_of(t, z, s.hidden_at[t + 1])
        if layout.kept:
            s.keep_for_backward(ctx, (s,), keep, tensors)
        given = (s.hidden[:-1], s.hidden[1:], s.draw.value, s.draw.mean, s.draw.log_scale)
        return tuple(given_out(x, batch_shape) for x in given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return differentiated(ctx, _Chain._backward, gradients)

    @staticmethod
    def _backward(
        ctx: Any,
        parts: tuple[Any, ...],
        g_before: Tensor | None,
        g_after: Tensor | None,
        g_z: Tensor | None,
        g_mean: Tensor | None,
        g_log_scale: Tensor | None,
    ) -> tuple[Any, ...]:
        (s,) = parts
        layout, draw = s.layout, s.draw
        s.start_backward(g_before, g_after, g_z, g_mean, g_log_scale)
        g_hidden_at, g_value_at = s.g_hidden_at, s.g_value_at
        keep_at = None if ctx.keep is None else ctx.keep.unbind(0)
        for first, last in s.pieces():
            draw.prepare(first, last, s.pre[first:last])
            if layout.embedding is not None:
                layout.embedding.derivative(s.features[first:last], s.hidden[first + 1 : last + 1])
            for t in range(last - 1, first - 1, -1):
                s.back_through_embedding(t, g_hidden_at[t + 1], g_value_at[t])
                draw.backward(t, g_value_at[t], s.pre_at[t])
                g = s.pre_at[t] if keep_at is None else s.pre_at[t] * keep_at[t]
                s.by_hidden.add_back(g, g_hidden_at[t])
        g_weights = (
            s.by_hidden.gradient(s.pre, s.hidden[:-1]),
            *draw.gradients(),
            None,
            *s.embedding_gradients(),
            *(None,) * 5,
        )
        shape = ctx.shape
        return (
            None,
            s.pre.unflatten(1, shape),
            s.g_hidden[0].unflatten(0, shape),
            None,
            None,
            *g_weights,
        )

r"""The recurrence of an LSTM that reads its latents, with its backward by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_zf.cores.products import Product
from pyro_zf.cores.stages import Buffers, GaussianDraw, LSTMCell
from pyro_zf.cores.step import Layout, Steps, Weights, differentiated, given_out

__all__ = ["run_lstm"]


def run_lstm(
    layout: Layout,
    context: Tensor,
    inputs: Tensor,
    state: tuple[Tensor, Tensor],
    noise: Tensor,
    echo_noise: Tensor | None,
    keep: Tensor | None,
    weights: Weights,
) -> tuple[Tensor, ...]:
    r"""Draw :math:`z_t` from the state before it and step on, for t = 1..T.

    Args:
        layout: what a step consists of.
        context: what the posterior's hidden layer reads beside the state, projected and with its bias,
            (time, rows.., hidden layer).
        inputs: what the gates read beside state and latents, likewise; of T steps, or of T - 1 where
            the last state is not wanted.
        state: h and c before the first step, (rows.., hidden).
        noise, echo_noise: of z and of b~, (time, rows.., size).
        keep: 0 where the posterior passes no gradient to the state, (time, rows.., 1).
        weights: weights of a step.

    Returns:
        The states before each draw and after it, z, its mean and log scale, the last c, without its
        gradient, and b~ if there is one.
    """
    with torch.autocast(noise.device.type, enabled=False):  # it is the layout that says
        outputs: tuple[Tensor, ...] = _LSTM.apply(
            layout, context, inputs, *state, noise, echo_noise, keep, *weights
        )
    return outputs


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        context: Tensor,
        inputs: Tensor,
        h: Tensor,
        c: Tensor,
        noise: Tensor,
        echo_noise: Tensor | None,
        keep: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        weights = Weights(*tensors)
        assert weights.latent is not None
        batch_shape = h.shape[:-1]
        s = Steps(layout, noise, h, weights.hidden.shape[0], weights)
        cells = len(inputs)
        cell, cell_at = s.buffers.steps(s.steps + 1, h.shape[-1])
        cell_at[0].copy_(c.reshape(s.buffers.rows, -1))
        lstm = LSTMCell(s.buffers, s.rest, s.hidden, cell, s.steps)
        by_latent = Product(weights.latent, layout.low)
        echo = None
        if echo_noise is not None:
            echo = Echo(s.buffers, layout, weights, echo_noise.flatten(1, -2))
            s.spoilt.append(echo.pre)
        gates_at = s.buffers.over(s.rest, s.steps)
        read, read_at = s.draw.value, s.draw.value_at
        if layout.embedding is not None:
            read, read_at = s.buffers.steps(s.steps, weights.latent.shape[1])
        if layout.kept:
            shaped = s.pre.unflatten(1, batch_shape)
            split = s.first.shape[-1]
            shaped[..., :split].copy_(context)
            shaped[:cells, ..., split:].copy_(inputs)
            if cells < s.steps:
                shaped[cells:, ..., split:].zero_()
        else:
            contexts, projected = context.unbind(0), inputs.unbind(0)
        for t in range(s.steps):
            if not layout.kept:
                s.first_at[t].unflatten(0, batch_shape).copy_(contexts[t])
                if t < cells:
                    gates_at[t].unflatten(0, batch_shape).copy_(projected[t])
            s.by_hidden.add(s.hidden_at[t], s.pre_at[t])
            z = s.draw.forward(t, s.first_at[t])
            if echo is not None:
                b_tilde = echo.forward(t, z)
            if t < cells:
                if layout.embedding is not None:
                    s.embedding_of(t, z, read_at[t])
                by_latent.add(read_at[t], gates_at[t])
                if echo is not None:
                    echo.read.add(b_tilde, gates_at[t])
                lstm.forward(t)
        if cells < s.steps:
            s.hidden_at[-1].zero_()
        if layout.kept:
            s.keep_for_backward(ctx, (s, lstm, by_latent, read, echo, cells), keep, tensors)
        last = cell_at[cells].clone().unflatten(0, batch_shape)
        ctx.mark_non_differentiable(last)
        given = [s.hidden[:-1], s.hidden[1:], s.draw.value, s.draw.mean, s.draw.log_scale]
        outputs = [given_out(x, batch_shape) for x in given]
        outputs.append(last)
        if echo is not None:
            outputs.append(given_out(echo.draw.value, batch_shape))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return differentiated(ctx, _LSTM._backward, gradients)

    @staticmethod
    def _backward(
        ctx: Any,
        parts: tuple[Any, ...],
        g_before: Tensor | None,
        g_after: Tensor | None,
        g_z: Tensor | None,
        g_mean: Tensor | None,
        g_log_scale: Tensor | None,
        _: Any,
        g_b_tilde: Tensor | None = None,
    ) -> tuple[Any, ...]:
        s, lstm, by_latent, read, echo, cells = parts
        layout, weights, draw = s.layout, s.weights, s.draw
        s.start_backward(g_before, g_after, g_z, g_mean, g_log_scale)
        g_hidden_at, g_value_at = s.g_hidden_at, s.g_value_at
        split = s.first.shape[-1]
        gates_at = s.rest.unbind(0)
        keep_at = None if ctx.keep is None else ctx.keep.unbind(0)
        if keep_at is not None:
            by_first, by_gates = (
                Product(w, layout.low) for w in weights.hidden.split([split, s.rest.shape[-1]])
            )
        lstm.start_backward()
        if echo is not None:
            echo.start_backward(g_b_tilde)
        embedded = layout.embedding is not None
        if embedded:
            room = torch.empty_like(read[0])
        for first, last in s.pieces():
            draw.prepare(first, last, s.first[first:last])
            if first < cells:
                lstm.prepare(first, min(last, cells))
            if embedded:
                layout.embedding.derivative(s.features[first:last], read[first:last])
            if echo is not None:
                echo.prepare(first, last)
            for t in range(last - 1, first - 1, -1):
                g_z_t = g_value_at[t]
                if t < cells:
                    lstm.backward(t, g_hidden_at[t + 1])
                    if embedded:
                        g_embedded = by_latent.back(gates_at[t], room)
                        s.back_through_embedding(t, g_embedded, g_z_t)
                    else:
                        by_latent.add_back(gates_at[t], g_z_t)
                    if echo is not None:
                        echo.read.add_back(gates_at[t], echo.g_value_at[t])
                else:
                    gates_at[t].zero_()
                    if embedded:
                        s.features[t].zero_()
                if echo is not None:
                    echo.backward(t, g_z_t)
                draw.backward(t, g_z_t, s.first_at[t])
                if keep_at is None:
                    s.by_hidden.add_back(s.pre_at[t], g_hidden_at[t])
                else:
                    by_gates.add_back(gates_at[t], g_hidden_at[t])
                    by_first.add_back(s.first_at[t] * keep_at[t], g_hidden_at[t])
        shape = ctx.shape
        moments = draw.gradients()
        g_weights = (
            s.by_hidden.gradient(s.pre, s.hidden[:-1]),
            *moments,
            by_latent.gradient(s.rest[:cells], read[:cells]),
            *s.embedding_gradients(),
            *(echo.gradients(s.rest[:cells], draw.value) if echo is not None else (None,) * 5),
        )
        return (
            None,
            s.first.unflatten(1, shape),
            s.rest[:cells].unflatten(1, shape),
            s.g_hidden[0].unflatten(0, shape),
            lstm.g_cell.unflatten(0, shape),
            None,
            None,
            None,
            *g_weights,
        )


class Echo:
    """b~ at each step: a Gaussian given z, which the gates read."""

    def __init__(self, buffers: Buffers, layout: Layout, weights: Weights, noise: Tensor) -> None:
        assert weights.echo is not None and weights.echo_hidden is not None
        assert weights.echo_moments is not None and weights.echo_moments_bias is not None
        assert layout.echo_activation is not None and layout.echo_form is not None
        self.read = Product(weights.echo, layout.low)
        self.product = Product(weights.echo_hidden, layout.low)
        self.bias: Any = weights.echo_hidden_bias
        self.pre, self._pre = buffers.steps(len(noise), weights.echo_hidden.shape[0])
        self.draw = GaussianDraw(
            buffers, layout.echo_activation, layout.echo_form, weights.echo_moments,
            weights.echo_moments_bias, noise, layout.low,
        )  # fmt: skip

    def forward(self, t: int, z: Tensor) -> Tensor:
        self.product.affine(z, self.bias, self._pre[t])
        return self.draw.forward(t, self._pre[t])

    def start_backward(self, g_value: Tensor | None) -> None:
        self.draw.start_backward(None, None)
        value = self.draw.value
        total = torch.zeros_like(value) if g_value is None else g_value.reshape(value.shape).clone()
        self.g_value_at = total.unbind(0)

    def prepare(self, first: int, last: int) -> None:
        self.draw.prepare(first, last, self.pre[first:last])

    def backward(self, t: int, g_z: Tensor) -> None:
        self.draw.backward(t, self.g_value_at[t], self._pre[t])
        self.product.add_back(self._pre[t], g_z)

    def gradients(self, g_gates: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """Of the weights, in the order of :class:`Weights`."""
        return (
            self.read.gradient(g_gates, self.draw.value[: len(g_gates)]),
            self.product.gradient(self.pre, z),
            self.pre.sum((0, 1)),
            *self.draw.gradients(),
        )

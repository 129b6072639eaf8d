r"""The recurrence with its backward by hand, for Gaussian posteriors with one hidden layer.

Each step is a dozen kernels forward and ten backward; see :mod:`pyro_zf.cores.stages` for what they
are. Inputs are projected before the loop, the state meets all its weights in one product a step, and
the gradients of weights are one product each after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_zf.cores.stages import Activation, Buffers, GaussianDraw, LSTMCell, Product
from pyro_zf.nn.gaussian import GaussianForm

__all__ = ["Layout", "Weights", "run_chain", "run_lstm"]

#: Bytes of the buffers that a piece of the backward prepares at a time: about what a CPU keeps near.
PIECE = 2**19


class Layout(NamedTuple):
    """What a step consists of, beside numbers.

    Args:
        activation: of the posterior's hidden layer.
        form: of its output.
        embedding: activation of a layer between z and the state, or None for no such layer.
        echo_activation, echo_form: of the network of b~ that the transition reads, or None.
        low: precision of the operands of products, or None for that of the numbers.
        kept: whether there will be a backward.
    """

    activation: Activation
    form: GaussianForm
    embedding: Activation | None
    echo_activation: Activation | None
    echo_form: GaussianForm | None
    low: torch.dtype | None
    kept: bool


class Weights(NamedTuple):
    """Weights of a step, (out, in).

    ``hidden`` is that of the state: of the posterior's hidden layer, then of the gates (o, i, f, g).
    ``moments`` is the posterior's second layer. ``latent`` leads from z, or from its embedding, to
    the gates (LSTM) or is None (chain); ``echo`` from b~ to the gates.
    """

    hidden: Tensor
    moments: Tensor
    moments_bias: Tensor
    latent: Tensor | None = None
    embedding: Tensor | None = None
    embedding_bias: Tensor | None = None
    echo: Tensor | None = None
    echo_hidden: Tensor | None = None
    echo_hidden_bias: Tensor | None = None
    echo_moments: Tensor | None = None
    echo_moments_bias: Tensor | None = None


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
    outputs: tuple[Tensor, ...] = _LSTM.apply(
        layout, context, inputs, *state, noise, echo_noise, keep, *weights
    )
    return outputs


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
    outputs: tuple[Tensor, ...] = _Chain.apply(layout, context, state, noise, keep, *weights)
    return outputs


class _Steps:
    """What LSTM and chain have in common: the posterior at each step, and an embedding of its draws."""

    def __init__(
        self, layout: Layout, noise: Tensor, state: Tensor, width: int, weights: Weights
    ) -> None:
        self.layout, self.weights = layout, weights
        self.steps, self.shape = len(noise), state.shape[:-1]
        rows = state.numel() // state.shape[-1]
        self.buffers = Buffers(state, rows, layout.kept)
        # The inputs of the posterior's hidden layer, and of the gates where there are any.
        self.pre, self.pre_at = self.buffers.steps(self.steps, width)
        split = weights.moments.shape[1]
        self.first, self.rest = self.pre[..., :split], self.pre[..., split:]
        self.first_at = self.buffers.over(self.first, self.steps)
        self.hidden = state.new_empty(self.steps + 1, rows, state.shape[-1])
        self.hidden[0].copy_(state.reshape(rows, -1))
        self.hidden_at = list(self.hidden.unbind(0))
        self.by_hidden = Product(weights.hidden, layout.low)
        self.draw = GaussianDraw(
            self.buffers, layout.activation, layout.form, weights.moments, weights.moments_bias,
            noise.flatten(1, -2), layout.low,
        )  # fmt: skip
        self.features: Any = None
        if layout.embedding is not None:
            assert weights.embedding is not None and weights.embedding_bias is not None
            self.embed = Product(weights.embedding, layout.low)
            size = weights.embedding.shape[0]
            self.features, self._features = self.buffers.steps(self.steps, size)

    def embedding_of(self, t: int, z: Tensor, out: Tensor) -> Tensor:
        """The embedding of the latent of step t."""
        assert self.layout.embedding is not None and self.weights.embedding_bias is not None
        self.embed.affine(z, self.weights.embedding_bias, self._features[t])
        return self.layout.embedding.apply(self._features[t], out)

    def keep_for_backward(self, ctx: Any, parts: tuple[Any, ...], keep: Tensor | None) -> None:
        """Keep the parts, and what tells that nobody has changed what was given out."""
        ctx.parts = parts
        ctx.keep = None if keep is None else keep.flatten(1, -2)
        ctx.shape = self.shape
        ctx.versions = self.versions()
        ctx.set_materialize_grads(False)

    def versions(self) -> tuple[int, ...]:
        """Of what is given out, counted up by changes in place."""
        return tuple(x._version for x in (self.hidden, self.draw.moments, self.draw.value))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and last step of the pieces of the backward, the last piece first."""
        size = self.pre[0].numel() * self.pre.element_size()
        length = max(PIECE // size, 1) if self.pre.device.type == "cpu" else self.steps
        for last in range(self.steps, 0, -length):
            yield max(last - length, 0), last

    def back_through_embedding(self, t: int, g: Tensor, g_z: Tensor) -> Tensor:
        """Add to the gradient of z what comes from that of its embedding."""
        if self.layout.embedding is None:
            return g_z.add_(g)
        features = self._features[t].mul_(g)
        return self.embed.add_back(features, g_z)

    def embedding_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        if self.layout.embedding is None:
            return None, None
        return self.embed.gradient(self.features, self.draw.value), self.features.sum((0, 1))


def _sum_of(after: Tensor | None, before: Tensor | None, like: Tensor, shape: torch.Size) -> Tensor:
    """Gradients of all states, from those of the states after the steps and of those before them."""
    total = torch.empty_like(like)
    if after is None and before is None:
        return total.zero_()
    after = None if after is None else after.reshape(shape)
    before = None if before is None else before.reshape(shape)
    if after is None:
        assert before is not None
        total[:-1], total[-1] = before, 0.0
    elif before is None:
        total[0], total[1:] = 0.0, after
    else:
        total[0], total[-1] = before[0], after[-1]
        torch.add(after[:-1], before[1:], out=total[1:-1])
    return total


def _given_out(x: Tensor, batch_shape: torch.Size) -> Tensor:
    """With all dimensions of a batch; no view, which could not be changed in place."""
    return x.unflatten(1, batch_shape).detach()


def _differentiated(
    ctx: Any, backward: Callable[..., tuple[Any, ...]], gradients: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Run a backward on what the forward kept, a part of which it writes over."""
    if ctx.parts is None:
        raise RuntimeError(
            "this path was differentiated before: pass retain_graph=True to do it more than once"
        )
    parts, s = ctx.parts, ctx.parts[0]
    if ctx.versions != s.versions():
        raise RuntimeError(
            "a latent path or the states along it were changed in place, and their gradient needs them"
        )
    # PyTorch's own word for whether this graph may be differentiated again.
    again = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
    spoilt = [s.pre, *(x.pre for x in parts if isinstance(x, _Echo))]
    spoilt += [s.features] if s.features is not None else []
    before = [x.clone() for x in spoilt] if again else []
    ctx.parts = None
    with torch.autocast(s.pre.device.type, enabled=False):
        result = backward(ctx, parts, *gradients)
    if again:
        result = tuple(None if x is None else x.clone() for x in result)
        for x, values in zip(spoilt, before, strict=True):
            x.copy_(values)
        ctx.parts = parts
    return result


def _rows(x: Tensor | None, shape: torch.Size) -> Tensor | None:
    """With one dimension of rows."""
    return None if x is None else x.reshape(shape)


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
        with torch.autocast(h.device.type, enabled=False):
            return _LSTM._forward(
                ctx, layout, context, inputs, h, c, noise, echo_noise, keep, weights
            )

    @staticmethod
    def _forward(
        ctx: Any,
        layout: Layout,
        context: Tensor,
        inputs: Tensor,
        h: Tensor,
        c: Tensor,
        noise: Tensor,
        echo_noise: Tensor | None,
        keep: Tensor | None,
        weights: Weights,
    ) -> tuple[Tensor, ...]:
        assert weights.latent is not None
        batch_shape = h.shape[:-1]
        s = _Steps(layout, noise, h, weights.hidden.shape[0], weights)
        cells = len(inputs)
        cell, cell_at = s.buffers.steps(s.steps + 1, h.shape[-1])
        cell_at[0].copy_(c.reshape(s.buffers.rows, -1))
        lstm = LSTMCell(s.buffers, s.rest, s.hidden, cell, s.steps)
        by_latent = Product(weights.latent, layout.low)
        echo = None
        if echo_noise is not None:
            echo = _Echo(s.buffers, layout, weights, echo_noise.flatten(1, -2))
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
            s.keep_for_backward(ctx, (s, lstm, by_latent, read, echo, cells), keep)
        last = cell_at[cells].clone().unflatten(0, batch_shape)
        ctx.mark_non_differentiable(last)
        given = [s.hidden[:-1], s.hidden[1:], s.draw.value, s.draw.mean, s.draw.log_scale]
        outputs = [_given_out(x, batch_shape) for x in given]
        outputs.append(last)
        if echo is not None:
            outputs.append(_given_out(echo.draw.value, batch_shape))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return _differentiated(ctx, _LSTM._backward, gradients)

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
        flat = torch.Size((s.steps, s.buffers.rows, -1))
        g_hidden = _sum_of(g_after, g_before, s.hidden, torch.Size((*flat[:2], s.hidden.shape[-1])))
        g_hidden_at = g_hidden.unbind(0)
        draw.start_backward(_rows(g_mean, flat), _rows(g_log_scale, flat))
        g_value = torch.zeros_like(draw.value) if g_z is None else g_z.reshape(flat).clone()
        g_value_at = g_value.unbind(0)
        split = s.first.shape[-1]
        gates_at = s.rest.unbind(0)
        keep_at = None if ctx.keep is None else ctx.keep.unbind(0)
        if keep_at is not None:
            by_first, by_gates = (
                Product(w, layout.low) for w in weights.hidden.split([split, s.rest.shape[-1]])
            )
        lstm.start_backward()
        if echo is not None:
            echo.start_backward(None if g_b_tilde is None else g_b_tilde.reshape(flat))
        embedded = layout.embedding is not None
        if embedded:
            g_embedded = torch.empty_like(read[0])
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
                        by_latent.back(gates_at[t], g_embedded)
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
        g_weights = Weights(
            s.by_hidden.gradient(s.pre, s.hidden[:-1]),
            *moments,
            by_latent.gradient(s.rest[:cells], read[:cells]),
            *s.embedding_gradients(),
            *(echo.gradients(s.rest[:cells], draw.value, cells) if echo is not None else ()),
        )
        return (
            None,
            s.first.unflatten(1, shape),
            s.rest[:cells].unflatten(1, shape),
            g_hidden[0].unflatten(0, shape),
            lstm.g_cell.unflatten(0, shape),
            None,
            None,
            None,
            *g_weights,
        )


class _Echo:
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
        self.g_value_at = (torch.zeros_like(value) if g_value is None else g_value.clone()).unbind(
            0
        )

    def prepare(self, first: int, last: int) -> None:
        self.draw.prepare(first, last, self.pre[first:last])

    def backward(self, t: int, g_z: Tensor) -> None:
        self.draw.backward(t, self.g_value_at[t], self._pre[t])
        self.product.add_back(self._pre[t], g_z)

    def gradients(self, g_gates: Tensor, z: Tensor, cells: int) -> tuple[Tensor, ...]:
        return (
            self.read.gradient(g_gates, self.draw.value[:cells]),
            self.product.gradient(self.pre, z),
            self.pre.sum((0, 1)),
            *self.draw.gradients(),
        )


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
        with torch.autocast(state.device.type, enabled=False):
            return _Chain._forward(ctx, layout, context, state, noise, keep, Weights(*tensors))

    @staticmethod
    def _forward(
        ctx: Any,
        layout: Layout,
        context: Tensor,
        state: Tensor,
        noise: Tensor,
        keep: Tensor | None,
        weights: Weights,
    ) -> tuple[Tensor, ...]:
        batch_shape = state.shape[:-1]
        s = _Steps(layout, noise, state, weights.hidden.shape[0], weights)
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
            s.keep_for_backward(ctx, (s,), keep)
        given = (s.hidden[:-1], s.hidden[1:], s.draw.value, s.draw.mean, s.draw.log_scale)
        return tuple(_given_out(x, batch_shape) for x in given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return _differentiated(ctx, _Chain._backward, gradients)

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
        flat = torch.Size((s.steps, s.buffers.rows, -1))
        g_hidden = _sum_of(g_after, g_before, s.hidden, torch.Size((*flat[:2], s.hidden.shape[-1])))
        g_hidden_at = g_hidden.unbind(0)
        draw.start_backward(_rows(g_mean, flat), _rows(g_log_scale, flat))
        g_value = torch.zeros_like(draw.value) if g_z is None else g_z.reshape(flat).clone()
        g_value_at = g_value.unbind(0)
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
        g_weights = Weights(
            s.by_hidden.gradient(s.pre, s.hidden[:-1]),
            *draw.gradients(),
            None,
            *s.embedding_gradients(),
        )
        shape = ctx.shape
        return (
            None,
            s.pre.unflatten(1, shape),
            g_hidden[0].unflatten(0, shape),
            None,
            None,
            *g_weights,
        )

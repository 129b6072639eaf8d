r"""The stages of a recurrent step, each with its backward by hand.

A stage owns the buffers of all steps. Its forward writes one step of them; its backward is given the
gradient of what that step gave out. What the backward needs besides, products of values that are
known by then, is computed by :meth:`prepare` for many steps at a time, and the gradients of weights
by one product over all steps, after the loop.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_zf.cores.products import Product
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.mlp import ClippedLeakyReLU

__all__ = ["Activation", "Buffers", "GaussianDraw", "LSTMCell", "activation_of"]

aten: Any = torch.ops.aten


class Buffers:
    """Room for the steps of a sequence.

    Args:
        like: a tensor of the type and on the device of the numbers.
        rows: sequences, particles included.
        kept: whether all steps are kept for a backward, or only as many as a step looks back on.
    """

    def __init__(self, like: Tensor, rows: int, kept: bool) -> None:
        self.like, self.rows, self.kept = like, rows, kept

    def steps(self, count: int, size: int) -> tuple[Tensor, list[Tensor]]:
        """A buffer, and its view at each step."""
        whole = self.like.new_empty(count if self.kept else min(count, 2), self.rows, size)
        return whole, self.over(whole, count)

    def over(self, whole: Tensor, count: int) -> list[Tensor]:
        """The view of a buffer at each step; a buffer that is not kept is used again and again."""
        views = list(whole.unbind(0))
        return [views[t % len(views)] for t in range(count)] if views else []


class Activation(NamedTuple):
    """An activation: its name and numbers."""

    name: str
    numbers: tuple[float, ...] = ()

    def apply(self, x: Tensor, out: Tensor) -> Tensor:
        """Its value."""
        match self.name:
            case "clipped-leaky-relu":
                aten.leaky_relu.out(x, self.numbers[0], out=out)
                return out.clamp_(-self.numbers[1], self.numbers[1])
            case "leaky-relu":
                return aten.leaky_relu.out(x, self.numbers[0], out=out)
            case "relu":
                return aten.clamp_min.out(x, 0.0, out=out)
            case "identity":
                return out.copy_(x)
            case "tanh":
                return torch.tanh(x, out=out)
            case "softplus":
                return aten.softplus.out(x, *self.numbers, out=out)
            case _:
                return aten.gelu.out(x, out=out)

    def derivative(self, x: Tensor, y: Tensor) -> None:
        """Its derivative in place of its input x; y is its output."""
        out = x
        match self.name:
            case "clipped-leaky-relu":
                slope, bound = self.numbers
                ones = torch.ones_like(y)
                aten.leaky_relu_backward.grad_input(ones, y, slope, True, grad_input=out)
                aten.hardtanh_backward.grad_input(out, y, -bound, bound, grad_input=out)
            case "leaky-relu":
                ones = torch.ones_like(y)
                aten.leaky_relu_backward.grad_input(ones, y, self.numbers[0], True, grad_input=out)
            case "identity":
                out.fill_(1.0)
            case "relu":
                torch.gt(y, 0.0, out=out)
            case "tanh":
                aten.tanh_backward.grad_input(torch.ones_like(y), y, grad_input=out)
            case "softplus":
                ones = torch.ones_like(y)
                aten.softplus_backward.grad_input(ones, x, *self.numbers, grad_input=out)
            case _:
                out.copy_(aten.gelu_backward(torch.ones_like(y), x))


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module is, or None if it is none that is known here."""
    kind: type = type(module)
    if isinstance(module, ClippedLeakyReLU) and kind is ClippedLeakyReLU:
        known = module.negative_slope >= 0
        numbers = (module.negative_slope, module.bound)
        return Activation("clipped-leaky-relu", numbers) if known else None
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        known = module.negative_slope >= 0
        return Activation("leaky-relu", (module.negative_slope,)) if known else None
    if isinstance(module, nn.Softplus) and kind is nn.Softplus:
        return Activation("softplus", (float(module.beta), float(module.threshold)))
    if isinstance(module, nn.GELU) and kind is nn.GELU and module.approximate == "none":
        return Activation("gelu")
    return {nn.ReLU: Activation("relu"), nn.Tanh: Activation("tanh")}.get(kind)


class GaussianDraw:
    r"""A hidden layer, a Gaussian and a draw from it.

    :math:`a = \mathrm{act}(x),\; [\mu, \log \sigma] = \mathrm{form}(W a + b),\;
    z = \mu + \sigma \epsilon`.

    Args:
        buffers: where there is room.
        activation: act.
        form: how the output is read.
        weight, bias: W and b.
        noise: :math:`\epsilon` of all steps, (steps, rows, size).
        low: precision of the operands of products.
    """

    def __init__(
        self,
        buffers: Buffers,
        activation: Activation,
        form: GaussianForm,
        weight: Tensor,
        bias: Tensor,
        noise: Tensor,
        low: torch.dtype | None,
    ) -> None:
        steps, _, size = noise.shape
        self.activation, self.form, self.bias, self.noise = activation, form, bias, noise
        self.product = Product(weight, low)
        self.a, self._a = buffers.steps(steps, weight.shape[1])
        # These are given out, so that all steps are kept in any case.
        whole = Buffers(buffers.like, buffers.rows, True)
        self.moments, self._moments = whole.steps(steps, 2 * size)
        self.mean, self.log_scale = self.moments.split(size, -1)
        self._mean, self._log_scale = list(self.mean.unbind(0)), list(self.log_scale.unbind(0))
        self.value, self.value_at = whole.steps(steps, size)
        self._noise = list(noise.unbind(0))
        self._scale = buffers.like.new_empty(buffers.rows, size)

    def forward(self, t: int, x: Tensor) -> Tensor:
        """The draw of step t from the input of the hidden layer."""
        a, moments, log_scale = self._a[t], self._moments[t], self._log_scale[t]
        self.activation.apply(x, a)
        self.product.affine(a, self.bias, moments)
        form = self.form
        if form.clamp is not None:
            moments.clamp_(-form.clamp, form.clamp)
        if form.mean == "tanh":
            self._mean[t].tanh_()
        if form.scale == "log-variance":
            log_scale.mul_(0.5)
        if form.log_scale_limits is not None:
            log_scale.clamp_(*form.log_scale_limits)
        scale = torch.exp(log_scale, out=self._scale)
        return torch.addcmul(self._mean[t], scale, self._noise[t], out=self.value_at[t])

    def start_backward(self, g_mean: Tensor | None, g_log_scale: Tensor | None) -> None:
        """Before the first step of the backward: the gradients of the moments that were given out."""
        self.g_moments = torch.empty_like(self.moments)
        g_means, g_scales = self.g_moments.split(self.noise.shape[-1], -1)
        self._g = list(self.g_moments.unbind(0))
        self._g_mean, self._g_scale = list(g_means.unbind(0)), list(g_scales.unbind(0))
        self._from_mean = None if g_mean is None else list(g_mean.unbind(0))
        self._from_scale, self._given_scale = None, g_log_scale
        if g_log_scale is not None:
            self._from_scale = [g_log_scale[0]] * len(g_log_scale)  # set by prepare
        self._back = torch.empty_like(self.a[0])

    def prepare(self, first: int, last: int, x: Tensor) -> None:
        """What the backward of steps first..last-1 multiplies by; x, their inputs, is overwritten.

        After it ``x`` holds the derivative of the activation.
        """
        self.activation.derivative(x, self.a[first:last])
        form, log_scale = self.form, self.log_scale[first:last]
        by_scale: Tensor | None = None
        by_mean: Tensor | None = None
        if form.log_scale_limits is not None:
            low, high = form.log_scale_limits
            by_scale = ((log_scale > low) & (log_scale < high)).to(log_scale.dtype)
        if form.clamp is not None:
            half = 0.5 if form.scale == "log-variance" else 1.0
            inside = (log_scale.abs() < half * form.clamp).to(log_scale.dtype)
            by_scale = inside if by_scale is None else by_scale * inside
            bound = math.tanh(form.clamp) if form.mean == "tanh" else form.clamp
            by_mean = (self.mean[first:last].abs() < bound).to(log_scale.dtype)
        if form.scale == "log-variance":
            by_scale = 0.5 * by_scale if by_scale is not None else torch.full_like(log_scale, 0.5)
        if form.mean == "tanh":
            slope = 1 - self.mean[first:last].square()
            by_mean = slope if by_mean is None else by_mean * slope
        factor = torch.exp(log_scale).mul_(self.noise[first:last])
        given = None if self._given_scale is None else self._given_scale[first:last]
        if by_scale is not None:
            factor.mul_(by_scale)
            given = None if given is None else given * by_scale
        self._first = first
        self._factor = factor.unbind(0)
        self._by_mean = None if by_mean is None else by_mean.unbind(0)
        if self._from_scale is not None and given is not None:
            self._from_scale[first:last] = given.unbind(0)

    def backward(self, t: int, g_value: Tensor, x: Tensor) -> None:
        """From the gradient of the draw to that of x, in whose place it is written."""
        k, g_mean = t - self._first, self._g_mean[t]
        if self._from_mean is None:
            g_mean.copy_(g_value)
        else:
            torch.add(g_value, self._from_mean[t], out=g_mean)
        if self._by_mean is not None:
            g_mean.mul_(self._by_mean[k])
        if self._from_scale is None:
            torch.mul(g_value, self._factor[k], out=self._g_scale[t])
        else:
            torch.addcmul(self._from_scale[t], g_value, self._factor[k], out=self._g_scale[t])
        x.mul_(self.product.back(self._g[t], self._back))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of weight and bias."""
        return self.product.gradient(self.g_moments, self.a), self.g_moments.sum((0, 1))


class LSTMCell:
    r"""The pointwise part of an LSTM: :math:`c' = f c + i g,\; h' = o \tanh c'`.

    Its gates lie beside each other in the order o, i, f, g; the backward writes the gradients of their
    inputs in the place of their values.

    Args:
        buffers: where there is room.
        gates: the inputs of the gates, (steps, rows, 4 * size).
        hidden, cell: buffers of (steps + 1, rows, size), of which the first step is set.
        steps: how many steps it takes.
    """

    def __init__(
        self, buffers: Buffers, gates: Tensor, hidden: Tensor, cell: Tensor, steps: int
    ) -> None:
        size = hidden.shape[-1]
        self.size, self.gates, self.cell = size, gates, cell
        over = buffers.over
        self._squashed = over(gates[..., : 3 * size], steps)
        self._o, self._i, self._f, self._g = (over(x, steps) for x in gates.split(size, -1))
        self._hidden = list(hidden.unbind(0))
        self._cell = over(cell, steps + 1)
        self._tanh = hidden.new_empty(hidden.shape[1:])

    def forward(self, t: int) -> Tensor:
        """The state after step t, from the inputs of the gates."""
        self._squashed[t].sigmoid_()
        g, c = self._g[t].tanh_(), self._cell[t + 1]
        torch.mul(self._i[t], g, out=c)
        c.addcmul_(self._f[t], self._cell[t])
        torch.tanh(c, out=self._tanh)
        return torch.mul(self._o[t], self._tanh, out=self._hidden[t + 1])

    def start_backward(self) -> None:
        """Before the first step of the backward."""
        self.g_cell = torch.zeros_like(self.cell[0])
        self._g_cell = self.g_cell.unsqueeze(1)
        self._g_o = self._o
        inner = self.gates[..., self.size :].unflatten(-1, (3, self.size))
        self._g_inner = list(inner.unbind(0))

    def prepare(self, first: int, last: int) -> None:
        """What the backward of steps first..last-1 multiplies by, in place of their gates."""
        o, i, f, g = self.gates[first:last].split(self.size, -1)
        tanh = torch.tanh(self.cell[first + 1 : last + 1])
        self._first = first
        self._forget = f.clone().unbind(0)
        self._to_cell = aten.tanh_backward(o, tanh).unbind(0)
        aten.sigmoid_backward.grad_input(tanh, o, grad_input=o)
        aten.sigmoid_backward.grad_input(self.cell[first:last], f, grad_input=f)
        to_input = aten.sigmoid_backward(g, i)
        aten.tanh_backward.grad_input(i, g, grad_input=g)
        i.copy_(to_input)

    def backward(self, t: int, g_hidden: Tensor) -> None:
        """From the gradient of the state after step t to those of the gates' inputs and of the cell."""
        k = t - self._first
        self.g_cell.addcmul_(g_hidden, self._to_cell[k])
        self._g_inner[t].mul_(self._g_cell)
        self._g_o[t].mul_(g_hidden)
        self.g_cell.mul_(self._forget[k])

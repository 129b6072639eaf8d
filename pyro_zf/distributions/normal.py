"""A diagonal Gaussian parametrised by its log scales, with a fast density."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from pyro_zf.distributions.noise import standard_normal

__all__ = ["DiagonalNormal"]


class DiagonalNormal(dist.Independent):
    r""":math:`\mathcal N(\mu, \operatorname{diag} \sigma^2)`, given :math:`\mu` and :math:`\log \sigma`.

    It is equivalent to ``Normal(mean, log_scale.exp()).to_event(1)``, but its density is faster: it
    avoids converting between scales and log scales, and the sum over the event is part of the kernel.

    Args:
        mean: :math:`\mu`, (\*batch, size).
        log_scale: :math:`\log \sigma`, (\*batch, size).

    Example:
        >>> q = DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> q.batch_shape, q.event_shape
        (torch.Size([3]), torch.Size([2]))
        >>> q.log_prob(torch.zeros(2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    def __init__(
        self,
        mean: Float[Tensor, "*batch size"],
        log_scale: Float[Tensor, "*batch size"],
        validate_args: bool | None = None,
    ) -> None:
        self.log_scale = log_scale
        super().__init__(dist.Normal(mean, torch.exp(log_scale)), 1, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiagonalNormal:
        shape = torch.Size(batch_shape) + self.event_shape
        mean, log_scale = self.base_dist.loc.expand(shape), self.log_scale.expand(shape)
        return DiagonalNormal(mean, log_scale, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        mean, scale = self.base_dist.loc, self.base_dist.scale
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return mean + standard_normal(shape, mean) * scale

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inputs = torch.broadcast_tensors(value, self.base_dist.loc, self.log_scale)
        # Function transforms and forward-mode derivatives require plain operations.
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        return _log_prob(*inputs) if transformed else _LogProb.apply(*inputs)


def _log_prob(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    deviation = (value - mean) * torch.exp(-log_scale)
    constant = 0.5 * math.log(2 * math.pi)
    return -(0.5 * deviation.square() + log_scale + constant).sum(-1)


class _LogProb(torch.autograd.Function):
    """The log-density, summed over the last dimension."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        precision = torch.exp(-log_scale)
        deviation = (value - mean).mul_(precision)
        # A norm needs no memory for the squares, unlike squaring and summing.
        squares = torch.linalg.vector_norm(deviation, dim=-1).square_()
        ctx.save_for_backward(value, mean, log_scale, deviation, precision)
        constant = value.shape[-1] * 0.5 * math.log(2 * math.pi)
        return squares.mul_(-0.5).sub_(log_scale.sum(-1)).sub_(constant)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        value, mean, log_scale, deviation, precision = ctx.saved_tensors
        g = g.unsqueeze(-1)
        if torch.is_grad_enabled():  # for higher derivatives, use differentiable operations
            precision = torch.exp(-log_scale)
            deviation = (value - mean) * precision
            g_mean = g * deviation * precision
            return -g_mean, g_mean, g * (deviation.square() - 1)
        needs_value, needs_mean, needs_scale = ctx.needs_input_grad
        g_mean = (deviation * precision).mul_(g) if needs_value or needs_mean else None
        return (
            -g_mean if needs_value and g_mean is not None else None,
            g_mean if needs_mean else None,
            torch.square(deviation).sub_(1).mul_(g) if needs_scale else None,
        )

"""Distributions over the data that are not available in PyTorch or Pyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.nn import functional as F

__all__ = ["AutoregressiveNormal", "DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture(TorchDistribution):
    r"""A mixture of logistics, rounded to a grid (Salimans et al. 2017, eq. 1-2).

    :math:`P(y) = \sum_k \pi_k [S((y + w/2 - \mu_k)/s_k) - S((y - w/2 - \mu_k)/s_k)]`, where S is
    the logistic function and w the grid spacing; the first and the last level include the tails.

    Args:
        logits: logits of the components, (\*batch, components).
        mean: means of the components.
        scale: scales of the components.
        levels: number of values in the grid, at least 2.
        low, high: first and last value of the grid.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> coin = DiscretizedLogisticMixture(0 * one, 0.5 * one, one, levels=2)
        >>> coin.log_prob(torch.tensor(1.0)).exp().item()
        0.5
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        logits: Float[Tensor, "*batch components"],
        mean: Float[Tensor, "*batch components"],
        scale: Float[Tensor, "*batch components"],
        levels: int = 2,
        low: float = 0.0,
        high: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        if levels < 2 or not high > low:
            raise ValueError(f"no grid of {levels} levels from {low} to {high}")
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, mean, scale)
        self.levels, self.low, self.high = levels, low, high
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    @property
    def spacing(self) -> float:
        """Distance between adjacent levels."""
        return (self.high - self.low) / (self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        shape = torch.Size(batch_shape) + self.logits.shape[-1:]
        logits, loc, scale = (x.expand(shape) for x in (self.logits, self.loc, self.scale))
        return DiscretizedLogisticMixture(
            logits, loc, scale, self.levels, self.low, self.high, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.unsqueeze(-1)
        half = self.spacing / 2
        upper = (value + half - self.loc) / self.scale
        lower = (value - half - self.loc) / self.scale
        # log(S(u) - S(l)) = log S(u) + log S(-l) + log(1 - exp(l - u)), which is accurate in the tails.
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower)
        # spacing / scale is u - l without cancellation.
        inside = inside + torch.log(-torch.expm1(-self.spacing / self.scale))
        first = value <= self.low + half
        last = value >= self.high - half
        level = torch.where(first, F.logsigmoid(upper), inside)
        level = torch.where(last, F.logsigmoid(-lower), level)
        return torch.logsumexp(torch.log_softmax(self.logits, dim=-1) + level, dim=-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        index = Categorical(logits=self.logits).sample(torch.Size(sample_shape)).unsqueeze(-1)
        shape = index.shape[:-1] + self.logits.shape[-1:]
        mean = self.loc.expand(shape).gather(-1, index).squeeze(-1)
        scale = self.scale.expand(shape).gather(-1, index).squeeze(-1)
        u = torch.rand_like(mean).clamp(1e-7, 1 - 1e-7)
        value = mean + scale * (torch.log(u) - torch.log1p(-u))
        step = torch.round((value - self.low) / self.spacing).clamp(0, self.levels - 1)
        return self.low + self.spacing * step

    @property
    def mode(self) -> Tensor:
        """The most probable level."""
        best = self.loc.new_full(self.batch_shape, self.low)
        highest = self.log_prob(best)
        for level in range(1, self.levels):
            value = torch.full_like(best, self.low + self.spacing * level)
            log_prob = self.log_prob(value)
            better = log_prob > highest
            best, highest = torch.where(better, value, best), torch.maximum(log_prob, highest)
        return best

    @property
    def mean(self) -> Tensor:
        """Mean of the discretised distribution, computed by summing over the levels."""
        grid = torch.linspace(
            self.low, self.high, self.levels, device=self.loc.device, dtype=self.loc.dtype
        )
        total = torch.zeros_like(self.loc[..., 0])
        for value in grid:
            total = total + value * self.log_prob(value.expand(total.shape)).exp()
        return total


class AutoregressiveNormal(TorchDistribution):
    r""":math:`\prod_d \mathcal N(y_d; \mu_d(y_{<d}), \sigma_d(y_{<d})^2)`.

    Args:
        moments: maps y, (\*batch, size), to all means and scales; those of value d must depend only on
            the values before d.
        batch_shape: batch shape of the distribution.
        size: number of values.
        like: a tensor with the dtype and the device of the values.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        moments: Callable[[Tensor], tuple[Tensor, Tensor]],
        batch_shape: torch.Size,
        size: int,
        like: Tensor,
    ) -> None:
        self.moments, self._like = moments, like
        super().__init__(batch_shape, torch.Size((size,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveNormal:
        return AutoregressiveNormal(
            self.moments, torch.Size(batch_shape), self.event_shape[0], self._like
        )

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        mean, scale = self.moments(value.expand(shape))
        return torch.distributions.Normal(mean, scale).log_prob(value).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        y = self._like.new_zeros(*sample_shape, *self.batch_shape, *self.event_shape)
        noise = torch.randn_like(y)
        for d in range(self.event_shape[0]):
            mean, scale = self.moments(y)
            value = (mean + scale * noise)[..., d : d + 1]
            y = torch.cat([y[..., :d], value, y[..., d + 1 :]], dim=-1)
        return y

    @property
    def mode(self) -> Tensor:
        """The most probable value of each dimension in turn, given those before it.

        The most probable vector as a whole is not known.
        """
        y = self._like.new_zeros(*self.batch_shape, *self.event_shape)
        for d in range(self.event_shape[0]):
            y = torch.cat([y[..., :d], self.moments(y)[0][..., d:]], dim=-1)
        return y

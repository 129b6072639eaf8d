"""Distributions over the data that are not available in PyTorch or Pyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.nn import functional as F

__all__ = ["Autoregressive", "DiscretizedLogisticMixture"]


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


class Autoregressive(TorchDistribution):
    r""":math:`p(y) = \prod_d p(y_d \mid y_{<d})`.

    A density takes one evaluation of the conditional distributions, and a sample takes one per value.

    Args:
        conditionals: maps y, (\*batch, size), to the distribution of all values, with this batch shape and
            scalar events; the distribution of value d must depend only on the values before d.
        batch_shape: batch shape of the distribution.
        size: number of values.
        like: a tensor with the dtype and the device of the values.
        support: constraint on each value.

    Example:
        >>> def same_as_before(y):  # the first value is 0 or 1, and the others repeat it
        ...     before = torch.nn.functional.pad(y, (1, -1), value=0.5)
        ...     return torch.distributions.Bernoulli(before)
        >>> y = Autoregressive(same_as_before, torch.Size(), 3, torch.zeros(()), constraints.boolean)
        >>> y.log_prob(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])).exp().round(decimals=4)
        tensor([0.5000, 0.5000, 0.0000])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        conditionals: Callable[[Tensor], Distribution],
        batch_shape: torch.Size,
        size: int,
        like: Tensor,
        support: constraints.Constraint = constraints.real,
    ) -> None:
        self.conditionals, self._like, self._of_value = conditionals, like, support
        super().__init__(batch_shape, torch.Size((size,)), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(self._of_value, 1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples have gradients."""
        return not self._of_value.is_discrete

    def expand(self, batch_shape: Any, _instance: Any = None) -> Autoregressive:
        return self.with_conditionals(self.conditionals, torch.Size(batch_shape))

    def with_conditionals(
        self, conditionals: Callable[[Tensor], Distribution], batch_shape: torch.Size | None = None
    ) -> Autoregressive:
        """The distribution of the same values with other conditional distributions."""
        batch_shape = self.batch_shape if batch_shape is None else batch_shape
        return Autoregressive(
            conditionals, batch_shape, self.event_shape[0], self._like, self._of_value
        )

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        value = value.expand(shape)
        return self.conditionals(value).log_prob(value).sum(-1)

    def in_turn(self, choose: Callable[[Distribution], Tensor], sample_shape: Any = ()) -> Tensor:
        """Choose the values one after the other, each from its distribution given the preceding values.

        Args:
            choose: maps conditional distributions to values.
            sample_shape: shape in front of the batch shape.
        """
        y = self._like.new_zeros(*sample_shape, *self.batch_shape, *self.event_shape)
        for d in range(self.event_shape[0]):
            chosen = choose(self.conditionals(y))
            y = torch.cat([y[..., :d], chosen[..., d : d + 1], y[..., d + 1 :]], dim=-1)
        return y

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.in_turn(lambda conditional: conditional.sample(), sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.in_turn(lambda conditional: conditional.rsample(), sample_shape)

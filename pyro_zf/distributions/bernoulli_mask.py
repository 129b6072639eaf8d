"""A Bernoulli mask over the steps of a sequence."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_zf.distributions.noise import uniform

__all__ = ["BernoulliMask"]


class BernoulliMask(TorchDistribution):
    """A random mask over steps that does not contribute to any density: its log-probability is zero.

    As a sample site, the mask can be set or replayed by a handler without contributing to a bound.

    Args:
        probability: probability of True.
        num_steps: T, the size of the event.
        per_step: whether to draw each step independently instead of one value for all steps.
        like: a tensor whose device and precision are used.
        batch_shape: batch shape of the distribution.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.boolean, 1)
    # There is no density to differentiate, so objectives for reparametrised guides can accept it.
    has_rsample = True

    def __init__(
        self,
        probability: float,
        num_steps: int,
        per_step: bool,
        like: Tensor,
        batch_shape: torch.Size | tuple[int, ...] = (),
    ) -> None:
        self.arguments = (probability, num_steps, per_step, like)
        super().__init__(torch.Size(batch_shape), torch.Size((num_steps,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BernoulliMask:
        return BernoulliMask(*self.arguments, batch_shape=torch.Size(batch_shape))

    @torch.no_grad()
    def rsample(self, sample_shape: Any = ()) -> Bool[Tensor, "..."]:
        probability, num_steps, per_step, like = self.arguments
        shape = (*sample_shape, *self.batch_shape)
        if probability >= 1:  # consume no random numbers
            return torch.ones(*shape, num_steps, dtype=torch.bool, device=like.device)
        numbers = torch.empty(0, device=like.device)  # of the default precision
        drawn = uniform((*shape, num_steps if per_step else 1), numbers)
        return (drawn < probability).expand(*shape, num_steps)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.arguments[-1].new_zeros(self.batch_shape)


@register_kl(BernoulliMask, BernoulliMask)  # type: ignore[untyped-decorator]
def _no_kl(q: BernoulliMask, p: BernoulliMask) -> Tensor:
    return q.arguments[-1].new_zeros(q.batch_shape)

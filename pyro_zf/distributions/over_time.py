"""Independent steps as one distribution whose event is the sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_zf.batch import masked
from pyro_zf.distributions.chunks import by_chunks

__all__ = ["ChunkedEmission", "OverTime", "over_steps"]


class OverTime(TorchDistribution):
    """Reinterprets the first batch dimension of a distribution, time, as part of the event.

    Args:
        steps: a distribution with batch shape ``(time, *batch)``.
        mask: True on the steps of each sequence, (batch, time).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, steps: TorchDistributionMixin, mask: Bool[Tensor, "batch time"] | None = None
    ) -> None:
        self.steps = steps
        self.step_mask = None if mask is None else mask.transpose(0, 1)
        num_steps, *batch_shape = steps.batch_shape
        event_shape = torch.Size((num_steps, *steps.event_shape))
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.steps.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.steps.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OverTime:
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        copy = OverTime.__new__(OverTime)
        copy.__dict__.update(self.__dict__)
        # In the steps, new dimensions stay to the left of time, where broadcasting puts them.
        kept = batch_shape[len(batch_shape) - self._num_batch_dims :]
        copy.steps = self.steps.expand(torch.Size((self.event_shape[0], *kept)))
        copy._batch_shape = batch_shape
        return copy

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._draw(self.steps.rsample, sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._draw(self.steps.sample, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return over_steps(self.log_prob_per_step(value), self.batch_shape)

    def conditionals(self, value: Tensor) -> TorchDistributionMixin:
        """The distribution of each step, time first; here the steps are independent."""
        return self.steps

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        """Log-probability of each step in nats, time first; zero past the end of a sequence."""
        log_prob = self.steps.log_prob(self._time_first(value))
        return masked(log_prob.movedim(-1 - self._num_batch_dims, 0), self.step_mask)

    def _time_first(self, value: Tensor) -> Tensor:
        """Move time to its position in the steps, and add dimensions of size one for missing particles."""
        missing = self._num_batch_dims + len(self.event_shape) - value.dim()
        value = value.reshape(*(1,) * missing, *value.shape)
        return value.movedim(self._time_in_value, self._time_in_steps)

    @property
    def _num_batch_dims(self) -> int:
        return len(self.steps.batch_shape) - 1

    @property
    def _time_in_value(self) -> int:
        return -1 - self.steps.event_dim

    @property
    def _time_in_steps(self) -> int:
        return self._time_in_value - self._num_batch_dims

    def _draw(self, draw: Callable[[torch.Size], Tensor], sample_shape: Any) -> Tensor:
        left = self.batch_shape[: len(self.batch_shape) - self._num_batch_dims]
        value = draw(torch.Size(sample_shape) + left)
        return value.movedim(self._time_in_steps, self._time_in_value)


class ChunkedEmission(OverTime):
    r""":math:`\prod_t p(y_t \mid h_t)`, with event shape (T, ...), scored a few steps at a time.

    Args:
        emission: maps features to a distribution.
        features: input of the emission at each step, (time, \*batch, features).
        mask: True on the steps of each sequence, (batch, time).
        time_chunk: number of steps at a time.
    """

    def __init__(
        self,
        emission: nn.Module,
        features: Float[Tensor, "time *batch features"],
        mask: Bool[Tensor, "batch time"] | None,
        time_chunk: int,
    ) -> None:
        # One step determines the batch shape, event shape and support of all steps.
        one = emission(features[:1])
        super().__init__(one.expand(torch.Size((len(features), *one.batch_shape[1:]))), mask)
        self.emission, self.features, self.time_chunk = emission, features, time_chunk

    def expand(self, batch_shape: Any, _instance: Any = None) -> OverTime:
        same = torch.Size(batch_shape) == self.batch_shape
        return self if same else self._whole().expand(batch_shape)

    def conditionals(self, value: Tensor) -> TorchDistributionMixin:
        return self._whole().steps

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        if value.dim() > len(self.batch_shape) + len(self.event_shape):  # several draws
            return self._whole().log_prob_per_step(value)
        per_step = by_chunks(
            lambda y, features: self.emission(features).log_prob(y),
            (self._time_first(value), self.features),
            self.time_chunk,
        )
        return masked(per_step, self.step_mask)

    def _draw(self, draw: Callable[[torch.Size], Tensor], sample_shape: Any) -> Tensor:
        whole = self._whole()
        return whole._draw(getattr(whole.steps, draw.__name__), sample_shape)

    def _whole(self) -> OverTime:
        mask = None if self.step_mask is None else self.step_mask.transpose(0, 1)
        return OverTime(self.emission(self.features), mask)


def over_steps(per_step: Tensor, batch_shape: torch.Size) -> Tensor:
    """Sum over time, the first dimension, and expand over particles that the value does not have."""
    total = per_step.sum(0)
    return total.expand(torch.broadcast_shapes(total.shape, batch_shape))

"""A distribution whose samples are the mean of another distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["AtMean"]


class AtMean(dist.Normal):
    """Always samples its mean. The density is that of a unit Gaussian, so that two of them can be compared.

    Example:
        >>> AtMean.of(dist.Normal(torch.ones(3, 2), 5.0).to_event(1)).sample()
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """

    @staticmethod
    def of(distribution: Any) -> dist.Independent:
        """A distribution over vectors that always returns the mean of ``distribution``.

        Raises:
            ValueError: if the mean is not available.
        """
        try:
            mean = distribution.mean
        except NotImplementedError as error:
            raise ValueError(f"the mean of {type(distribution).__name__} is not known") from error
        return AtMean(mean, 1.0, validate_args=False).to_event(1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AtMean:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return AtMean(loc, scale, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc.expand(torch.Size(sample_shape) + self.loc.shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()

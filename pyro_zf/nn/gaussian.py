"""Heads that turn the output of a network into diagonal Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from pyro_zf.distributions.normal import DiagonalNormal
from pyro_zf.nn.mlp import MLP

__all__ = ["GaussianForm", "GaussianHead", "GaussianMixtureHead"]


@dataclass(frozen=True)
class GaussianForm:
    r"""The map from a network's output to a mean and a log scale.

    The paper interprets the output as :math:`[\mu, \log \sigma]` and mentions no bounds. The default
    bounds on :math:`\log \sigma` are wide enough to have no effect in ordinary training; they keep one
    bad update from turning every number into NaN.

    Args:
        scale: meaning of the second half, ``"log-scale"`` (paper) or ``"log-variance"``.
        clamp: bound on the whole output, means included, applied first; or None.
        log_scale_limits: bounds on :math:`\log \sigma`, or None.
        mean: ``"identity"`` or ``"tanh"``, applied to the first half.
    """

    scale: Literal["log-scale", "log-variance"] = "log-scale"
    clamp: float | None = None
    log_scale_limits: tuple[float, float] | None = (-7.0, 7.0)
    mean: Literal["identity", "tanh"] = "identity"

    def split(
        self, output: Float[Tensor, "*batch two_size"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        r""":math:`\mu` and :math:`\log \sigma`."""
        if self.clamp is not None:
            output = hardtanh(output, -self.clamp, self.clamp)
        mean, log_scale = output.chunk(2, dim=-1)
        if self.mean == "tanh":
            mean = mean.tanh()
        if self.scale == "log-variance":
            log_scale = log_scale / 2
        if self.log_scale_limits is not None:
            # Equivalent to a clamp, but its backward takes one kernel instead of four.
            log_scale = hardtanh(log_scale, *self.log_scale_limits)
        return mean, log_scale


class GaussianHead(nn.Module):
    r"""A network that outputs :math:`\mathcal N(\mu, \operatorname{diag} \sigma^2)`.

    Args:
        network: maps features to an output of twice the size of the Gaussian.
        form: parametrisation of the Gaussian.
    """

    def __init__(self, network: nn.Module, form: GaussianForm | None = None) -> None:
        super().__init__()
        self.network = network
        self.form = form or GaussianForm()

    @property
    def size(self) -> int:
        """Size of the Gaussian."""
        last = self.network[-1] if isinstance(self.network, nn.Sequential) else self.network
        assert isinstance(last, nn.Linear)
        return last.out_features // 2

    def moments(
        self, features: Float[Tensor, "*batch features"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        r""":math:`\mu` and :math:`\log \sigma`, in the precision of the features."""
        return self.form.split(self.network(features).to(features.dtype))

    def forward(self, features: Float[Tensor, "*batch features"]) -> TorchDistributionMixin:
        return DiagonalNormal(*self.moments(features))

    def extra_repr(self) -> str:
        return str(self.form)


class GaussianMixtureHead(nn.Module):
    r"""A network that outputs :math:`\sum_k \pi_k \mathcal N(\mu_k, \operatorname{diag} \sigma_k^2)`.

    Args:
        in_size: size of the features.
        size: size of the Gaussians.
        components: number of Gaussians.
        mlp_size, depth, activation: see :class:`~pyro_zf.nn.MLP`.
        form: parametrisation of the Gaussians.

    Raises:
        ValueError: if ``components`` is below one.
    """

    def __init__(
        self,
        in_size: int,
        size: int,
        components: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture needs at least one component, not {components}")
        self.size = size
        self.components = components
        self.form = form or GaussianForm()
        outputs = components * (1 + 2 * size)
        self.network = MLP(in_size, mlp_size, outputs, depth, activation, dropout)

    def forward(self, features: Float[Tensor, "*batch features"]) -> TorchDistributionMixin:
        output = self.network(features).to(features.dtype)
        logits, gaussians = output.split([self.components, 2 * self.components * self.size], -1)
        gaussians = gaussians.reshape(*features.shape[:-1], self.components, 2 * self.size)
        mean, log_scale = self.form.split(gaussians)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits), dist.Normal(mean, torch.exp(log_scale)).to_event(1)
        )

    def extra_repr(self) -> str:
        return f"components={self.components}, {self.form}"

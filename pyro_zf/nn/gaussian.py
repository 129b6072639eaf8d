"""How the output of a network becomes a diagonal Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

__all__ = ["GaussianForm", "GaussianHead"]


@dataclass(frozen=True)
class GaussianForm:
    r"""The map from a network's output to a mean and a log scale.

    The paper takes the output for :math:`[\mu, \log \sigma]` and mentions no bound. The bound on
    :math:`\log \sigma` here is wide enough never to act in ordinary training; it keeps one bad
    update from turning every number into NaN.

    Args:
        scale: what the second half is, ``"log-scale"`` (paper) or ``"log-variance"``.
        clamp: bound on the whole output, means included, before anything else.
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
            output = output.clamp(-self.clamp, self.clamp)
        mean, log_scale = output.chunk(2, dim=-1)
        if self.mean == "tanh":
            mean = mean.tanh()
        if self.scale == "log-variance":
            log_scale = log_scale / 2
        if self.log_scale_limits is not None:
            log_scale = log_scale.clamp(*self.log_scale_limits)
        return mean, log_scale


class GaussianHead(nn.Module):
    r"""A network that gives :math:`\mathcal N(\mu, \operatorname{diag} \sigma^2)`.

    Args:
        network: maps features to twice the size of the Gaussian.
        form: how its output is read.
    """

    def __init__(self, network: nn.Module, form: GaussianForm | None = None) -> None:
        super().__init__()
        self.network = network
        self.form = form or GaussianForm()

    def moments(
        self, features: Float[Tensor, "*batch features"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        r""":math:`\mu` and :math:`\log \sigma`, in the precision of the features."""
        return self.form.split(self.network(features).to(features.dtype))

    def forward(self, features: Float[Tensor, "*batch features"]) -> TorchDistributionMixin:
        mean, log_scale = self.moments(features)
        return dist.Normal(mean, torch.exp(log_scale)).to_event(1)

    def extra_repr(self) -> str:
        return str(self.form)

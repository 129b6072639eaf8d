r"""Priors: modules whose forward maps :math:`h_{t-1}` to a distribution over :math:`z_t`."""

from __future__ import annotations

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import MLP

__all__ = ["GaussianPrior", "StandardNormalPrior"]


class GaussianPrior(GaussianHead):
    r""":math:`p(z_t \mid h_{t-1}) = \mathcal N(f^{(p)}(h_{t-1}))` (Goyal et al. 2017, eq. 5).

    Example:
        >>> import torch
        >>> GaussianPrior(8, 2)(torch.zeros(5, 8)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        hidden_size: int,
        latent_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__(MLP(hidden_size, mlp_size, 2 * latent_size, depth, activation), form)


class StandardNormalPrior(nn.Module):
    r""":math:`p(z_t) = \mathcal N(0, I)`, whatever came before."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        zero = h.new_zeros(*h.shape[:-1], self.latent_size)
        return dist.Normal(zero, 1.0).to_event(1)

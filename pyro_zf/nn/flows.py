"""Normalising flows over a latent, conditioned on features."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.transforms import ConditionalAffineCoupling, Permute
from pyro.nn import ConditionalDenseNN
from torch import Tensor, nn

from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import activation_of

__all__ = ["FlowHead"]


class FlowHead(nn.Module):
    r"""A Gaussian transformed by affine couplings, all conditioned on features.

    :math:`z = f_L(\dots f_1(x)), x \sim \mathcal N(\mu, \operatorname{diag} \sigma^2)`, where each
    :math:`f_l` scales and shifts one half of its input by a function of the other half and of the
    features (Dinh et al. 2017, https://arxiv.org/abs/1605.08803). Drawing a sample and evaluating the
    density of any value each take one pass.

    Args:
        in_size: size of the features.
        latent_size: size of z, at least 2.
        mlp_size: width of the hidden layers.
        depth: number of hidden layers between the features and the Gaussian and couplings.
        activation: a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        form: parametrisation of the Gaussian, see :class:`~pyro_zf.nn.GaussianForm`.
        num_couplings: number of couplings; two let every value depend on every other.

    Raises:
        ValueError: if ``latent_size`` is below 2, since z cannot be split into halves.
    """

    def __init__(
        self,
        in_size: int,
        latent_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
        num_couplings: int = 2,
    ) -> None:
        super().__init__()
        if latent_size < 2:
            raise ValueError(f"a flow needs a latent of size 2 or more, not {latent_size}")
        make_activation = activation_of(activation)
        self.features = nn.Sequential()
        for _ in range(depth):
            self.features.extend([nn.Linear(in_size, mlp_size), make_activation()])
            in_size = mlp_size
        self.head = GaussianHead(nn.Linear(in_size, 2 * latent_size), form)
        kept = latent_size // 2
        sizes = [latent_size - kept, latent_size - kept]
        self.couplings: Any = nn.ModuleList(
            ConditionalAffineCoupling(
                kept, ConditionalDenseNN(kept, in_size, [mlp_size], sizes, nn.Tanh())
            )
            for _ in range(num_couplings)
        )
        self.register_buffer("order", torch.arange(latent_size).flip(0), persistent=False)

    def forward(self, features: Float[Tensor, "*batch features"]) -> TorchDistributionMixin:
        context = self.features(features).to(features.dtype)
        transforms = []
        for coupling in self.couplings:
            # Reverse the order after each coupling, so that the next one transforms the other half.
            transforms += [coupling.condition(context), Permute(self.get_buffer("order"))]
        return dist.TransformedDistribution(self.head(context), transforms)

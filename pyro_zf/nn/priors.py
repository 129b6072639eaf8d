r"""Priors: modules whose forward maps :math:`h_{t-1}` to a distribution over :math:`z_t`."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf.names import there_are
from pyro_zf.nn.flows import FlowHead
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead, GaussianMixtureHead
from pyro_zf.nn.mlp import MLP

__all__ = [
    "PRIORS",
    "FlowPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "StandardNormalPrior",
    "build_prior",
]


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
    r""":math:`p(z_t) = \mathcal N(0, I)`, independent of the past."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Normal(self.moments(h)[0], 1.0).to_event(1)

    def moments(
        self, h: Float[Tensor, "*batch hidden"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        r""":math:`\mu = 0` and :math:`\log \sigma = 0`."""
        zero = h.new_zeros(*h.shape[:-1], self.latent_size)
        return zero, zero


class GaussianMixturePrior(GaussianMixtureHead):
    r""":math:`p(z_t \mid h_{t-1}) = \sum_k \pi_k \mathcal N(z_t; \mu_k, \operatorname{diag} \sigma_k^2)`.

    Weights, means and scales are functions of the state. The KL has no closed form and is estimated by
    sampling.

    Args:
        hidden_size: size of the state.
        latent_size: size of z.
        mlp_size, depth, activation: see :class:`~pyro_zf.nn.MLP`.
        form: parametrisation of the Gaussians, see :class:`~pyro_zf.nn.GaussianForm`.
        components: number of Gaussians.
    """

    def __init__(
        self,
        hidden_size: int,
        latent_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
        components: int = 5,
    ) -> None:
        super().__init__(hidden_size, latent_size, components, mlp_size, depth, activation, form)


class FlowPrior(FlowHead):
    r""":math:`p(z_t \mid h_{t-1})`, a normalising flow; see :class:`~pyro_zf.nn.FlowHead`.

    Its KL has no closed form and is estimated by sampling.
    """


def _standard_normal(hidden_size: int, latent_size: int, **options: object) -> StandardNormalPrior:
    return StandardNormalPrior(latent_size)


#: Priors by name. Each is a function of (size of the input, size of z, \*\*options of the hidden layers).
#: Add an entry to register your own.
PRIORS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": GaussianPrior,
    "standard-normal": _standard_normal,
    "mixture": GaussianMixturePrior,
    "flow": FlowPrior,
}


def build_prior(name: str, hidden_size: int, latent_size: int, **options: object) -> nn.Module:
    """Build a prior from :data:`PRIORS`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in PRIORS:
        raise ValueError(f"prior {there_are(name, sorted(PRIORS))}")
    return PRIORS[name](hidden_size, latent_size, **options)

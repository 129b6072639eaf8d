r"""Emissions: modules whose forward maps :math:`h_t` to a distribution over :math:`y_t`."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import MLP

__all__ = [
    "EMISSIONS",
    "BernoulliEmission",
    "CategoricalEmission",
    "GaussianEmission",
    "build_emission",
]


class _LogitEmission(nn.Module):
    """A network whose output are logits."""

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
    ) -> None:
        super().__init__()
        self.network = MLP(in_size, mlp_size, data_size, depth, activation)

    def logits(self, h: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch data"]:
        """In the precision of the state."""
        return self.network(h).to(h.dtype)


class BernoulliEmission(_LogitEmission):
    r""":math:`p(y_t \mid h_t) = \prod_d \operatorname{Bernoulli}(y_{t,d}; f^{(o)}(h_t)_d)`.

    Args:
        in_size: size of the state.
        data_size: number of bits a step.
        mlp_size, depth, activation: of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
    """

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=self.logits(h)).to_event(1)


class CategoricalEmission(_LogitEmission):
    r""":math:`p(y_t \mid h_t) = \operatorname{Categorical}(\operatorname{softmax} f^{(o)}(h_t))`.

    Args:
        in_size: size of the state.
        data_size: number of symbols; :math:`y_t` is the index of one.
        mlp_size, depth, activation: of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
    """

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Categorical(logits=self.logits(h))


class GaussianEmission(GaussianHead):
    r""":math:`p(y_t \mid h_t) = \mathcal N(f^{(o)}(h_t))`, diagonal.

    Args:
        in_size: size of the state.
        data_size: number of values a step.
        mlp_size, depth, activation: of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
        form: how the output is read, see :class:`~pyro_zf.nn.GaussianForm`.
    """

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__(MLP(in_size, mlp_size, 2 * data_size, depth, activation), form)


#: Emissions by name. Add an entry to have your own by name.
EMISSIONS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": BernoulliEmission,
    "gaussian": GaussianEmission,
    "categorical": CategoricalEmission,
}


def build_emission(name: str, in_size: int, data_size: int, **options: object) -> nn.Module:
    """An emission from :data:`EMISSIONS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in EMISSIONS:
        raise ValueError(f"unknown emission {name!r}; there are {sorted(EMISSIONS)}")
    return EMISSIONS[name](in_size, data_size, **options)

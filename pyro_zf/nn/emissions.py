r"""Emissions: modules whose forward maps :math:`h_t` to a distribution over :math:`y_t`.

A class attribute ``kinds`` names the data that it is a density of: ``"binary"``, ``"categorical"``
(symbols), ``"real"``. Without it, anything goes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyro_zf.distributions.data import AutoregressiveNormal, DiscretizedLogisticMixture
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead, GaussianMixtureHead
from pyro_zf.nn.mlp import ACTIVATIONS, MLP, declared

__all__ = [
    "EMISSIONS",
    "AutoregressiveGaussianEmission",
    "BernoulliEmission",
    "CategoricalEmission",
    "GaussianEmission",
    "GaussianMixtureEmission",
    "LogisticMixtureEmission",
    "emits_symbols",
    "make_emission",
    "named_emission",
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

    kinds: ClassVar[tuple[str, ...]] = ("binary",)

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=self.logits(h)).to_event(1)


class CategoricalEmission(_LogitEmission):
    r""":math:`p(y_t \mid h_t) = \operatorname{Categorical}(\operatorname{softmax} f^{(o)}(h_t))`.

    Args:
        in_size: size of the state.
        data_size: number of symbols; :math:`y_t` is the index of one.
        mlp_size, depth, activation: of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("categorical",)

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

    kinds: ClassVar[tuple[str, ...]] = ("real",)

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


class GaussianMixtureEmission(GaussianMixtureHead):
    r""":math:`p(y_t \mid h_t) = \sum_k \pi_k \mathcal N(y_t; \mu_k, \operatorname{diag} \sigma_k^2)`.

    One mixture for the whole frame, as in Chung et al. 2015 (https://arxiv.org/abs/1506.02216),
    section 4, who have 20 components.

    Args:
        in_size: size of the state.
        data_size: number of values a step.
        mlp_size, depth, activation: of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
        form: how the Gaussians are read, see :class:`~pyro_zf.nn.GaussianForm`.
        components: number of Gaussians.
    """

    kinds: ClassVar[tuple[str, ...]] = ("real",)

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
        components: int = 20,
    ) -> None:
        super().__init__(in_size, data_size, components, mlp_size, depth, activation, form)


class LogisticMixtureEmission(nn.Module):
    r"""Each value has a mixture of logistic distributions, discretised to the levels of the data.

    Salimans et al. 2017 (https://arxiv.org/abs/1701.05517), section 2.1, values independent given
    the state. A probability of each level, not a density: on data with ``levels`` levels its nats
    compare with those of a categorical emission, not with those of a Gaussian.

    Args:
        in_size: size of the state.
        data_size: number of values a step.
        mlp_size, depth, activation: of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
        components: logistics of each value.
        levels, low, high: the grid: ``levels`` equidistant values from ``low`` to ``high``. The
            default is that of bits; 8-bit sound in [-1, 1] is ``levels=256, low=-1.0``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("binary", "real")

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        components: int = 5,
        levels: int = 2,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = (data_size, 3 * components)
        self.grid = (levels, low, high)
        self.network = MLP(in_size, mlp_size, data_size * 3 * components, depth, activation)

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        output = self.network(h).to(h.dtype).reshape(*h.shape[:-1], *self.shape)
        logits, mean, log_scale = output.chunk(3, dim=-1)
        levels, low, high = self.grid
        # From the middle of the range, in units of it, so that a fresh network covers the data.
        width = high - low
        mean = low + width * (0.5 + 0.5 * mean)
        log_scale = log_scale.clamp(-7.0, 7.0)
        scale = 0.25 * width * torch.exp(log_scale)
        return DiscretizedLogisticMixture(logits, mean, scale, levels, low, high).to_event(1)

    def extra_repr(self) -> str:
        levels, low, high = self.grid
        return f"components={self.shape[1] // 3}, levels={levels}, low={low:g}, high={high:g}"


class AutoregressiveGaussianEmission(nn.Module):
    r""":math:`p(y_t \mid h_t) = \prod_d \mathcal N(y_{t,d}; f^{(o)}(y_{t,<d}, h_t))`.

    Within the frame, each value is predicted from those before it. Dai et al. 2019
    (https://arxiv.org/abs/1902.01388) found that a deterministic RNN with such an output does as
    well on speech as models with latents whose output factorises: compare with it before a gain is
    put down to latents. The network is a MADE (Germain et al. 2015), so that a density takes one
    pass and a sample one pass a value.

    Args:
        in_size: size of the state.
        data_size: number of values a step.
        mlp_size: units of each hidden layer, raised to ``data_size`` where it is below.
        depth: hidden layers; at least 1.
        activation: a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        form: how the output is read, see :class:`~pyro_zf.nn.GaussianForm`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("real",)

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__()
        self.form = form or GaussianForm()
        self.data_size = data_size
        self.network: nn.Module
        if data_size == 1:  # nothing to condition on
            self.network = MLP(in_size, mlp_size, 2, depth, activation)
        else:
            self.network = ConditionalAutoRegressiveNN(
                data_size,
                in_size,
                [max(mlp_size, data_size)] * max(depth, 1),
                param_dims=[1, 1],
                permutation=torch.arange(data_size),  # type: ignore[arg-type]
                # The hidden units that see no value at all are few; the first value needs the state.
                skip_connections=True,
                nonlinearity=ACTIVATIONS[activation](),
            )

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        def moments(y: Tensor) -> tuple[Tensor, Tensor]:
            if self.data_size == 1:
                output = self.network(h).to(h.dtype)
            else:
                output = torch.cat([x.to(h.dtype) for x in self.network(y, h)], dim=-1)
            mean, log_scale = self.form.split(output)
            return mean, torch.exp(log_scale)

        return AutoregressiveNormal(moments, h.shape[:-1], self.data_size, h)

    def extra_repr(self) -> str:
        return str(self.form)


#: Emissions by name: functions of (size of the state, values a step, \*\*options of the hidden
#: layers). Add an entry to have your own by name.
EMISSIONS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": BernoulliEmission,
    "categorical": CategoricalEmission,
    "gaussian": GaussianEmission,
    "gaussian-mixture": GaussianMixtureEmission,
    "logistic-mixture": LogisticMixtureEmission,
    "autoregressive-gaussian": AutoregressiveGaussianEmission,
}


def named_emission(name: str) -> Callable[..., nn.Module]:
    """The entry of :data:`EMISSIONS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in EMISSIONS:
        raise ValueError(f"unknown emission {name!r}; there are {sorted(EMISSIONS)}")
    return EMISSIONS[name]


def make_emission(name: str, in_size: int, data_size: int, **options: Any) -> nn.Module:
    """An emission from :data:`EMISSIONS`; ``form`` goes to those that have Gaussians.

    Raises:
        ValueError: if there is none of that name.
    """
    emission = named_emission(name)
    if "form" not in inspect.signature(emission).parameters:
        options.pop("form", None)
    return emission(in_size, data_size, **options)


def emits_symbols(emission: object) -> bool:
    """Whether the data of an emission are symbols, which need an embedding."""
    return declared(emission, "kinds", None) == ("categorical",)

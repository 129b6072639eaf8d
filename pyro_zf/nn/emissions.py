r"""Emissions: modules whose forward maps :math:`h_t` to a distribution over :math:`y_t`.

A class attribute ``kinds`` lists the kinds of data that an emission supports: ``"binary"``,
``"categorical"`` (symbols), ``"counts"``, ``"real"``. An emission without it accepts any data.

An emission whose attribute ``reads_input`` is True receives :math:`u_t` in front of the state, and its constructor the
argument ``input_size``. This is 0, and only the state is passed, where :math:`u_t` does not consist of values of the
data: where a layer or a recurrent network reads the data, and for symbols and counts.
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
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from pyro_zf.distributions.data import Autoregressive, DiscretizedLogisticMixture
from pyro_zf.names import there_are
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead, GaussianMixtureHead
from pyro_zf.nn.mlp import MLP, Dropout, activation_of, declared, join

__all__ = [
    "EMISSIONS",
    "AutoregressiveBernoulliEmission",
    "AutoregressiveGaussianEmission",
    "BernoulliEmission",
    "BetaBinomialEmission",
    "CategoricalEmission",
    "ConvolutionalBernoulliEmission",
    "GaussianEmission",
    "GaussianMixtureEmission",
    "LogisticMixtureEmission",
    "NegativeBinomialEmission",
    "PoissonEmission",
    "emits_counts",
    "emits_symbols",
    "make_emission",
    "named_emission",
    "reads_input",
]


#: Bound on the logarithms that parametrise distributions of counts.
LARGEST = 15.0


class _LogitEmission(nn.Module):
    """A network whose outputs are logits, by default one for each value."""

    outputs: ClassVar[int] = 1

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = MLP(in_size, mlp_size, self.outputs * data_size, depth, activation, dropout)

    def logits(self, h: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch data"]:
        """The logits, in the precision of the state."""
        return self.network(h).to(h.dtype)


class _CountEmission(_LogitEmission):
    """A network whose outputs, bounded logits or logarithms, parametrise a distribution of counts."""

    kinds: ClassVar[tuple[str, ...]] = ("counts",)

    def bounded(self, h: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch parameters"]:
        """The outputs, bounded to -15..15."""
        return self.logits(h).clamp(-LARGEST, LARGEST)


class BernoulliEmission(_LogitEmission):
    r""":math:`p(y_t \mid h_t) = \prod_d \operatorname{Bernoulli}(y_{t,d}; f^{(o)}(h_t)_d)`.

    Args:
        in_size: size of the state.
        data_size: number of bits per step.
        mlp_size, depth, activation, dropout: options of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("binary",)

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=self.logits(h)).to_event(1)


class CategoricalEmission(_LogitEmission):
    r""":math:`p(y_t \mid h_t) = \operatorname{Categorical}(\operatorname{softmax} f^{(o)}(h_t))`.

    Args:
        in_size: size of the state.
        data_size: number of symbols; :math:`y_t` is the index of one.
        mlp_size, depth, activation, dropout: options of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("categorical",)

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Categorical(logits=self.logits(h))


class GaussianEmission(GaussianHead):
    r""":math:`p(y_t \mid h_t) = \mathcal N(f^{(o)}(h_t))`, with diagonal covariance.

    Args:
        in_size: size of the state.
        data_size: number of values per step.
        mlp_size, depth, activation, dropout: options of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
        form: parametrisation of the Gaussian, see :class:`~pyro_zf.nn.GaussianForm`.
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
        dropout: float = 0.0,
    ) -> None:
        super().__init__(MLP(in_size, mlp_size, 2 * data_size, depth, activation, dropout), form)


class GaussianMixtureEmission(GaussianMixtureHead):
    r""":math:`p(y_t \mid h_t) = \sum_k \pi_k \mathcal N(y_t; \mu_k, \operatorname{diag} \sigma_k^2)`.

    One mixture models the whole frame, as in Chung et al. 2015
    (https://arxiv.org/abs/1506.02216), section 4, who use 20 components.

    Args:
        in_size: size of the state.
        data_size: number of values per step.
        mlp_size, depth, activation, dropout: options of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
        form: parametrisation of the Gaussians, see :class:`~pyro_zf.nn.GaussianForm`.
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
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_size, data_size, components, mlp_size, depth, activation, form, dropout)


class LogisticMixtureEmission(nn.Module):
    r"""A mixture of logistic distributions for each value, discretised to the levels of the data.

    It follows Salimans et al. 2017 (https://arxiv.org/abs/1701.05517), section 2.1, with values that
    are independent given the state. It gives probabilities of levels rather than a density: on data with
    ``levels`` levels, its nats are comparable to those of a categorical emission but not of a Gaussian.

    Args:
        in_size: size of the state.
        data_size: number of values per step.
        mlp_size, depth, activation, dropout: options of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`.
        components: number of logistic distributions for each value.
        levels, low, high: the grid of ``levels`` equidistant values from ``low`` to ``high``. The
            default is for binary data; ``levels=256, low=-1.0`` is for 8-bit audio in [-1, 1]. Data on such a
            grid need a module that was constructed with it, since the data sets of real values are normalised.
    """

    kinds: tuple[str, ...] = ("binary",)

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
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = (data_size, 3 * components)
        self.grid = (levels, low, high)
        if self.grid != (2, 0.0, 1.0):
            self.kinds = ("real",)
        outputs = data_size * 3 * components
        self.network = MLP(in_size, mlp_size, outputs, depth, activation, dropout)

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        output = self.network(h).to(h.dtype).reshape(*h.shape[:-1], *self.shape)
        logits, mean, log_scale = output.chunk(3, dim=-1)
        levels, low, high = self.grid
        # Relative to the middle and the width of the range, so that an untrained network covers the data.
        width = high - low
        mean = low + width * (0.5 + 0.5 * mean)
        log_scale = log_scale.clamp(-7.0, 7.0)
        scale = 0.25 * width * torch.exp(log_scale)
        return DiscretizedLogisticMixture(logits, mean, scale, levels, low, high).to_event(1)

    def extra_repr(self) -> str:
        levels, low, high = self.grid
        return f"components={self.shape[1] // 3}, levels={levels}, low={low:g}, high={high:g}"


class _AutoregressiveEmission(nn.Module):
    """A masked network (MADE, Germain et al. 2015) that predicts the values of a step one after the other.

    Each value is predicted from the values before it and from a hidden layer on the state. A density takes one
    pass through the network, and a sample takes one pass per value.
    """

    outputs: ClassVar[int] = 1
    support: ClassVar[constraints.Constraint] = constraints.real

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(
                f"an autoregressive emission needs at least one hidden layer, not {depth}"
            )
        self.data_size = data_size
        if data_size == 1:  # nothing to condition on
            self.features: nn.Module = MLP(
                in_size, mlp_size, self.outputs, depth, activation, dropout
            )
            return
        width = max(mlp_size, data_size)
        drop, make_activation = Dropout(dropout), activation_of(activation)
        # In the masked network, the first values have few hidden units of their own. What they need from the state
        # is therefore computed before it, by a layer without masks.
        self.features = nn.Sequential(drop, nn.Linear(in_size, width), make_activation(), drop)
        self.network = ConditionalAutoRegressiveNN(
            data_size,
            width,
            [width] * depth,
            param_dims=[1] * self.outputs,
            permutation=torch.arange(data_size),  # type: ignore[arg-type]
            # The first value has no hidden units of its own and needs access to these features.
            skip_connections=True,
            nonlinearity=nn.Sequential(make_activation(), drop),
        )

    def conditional(self, parameters: Float[Tensor, "*samples parameters"]) -> Distribution:
        """The conditional distributions of all values, given their parameters."""
        raise NotImplementedError

    def parameters_at(
        self, features: Float[Tensor, "*batch features"], y: Float[Tensor, "*samples data"]
    ) -> Float[Tensor, "*samples parameters"]:
        """Parameters of the conditional distributions, concatenated by kind.

        ``y`` may have more leading dimensions than the features of the state.
        """
        if self.data_size == 1:
            return features.expand(*y.shape[:-1], self.outputs)
        found = self.network(y, features)
        return found if self.outputs == 1 else torch.cat(found, dim=-1)

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        features = self.features(h)
        return Autoregressive(
            lambda y: self.conditional(self.parameters_at(features, y).to(h.dtype)),
            h.shape[:-1], self.data_size, h, self.support,
        )  # fmt: skip


class AutoregressiveBernoulliEmission(_AutoregressiveEmission):
    r""":math:`p(y_t \mid h_t) = \prod_d \operatorname{Bernoulli}(y_{t,d}; f^{(o)}(y_{t,<d}, h_t)_d)`.

    Within a step, each bit is predicted from the preceding bits. The density of an image that is read by rows
    is then of the same kind as if it were read by pixels: each pixel is predicted from all preceding pixels.
    The network is a MADE (Germain et al. 2015, https://arxiv.org/abs/1502.03509): a density takes one pass,
    and a sample takes one pass per bit.

    Args:
        in_size: size of the state.
        data_size: number of bits per step.
        mlp_size: width of the hidden layers, raised to ``data_size`` if it is smaller.
        depth: number of hidden layers, at least 1.
        activation: a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        dropout: probability that a value of the state or a hidden unit is set to zero in training.

    Raises:
        ValueError: if there is no hidden layer.
    """

    kinds: ClassVar[tuple[str, ...]] = ("binary",)
    support: ClassVar[constraints.Constraint] = constraints.boolean

    def conditional(self, parameters: Float[Tensor, "*samples data"]) -> Distribution:
        """Bernoulli distributions of all bits, given their logits."""
        return dist.Bernoulli(logits=parameters)


class ConvolutionalBernoulliEmission(nn.Module):
    r""":math:`p(y_t \mid h_t, u_t) = \prod_d \operatorname{Bernoulli}(y_{t,d}; f^{(o)}(y_{t,<d}, h_t, u_t)_d)`.

    Within a step, each bit is predicted from the preceding bits, as by :class:`AutoregressiveBernoulliEmission`,
    but by masked convolutions along the step, as in a PixelCNN (van den Oord et al. 2016,
    https://arxiv.org/abs/1601.06759 and, with features to condition on, https://arxiv.org/abs/1606.05328). It is
    meant for values with a spatial order, such as the pixels of a row or the notes of a piano roll. A bit is predicted
    from the 14 + 2 ``depth`` bits before it; the state can tell it about others. A linear layer on the state gives
    ``mlp_size`` / 4 channels for each bit. The input of the step is read by convolutions, too: the option
    ``input_window`` of the models determines how many preceding rows it consists of.

    Args:
        in_size: size of the input and the state together.
        data_size: number of bits per step.
        mlp_size: number of channels.
        depth: number of residual blocks, each of two convolutions with half as many channels between them.
        activation: a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        dropout: probability that a value of the state is set to zero in training.
        input_size: number of leading features that are the input, a multiple of ``data_size``.

    Raises:
        ValueError: if ``input_size`` is not a multiple of ``data_size`` or larger than ``in_size``, or ``depth`` is
            negative.
    """

    kinds: ClassVar[tuple[str, ...]] = ("binary",)
    reads_input: ClassVar[bool] = True
    #: Number of preceding bits that the first convolution reads.
    reach: ClassVar[int] = 14
    #: Number of bits of each preceding row that it reads, an odd number.
    width: ClassVar[int] = 9

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        dropout: float = 0.0,
        input_size: int = 0,
    ) -> None:
        super().__init__()
        if input_size % data_size or not 0 <= input_size <= in_size:
            raise ValueError(
                f"a convolutional emission reads rows of {data_size} values among {in_size} features, and the input "
                f"has {input_size}"
            )
        if depth < 0:
            raise ValueError(f"depth must not be negative, it is {depth}")
        self.data_size, self.input_size = data_size, input_size
        rows, maps = input_size // data_size, max(mlp_size // 4, 1)
        self.state_maps = nn.Sequential(
            Dropout(dropout), nn.Linear(in_size - input_size, maps * data_size)
        )
        self.context = nn.Conv1d(rows + maps, mlp_size, self.width, padding=self.width // 2)
        self.earlier_bits = nn.Conv1d(1, mlp_size, self.reach)
        make_activation, half = activation_of(activation), max(mlp_size // 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                make_activation(),
                nn.ConstantPad1d((2, 0), 0.0),
                nn.Conv1d(mlp_size, half, 3),
                make_activation(),
                nn.Conv1d(half, mlp_size, 1),
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(make_activation(), nn.Conv1d(mlp_size, 1, 1))

    def logits(
        self, context: Float[Tensor, "*batch channels data"], y: Float[Tensor, "*samples data"]
    ) -> Float[Tensor, "*samples data"]:
        """The logit of each bit, given the preceding ones. ``y`` may have more leading dimensions."""
        # The last bit is cut off, so that the convolution ends one bit before the one that it predicts.
        earlier = F.pad(y.reshape(-1, 1, self.data_size), (self.reach, -1))
        x = self.earlier_bits(earlier).reshape(*y.shape[:-1], *context.shape[-2:]) + context
        x = x.reshape(-1, *x.shape[-2:])
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x)
        return logits.reshape(y.shape)

    def forward(self, features: Float[Tensor, "*batch features"]) -> TorchDistributionMixin:
        u, h = features[..., : self.input_size], features[..., self.input_size :]
        rows = join(u, self.state_maps(h)).reshape(-1, self.context.in_channels, self.data_size)
        context = self.context(rows).reshape(*features.shape[:-1], -1, self.data_size)
        return Autoregressive(
            lambda y: dist.Bernoulli(logits=self.logits(context, y).to(features.dtype)),
            features.shape[:-1], self.data_size, features, constraints.boolean,
        )  # fmt: skip


class AutoregressiveGaussianEmission(_AutoregressiveEmission):
    r""":math:`p(y_t \mid h_t) = \prod_d \mathcal N(y_{t,d}; f^{(o)}(y_{t,<d}, h_t))`.

    Within a frame, each value is predicted from the preceding values. Dai et al. 2019
    (https://arxiv.org/abs/1902.01388) found that a deterministic RNN with such an output does as
    well on speech as latent-variable models with a factorised output, so compare with it before
    attributing a gain to the latents. The network is a MADE (Germain et al. 2015): a density takes one
    pass, and a sample takes one pass per value.

    Args:
        in_size: size of the state.
        data_size: number of values per step.
        mlp_size: width of the hidden layers, raised to ``data_size`` if it is smaller.
        depth: number of hidden layers, at least 1.
        activation: a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        form: parametrisation of the Gaussian, see :class:`~pyro_zf.nn.GaussianForm`.
        dropout: probability that a value of the state or a hidden unit is set to zero in training.

    Raises:
        ValueError: if there is no hidden layer.
    """

    kinds: ClassVar[tuple[str, ...]] = ("real",)
    outputs: ClassVar[int] = 2

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_size, data_size, mlp_size, depth, activation, dropout)
        self.form = form or GaussianForm()

    def conditional(self, parameters: Float[Tensor, "*samples parameters"]) -> Distribution:
        """Normal distributions of all values, given their means and log scales."""
        mean, log_scale = self.form.split(parameters)
        return dist.Normal(mean, torch.exp(log_scale))

    def extra_repr(self) -> str:
        return str(self.form)


class PoissonEmission(_CountEmission):
    r""":math:`p(y_t \mid h_t) = \prod_d \operatorname{Poisson}(y_{t,d}; \exp f^{(o)}(h_t)_d)`.

    Args:
        in_size: size of the state.
        data_size: number of counts per step.
        mlp_size, depth, activation, dropout: options of :math:`f^{(o)}`, see :class:`~pyro_zf.nn.MLP`. Its
            outputs, the logarithms of the rates, are bounded to -15..15.
    """

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        return dist.Poisson(torch.exp(self.bounded(h))).to_event(1)


class NegativeBinomialEmission(_CountEmission):
    r"""Negative binomial counts with mean :math:`\mu` and variance :math:`\mu + \mu^2 / r`.

    The network gives :math:`\log \mu` and :math:`\log r`, both bounded to -15..15. For large r the
    distribution is Poisson.

    Args:
        in_size: size of the state.
        data_size: number of counts per step.
        mlp_size, depth, activation, dropout: options of the network, see :class:`~pyro_zf.nn.MLP`.
    """

    outputs: ClassVar[int] = 2

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        log_mean, log_r = self.bounded(h).chunk(2, dim=-1)
        return dist.NegativeBinomial(torch.exp(log_r), logits=log_mean - log_r).to_event(1)


class BetaBinomialEmission(_CountEmission):
    r"""Beta-binomial counts from 0 to ``max_count``, for counts out of a known total.

    The network gives the logit of the mean proportion m and the logarithm of the concentration c, bounded to
    -15..15; the beta distribution has parameters c m and c (1 - m).

    Args:
        in_size: size of the state.
        data_size: number of counts per step.
        mlp_size, depth, activation, dropout: options of the network, see :class:`~pyro_zf.nn.MLP`.
        max_count: the largest possible count, at least 1.

    Raises:
        ValueError: if ``max_count`` is missing or below one.
    """

    outputs: ClassVar[int] = 2

    def __init__(
        self,
        in_size: int,
        data_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        dropout: float = 0.0,
        max_count: int | None = None,
    ) -> None:
        if max_count is None or max_count < 1:
            raise ValueError(
                f"a beta-binomial emission needs max_count, at least 1, not {max_count}"
            )
        super().__init__(in_size, data_size, mlp_size, depth, activation, dropout)
        self.max_count = max_count

    def forward(self, h: Float[Tensor, "*batch hidden"]) -> TorchDistributionMixin:
        logit, log_c = self.bounded(h).chunk(2, dim=-1)
        concentration = torch.exp(log_c)
        alpha = concentration * torch.sigmoid(logit) + 1e-6
        beta = concentration * torch.sigmoid(-logit) + 1e-6
        return dist.BetaBinomial(alpha, beta, total_count=self.max_count).to_event(1)

    def extra_repr(self) -> str:
        return f"max_count={self.max_count}"


#: Emissions by name. Each is a function of (size of the state, values per step, \*\*options of the
#: hidden layers). Add an entry to register your own.
EMISSIONS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": BernoulliEmission,
    "categorical": CategoricalEmission,
    "gaussian": GaussianEmission,
    "gaussian-mixture": GaussianMixtureEmission,
    "logistic-mixture": LogisticMixtureEmission,
    "autoregressive-bernoulli": AutoregressiveBernoulliEmission,
    "convolutional-bernoulli": ConvolutionalBernoulliEmission,
    "autoregressive-gaussian": AutoregressiveGaussianEmission,
    "poisson": PoissonEmission,
    "negative-binomial": NegativeBinomialEmission,
    "beta-binomial": BetaBinomialEmission,
}


def named_emission(name: str) -> Callable[..., nn.Module]:
    """Look up an entry of :data:`EMISSIONS`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in EMISSIONS:
        raise ValueError(f"emission {there_are(name, sorted(EMISSIONS))}")
    return EMISSIONS[name]


def make_emission(name: str, in_size: int, data_size: int, **options: Any) -> nn.Module:
    """Build an emission from :data:`EMISSIONS`.

    ``form``, ``max_count``, ``dropout`` and ``input_size`` are only passed if it accepts them.

    Raises:
        ValueError: if the name is unknown, or dropout is requested but the emission does not accept it.
    """
    emission = named_emission(name)
    taken = inspect.signature(emission).parameters
    if options.get("dropout") and "dropout" not in taken:
        raise ValueError(f"the emission {name!r} has no dropout")
    for option in ("form", "max_count", "dropout", "input_size"):
        if option not in taken:
            options.pop(option, None)
    return emission(in_size, data_size, **options)


def emits_counts(emission: object) -> bool:
    """Whether an emission is over counts, which networks read as log(1 + y)."""
    return declared(emission, "kinds", None) == ("counts",)


def reads_input(emission: object) -> bool:
    """Whether an emission reads the input of the step beside the state."""
    return bool(declared(emission, "reads_input", False))


def emits_symbols(emission: object) -> bool:
    """Whether an emission is over symbols, which need an embedding."""
    return declared(emission, "kinds", None) == ("categorical",)

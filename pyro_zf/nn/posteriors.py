r"""Posteriors: modules that map :math:`(h_{t-1}, b_t)` to a distribution over :math:`z_t`.

Any module with such a forward can be used. A class attribute ``reads`` specifies the second argument:
``"backward"``, the state of a network that has read :math:`y_{t:T}` (the default if the attribute is
missing); ``"target"``, the (embedded) :math:`y_t`; or ``"forward"``, the state of a network that has read
:math:`y_{1:t}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf.distributions.normal import DiagonalNormal
from pyro_zf.names import there_are
from pyro_zf.nn.flows import FlowHead
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import MLP, declared, join

__all__ = [
    "POSTERIORS",
    "FilteringPosterior",
    "FlowPosterior",
    "RecognitionPosterior",
    "ResidualPosterior",
    "SmoothingPosterior",
    "build_posterior",
    "named_posterior",
    "reads",
]

Reads = Literal["backward", "target", "forward"]
READS: tuple[Reads, ...] = ("backward", "target", "forward")


def reads(posterior: object) -> Reads:
    """The kind of second argument that a posterior takes; see the docstring of this module.

    Raises:
        ValueError: if the attribute ``reads`` is not one of the three kinds.
    """
    value = declared(posterior, "reads", "backward")
    if value not in READS:
        raise ValueError(f"{type(posterior).__name__} reads {value!r}; there are {READS}")
    return value


class SmoothingPosterior(GaussianHead):
    r""":math:`q(z_t \mid h_{t-1}, b_t) = \mathcal N(f^{(q)}(h_{t-1}, b_t))` (Goyal et al. 2017, eq. 7).

    Since :math:`b_t` has read :math:`y_{t:T}`, the posterior depends on all future observations.

    Args:
        hidden_size: number of leading values of the state that the posterior reads.
        context_size: size of :math:`b_t`.
        latent_size: size of z.
        mlp_size, depth, activation: options of :math:`f^{(q)}`, see :class:`~pyro_zf.nn.MLP`.
        form: parametrisation of the Gaussian, see :class:`~pyro_zf.nn.GaussianForm`.
    """

    reads: ClassVar[Reads] = "backward"

    def __init__(
        self,
        hidden_size: int,
        context_size: int,
        latent_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__(
            MLP(hidden_size + context_size, mlp_size, 2 * latent_size, depth, activation), form
        )
        self.hidden_size = hidden_size

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "*batch hidden"], b: Float[Tensor, "*batch context"]
    ) -> TorchDistributionMixin:
        return super().forward(join(self._read(h), b))

    def _read(self, h: Tensor) -> Tensor:
        return h if h.shape[-1] == self.hidden_size else h[..., : self.hidden_size]


class FilteringPosterior(SmoothingPosterior):
    r""":math:`q(z_t \mid h_{t-1}, y_t)` (Chung et al. 2015, eq. 9), which ignores future observations."""

    reads: ClassVar[Reads] = "target"


class ResidualPosterior(SmoothingPosterior):
    r"""A posterior whose mean is the prior mean plus a correction: res_q (Fraccaro et al. 2016).

    :math:`q(z_t \mid h_{t-1}, b_t) = \mathcal N(\mu^{(p)}_t + \Delta_t, \operatorname{diag}
    \sigma_t^2)` with :math:`[\Delta_t, \log \sigma_t] = f^{(q)}(h_{t-1}, b_t)`. The gradient
    of this mean also reaches the parameters of the prior.

    Args:
        prior: the prior of the same model.
        hidden_size, context_size, latent_size, options: as for :class:`SmoothingPosterior`.

    Raises:
        ValueError: if the prior has no mean in closed form.
    """

    needs_prior: ClassVar[bool] = True

    def __init__(
        self,
        prior: nn.Module,
        hidden_size: int,
        context_size: int,
        latent_size: int,
        **options: Any,
    ) -> None:
        if isinstance(prior, FlowHead):
            raise ValueError("res_q adds to the mean of the prior, and that of a flow is not known")
        super().__init__(hidden_size, context_size, latent_size, **options)
        self.follow(prior)

    def follow(self, prior: nn.Module) -> None:
        """Use the mean of this prior from now on."""
        # In a tuple, since the parameters of the prior belong to the model, not to this module.
        self._prior = (prior,)

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "*batch hidden"], b: Float[Tensor, "*batch context"]
    ) -> TorchDistributionMixin:
        mean, log_scale = self.moments(join(self._read(h), b))
        return DiagonalNormal(self._prior_mean(h) + mean, log_scale)

    @property
    def prior(self) -> nn.Module:
        """The prior whose mean is corrected."""
        return self._prior[0]

    def _prior_mean(self, h: Tensor) -> Tensor:
        prior: Any = self.prior
        return prior.moments(h)[0] if hasattr(prior, "moments") else prior(h).mean


class FlowPosterior(FlowHead):
    r""":math:`q(z_t \mid h_{t-1}, b_t)`, a normalising flow; see :class:`~pyro_zf.nn.FlowHead`.

    Its KL has no closed form and is estimated by sampling.

    Args:
        hidden_size, context_size, latent_size: as for :class:`SmoothingPosterior`.
        **options: options of :class:`~pyro_zf.nn.FlowHead`.
    """

    reads: ClassVar[Reads] = "backward"

    def __init__(
        self, hidden_size: int, context_size: int, latent_size: int, **options: Any
    ) -> None:
        super().__init__(hidden_size + context_size, latent_size, **options)
        self.hidden_size = hidden_size

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "*batch hidden"], b: Float[Tensor, "*batch context"]
    ) -> TorchDistributionMixin:
        return super().forward(join(h[..., : self.hidden_size], b))


class RecognitionPosterior(GaussianHead):
    r""":math:`q(z_t \mid y_{1:t}) = \mathcal N(f^{(q)}(g_t))` (Bayer and Osendorfer 2014).

    It does not depend on the state of the model, so all steps are drawn at once.

    Args:
        hidden_size: size of the state; unused.
        context_size: size of :math:`g_t`.
        latent_size, mlp_size, depth, activation, form: as for :class:`SmoothingPosterior`.
    """

    reads: ClassVar[Reads] = "forward"
    #: Whether latents can be drawn without stepping through the recurrence.
    ignores_state = True

    def __init__(
        self,
        hidden_size: int,
        context_size: int,
        latent_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__(MLP(context_size, mlp_size, 2 * latent_size, depth, activation), form)

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "*batch hidden"], g: Float[Tensor, "*batch context"]
    ) -> TorchDistributionMixin:
        return super().forward(g)


#: Posteriors by name. Each is a class or a function of (size of the state, size of b, size of z,
#: \*\*options of the hidden layers), preceded by the prior if it has a true attribute ``needs_prior``.
#: Add an entry to register your own.
POSTERIORS: dict[str, Callable[..., nn.Module]] = {
    "smoothing": SmoothingPosterior,
    "filtering": FilteringPosterior,
    "flow": FlowPosterior,
    "res_q": ResidualPosterior,
    "recognition": RecognitionPosterior,
}


def build_posterior(
    name: str,
    prior: nn.Module,
    hidden_size: int,
    context_size: int,
    latent_size: int,
    **options: object,
) -> nn.Module:
    """Build a posterior from :data:`POSTERIORS`.

    Raises:
        ValueError: if the name is unknown.
    """
    posterior = named_posterior(name)
    sizes = (hidden_size, context_size, latent_size)
    if declared(posterior, "needs_prior", False):
        return posterior(prior, *sizes, **options)
    return posterior(*sizes, **options)


def named_posterior(name: str) -> Callable[..., nn.Module]:
    """Look up an entry of :data:`POSTERIORS`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in POSTERIORS:
        raise ValueError(f"posterior {there_are(name, sorted(POSTERIORS))}")
    return POSTERIORS[name]

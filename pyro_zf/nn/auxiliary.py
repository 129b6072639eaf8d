"""Auxiliary costs: modules that compute a training cost from the states of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from pyro_zf.names import there_are
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import MLP, join

__all__ = [
    "AUX_COSTS",
    "ActivityRegularization",
    "AuxiliaryCost",
    "PreviousStateReconstruction",
    "ReversePrediction",
    "StateReconstruction",
    "StepStates",
    "build_aux_cost",
]


class StepStates(NamedTuple):
    """Inputs of an auxiliary cost: one step, or all steps with time as the first dimension.

    ``h_prev`` is the state before the latent is drawn and ``h`` the state that has read it. ``b`` is
    None if no cost with a positive weight reads it. ``c`` are the covariates, if there are any.
    """

    u: Tensor
    z: Tensor
    h_prev: Tensor
    h: Tensor
    b: Tensor | None = None
    c: Tensor | None = None


class AuxiliaryCost(nn.Module):
    """Maps :class:`StepStates` to a log-probability for each step and sequence, in nats.

    The model multiplies it by a weight and adds the product to the program as a ``pyro.factor`` site
    named ``aux_*``. It regularises training and is never part of a reported bound.
    """

    #: Whether to skip step 1 if its input is a start symbol.
    skips_start_symbol: ClassVar[bool] = False
    #: Whether the cost reads b, so that the model needs a backward network.
    reads_backward: ClassVar[bool] = True

    @property
    def trains_backward(self) -> bool:
        """Whether the gradient reaches the backward network through b itself, not only through z."""
        return self.reads_backward

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        raise NotImplementedError


class StateReconstruction(AuxiliaryCost):
    r""":math:`\log p(b_t \mid z_t) = \log \mathcal N(b_t; f^{(a)}(z_t))` (Goyal et al. 2017, eq. 8).

    By default the target :math:`b_t` is detached, so that it passes no gradient to the backward network.

    Args:
        latent_size: size of z.
        target_size: size of b.
        hidden_size: size of h.
        condition: ``"z"`` (paper), or ``"zh"`` to condition on :math:`h_{t-1}` as well.
        mlp_size, depth, activation: options of :math:`f^{(a)}`, see :class:`~pyro_zf.nn.MLP`.
        form: parametrisation of the Gaussian, see :class:`~pyro_zf.nn.GaussianForm`.
        detach_target: whether to detach the target from the gradient.
        covariate_size: size of the covariates, which are also inputs of :math:`f^{(a)}`.
    """

    def __init__(
        self,
        latent_size: int,
        target_size: int,
        hidden_size: int,
        condition: Literal["z", "zh"] = "z",
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
        detach_target: bool = True,
        covariate_size: int = 0,
    ) -> None:
        super().__init__()
        if condition not in ("z", "zh"):
            raise ValueError(f"the auxiliary network reads 'z' or 'zh', not {condition!r}")
        self.condition = condition
        self.detach_target = detach_target
        in_size = latent_size + (hidden_size if condition == "zh" else 0) + covariate_size
        self.head = GaussianHead(MLP(in_size, mlp_size, 2 * target_size, depth, activation), form)

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        h_prev = states.h_prev if self.condition == "zh" else None
        features = join(h_prev, states.z, states.c)
        target = self.target(states)
        return self.head(features).log_prob(target.detach() if self.detach_target else target)

    @property
    def trains_backward(self) -> bool:
        return self.reads_backward and not self.detach_target

    def target(self, states: StepStates) -> Tensor:
        """The state to reconstruct."""
        assert states.b is not None
        return states.b


class PreviousStateReconstruction(StateReconstruction):
    r""":math:`\log p_\xi(h_{t-1} \mid z_t)` (Shabanian et al. 2017, eq. 6).

    The options are those of :class:`StateReconstruction`; ``target_size`` is the size of h.
    """

    reads_backward: ClassVar[bool] = False

    def target(self, states: StepStates) -> Tensor:
        return states.h_prev


class ReversePrediction(AuxiliaryCost):
    r""":math:`\log p(u_t \mid b_t)` (Goyal et al. 2017, eq. 10): prediction from the backward state.

    It keeps :math:`b_t` from collapsing to a point that would be easy to reconstruct.

    Args:
        emission: maps :math:`b_t`, concatenated with the covariates, to a distribution over the data.
    """

    skips_start_symbol: ClassVar[bool] = True

    def __init__(self, emission: nn.Module) -> None:
        super().__init__()
        self.emission = emission

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        return self.emission(join(states.b, states.c)).log_prob(states.u)


class ActivityRegularization(AuxiliaryCost):
    r""":math:`-\lVert h_t \rVert^2` (Shabanian et al. 2017, eq. 7; Merity et al. 2017)."""

    reads_backward: ClassVar[bool] = False

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        return -states.h.square().sum(-1)


def _b(latent_size: int, backward_size: int, hidden_size: int, **options: Any) -> AuxiliaryCost:
    return StateReconstruction(latent_size, backward_size, hidden_size, **_mlp(options))


def _h(latent_size: int, hidden_size: int, **options: Any) -> AuxiliaryCost:
    return PreviousStateReconstruction(latent_size, hidden_size, hidden_size, **_mlp(options))


def _u(backward_size: int, make_emission: Callable[[int], nn.Module], **_: Any) -> AuxiliaryCost:
    return ReversePrediction(make_emission(backward_size))


def _activity(**_: Any) -> AuxiliaryCost:
    return ActivityRegularization()


def _mlp(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: options[name]
        for name in ("mlp_size", "depth", "activation", "covariate_size")
        if name in options
    }


#: Auxiliary costs by name. Each is a function of the keywords latent_size, hidden_size, backward_size,
#: make_emission (maps the size of the state to an emission over the data), covariate_size, mlp_size,
#: depth, activation. Add an entry to register your own.
AUX_COSTS: dict[str, Callable[..., AuxiliaryCost]] = {
    "b": _b,
    "u": _u,
    "h": _h,
    "activity": _activity,
}


def build_aux_cost(name: str, **options: Any) -> AuxiliaryCost:
    """Build an auxiliary cost from :data:`AUX_COSTS`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in AUX_COSTS:
        raise ValueError(f"auxiliary cost {there_are(name, sorted(AUX_COSTS))}")
    return AUX_COSTS[name](**options)

"""Auxiliary costs: modules that score what the states of one step say of each other."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import MLP

__all__ = ["AuxiliaryCost", "ReversePrediction", "StateReconstruction", "StepStates"]


class StepStates(NamedTuple):
    """What an auxiliary cost may look at: one step, or all of them with time as first dimension."""

    u: Tensor
    z: Tensor
    h_prev: Tensor
    b: Tensor


class AuxiliaryCost(nn.Module):
    """Maps :class:`StepStates` to a log-probability for each step and sequence, in nats.

    The model gives it a weight and puts the product into the program as a ``pyro.factor`` site
    named ``aux_*``. It is a regulariser of training and never part of a reported bound.
    """

    #: Whether step 1 is left out when its input is a start symbol.
    skips_start_symbol = False

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        raise NotImplementedError


class StateReconstruction(AuxiliaryCost):
    r""":math:`\log p(b_t \mid z_t) = \log \mathcal N(b_t; f^{(a)}(z_t))` (Goyal et al. 2017, eq. 8).

    The target :math:`b_t` is detached: the backward network is agnostic of the task.

    Args:
        latent_size: size of z.
        backward_size: size of b.
        hidden_size: size of h.
        condition: ``"z"`` (paper) or ``"zh"``, where :math:`h_{t-1}` is an input too.
        mlp_size, depth, activation: of :math:`f^{(a)}`, see :class:`~pyro_zf.nn.MLP`.
        form: how the output is read, see :class:`~pyro_zf.nn.GaussianForm`.
    """

    def __init__(
        self,
        latent_size: int,
        backward_size: int,
        hidden_size: int,
        condition: Literal["z", "zh"] = "z",
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__()
        if condition not in ("z", "zh"):
            raise ValueError(f"the auxiliary network reads 'z' or 'zh', not {condition!r}")
        self.condition = condition
        in_size = latent_size + (hidden_size if condition == "zh" else 0)
        self.head = GaussianHead(MLP(in_size, mlp_size, 2 * backward_size, depth, activation), form)

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        features = states.z
        if self.condition == "zh":
            features = torch.cat([states.h_prev.expand(*features.shape[:-1], -1), features], dim=-1)
        return self.head(features).log_prob(states.b.detach())


class ReversePrediction(AuxiliaryCost):
    r""":math:`\log p(u_t \mid b_t)` (Goyal et al. 2017, eq. 10): the backward network predicts too.

    It keeps :math:`b_t` from shrinking to a point that would be easy to reconstruct.

    Args:
        emission: maps :math:`b_t` to a distribution over the data.
    """

    skips_start_symbol = True

    def __init__(self, emission: nn.Module) -> None:
        super().__init__()
        self.emission = emission

    def forward(self, states: StepStates) -> Float[Tensor, "*batch"]:
        return self.emission(states.b).log_prob(states.u)

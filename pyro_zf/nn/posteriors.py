r"""Posteriors: modules that map :math:`(h_{t-1}, b_t)` to a distribution over :math:`z_t`.

Any module with such a forward will do. One with the methods of :class:`GaussianPosterior` too lets
the recurrence take what depends on :math:`b_t` out of its loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional as F

from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import MLP

__all__ = ["GaussianPosterior", "SmoothingPosterior", "gives_moments"]


@runtime_checkable
class GaussianPosterior(Protocol):
    r"""A posterior that gives :math:`\mu_t, \log \sigma_t` step by step, from projected :math:`b_t`."""

    def project(self, b: Tensor) -> Tensor:
        """What depends on :math:`b_t` alone, for all steps at once."""

    def stepper(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        r"""A function of (h, projected b) that gives :math:`\mu_t` and :math:`\log \sigma_t`."""


def gives_moments(posterior: object) -> TypeGuard[GaussianPosterior]:
    """Whether the recurrence may step by the moments of a posterior instead of by its forward.

    Not where a subclass has a forward of its own but the stepper of its parent: the two would be
    different distributions.
    """
    if not isinstance(posterior, GaussianPosterior):
        return False
    definer = {
        name: next(c for c in type(posterior).__mro__ if name in vars(c))
        for name in ("stepper", "project", "forward")
    }
    forward = definer["forward"]
    return issubclass(definer["stepper"], forward) and issubclass(definer["project"], forward)


class SmoothingPosterior(GaussianHead):
    r""":math:`q(z_t \mid h_{t-1}, b_t) = \mathcal N(f^{(q)}(h_{t-1}, b_t))` (Goyal et al. 2017, eq. 7).

    Since :math:`b_t` has read :math:`y_{t:T}`, the posterior is informed of all that follows.
    """

    def __init__(
        self,
        hidden_size: int,
        backward_size: int,
        latent_size: int,
        mlp_size: int = 1024,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        form: GaussianForm | None = None,
    ) -> None:
        super().__init__(
            MLP(hidden_size + backward_size, mlp_size, 2 * latent_size, depth, activation), form
        )
        self.hidden_size = hidden_size

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "*batch hidden"], b: Float[Tensor, "*batch backward"]
    ) -> TorchDistributionMixin:
        return super().forward(torch.cat([h, b], dim=-1))

    def project(self, b: Float[Tensor, "*batch backward"]) -> Float[Tensor, "*batch features"]:
        """The part of the first layer that depends on :math:`b_t` alone, for all steps at once."""
        first, *_ = self._layers()
        return F.linear(b, first.weight[:, self.hidden_size :], first.bias)

    def stepper(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        r"""A function of (h, projected b) that gives :math:`\mu_t` and :math:`\log \sigma_t`."""
        first, *rest = self._layers()
        weight = first.weight[:, : self.hidden_size]

        def moments(h: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
            x = F.linear(h, weight) + projected
            for layer in rest:
                x = layer(x)
            return self.form.split(x.to(h.dtype))

        return moments

    def _layers(self) -> tuple[Any, ...]:
        assert isinstance(self.network, MLP)
        return tuple(self.network)

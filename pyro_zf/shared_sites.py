r"""Sites that model and guide draw from one and the same distribution.

Their two log-densities cancel, so that no bound and no KL has a part of them: :math:`\tilde b` of
Variational Bi-LSTM, and the coins of its skip gradient.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints, kl_divergence
from torch.distributions.kl import register_kl

from pyro_zf.batch import masked
from pyro_zf.recurrence import Recurrence

__all__ = ["NO_KL", "EchoPath", "SkipMask", "cancels", "has_no_kl"]

#: In the ``infer`` dictionary of such a site.
NO_KL: Any = {"no_kl": True}


def has_no_kl(site: Any) -> bool:
    """Whether a site says that model and guide draw it from one distribution."""
    return bool(site["infer"].get("no_kl"))


def cancels(name: str, model_site: Any, guide_trace: Trace) -> bool:
    """Whether a latent site has no part in a bound.

    The guide draws it from the model's own distribution, or leaves it to the model. A guide of one's
    own that proposes it from another one has a KL to pay.
    """
    return has_no_kl(guide_trace.nodes.get(name, model_site))


class EchoPath(TorchDistribution):
    r""":math:`\prod_t p(\tilde b_t \mid z_t)`, event shape (T, B): the latent that follows z.

    Since :math:`z_{t+1}` depends on :math:`\tilde b_t`, a draw of the path of z has drawn it already;
    :meth:`rsample` gives it out if z is that path.

    Args:
        recurrence: that of z.
        z: the path of z.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, recurrence: Recurrence, z: Float[Tensor, "*particles batch time latent"]
    ) -> None:
        self.recurrence, self.z = recurrence, z
        head = recurrence.networks.echo
        super().__init__(z.shape[:-2], torch.Size((z.shape[-2], head.size)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EchoPath:
        copy = EchoPath.__new__(EchoPath)
        copy.__dict__.update(self.__dict__)
        copy._batch_shape = torch.Size(batch_shape)
        return copy

    @cached_property
    def steps(self) -> TorchDistributionMixin:
        """The distribution of each step, time first."""
        return self.recurrence.networks.echo(self.z.movedim(-2, 0))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn, b_tilde = self.recurrence.drawn or (None, None)
        if drawn is not self.z or b_tilde is None or sample_shape:
            return self.steps.expand(
                (self.event_shape[0], *sample_shape, *self.batch_shape)
            )().movedim(0, -2)
        if torch.is_grad_enabled() and not b_tilde.requires_grad:
            # Drawn without a graph, along with a z that is not reparametrised: the same noise again.
            normal: Any = self.steps
            loc, scale = normal.base_dist.loc, normal.base_dist.scale
            noise = ((b_tilde.movedim(-2, 0) - loc) / scale).detach()
            b_tilde = (loc + scale * noise).movedim(0, -2)
            self.recurrence.drawn = (self.z, b_tilde)
        return b_tilde

    def log_prob(self, value: Tensor) -> Tensor:
        per_step = self.steps.log_prob(value.movedim(-2, 0))
        total = masked(per_step, self.recurrence.mask).sum(0)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))


class SkipMask(TorchDistribution):
    """Coins that decide where a gradient is skipped; a handler may set them, a bound never sees them.

    Args:
        probability: of True.
        batch_shape: of the distribution.
        num_steps: T; the event is one bit a step.
        per_step: whether each step has a coin of its own, or all steps of a sequence share one.
        like: a tensor on the device of the coins and in the precision of the density.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.boolean, 1)
    # It has no density of its own, so that nothing is to be differentiated through it.
    has_rsample = True

    def __init__(
        self,
        probability: float,
        batch_shape: torch.Size,
        num_steps: int,
        per_step: bool,
        like: Tensor,
    ) -> None:
        self.arguments = (probability, num_steps, per_step, like)
        super().__init__(torch.Size(batch_shape), torch.Size((num_steps,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SkipMask:
        probability, num_steps, per_step, like = self.arguments
        return SkipMask(probability, torch.Size(batch_shape), num_steps, per_step, like)

    @torch.no_grad()
    def rsample(self, sample_shape: Any = ()) -> Bool[Tensor, "..."]:
        probability, num_steps, per_step, like = self.arguments
        shape = (*sample_shape, *self.batch_shape)
        if probability >= 1:  # nothing is left to chance, and no random numbers are used up
            return torch.ones(*shape, num_steps, dtype=torch.bool, device=like.device)
        coins = torch.rand(*shape, num_steps if per_step else 1, device=like.device) < probability
        return coins.expand(*shape, num_steps)

    def log_prob(self, value: Tensor) -> Tensor:
        _, _, _, like = self.arguments
        return like.new_zeros(self.batch_shape)


@register_kl(EchoPath, EchoPath)  # type: ignore[untyped-decorator]
def _echo_kl(q: EchoPath, p: EchoPath) -> Tensor:
    kl = kl_divergence(q.steps, p.steps)
    return masked(kl, q.recurrence.mask).sum(0)


@register_kl(SkipMask, SkipMask)  # type: ignore[untyped-decorator]
def _skip_kl(q: SkipMask, p: SkipMask) -> Tensor:
    return q.log_prob(torch.empty(0))

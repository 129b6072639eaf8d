r"""Distributions over whole paths: what lets one site stand for T of them.

A latent that depends on its own past is not independent over time, so time is no plate here; it
belongs to the event. :class:`PosteriorPath` and :class:`PriorPath` are distributions over
:math:`z_{1:T}` with event shape (T, Z), :class:`OverTime` is one over :math:`y_{1:T}`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence
from torch.distributions.kl import register_kl

from pyro_zf.batch import masked, with_particles
from pyro_zf.cores import Path, sample_path, shielded
from pyro_zf.nn.posteriors import gives_moments
from pyro_zf.recurrence import Recurrence

__all__ = [
    "FromPrior",
    "OverTime",
    "PosteriorPath",
    "PriorPath",
    "kl_per_step",
]


class _OverPath(TorchDistribution):
    """What the two distributions over latent paths have in common."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(self, recurrence: Recurrence, latent_size: int) -> None:
        self.recurrence = recurrence
        batch_shape = torch.Size((recurrence.batch.num_sequences,))
        event_shape = torch.Size((recurrence.batch.num_steps, latent_size))
        super().__init__(batch_shape, event_shape, validate_args=False)
        self._cached: tuple[Tensor, TorchDistributionMixin] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._batch_shape = torch.Size(batch_shape)
        return copy

    def conditionals(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> TorchDistributionMixin:
        """The distribution of each step given the path before it; batch shape ``(time, *batch)``."""
        if self._cached is None or self._cached[0] is not z:
            conditionals = self._conditionals(z)
            expected = (z.shape[-2], *z.shape[:-2]), z.shape[-1:]
            if (conditionals.batch_shape, conditionals.event_shape) != expected:
                raise ValueError(
                    f"{self._source} gives batch shape {tuple(conditionals.batch_shape)} and event "
                    f"shape {tuple(conditionals.event_shape)} for all steps at once, not "
                    f"{tuple(expected[0])} and {tuple(expected[1])}; is a .to_event(1) missing?"
                )
            self._cached = (z, conditionals)
        return self._cached[1]

    @property
    def _source(self) -> str:
        raise NotImplementedError

    def _conditionals(self, z: Tensor) -> TorchDistributionMixin:
        raise NotImplementedError

    def log_prob(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "*batch_shape"]:
        return _over_steps(self.log_prob_per_step(value), self.batch_shape)

    def log_prob_per_step(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch"]:
        """Nats of each step, time first; zero behind the end of a sequence."""
        per_step = self.conditionals(value).log_prob(value.movedim(-2, 0))
        return masked(per_step, self.step_mask)

    @property
    def step_mask(self) -> Bool[Tensor, "time batch"] | None:
        """True on the steps of each sequence, time first."""
        return self.recurrence.mask


class PosteriorPath(_OverPath):
    r""":math:`q(z_{1:T} \mid u, y) = \prod_t q(z_t \mid h_{t-1}, b_t)`, event shape (T, Z).

    :meth:`rsample` runs the recurrence once and shares its states with the model.

    Args:
        recurrence: the forward network on its inputs.
        posterior: maps :math:`(h_{t-1}, b_t)` to the distribution of :math:`z_t`.
        context: what it reads beside the state.
    """

    def __init__(
        self,
        recurrence: Recurrence,
        posterior: nn.Module,
        context: Float[Tensor, "time batch context"],
    ) -> None:
        super().__init__(recurrence, recurrence.networks.latent_size)
        self.posterior = posterior
        self.context = context
        self._drawn: Tensor | None = None

    @cached_property
    def has_rsample(self) -> bool:  # type: ignore[override]
        if gives_moments(self.posterior) or getattr(self.posterior, "ignores_state", False):
            return True
        r = self.recurrence
        h = r.transition.initial(self.context.shape[1:-1], r.start.state)[0]
        return bool(self.posterior(r.transition.seen(r.inputs[0], h), self.context[0]).has_rsample)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        z, path = _draw(self, self.posterior, self.context, sample_shape)
        if path.q_mean is not None and path.q_log_scale is not None:
            q = dist.Normal(path.q_mean, torch.exp(path.q_log_scale)).to_event(1)
            self._cached = (z, q)
        self._drawn = z
        self.recurrence.share()
        return z

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        with torch.no_grad():
            z = self.rsample(sample_shape)
        self._cached = None  # made without a graph; who scores z may need one
        self.recurrence.forget()
        return z

    def _conditionals(self, z: Tensor) -> TorchDistributionMixin:
        r = self.recurrence
        x = r.seen(z)
        context = with_particles(self.context, x.dim() - self.context.dim())
        context = context.expand(*x.shape[:-1], -1)
        return self.posterior(x, shielded(context, r.skip))

    @property
    def path(self) -> Tensor:
        """The path that was scored last, else the one that was drawn."""
        if self._cached is not None:
            return self._cached[0]
        if self._drawn is None:
            raise RuntimeError("the KL along a path needs a path: draw or score one first")
        return self._drawn

    @property
    def _source(self) -> str:
        return f"the posterior {type(self.posterior).__name__}"


class PriorPath(_OverPath):
    r""":math:`p(z_{1:T} \mid u) = \prod_t p(z_t \mid h_{t-1})`, event shape (T, Z).

    Args:
        recurrence: the forward network on its inputs.
        prior: maps :math:`h_{t-1}` to the distribution of :math:`z_t`.
    """

    def __init__(self, recurrence: Recurrence, prior: nn.Module) -> None:
        super().__init__(recurrence, recurrence.networks.latent_size)
        self.prior = prior

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Ancestral sampling, in which each step sees the inputs that are given."""
        return _draw(self, FromPrior(self.prior), self.recurrence.inputs, sample_shape)[0]

    def _conditionals(self, z: Tensor) -> TorchDistributionMixin:
        return self.prior(self.recurrence.seen(z))

    @property
    def _source(self) -> str:
        return f"the prior {type(self.prior).__name__}"


class FromPrior(nn.Module):
    """A prior in the place of a posterior."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, h: Tensor, context: Tensor) -> TorchDistributionMixin:
        return self.prior(h)


def _draw(
    path: _OverPath, posterior: nn.Module, context: Tensor, sample_shape: Any
) -> tuple[Tensor, Path]:
    """Run the recurrence once; z with time last but one, and the path."""
    r = path.recurrence
    shape = torch.Size(sample_shape) + path.batch_shape
    networks = r.networks
    drawn = sample_path(
        r.transition, networks.embed_latent, posterior, r.inputs, context, shape,
        networks.echo, r.skip, r.start.state, r.start.read,
    )  # fmt: skip
    z = drawn.z.movedim(0, -2)
    b_tilde = None if drawn.b_tilde is None else drawn.b_tilde.movedim(0, -2)
    r.remember(z, b_tilde, drawn.h, drawn.last)
    return z, drawn


class OverTime(TorchDistribution):
    """A distribution whose first batch dimension is time, as one whose event is the sequence.

    Args:
        steps: a distribution with batch shape ``(time, *batch)``.
        mask: True on the steps of each sequence, (batch, time).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, steps: TorchDistributionMixin, mask: Bool[Tensor, "batch time"] | None = None
    ) -> None:
        self.steps = steps
        self.step_mask = None if mask is None else mask.transpose(0, 1)
        num_steps, *batch_shape = steps.batch_shape
        event_shape = torch.Size((num_steps, *steps.event_shape))
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.steps.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.steps.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OverTime:
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        copy = OverTime.__new__(OverTime)
        copy.__dict__.update(self.__dict__)
        # New dimensions stay to the left of time in the steps, where broadcasting puts them.
        kept = batch_shape[len(batch_shape) - self._num_batch_dims :]
        copy.steps = self.steps.expand(torch.Size((self.event_shape[0], *kept)))
        copy._batch_shape = batch_shape
        return copy

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._draw(self.steps.rsample, sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._draw(self.steps.sample, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return _over_steps(self.log_prob_per_step(value), self.batch_shape)

    def conditionals(self, value: Tensor) -> TorchDistributionMixin:
        """The distribution of each step, time first; here the steps do not depend on each other."""
        return self.steps

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        """Nats of each step, time first; zero behind the end of a sequence."""
        missing = self._num_batch_dims + len(self.event_shape) - value.dim()
        value = value.reshape(*(1,) * missing, *value.shape)
        log_prob = self.steps.log_prob(value.movedim(self._time_in_value, self._time_in_steps))
        return masked(log_prob.movedim(-1 - self._num_batch_dims, 0), self.step_mask)

    @property
    def _num_batch_dims(self) -> int:
        return len(self.steps.batch_shape) - 1

    @property
    def _time_in_value(self) -> int:
        return -1 - self.steps.event_dim

    @property
    def _time_in_steps(self) -> int:
        return self._time_in_value - self._num_batch_dims

    def _draw(self, draw: Callable[[torch.Size], Tensor], sample_shape: Any) -> Tensor:
        left = self.batch_shape[: len(self.batch_shape) - self._num_batch_dims]
        value = draw(torch.Size(sample_shape) + left)
        return value.movedim(self._time_in_steps, self._time_in_value)


def _over_steps(per_step: Tensor, batch_shape: torch.Size) -> Tensor:
    """Sum over time, the first dimension; repeated over particles that the value does not have."""
    total = per_step.sum(0)
    return total.expand(torch.broadcast_shapes(total.shape, batch_shape))


def kl_per_step(q: Any, p: Any, z: Tensor) -> Float[Tensor, "time *particles batch"]:
    """KL of a latent site in nats, step by step; sampled at z where there is no closed form.

    For a site of one step the first dimension is one. Steps behind the end of a sequence are zero.
    """
    if not (isinstance(q, (_OverPath, OverTime)) and isinstance(p, (_OverPath, OverTime))):
        try:
            return kl_divergence(q, p).unsqueeze(0)
        except NotImplementedError:
            return (q.log_prob(z) - p.log_prob(z)).unsqueeze(0)
    of_q, of_p = q.conditionals(z), p.conditionals(z)
    try:
        if len(of_q.batch_shape) != len(of_p.batch_shape):  # particles that one of them has not
            raise NotImplementedError
        kl = kl_divergence(of_q, of_p)
    except NotImplementedError:
        return q.log_prob_per_step(z) - p.log_prob_per_step(z)
    return masked(kl, q.step_mask)


@register_kl(PosteriorPath, PriorPath)  # type: ignore[untyped-decorator]
def _path_kl(q: PosteriorPath, p: PriorPath) -> Tensor:
    # The sum over steps of the KL between the conditionals, along one sampled path: an unbiased
    # estimate, and term by term what per-step sites give TraceMeanField_ELBO.
    kl = kl_divergence(q.conditionals(q.path), p.conditionals(q.path))
    return masked(kl, q.step_mask).sum(0)

r"""Distributions over whole paths: what lets one site stand for T of them.

A latent that depends on its own past is not independent over time, so time is no plate here; it
belongs to the event. :class:`PosteriorPath` and :class:`PriorPath` are distributions over
:math:`z_{1:T}` with event shape (T, Z); for :math:`y_{1:T}` see :mod:`pyro_zf.over_time`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence
from torch.distributions.kl import register_kl

from pyro_zf.batch import masked, with_particles
from pyro_zf.chunks import by_chunks
from pyro_zf.cores import Core, Path, sample_path, shielded
from pyro_zf.nn.normal import DiagonalNormal
from pyro_zf.nn.posteriors import gives_moments
from pyro_zf.over_time import OverTime, over_steps
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
            self._cached = (z, self._conditional(*self._read(z)))
        return self._cached[1]

    def _conditional(self, *read: Tensor) -> TorchDistributionMixin:
        """The distribution of some steps, from what it reads of the path before each."""
        conditionals = self._module(*read)
        batch_shape, event_shape = read[0].shape[:-1], self.event_shape[1:]
        if (conditionals.batch_shape, conditionals.event_shape) != (batch_shape, event_shape):
            raise ValueError(
                f"{self._source} gives batch shape {tuple(conditionals.batch_shape)} and event "
                f"shape {tuple(conditionals.event_shape)} for all steps at once, not "
                f"{tuple(batch_shape)} and {tuple(event_shape)}; is a .to_event(1) missing?"
            )
        return conditionals

    @property
    def _source(self) -> str:
        return f"{type(self._module).__name__}"

    @property
    def _module(self) -> Callable[..., TorchDistributionMixin]:
        """Gives the distribution of each step."""
        raise NotImplementedError

    def _read(self, z: Tensor) -> tuple[Tensor, ...]:
        """What it reads along a path, time first."""
        raise NotImplementedError

    def log_prob(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "*batch_shape"]:
        return over_steps(self.log_prob_per_step(value), self.batch_shape)

    def log_prob_per_step(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch"]:
        """Nats of each step, time first; zero behind the end of a sequence."""
        z = value.movedim(-2, 0)
        if self.time_chunk is None:
            per_step = self.conditionals(value).log_prob(z)
        else:
            per_step = by_chunks(
                lambda z, *read: self._conditional(*read).log_prob(z),
                (z, *self._read(value)),
                self.time_chunk,
            )
        return masked(per_step, self.step_mask)

    @property
    def time_chunk(self) -> int | None:
        """How many steps are scored at a time; None for all."""
        return self.recurrence.networks.time_chunk

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
        self._drawn_path: Path | None = None

    @cached_property
    def has_rsample(self) -> bool:  # type: ignore[override]
        if gives_moments(self.posterior) or getattr(self.posterior, "ignores_state", False):
            return True
        r = self.recurrence
        h = r.transition.initial(self.context.shape[1:-1], r.start.state)[0]
        return bool(self.posterior(r.transition.seen(r.inputs[0], h), self.context[0]).has_rsample)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        z, path = _draw(self, self.posterior, self.context, sample_shape)
        self._drawn, self._drawn_path = z, path
        if path.q_mean is not None and path.q_log_scale is not None:
            self._cached = (z, DiagonalNormal(path.q_mean, path.q_log_scale))
        self.recurrence.share()
        return z

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        with torch.no_grad():
            z = self.rsample(sample_shape)
        self._cached = self._drawn_path = None  # made without a graph; who scores z may need one
        self.recurrence.forget()
        return z

    def log_prob_per_step(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch"]:
        """Nats of each step, time first.

        Of the path that was drawn it is computed from the noise, of which the path is a function: its
        gradient by parameters is the whole one, and by the path alone there is none. For that, score a
        copy, ``z.clone()``.
        """
        drawn = self._drawn_path if value is self._drawn else None
        if drawn is None or drawn.noise is None or drawn.q_log_scale is None:
            return super().log_prob_per_step(value)
        squares = torch.linalg.vector_norm(drawn.noise, dim=-1).square()
        constant = value.shape[-1] * math.log(2 * math.pi)
        return masked(-0.5 * (squares + constant) - drawn.q_log_scale.sum(-1), self.step_mask)

    @property
    def _module(self) -> Callable[..., TorchDistributionMixin]:
        return self.posterior

    def _read(self, z: Tensor) -> tuple[Tensor, ...]:
        r = self.recurrence
        x = r.seen(z)
        context = with_particles(self.context, x.dim() - self.context.dim())
        context = context.expand(*x.shape[:-1], -1)
        return x, shielded(context, r.skip)

    def drawn_moments(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and log scale along the path that was drawn, if z is that and they are at hand."""
        drawn = self._drawn_path if z is self._drawn else None
        if drawn is None or drawn.q_mean is None or drawn.q_log_scale is None:
            return None
        return drawn.q_mean, drawn.q_log_scale

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

    @property
    def _module(self) -> Callable[..., TorchDistributionMixin]:
        return self.prior

    def _read(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.recurrence.seen(z),)

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
    # What the fused recurrence knows are posteriors.
    core: Core = "eager" if isinstance(posterior, FromPrior) else networks.core
    drawn = sample_path(
        r.transition, networks.embed_latent, posterior, r.inputs, context, shape,
        networks.echo, r.skip, r.start.state, r.start.read, networks.latent_layer, core,
    )  # fmt: skip
    z = drawn.z.movedim(0, -2)
    b_tilde = None if drawn.b_tilde is None else drawn.b_tilde.movedim(0, -2)
    r.remember(z, b_tilde, drawn)
    return z, drawn


def kl_per_step(q: Any, p: Any, z: Tensor) -> Float[Tensor, "time *particles batch"]:
    """KL of a latent site in nats, step by step; sampled at z where there is no closed form.

    For a site of one step the first dimension is one. Steps behind the end of a sequence are zero.
    """
    if not (isinstance(q, (_OverPath, OverTime)) and isinstance(p, (_OverPath, OverTime))):
        try:
            return kl_divergence(q, p).unsqueeze(0)
        except NotImplementedError:
            return (q.log_prob(z) - p.log_prob(z)).unsqueeze(0)
    if isinstance(q, PosteriorPath) and isinstance(p, PriorPath) and q.time_chunk is not None:
        return _kl_by_chunks(q, p, z)
    of_q, of_p = q.conditionals(z), p.conditionals(z)
    try:
        if len(of_q.batch_shape) != len(of_p.batch_shape):  # particles that one of them has not
            raise NotImplementedError
        kl = kl_divergence(of_q, of_p)
    except NotImplementedError:
        return q.log_prob_per_step(z) - p.log_prob_per_step(z)
    return masked(kl, q.step_mask)


def _kl_by_chunks(q: PosteriorPath, p: PriorPath, z: Tensor) -> Tensor:
    make: Callable[..., Any] = DiagonalNormal
    of_p = p._read(z)
    read: tuple[Tensor, ...] | None = q.drawn_moments(z)
    if read is None:
        make, read = q._conditional, q._read(z)

    number = len(read)

    def kl(z: Tensor, *parts: Tensor) -> Tensor:
        q_t, p_t = make(*parts[:number]), p._conditional(*parts[number:])
        try:
            return kl_divergence(q_t, p_t)
        except NotImplementedError:
            return q_t.log_prob(z) - p_t.log_prob(z)

    return masked(by_chunks(kl, (z.movedim(-2, 0), *read, *of_p), q.time_chunk), q.step_mask)


@register_kl(PosteriorPath, PriorPath)  # type: ignore[untyped-decorator]
def _path_kl(q: PosteriorPath, p: PriorPath) -> Tensor:
    # The sum over steps of the KL between the conditionals, along one sampled path: an unbiased
    # estimate, and term by term what per-step sites give TraceMeanField_ELBO.
    if q.time_chunk is not None:
        return _kl_by_chunks(q, p, q.path).sum(0)
    kl = kl_divergence(q.conditionals(q.path), p.conditionals(q.path))
    return masked(kl, q.step_mask).sum(0)

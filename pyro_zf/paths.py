r"""Distributions over whole paths: what lets one site stand for T of them.

A latent that depends on its own past is not independent over time, so time is no plate here; it
belongs to the event. :class:`PosteriorPath` and :class:`PriorPath` are distributions over
:math:`z_{1:T}` with event shape (T, Z), :class:`OverTime` is one over :math:`y_{1:T}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

from pyro_zf.batch import SequenceBatch, masked, with_particles
from pyro_zf.cores import sample_path
from pyro_zf.nn.lstm import Transition
from pyro_zf.nn.posteriors import gives_moments

__all__ = ["OverTime", "PosteriorPath", "PriorPath", "Recurrence", "Shared"]


class Shared:
    """What the guide leaves for the model, so that it is not computed twice.

    It is handed out once, and only to a caller that would compute the very same thing: the same
    tensor objects, unchanged parameters, the same gradient mode and precision. Anything else
    (a copy, a detached latent, an optimiser step in between) is a miss.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._value: Any = None

    def put(self, tensors: Iterable[Any], parameters: Iterable[Tensor], value: Any) -> None:
        """Leave a value that was computed from these tensors with these parameters."""
        self._key, self._value = self._full_key(tensors, parameters), value

    def take(self, tensors: Iterable[Any], parameters: Iterable[Tensor]) -> Any:
        """The value left under the same tensors and parameters, or None."""
        key, value = self._key, self._value
        # Whoever takes it owns it: from here on, it keeps no graph alive.
        self._key = self._value = None
        return value if key == self._full_key(tensors, parameters) else None

    @staticmethod
    def _full_key(tensors: Iterable[Any], parameters: Iterable[Tensor]) -> tuple[Any, ...]:
        return (
            tuple(_Identity(x) for x in tensors),
            tuple((id(p), _version(p), p.requires_grad) for p in parameters),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return Shared()

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()


class _Identity:
    """Equal only to itself around the same, unmodified object; holds it, so its id stays its own."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.version = _version(value)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Identity)
            and self.value is other.value
            and self.version == other.version
        )

    __hash__ = None  # type: ignore[assignment]


def _version(value: Any) -> int | None:
    """Counts changes in place; inference tensors, which cannot be trained on, have no count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


class Recurrence:
    """The two recurrent networks on a batch: forward states for any path of latents, and backward.

    Args:
        transition: the forward network.
        backward_network: the backward network.
        embedding: applied to the data before they enter either.
        latent_embedding: applied to z before it enters the forward network.
        batch: the sequences.
        shared: where the guide leaves its states.
    """

    def __init__(
        self,
        transition: Transition,
        backward_network: nn.Module,
        embedding: nn.Module,
        latent_embedding: nn.Module,
        batch: SequenceBatch,
        shared: Shared,
    ) -> None:
        self.transition = transition
        self.backward_network = backward_network
        self.embedding = embedding
        self.latent_embedding = latent_embedding
        self.batch = batch
        self.mask = None if batch.mask is None else batch.mask.transpose(0, 1)
        self._shared = shared
        self._z: Tensor | None = None
        self._h: Tensor | None = None
        self._b: Tensor | None = None

    @cached_property
    def inputs(self) -> Float[Tensor, "time batch input"]:
        """Embedded inputs."""
        return self.embedding(self.batch.inputs).transpose(0, 1)

    @property
    def b(self) -> Float[Tensor, "time batch backward"]:
        r""":math:`b_{1:T}`, computed once."""
        if self._b is None:
            self._b = self.backward_network(self.embedding(self.batch.targets), self.batch)
        return self._b

    def states(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch hidden"]:
        r""":math:`h_{1:T}` along the path z, computed once."""
        if self._z is not z or self._h is None:
            if (found := self._shared.take(self._key(z), self._parameters())) is not None:
                self._h, self._b = found
            else:
                self._h = self.transition.run(self.inputs, self.latent_embedding(z.movedim(-2, 0)))
            self._z = z
        return self._h

    def previous_states(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch hidden"]:
        r""":math:`h_{0:T-1}` along the path z."""
        h = self.states(z)
        first = self.transition.initial(h.shape[1:-1])[0].unsqueeze(0)
        return torch.cat([first, h[:-1]])

    def remember(self, z: Tensor, h: Tensor) -> None:
        """Keep the states of a path for the next call of :meth:`states`."""
        self._z, self._h = z, h

    def forget(self) -> None:
        """Compute the states anew at the next call of :meth:`states`."""
        self._z = self._h = None

    def share(self, z: Tensor, h: Tensor) -> None:
        """As :meth:`remember`, and with b for another recurrence on the same batch too."""
        self.remember(z, h)
        self._shared.put(self._key(z), self._parameters(), (h, self.b))

    def _key(self, z: Tensor) -> tuple[Any, ...]:
        return (z, self.batch.inputs, self.batch.targets, self.batch.lengths)

    def _parameters(self) -> Iterator[Tensor]:
        for module in (
            self.transition, self.backward_network, self.embedding, self.latent_embedding
        ):  # fmt: skip
            yield from module.parameters()


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
        return masked(per_step, self.recurrence.mask)


class PosteriorPath(_OverPath):
    r""":math:`q(z_{1:T} \mid u, y) = \prod_t q(z_t \mid h_{t-1}, b_t)`, event shape (T, Z).

    :meth:`rsample` runs the recurrence once and shares its states with the model.

    Args:
        recurrence: the forward network on its inputs.
        posterior: maps :math:`(h_{t-1}, b_t)` to the distribution of :math:`z_t`.
        latent_size: size of z.
        detach: whether the posterior sees :math:`b_t` without its gradient.
    """

    def __init__(
        self, recurrence: Recurrence, posterior: nn.Module, latent_size: int, detach: bool = False
    ) -> None:
        super().__init__(recurrence, latent_size)
        self.posterior = posterior
        self.b = recurrence.b.detach() if detach else recurrence.b
        self._drawn: Tensor | None = None

    @cached_property
    def has_rsample(self) -> bool:  # type: ignore[override]
        if gives_moments(self.posterior):
            return True
        h = self.recurrence.transition.initial(self.b.shape[1:-1])[0]
        return bool(self.posterior(h, self.b[0]).has_rsample)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        shape = torch.Size(sample_shape) + self.batch_shape
        r = self.recurrence
        path = sample_path(
            r.transition, r.latent_embedding, self.posterior, r.inputs, self.b, shape
        )
        z = path.z.movedim(0, -2)
        if path.q_mean is not None and path.q_log_scale is not None:
            q = dist.Normal(path.q_mean, torch.exp(path.q_log_scale)).to_event(1)
            self._cached = (z, q)
        self._drawn = z
        r.share(z, path.h)
        return z

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        with torch.no_grad():
            z = self.rsample(sample_shape)
        self._cached = None  # made without a graph; who scores z may need one
        self.recurrence.forget()
        return z

    def _conditionals(self, z: Tensor) -> TorchDistributionMixin:
        h = self.recurrence.previous_states(z)
        b = with_particles(self.b, h.dim() - self.b.dim())
        return self.posterior(h, b.expand(*h.shape[:-1], -1))

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
        latent_size: size of z.
    """

    def __init__(self, recurrence: Recurrence, prior: nn.Module, latent_size: int) -> None:
        super().__init__(recurrence, latent_size)
        self.prior = prior

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Ancestral sampling, in which each step sees the inputs that are given."""
        r = self.recurrence
        step = r.transition.stepper()
        state = r.transition.initial(torch.Size(sample_shape) + self.batch_shape)
        zs, hs = [], []
        for u_t in r.transition.project(r.inputs).unbind(0):
            z = self.prior(state[0])()
            state = step(u_t, r.latent_embedding(z), state)
            zs.append(z)
            hs.append(state[0])
        z = torch.stack(zs, dim=-2)
        r.remember(z, torch.stack(hs))
        return z

    def _conditionals(self, z: Tensor) -> TorchDistributionMixin:
        return self.prior(self.recurrence.previous_states(z))

    @property
    def _source(self) -> str:
        return f"the prior {type(self.prior).__name__}"


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


def path_kl_per_step(q: PosteriorPath, p: PriorPath) -> Float[Tensor, "time *particles batch"]:
    r""":math:`\mathrm{KL}(q(z_t \mid h_{t-1}, b_t) \,\|\, p(z_t \mid h_{t-1}))` along the path q drew.

    Raises:
        NotImplementedError: where no closed form is registered for the two conditionals.
    """
    z = q.path
    kl = kl_divergence(q.conditionals(z), p.conditionals(z))
    return masked(kl, q.recurrence.mask)


@register_kl(PosteriorPath, PriorPath)  # type: ignore[untyped-decorator]
def _path_kl(q: PosteriorPath, p: PriorPath) -> Tensor:
    # The sum over steps of the KL between the conditionals, along one sampled path: an unbiased
    # estimate, and term by term what per-step sites give TraceMeanField_ELBO.
    return path_kl_per_step(q, p).sum(0)

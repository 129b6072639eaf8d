r"""Distributions over whole paths of latents, with which one site represents T latents.

A latent that depends on its own past is not independent over time, so time is part of the event and not a
plate. :class:`PosteriorPath` and :class:`PriorPath` are distributions over :math:`z_{1:T}` with
event shape (T, Z). Their ``log_prob`` is an ordinary density with the ordinary gradients: the states
along a path are computed from its values. Objectives can use a cheaper form, with the states that a drawn
path carries, through :meth:`LatentPath.with_carried_states`.
"""

from __future__ import annotations

import copy
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

from pyro_zf.batch import masked
from pyro_zf.distributions import AtMean, DiagonalNormal, OverTime, by_chunks, over_steps
from pyro_zf.nn.cells import Trajectory
from pyro_zf.sequence.recurrence import DrawnPath, Recurrence, Source, path_of

__all__ = ["LatentPath", "PosteriorPath", "PriorPath", "kl_per_step", "with_carried_states"]


class LatentPath(TorchDistribution):
    """A latent over all steps, :math:`\\prod_t p(z_t \\mid h_{t-1})`, event shape (T, Z).

    Args:
        run: the recurrence, which holds the other latents of the same program.
        name: name of the latent.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)
    source: Source

    def __init__(self, run: Recurrence, name: str) -> None:
        self.run, self.name = run, name
        self.latent = run.step_latents[name]
        self.carried = False
        batch_shape = torch.Size((run.batch.num_sequences,))
        event_shape = torch.Size((run.batch.num_steps, self.latent.size))
        super().__init__(batch_shape, event_shape, validate_args=False)

    def _changed(self, **attributes: Any) -> Any:
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return self._changed(_batch_shape=torch.Size(batch_shape))

    def with_carried_states(self) -> Any:
        """The same density, computed from the states that a drawn path carries.

        The value is the same. The gradient reaches the parameters through the noise from which the path was
        drawn. The gradient with respect to the path omits the dependence through the states.
        """
        return self._changed(carried=True)

    # The distribution of each step

    def network(self, *inputs: Tensor) -> TorchDistributionMixin:
        """The distribution of one or more steps, given its inputs from the path before each step.

        Raises:
            ValueError: if the shapes of the distribution are not those of the steps.
        """
        module, kind = self._module
        conditionals = module(*inputs)
        batch_shape, event_shape = inputs[0].shape[:-1], self.event_shape[1:]
        if not isinstance(conditionals, TorchDistributionMixin):
            raise TypeError(
                f"the {kind} {type(module).__name__} gives an object of type {type(conditionals).__name__}, "
                "not a distribution of pyro.distributions"
            )
        if (conditionals.batch_shape, conditionals.event_shape) != (batch_shape, event_shape):
            raise ValueError(
                f"the {kind} {type(module).__name__} gives batch shape "
                f"{tuple(conditionals.batch_shape)} and event shape {tuple(conditionals.event_shape)} "
                f"for all steps at once, not {tuple(batch_shape)} and {tuple(event_shape)}"
                + ("" if conditionals.event_shape else "; is a .to_event(1) missing?")
            )
        return conditionals

    @property
    def _module(self) -> tuple[nn.Module, str]:
        """The network and its name."""
        raise NotImplementedError

    def inputs(self, value: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the network along a path, time first."""
        latents = {**self.run.latents, self.name: value}
        return self._inputs(latents, self._trajectory(latents))

    def _inputs(self, latents: dict[str, Tensor], trajectory: Trajectory) -> tuple[Tensor, ...]:
        return (self.run.features(self.name, latents, trajectory.before),)

    def _trajectory(self, latents: dict[str, Tensor]) -> Trajectory:
        if not self.carried:
            return self.run.trajectory(latents)
        own = self.run.latents
        if all(own.get(name) is z for name, z in latents.items()):
            return self.run.current  # computed once for the whole program
        return self.run.trajectory(latents, carried=True)

    def conditionals(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> TorchDistributionMixin:
        """The distribution of each step given the path before it; batch shape ``(time, *batch)``."""
        return self.network(*self.inputs(value))

    # The density of a path

    def log_prob(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "*batch_shape"]:
        return over_steps(self.log_prob_per_step(value), self.batch_shape)

    def log_prob_per_step(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch"]:
        """Log-density of each step in nats, time first; zero past the end of a sequence."""
        per_step = by_chunks(
            lambda z, *inputs: self.network(*inputs).log_prob(z),
            (value.movedim(-2, 0), *self.inputs(value)),
            self.time_chunk,
        )
        return masked(per_step, self.step_mask)

    @property
    def time_chunk(self) -> int | None:
        """Number of steps that are scored at a time; None for all."""
        return self.run.system.time_chunk

    @property
    def step_mask(self) -> Bool[Tensor, "time batch"] | None:
        """True on the steps of each sequence, time first."""
        return self.run.step_mask

    # Draws

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        run = self.run
        before = list(run.step_latents)[: list(run.step_latents).index(self.name)]
        others = {name: run.latents[name] for name in before}
        path = path_of(next(iter(others.values()))) if others else None
        if path is None or not path.is_of({**path.latents, **others}):
            path = run.draw(self.source, torch.Size(sample_shape) + self.batch_shape, others)
        # Otherwise it was drawn together with the preceding latents, whose later steps depend on it.
        run.drawn = path
        value = path.latents[self.name]
        if (
            torch.is_grad_enabled()
            and not value.requires_grad
            and self.name in path.moments
            and others
        ):
            value = self._with_graph(path)
            value.path = path  # type: ignore[attr-defined]
        return value

    def _with_graph(self, path: DrawnPath) -> Tensor:
        """Recompute a draw that was made without a graph, from the parameters and the same noise."""
        loc, log_scale = (x.movedim(0, -2) for x in path.moments[self.name])
        noise = (path.latents[self.name] - loc) / torch.exp(log_scale)
        latents = {**path.latents}
        inputs = self._inputs(latents, self.run.trajectory(latents))
        normal: Any = self.network(*inputs)
        loc, scale = normal.base_dist.loc.movedim(0, -2), normal.base_dist.scale.movedim(0, -2)
        return loc + scale * noise.detach()


class PosteriorPath(LatentPath):
    r""":math:`q(z_{1:T} \mid u, y) = \prod_t q(z_t \mid h_{t-1}, b_t)`, event shape (T, Z).

    A draw runs the recurrence once, for all latents of the system.
    """

    source: Source = "posterior"

    @cached_property
    def has_rsample(self) -> bool:  # type: ignore[override]
        run, system = self.run, self.run.system
        if getattr(self.latent.posterior, "ignores_state", False):
            return True
        # Determined by the distribution of the first step. Not under no_grad: autocast would cache weights without
        # their graphs in older versions of PyTorch.
        state = system.cell.initial((run.batch.num_sequences,), run.cell_start)
        first = run.cell_u[0].reshape(-1, run.batch.num_sequences, run.cell_u.shape[-1])[0]
        h = system.cell.before(first, state)[0]
        known = {"state": h, "input": run.u[0]}
        others = {k: h.new_zeros(len(h), x.size) for k, x in run.step_latents.items()}
        x = self.latent.features({**others, **known}, _first(run.c, h))
        return bool(self._module[0](x, run.context[0]).has_rsample)

    @property
    def _module(self) -> tuple[nn.Module, str]:
        assert self.latent.posterior is not None
        return self.latent.posterior, "posterior"

    def _inputs(self, latents: dict[str, Tensor], trajectory: Trajectory) -> tuple[Tensor, ...]:
        (features,) = super()._inputs(latents, trajectory)
        return features, self.run.context_for(features)

    def log_prob_per_step(
        self, value: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch"]:
        path = path_of(value) if self.carried else None
        latents = {**self.run.latents, self.name: value}
        if path is None or self.name not in path.noise or not path.is_of(latents):
            return super().log_prob_per_step(value)
        if not path.holds_for(self.run):
            return super().log_prob_per_step(value)
        # The path is a function of the noise: log q = -|noise|^2 / 2 - log scale + constant.
        squares = torch.linalg.vector_norm(path.noise[self.name], dim=-1).square()
        constant = value.shape[-1] * math.log(2 * math.pi)
        log_scale = path.moments[self.name][1]
        return masked(-0.5 * (squares + constant) - log_scale.sum(-1), self.step_mask)

    def carried_moments(self, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and log scale of each step from when the path was drawn, if it carries them."""
        path = path_of(value)
        latents = {**self.run.latents, self.name: value}
        if path is None or not path.is_of(latents) or not path.holds_for(self.run):
            return None
        return path.moments.get(self.name)


class PriorPath(LatentPath):
    r""":math:`p(z_{1:T} \mid u) = \prod_t p(z_t \mid h_{t-1})`, event shape (T, Z).

    Draws are ancestral, and each step reads the given inputs.
    """

    source: Source = "prior"
    has_rsample = True

    @property
    def _module(self) -> tuple[nn.Module, str]:
        return self.latent.prior, "prior"

    def at_mean(self) -> Any:
        """The path that puts each latent at the mean of its prior."""
        return self._changed(source="prior-mean")

    def network(self, *inputs: Tensor) -> TorchDistributionMixin:
        conditionals = super().network(*inputs)
        return AtMean.of(conditionals) if self.source == "prior-mean" else conditionals


def _first(c: Tensor | None, h: Tensor) -> Tensor | None:
    """The covariates of the first step, for one particle."""
    return None if c is None else c[0].reshape(-1, *h.shape[:-1], c.shape[-1])[0]


def with_carried_states(distribution: Any) -> Any:
    """The form of a path's distribution that uses carried states; other distributions are unchanged."""
    return (
        distribution.with_carried_states() if isinstance(distribution, LatentPath) else distribution
    )


def kl_per_step(q: Any, p: Any, z: Tensor) -> Float[Tensor, "time *particles batch"]:
    """KL of a latent site in nats for each step, estimated from z if there is no closed form.

    The states are those that the path carries. For a site of one step or of a whole sequence, the first
    dimension has size one. Values past the end of a sequence are zero.
    """
    q, p = with_carried_states(q), with_carried_states(p)
    over_time = (LatentPath, OverTime)
    if not (isinstance(q, over_time) and isinstance(p, over_time)):
        return _kl(q, p, z).unsqueeze(0)
    if isinstance(q, LatentPath) and isinstance(p, LatentPath):
        return _kl_along(q, p, z)
    of_q, of_p = q.conditionals(z), p.conditionals(z)
    if len(of_q.batch_shape) == len(of_p.batch_shape):
        try:
            return masked(kl_divergence(of_q, of_p), q.step_mask)
        except NotImplementedError:
            pass
    return q.log_prob_per_step(z) - p.log_prob_per_step(z)


def _kl(q: Any, p: Any, z: Tensor) -> Tensor:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)


def _kl_along(q: LatentPath, p: LatentPath, z: Tensor) -> Tensor:
    """KL of each step between the conditionals along a path, in chunks of steps."""
    make: Callable[..., Any] = DiagonalNormal
    of_q: tuple[Tensor, ...] | None = None
    if isinstance(q, PosteriorPath):
        of_q = q.carried_moments(z)
    if of_q is None:
        make, of_q = q.network, q.inputs(z)
    number, of_p = len(of_q), p.inputs(z)

    def kl(z: Tensor, *inputs: Tensor) -> Tensor:
        return _kl(make(*inputs[:number]), p.network(*inputs[number:]), z)

    per_step = by_chunks(kl, (z.movedim(-2, 0), *of_q, *of_p), q.time_chunk)
    return masked(per_step, q.step_mask)


@register_kl(PosteriorPath, PriorPath)  # type: ignore[untyped-decorator]
@register_kl(PriorPath, PriorPath)  # type: ignore[untyped-decorator]
def _path_kl(q: LatentPath, p: PriorPath) -> Tensor:
    # The KL between the conditionals along the path of the guide, summed over steps. This is an unbiased
    # estimate, equal term by term to that of TraceMeanField_ELBO with one site per step.
    if q.name not in q.run.latents:
        raise NotImplementedError("the KL along a path needs a path")
    return kl_per_step(q, p, q.run.latents[q.name]).sum(0)

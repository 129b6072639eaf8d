r"""The recurrence of a system on a batch: the states along a path of latents, and how paths are drawn.

The value of a drawn path carries the states that were computed while it was drawn (:class:`DrawnPath`), as
an attribute of the tensor. The model uses them if it is given that value. It recomputes the states for any
other value: a copy, a detached tensor, a tensor that was changed in place, or a value that was drawn for
another batch or with other parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_zf.batch import SequenceBatch, with_particles
from pyro_zf.distributions import AtMean
from pyro_zf.nn.auxiliary import StepStates
from pyro_zf.nn.cells import State, Trajectory
from pyro_zf.nn.posteriors import reads
from pyro_zf.sequence.fused import draw_noise, plan_in_use
from pyro_zf.sequence.system import Latent, RecurrentSystem, detach_where, join_over_time
from pyro_zf.sequence.unroll import at_steps, unroll

__all__ = ["DrawnPath", "Moments", "Recurrence", "Source", "path_of"]

#: Networks from which a path is drawn: the posteriors, the priors, or the means of the priors.
Source = Literal["posterior", "prior", "prior-mean"]
#: Mean and log scale of a latent at each step, time first.
Moments = tuple[Float[Tensor, "time *batch latent"], Float[Tensor, "time *batch latent"]]


class DrawnPath:
    """Results that were computed while the latents of a sequence were drawn; the values carry this object.

    Args:
        run: the recurrence that drew them.
        latents: values by name, with time as the second to last dimension.
        trajectory: the states, or None if the draw did not need them.
        moments: means and log scales of the latents with Gaussian distributions.
        noise: standard normal noise of the latents that were computed as mean + scale * noise, time
            first.
    """

    def __init__(
        self,
        run: Recurrence,
        latents: dict[str, Tensor],
        trajectory: Trajectory | None,
        moments: dict[str, Moments],
        noise: dict[str, Tensor],
    ) -> None:
        self.latents, self.trajectory = latents, trajectory
        self.moments, self.noise = moments, noise
        #: Features of the inputs and backward states, if they were needed.
        self.networks = {k: run.__dict__[k] for k in ("_u", "b") if k in run.__dict__}
        self._made_by = run.circumstances()
        # Keep references, so that no other object can get the identity of one of these.
        self._kept = (run.system, run.batch, run.given, list(run.system.parameters()))
        self._values = {name: _state_of(z) for name, z in latents.items()}
        for z in latents.values():
            z.path = self  # type: ignore[attr-defined]

    def is_of(self, latents: Mapping[str, Tensor]) -> bool:
        """Whether these are the values that were drawn together here and have not been changed since."""
        return latents.keys() == self.latents.keys() and all(
            path_of(z) is self and _state_of(z) == self._values[name] for name, z in latents.items()
        )

    def holds_for(self, run: Recurrence) -> bool:
        """Whether another recurrence would compute the same states, with the same gradients."""
        return self._made_by == run.circumstances()

    def __reduce__(self) -> Any:  # copies and pickles of a value do not include it
        return (type(None), ())

    def __deepcopy__(self, memo: Any) -> None:
        return None


def path_of(value: Any) -> DrawnPath | None:
    """The drawn path that a value carries; None if no recurrence has drawn this tensor."""
    return getattr(value, "path", None)


def _state_of(value: Tensor) -> tuple[Any, ...]:
    """Version and ``requires_grad`` of a tensor; inference tensors have no version."""
    return None if value.is_inference() else value._version, value.requires_grad


class Recurrence:
    r"""The forward network of a system on a batch, along any path of its latents.

    Args:
        system: the model.
        batch: the sequences.
    """

    def __init__(self, system: RecurrentSystem, batch: SequenceBatch) -> None:
        self.system, self.batch = system, batch
        #: Values of the latents of the whole sequence; set before the first draw.
        self.given: dict[str, Tensor] = {}
        self.gradient_mask: Tensor | None = None
        self.step_mask = None if batch.mask is None else batch.mask.transpose(0, 1)
        self.cell_start, self._input_start = system.start(batch)
        #: The latents of each step: the values of the sites of the program that this belongs to.
        self.latents: dict[str, Tensor] = {}
        #: The path that the program drew, if it drew one.
        self.drawn: DrawnPath | None = None

    def mask_gradients(self, mask: Bool[Tensor, "*particles batch time"] | None) -> None:
        """Set the mask that is True where prior and posterior pass no gradient to their inputs."""
        self.gradient_mask = None if mask is None else mask.movedim(-1, 0).unsqueeze(-1)

    # Values that do not depend on the path

    @cached_property
    def step_latents(self) -> dict[str, Latent]:
        """The latents that have a value for each step."""
        return {k: x for k, x in self.system.latents.items() if x.per == "step"}

    @cached_property
    def _u(self) -> tuple[Tensor, State]:
        known = self._carried("_u")
        return known or self.system.input_features(self.batch, self._input_start)

    @property
    def u(self) -> Float[Tensor, "time batch input"]:
        """The input features."""
        return self._u[0]

    @cached_property
    def c(self) -> Float[Tensor, "time *batch covariates"] | None:
        """The covariates of each step, joined with the latents of the sequence."""
        steps = self.batch.num_steps
        given = [x.expand(steps, *x.shape) for x in self.given.values()]
        covariates = self.batch.covariates_over_time
        return join_over_time(covariates, *given) if given else covariates

    @cached_property
    def cell_u(self) -> Float[Tensor, "time *batch input"]:
        """Inputs of the cell besides the latents."""
        return join_over_time(self.u, self.c)

    @cached_property
    def b(self) -> Float[Tensor, "time batch backward"]:
        r""":math:`b_{1:T}`."""
        known = self._carried("b")
        return self.system.backward_states(self.batch, self.u) if known is None else known

    @cached_property
    def context(self) -> Float[Tensor, "time batch context"]:
        """Inputs of the posteriors besides the state."""
        b = self.b if reads(self.system.posterior) == "backward" else None
        return self.system.posterior_context(self.batch, self.u, b)

    def _carried(self, name: str) -> Any:
        """Output of a network that does not depend on the path, if the latents of this program carry it."""
        path = path_of(next(iter(self.latents.values()))) if self.latents else None
        if path is None or name not in path.networks or not path.is_of(self.latents):
            return None
        return path.networks[name] if path.holds_for(self) else None

    def circumstances(self) -> tuple[Any, ...]:
        """Everything that the states depend on besides the latents, as a tuple that can be compared."""
        given = tuple((id(x), _state_of(x)) for x in self.given.values())
        parameters = tuple((id(p), _state_of(p)) for p in self.system.parameters())
        batch = (id(self.batch), _state_of(self.batch.inputs))
        device = self.batch.inputs.device.type
        mode = (torch.is_grad_enabled(), torch.is_autocast_enabled(device))
        return (id(self.system), batch, given, parameters, mode)

    # Along a path

    def trajectory(self, latents: Mapping[str, Tensor], carried: bool = False) -> Trajectory:
        """The states along a path, as a function of its values, whose second to last dimension is time.

        With ``carried``, these are the states that the values carry, if they are still valid. They are the
        same states, but a function of the noise instead of the values.
        """
        path = path_of(next(iter(latents.values()))) if carried else None
        if path is None or not (path.is_of(latents) and path.holds_for(self)):
            path = None
        if path is not None and path.trajectory is not None:
            return path.trajectory
        z = self.system.cell_inputs({k: x.movedim(-2, 0) for k, x in latents.items()})
        u = with_particles(self.cell_u, z.dim() - self.cell_u.dim())
        return self.system.cell.run(u.expand(*z.shape[:-1], -1), z, self.cell_start)

    @cached_property
    def current(self) -> Trajectory:
        """The states along the latents of this program, which must all be set."""
        return self.trajectory(self.latents, carried=True)

    def features(
        self, name: str, latents: Mapping[str, Tensor], before: Float[Tensor, "time *batch hidden"]
    ) -> Tensor:
        """Features that prior and posterior of a latent read at each step, time first."""
        known = {"state": self._detached(before), "input": self.u}
        if "input" in self.step_latents[name].reads and self.gradient_mask is not None:
            u = with_particles(self.u, before.dim() - self.u.dim())
            known["input"] = self._detached(u.expand(*before.shape[:-1], -1))
        parts = (
            known[k] if k in known else latents[k].movedim(-2, 0)
            for k in self.step_latents[name].reads
        )
        x = join_over_time(*parts, self.c)
        return x if x.dim() >= before.dim() else x.expand(*before.shape[:-1], -1)

    def context_for(self, features: Tensor) -> Float[Tensor, "time *batch context"]:
        """The context of the posteriors, expanded to the batch dimensions of their features."""
        context = with_particles(self.context, features.dim() - self.context.dim())
        return self._detached(context.expand(*features.shape[:-1], -1))

    def emission_input(self) -> Float[Tensor, "time *batch features"]:
        """Inputs of the emission at each step."""
        h = self.current.after
        u = with_particles(self.u, h.dim() - self.u.dim())
        latents = {k: x.movedim(-2, 0) for k, x in self.latents.items()}
        return join_over_time(self.system.emission_inputs(u, latents, h), self.c)

    def step_states(self) -> StepStates:
        """Inputs of the auxiliary costs, time first."""
        states, z = self.current, self.latents["z"].movedim(-2, 0)
        particles = z.dim() - 3
        b = with_particles(self.b, particles) if self.system.reads_backward_states else None
        u = with_particles(self.batch.clean_inputs.transpose(0, 1), particles)
        c = self.c if self.c is None else with_particles(self.c, z.dim() - self.c.dim())
        c = c if c is None else c.expand(*z.shape[:-1], -1)
        return StepStates(u, z, states.before, states.after, b, c)

    def end(self) -> State:
        """The detached state from which a batch that continues this one starts."""
        return tuple(x.detach() for x in (*self.current.last, *self._u[1]))

    # Drawing

    def draw(
        self, source: Source, shape: torch.Size, given: Mapping[str, Tensor] | None = None
    ) -> DrawnPath:
        """Draw the latents of all steps.

        On a CPU, noise is drawn in the order in which a program with one site per step draws it, so the same
        seed gives the same path in both layouts.

        Args:
            source: the networks to draw from.
            shape: the batch shape, particles first, then sequences.
            given: values of the latents that are fixed.
        """
        if source == "posterior" and not given:
            (name, latent), *others = self.step_latents.items()
            if getattr(latent.posterior, "ignores_state", False) and not others:
                path = self._draw_at_once(name, latent, shape)
                if path is not None:
                    return path
            plan = plan_in_use(self.system)
            if not isinstance(plan, str):
                z, trajectory, moments, noise = plan.draw(self, shape)
                return DrawnPath(self, _time_last_but_one(z), trajectory, moments, noise)
        return self._draw_step_by_step(source, shape, given or {})

    def _draw_step_by_step(
        self, source: Source, shape: torch.Size, given: Mapping[str, Tensor]
    ) -> DrawnPath:
        system, steps = self.system, self.batch.num_steps
        u, c = self.u.unbind(0), at_steps(self.c, steps)
        fixed = {name: z.movedim(-2, 0).unbind(0) for name, z in given.items()}
        mask = at_steps(self.gradient_mask, steps)
        context = self.context.unbind(0) if source == "posterior" else ()
        drawn: list[dict[str, Tensor]] = []
        moments: dict[str, list[tuple[Tensor, Tensor]]] = {}

        def choose(t: int, h: Tensor) -> Tensor:
            values: dict[str, Tensor] = {}
            for name, latent in self.step_latents.items():
                if name in fixed:
                    values[name] = fixed[name][t].expand(*shape, -1)
                    continue
                known = {"state": detach_where(mask[t], h), "input": u[t]}
                if mask[t] is not None and "input" in latent.reads:
                    known["input"] = detach_where(mask[t], u[t])
                x = latent.features({**values, **known}, c[t])
                if source == "posterior" and latent.posterior is not None:
                    b_t = detach_where(mask[t], context[t].expand(*x.shape[:-1], -1))
                    distribution: Any = latent.posterior(x, b_t)
                else:
                    distribution = latent.prior(x)
                if source == "prior-mean":
                    distribution = AtMean.of(distribution)
                values[name] = distribution()
                if isinstance(distribution, Independent) and isinstance(
                    distribution.base_dist, Normal
                ):
                    loc, scale = distribution.base_dist.loc, distribution.base_dist.scale
                    log_scale = getattr(distribution, "log_scale", None)
                    pair = (loc, torch.log(scale) if log_scale is None else log_scale)
                    moments.setdefault(name, []).append(pair)
            drawn.append(values)
            return system.cell_inputs(values)

        start = system.cell.initial(shape, self.cell_start)
        before, after, last = unroll(system.cell, self.cell_u.unbind(0), start, choose)
        latents = {
            name: torch.stack([step[name] for step in drawn], dim=-2) for name in self.step_latents
        }
        latents |= given
        stacked = {
            name: (torch.stack([m for m, _ in pairs]), torch.stack([s for _, s in pairs]))
            for name, pairs in moments.items()
            if len(pairs) == len(drawn)
        }
        own = {name: z for name, z in latents.items() if name not in given}
        trajectory = Trajectory(torch.stack(before), torch.stack(after), last)
        return DrawnPath(self, own if given else latents, trajectory, stacked, {})

    def _draw_at_once(self, name: str, latent: Latent, shape: torch.Size) -> DrawnPath | None:
        """Draw all steps at once, for a Gaussian posterior that does not read the state."""
        assert latent.posterior is not None
        context = with_particles(self.context, len(shape) - 1).expand(-1, *shape, -1)
        h = self.system.cell.initial(shape, self.cell_start)[0].expand(len(context), *shape, -1)
        q = latent.posterior(h, self._detached(context))
        if not (isinstance(q, Independent) and isinstance(q.base_dist, Normal)):
            return None
        mean, scale = q.base_dist.loc, q.base_dist.scale
        (noise,) = draw_noise(len(context), shape, (latent.size,), mean)
        z = (mean + scale * noise).movedim(0, -2)
        # The states would be a function of this value, so it cannot carry them.
        moments = {name: (mean, torch.log(scale))}
        return DrawnPath(self, {name: z}, None, moments, {name: noise})

    def _detached(self, x: Float[Tensor, "time *batch features"]) -> Tensor:
        mask = self.gradient_mask
        if mask is None:
            return x
        return detach_where(with_particles(mask, x.dim() - mask.dim()), x)


def _time_last_but_one(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: z.movedim(0, -2) for name, z in latents.items()}

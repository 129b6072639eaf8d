"""The two programs of a model with latents, in both layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch, masked, with_particles
from pyro_zf.chunks import by_chunks
from pyro_zf.cores import Core, shielded
from pyro_zf.models.base import AUX_PREFIX, SequenceModel, at_step
from pyro_zf.nn.auxiliary import AuxiliaryCost, StepStates
from pyro_zf.nn.lstm import InputLSTM, State, Transition
from pyro_zf.paths import FromPrior, PosteriorPath, PriorPath
from pyro_zf.recurrence import Recurrence, Shared, Start
from pyro_zf.shared_sites import NO_KL, EchoPath, SkipMask

__all__ = ["LATENTS", "LatentPrograms", "Latents", "MeanOf"]

Latents = Literal["posterior", "prior", "prior-mean"]
LATENTS: tuple[Latents, ...] = ("posterior", "prior", "prior-mean")


class LatentPrograms(SequenceModel):
    """The programs themselves; :class:`~pyro_zf.models.LatentSequenceModel` gives them their parts."""

    transition: Transition
    prior: nn.Module
    posterior: nn.Module
    emission: nn.Module
    embedding: nn.Module
    deterministic: InputLSTM | None
    aux: nn.ModuleDict
    aux_weights: dict[str, float]
    latent_size: int
    skip_gradient: float
    skip_per: Literal["step", "sequence"]
    latents: Latents
    core: Core = "auto"
    #: Maps z to the distribution of a latent that follows it, where a system has one.
    echo: Any = None
    _shared: Shared

    def start(self, batch: SequenceBatch) -> Start:
        """What the batch begins with."""
        raise NotImplementedError

    def embedded_inputs(self, batch: SequenceBatch) -> tuple[Tensor, State]:
        """What the transition reads beside the latent, time first; the last state of a network over it."""
        raise NotImplementedError

    def backward_states(self, batch: SequenceBatch, inputs: Tensor) -> Tensor:
        r""":math:`b_{1:T}`, time first."""
        raise NotImplementedError

    def posterior_context(self, recurrence: Recurrence) -> Tensor:
        """What the posterior reads beside the state, time first."""
        raise NotImplementedError

    def embed_latent(self, z: Tensor, b_tilde: Tensor | None = None) -> Tensor:
        """What the transition reads of the latents."""
        raise NotImplementedError

    @property
    def latent_layer(self) -> nn.Module | None:
        """The layer on z that :meth:`embed_latent` consists of; None where that is something else."""
        raise NotImplementedError

    # One site a step: the specification, to be read beside the equations.

    def _model_steps(self, batch: SequenceBatch) -> State:
        generating, start = batch.targets is None, self.start(batch)
        y = [None] * batch.num_steps if batch.targets is None else batch.targets.unbind(1)
        observed_u = batch.clean_inputs.unbind(1)
        embedded, carried = (None, start.inputs) if generating else self.embedded_inputs(batch)
        inputs = None if embedded is None else self._stepwise(embedded)
        costs = {} if generating else self._active_aux()
        b = self._backward_states_of(costs, batch)
        prior, step = self._prior(), self.transition.stepper()
        with self.sequences(batch):
            skip = self._sample_skip(batch)
            (u_t, projected), carried = (
                (inputs[0], carried) if inputs else self._next_input(batch.inputs[:, 0], carried)
            )
            state, read = self.transition.initial((batch.num_sequences,), start.state), start.read
            for t in pyro.markov(range(batch.num_steps)):
                if self.transition.lag:
                    state = step(projected, self._read_before(read, state), state)
                h_prev = state[0]
                x = shielded(self.transition.seen(u_t, h_prev), skip[t])
                with self.latent_weight():
                    z_t = pyro.sample(f"z_{t + 1}", at_step(prior(x), batch, t))
                read = self._read(z_t, batch, t)
                if not self.transition.lag:
                    state = step(projected, read, state)
                features = self.transition.output(u_t, read, state[0])
                y_t = pyro.sample(
                    f"y_{t + 1}", at_step(self.emission(features), batch, t), obs=y[t]
                )
                for name, cost in costs.items():
                    if t > 0 or not (cost.skips_start_symbol and batch.has_start_symbol):
                        states = StepStates(observed_u[t], z_t, h_prev, state[0], b[t])
                        log_prob = self._aux_cost(name, states)
                        if batch.mask is not None:
                            log_prob = masked(log_prob[None], batch.mask[None, :, t])[0]
                        pyro.factor(f"{AUX_PREFIX}{name}_{t + 1}", log_prob)
                if t + 1 < batch.num_steps:
                    if inputs is None:
                        (u_t, projected), carried = self._next_input(y_t, carried)
                    else:
                        u_t, projected = inputs[t + 1]
        last_read = (read,) if self.transition.lag and read is not None else ()
        return tuple(x.detach() for x in (*state, *last_read, *(carried or ())))

    def _guide_steps(self, batch: SequenceBatch) -> None:
        recurrence = self._recurrence(batch)
        posterior, contexts = self._posterior(recurrence)
        step = self.transition.stepper()
        with self.sequences(batch):
            skip = self._sample_skip(batch)
            state = self.transition.initial((batch.num_sequences,), recurrence.start.state)
            read = recurrence.start.read
            inputs, context = self._stepwise(recurrence.inputs), contexts.unbind(0)
            for t in pyro.markov(range(batch.num_steps)):
                u_t, projected = inputs[t]
                if self.transition.lag:
                    state = step(projected, self._read_before(read, state), state)
                x = shielded(self.transition.seen(u_t, state[0]), skip[t])
                c_t = shielded(context[t], skip[t]).expand(*x.shape[:-1], -1)
                with self.latent_weight():
                    z_t = pyro.sample(f"z_{t + 1}", at_step(posterior(x, c_t), batch, t))
                read = self._read(z_t, batch, t)
                if not self.transition.lag:
                    state = step(projected, read, state)

    def _stepwise(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Inputs and projected inputs, step by step."""
        return list(zip(inputs.unbind(0), self.transition.project(inputs).unbind(0), strict=True))

    def _next_input(self, y: Tensor, carried: Any) -> tuple[tuple[Tensor, Tensor], Any]:
        """Likewise for a step whose input was drawn just now."""
        u = self.embedding(y)
        if self.deterministic is not None:
            u, carried = self.deterministic.step(u, carried)
        return (u, self.transition.project(u)), carried

    def _read_before(self, read: Tensor | None, state: Any) -> Tensor:
        """What a transition with lag reads: the latents of the step before, zeros at the first."""
        if read is not None:
            return read
        return state[0].new_zeros(*state[0].shape[:-1], self.transition.latent_size)

    def _read(self, z: Tensor, batch: SequenceBatch, t: int) -> Tensor:
        """What the transition reads of the latents of a step; draws b~ where there is one."""
        if self.echo is None:
            return self.embed_latent(z)
        echo = at_step(self.echo(z), batch, t)
        return self.embed_latent(z, pyro.sample(f"b_tilde_{t + 1}", echo, infer=NO_KL))

    # One site for the sequence: the same densities, batched over time.

    def _model_time(self, batch: SequenceBatch) -> State:
        with self.sequences(batch):
            skip = self._sample_skip(batch)
            recurrence = self._recurrence(batch, skip)
            with self.latent_weight():
                z = pyro.sample("z", PriorPath(recurrence, self._prior()))
            self._sample_echo(recurrence, z)
            pyro.sample("y", self.emitted(recurrence.output(z), batch), obs=batch.targets)
            costs = self._active_aux()
            if not costs:
                return recurrence.end(z)
            particles = z.dim() - 3
            read_b = any(cost.reads_backward for cost in costs.values())
            states = StepStates(
                u=with_particles(batch.clean_inputs.transpose(0, 1), particles),
                z=z.movedim(-2, 0),
                h_prev=recurrence.previous_states(z),
                h=recurrence.states(z),
                b=with_particles(recurrence.b, particles) if read_b else None,
            )
            for name, cost in costs.items():
                log_prob = masked(self._aux_cost_over_time(name, states), recurrence.mask)
                if cost.skips_start_symbol and batch.has_start_symbol:
                    log_prob = log_prob[1:]
                pyro.factor(f"{AUX_PREFIX}{name}", log_prob.sum(0))
        return recurrence.end(z)

    def _guide_time(self, batch: SequenceBatch) -> None:
        with self.sequences(batch):
            recurrence = self._recurrence(batch, self._sample_skip(batch))
            q = PosteriorPath(recurrence, *self._posterior(recurrence))
            with self.latent_weight():
                z = pyro.sample("z", q)
            self._sample_echo(recurrence, z)

    def _sample_echo(self, recurrence: Recurrence, z: Tensor) -> None:
        if self.echo is None:
            return
        b_tilde = pyro.sample("b_tilde", EchoPath(recurrence, z), infer=NO_KL)
        if recurrence.drawn is not None and recurrence.drawn[1] is not b_tilde:
            raise ValueError(
                "in layout 'time', z and b_tilde are drawn together: set both or neither, or take "
                "layout 'steps'"
            )
        recurrence.b_tilde = b_tilde

    # What both layouts use

    def _recurrence(self, batch: SequenceBatch, skip: Any = None) -> Recurrence:
        return Recurrence(self, batch, self._shared, skip)

    def skip_mask(self, batch: SequenceBatch) -> SkipMask | None:
        """The coins of the skip gradient; None where none are thrown."""
        if not (self.training and self.skip_gradient and batch.targets is not None):
            return None
        like, per_step = next(self.parameters()), self.skip_per == "step"
        return SkipMask(self.skip_gradient, torch.Size(), batch.num_steps, per_step, like)

    def _sample_skip(self, batch: SequenceBatch) -> Any:
        """Where gradients are skipped: (..., batch, time) in the time layout, else one a step."""
        steps = self.layout == "steps" or batch.targets is None
        if (coins := self.skip_mask(batch)) is None:
            return [None] * batch.num_steps if steps else None
        skip = pyro.sample("skip", coins, infer=NO_KL)
        return skip.unsqueeze(-1).unbind(-2) if steps else skip

    def _backward_states_of(self, costs: Mapping[str, AuxiliaryCost], batch: SequenceBatch) -> Any:
        if not any(cost.reads_backward for cost in costs.values()):
            return [None] * batch.num_steps
        return self._recurrence(batch).b.unbind(0)

    def _active_aux(self) -> dict[str, AuxiliaryCost]:
        return {name: cost for name, cost in self.aux.items() if self.aux_weights[name] != 0}  # type: ignore[misc]

    def _aux_cost(self, name: str, states: StepStates) -> Tensor:
        cost: Tensor = self.aux_weight * self.aux_weights[name] * self.aux[name](states)
        return cost

    def _aux_cost_over_time(self, name: str, states: StepStates) -> Tensor:
        given = {k: x for k, x in states._asdict().items() if x is not None}

        def cost(*tensors: Tensor) -> Tensor:
            return self._aux_cost(name, states._replace(**dict(zip(given, tensors, strict=True))))

        return by_chunks(cost, list(given.values()), self.time_chunk)

    def _prior(self) -> nn.Module:
        return MeanOf(self.prior) if self.latents == "prior-mean" else self.prior

    def _posterior(self, recurrence: Recurrence) -> tuple[nn.Module, Tensor]:
        """The posterior that is in force, and what it reads beside the state."""
        if self.latents == "posterior":
            return self.posterior, recurrence.context
        return FromPrior(self._prior()), recurrence.inputs


class MeanOf(nn.Module):
    """A module's distribution, shrunk to its mean: a draw is the mean, and every density cancels."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def size(self) -> int:
        size: int = self.module.size  # type: ignore[assignment]
        return size

    def forward(self, *inputs: Tensor) -> TorchDistributionMixin:
        try:
            mean = self.module(*inputs).mean
        except NotImplementedError as error:
            raise ValueError(f"the mean of {type(self.module).__name__} is not known") from error
        return _Mean(mean, 1.0).to_event(1)


class _Mean(dist.Normal):
    """Draws its mean. Its density is that of a Gaussian, so that two of them can be compared."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Mean:
        return _Mean(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc.expand(torch.Size(sample_shape) + self.loc.shape)

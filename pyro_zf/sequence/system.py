"""The declaration of a system, from which all programs that are not written out are derived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch, with_particles
from pyro_zf.distributions import BernoulliMask
from pyro_zf.nn.auxiliary import AuxiliaryCost, StepStates
from pyro_zf.nn.cells import Cell, State
from pyro_zf.nn.mlp import join
from pyro_zf.nn.posteriors import reads

__all__ = [
    "FREE_OF_KL",
    "Core",
    "Latent",
    "RecurrentSystem",
    "carried_states",
    "detach_where",
    "join_over_time",
]

#: ``infer`` dictionary of a site that model and guide draw from the same distribution. The two
#: log-densities cancel, so bounds and KL do not contain them.
FREE_OF_KL: Any = {"free_of_kl": True}

Core = Literal["auto", "eager", "fused"]


class Latent(NamedTuple):
    """A latent variable: its networks and their inputs.

    Args:
        prior: maps features to a distribution over the latent.
        posterior: maps (features, context) to such a distribution. None for a latent that both model and
            guide draw from ``prior`` and that is therefore free of KL.
        size: size of the latent.
        reads: names of the features, in order: ``"state"`` (the state before the latent is drawn),
            ``"input"``, or names of latents that are drawn earlier in the step. The covariates are appended.
        per: ``"step"``, or ``"sequence"`` for a latent with one value for all steps. That value is
            appended to the covariates of every step. The features of such a latent are the covariates of
            the first step, and its context is :math:`b_1`.
    """

    prior: nn.Module
    posterior: nn.Module | None
    size: int
    reads: tuple[str, ...] = ("state",)
    per: Literal["step", "sequence"] = "step"

    @property
    def infer(self) -> Any:
        """The ``infer`` dictionary of its sites."""
        return {} if self.posterior is not None else FREE_OF_KL

    def features(self, known: Mapping[str, Tensor], c: Tensor | None) -> Tensor:
        """Inputs of the networks at a step. ``known`` has a value for each name in :attr:`reads`."""
        return join(*(known[name] for name in self.reads), c)


class RecurrentSystem(nn.Module):
    r"""The declaration of a recurrent model with latents.

    A step of the model is

    .. math::

        z_t &\sim p(z_t \mid h_{t-1}, c_t), \qquad q(z_t \mid h_{t-1}, c_t, b_t) \\
        h_t &= \mathrm{cell}([u_t, c_t], z_t, h_{t-1}) \\
        y_t &\sim p(y_t \mid h_t, c_t)

    where :math:`u_t` is the embedded input or the state of a network over the inputs, :math:`c_t` are the
    covariates, and :math:`b_t` is the context of the posterior. The other inputs of prior, posterior, cell
    and emission are declared by name: ``"state"`` and ``"input"`` for h and u, and the names of latents. A
    system sets the attributes below, and overrides :attr:`latents` if it has latents other than z.
    """

    #: Features of the prior and the posterior of z.
    prior_reads: tuple[str, ...] = ("state",)
    #: Latents that are inputs of the cell.
    cell_reads: tuple[str, ...] = ("z",)
    #: Inputs of the emission; ``"state"`` is the state after reading the latents.
    emission_reads: tuple[str, ...] = ("state",)
    #: Size of the covariates, without and with the latents of the whole sequence.
    covariate_size: int = 0
    condition_size: int = 0

    #: The forward network.
    cell: Cell
    #: Maps the data of a step to features; the identity for numbers that need no embedding.
    embedding: nn.Module
    #: A layer between z and the cell.
    latent_embedding: nn.Module
    #: A network over the inputs alone, whose state replaces :math:`u_t`; or None.
    deterministic: Cell | None
    #: Whether the networks over the targets also read the state of that network.
    recognition_reads_input: bool = False
    #: Networks over the targets, backward and forward (recognition); None if nothing reads them.
    backward_network: Any
    recognition_network: Any
    prior: nn.Module
    posterior: nn.Module
    emission: nn.Module
    latent_size: int
    #: Auxiliary costs by name, and their weights.
    aux: nn.ModuleDict
    aux_weights: dict[str, float]
    aux_weight: float | Tensor
    #: Probability that prior and posterior pass no gradient to their inputs at a step.
    skip_gradient: float = 0.0
    skip_per: Literal["step", "sequence"] = "step"
    core: Core = "auto"
    time_chunk: int | None = None

    # The data flow of a step

    @property
    def latents(self) -> dict[str, Latent]:
        """The latents in the order in which a step draws them."""
        return {"z": Latent(self.prior, self.posterior, self.latent_size, self.prior_reads)}

    def embedded(self, name: str, latents: Mapping[str, Tensor]) -> Tensor:
        """A latent in the form in which cell and emission read it."""
        value: Tensor = self.latent_embedding(latents[name]) if name == "z" else latents[name]
        return value

    def cell_inputs(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "... latent"]:
        """The part of the cell's inputs that comes from the latents of a step."""
        return join(*(self.embedded(name, latents) for name in self.cell_reads))

    def emission_inputs(
        self, u: Float[Tensor, "... input"], latents: Mapping[str, Tensor], h: Tensor
    ) -> Tensor:
        """Inputs of the emission at a step, without the covariates."""
        known = {"state": h, "input": u}
        parts = (known[k] if k in known else self.embedded(k, latents) for k in self.emission_reads)
        return join(*parts)

    # Networks over the data, time first

    def embed(self, data: Tensor, covariates: Tensor | None) -> Tensor:
        """Embed data with any leading dimensions, and append the covariates."""
        return join(self.embedding(data), covariates)

    def input_features(
        self, batch: SequenceBatch, carried: State | None
    ) -> tuple[Float[Tensor, "time batch input"], State]:
        """:math:`u_{1:T}`, and the last state of the network over the inputs, if there is one."""
        if self.deterministic is None:
            return self.embedding(batch.inputs.transpose(0, 1)), ()
        inputs = self.embed(batch.inputs.transpose(0, 1), batch.covariates_over_time)
        states = self.deterministic.run(inputs, None, carried or None)
        return states.after, states.last

    def recognition_inputs(
        self, batch: SequenceBatch, u: Float[Tensor, "time batch input"] | None = None
    ) -> Float[Tensor, "batch time features"]:
        """Inputs of the networks over the targets, batch first. ``u`` are the input features, if known."""
        c = batch.covariates_over_time
        targets = self.embed(batch.targets, None if c is None else c.transpose(0, 1))  # type: ignore[arg-type]
        if not self.recognition_reads_input:
            return targets
        if u is None:
            u = self.input_features(batch, self.start(batch)[1])[0]
        return join(u.transpose(0, 1), targets)

    def backward_states(
        self, batch: SequenceBatch, u: Float[Tensor, "time batch input"] | None = None
    ) -> Float[Tensor, "time batch backward"]:
        r""":math:`b_{1:T}`."""
        states: Tensor = self.backward_network(self.recognition_inputs(batch, u), batch)
        return states

    def posterior_context(
        self,
        batch: SequenceBatch,
        u: Float[Tensor, "time batch input"] | None = None,
        b: Float[Tensor, "time batch backward"] | None = None,
    ) -> Float[Tensor, "time batch context"]:
        """The second input of the posterior of z, see :mod:`pyro_zf.nn.posteriors`.

        ``u`` and ``b`` are the input features and the backward states, if they are already known.
        """
        source = reads(self.posterior)
        if source == "backward":
            return self.backward_states(batch, u) if b is None else b
        targets = self.recognition_inputs(batch, u)
        if source == "target":
            return targets.transpose(0, 1)
        states: Tensor = self.recognition_network(targets, batch)
        return states

    def sequence_features(self, batch: SequenceBatch) -> Float[Tensor, "batch covariates"]:
        """Features of a latent of the whole sequence: the covariates of the first step."""
        c = batch.covariates_over_time
        return next(self.parameters()).new_zeros(batch.num_sequences, 0) if c is None else c[0]

    # The start of a batch

    def start(self, batch: SequenceBatch) -> tuple[State | None, State]:
        """The states of the cell and of the network over the inputs from which a batch starts.

        Raises:
            ValueError: if the batch carries the wrong number of states.
        """
        return carried_states(self, self.cell, self.deterministic, batch)

    # Auxiliary costs

    def active_aux(self) -> dict[str, AuxiliaryCost]:
        """The auxiliary costs whose weight is not zero."""
        return {name: cost for name, cost in self.aux.items() if self.aux_weights[name] != 0}  # type: ignore[misc]

    def weighted_aux(self, name: str, states: StepStates) -> Float[Tensor, "*batch"]:
        """A cost times its weight, in nats. This method determines which states the cost receives."""
        cost: Tensor = self.aux_weight * self.aux_weights[name] * self.aux[name](states)
        return cost

    @property
    def reads_backward_states(self) -> bool:
        """Whether an active auxiliary cost reads b."""
        return any(cost.reads_backward for cost in self.active_aux().values())

    # Skip gradient

    def gradient_mask(self, batch: SequenceBatch) -> Any:
        """The mask of the skip gradient, a sample site of model and guide; None if there is none.

        It is True where prior and posterior pass no gradient to their inputs. Its shape is
        (\\*particles, batch, time).
        """
        if not (self.training and self.skip_gradient and batch.targets is not None):
            return None
        like = next(self.parameters())
        per_step = self.skip_per == "step"
        mask = BernoulliMask(self.skip_gradient, batch.num_steps, per_step, like)
        return pyro.sample("skip", mask, infer=FREE_OF_KL)


def carried_states(
    model: object, cell: Cell, deterministic: Cell | None, batch: SequenceBatch
) -> tuple[State | None, State]:
    """The states of a cell and of a network over the inputs from which a batch starts.

    Raises:
        ValueError: if the batch carries the wrong number of states.
    """
    if batch.carried is None:
        return None, ()
    number = len(cell.state_sizes)
    expected = number + len(deterministic.state_sizes if deterministic else ())
    if len(batch.carried) != expected:
        raise ValueError(
            f"the batch carries {len(batch.carried)} states; {type(model).__name__} leaves {expected}"
        )
    return batch.carried[:number], batch.carried[number:]


def detach_where(mask: Tensor | None, x: Tensor) -> Tensor:
    """The same values, detached where the mask is True."""
    return x if mask is None else torch.where(mask, x.detach(), x)


def join_over_time(*features: Tensor | None) -> Tensor:
    """Concatenate features, time first, some of which may have no particle dimensions."""
    given = [x for x in features if x is not None]
    dims = max(x.dim() for x in given)
    return join(*(with_particles(x, dims - x.dim()) for x in given))

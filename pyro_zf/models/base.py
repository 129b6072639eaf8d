"""What every model of the package is: a pair of Pyro programs over a :class:`SequenceBatch`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.nn.lstm import State
from pyro_zf.over_time import EmissionPath, OverTime

__all__ = [
    "AUX_PREFIX",
    "LAYOUTS",
    "LatentWeight",
    "LossModule",
    "SequenceModel",
    "at_step",
    "local_parameters",
]

Layout = Literal["steps", "time"]
LAYOUTS: tuple[Layout, ...] = ("steps", "time")

_local = ContextVar("local_parameters", default=False)


@contextmanager
def local_parameters() -> Iterator[None]:
    """Run programs without putting parameters into Pyro's store, for who has them already."""
    token = _local.set(True)
    try:
        yield
    finally:
        _local.reset(token)


#: Sites that are costs of training, not part of the joint density, begin with this.
AUX_PREFIX = "aux_"


class LatentWeight(Messenger):
    """Multiplies the log-probability of the sites inside it, as :func:`pyro.poutine.scale` does.

    Unlike that handler it takes a weight of exactly zero. It belongs around the latent sites of
    model *and* guide: the analytic KL reads the weight of the guide, a sampled one reads both.
    """

    def __init__(self, weight: float | Tensor) -> None:
        super().__init__()
        if not isinstance(weight, Tensor) and not weight >= 0:
            raise ValueError(f"a KL weight must not be negative, it is {weight}")
        self.weight = weight

    def _process_message(self, msg: Any) -> None:
        msg["scale"] = self.weight * msg["scale"]


class SequenceModel(nn.Module):
    r"""A latent variable model of sequences as two Pyro programs.

    A subclass defines four methods. ``_model_steps`` and ``_guide_steps`` have one site a step
    (``z_1`` to ``z_T``, ``y_1`` to ``y_T``), ``_model_time`` and ``_guide_time`` one for the sequence
    (``z``, ``y``). All open a plate over sequences (:meth:`sequences`), put :meth:`latent_weight`
    around their latent sites and give auxiliary costs by ``pyro.factor`` sites whose names begin
    with :data:`AUX_PREFIX`.

    In exchange a model is accepted by everything in Pyro that takes a model and a guide, by the
    objectives, the trainer and the evaluation of this package, and gets :meth:`loss_module` and
    :meth:`generate`.

    Args:
        layout: ``"time"`` for training, ``"steps"`` for handlers that act on single steps.
        kl_weight: weight of the latent sites in training, a float or a tensor. An attribute: set it
            to anneal.
        aux_weight: factor on the weights of all auxiliary costs. An attribute too.
        time_chunk: in layout "time", how many steps priors, emissions and auxiliary costs score at a
            time; what lies between is computed again in the backward, which saves memory. None for all.
        name: under which the parameters are registered with :func:`pyro.module`.

    Raises:
        ValueError: if the layout is unknown, or ``time_chunk`` below one.
    """

    time_chunk: int | None = None

    def __init__(
        self,
        layout: Layout = "time",
        kl_weight: float | Tensor = 1.0,
        name: str = "model",
        aux_weight: float | Tensor = 1.0,
        time_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if time_chunk is not None and time_chunk < 1:
            raise ValueError(f"time_chunk must be at least 1, not {time_chunk}")
        self.time_chunk = time_chunk
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; there are {LAYOUTS}")
        self.layout = layout
        self.kl_weight = kl_weight
        self.aux_weight = aux_weight
        self.name = name

    def model(self, batch: SequenceBatch) -> State:
        """The generative program. A batch without targets is generated, step by step.

        It returns the state after the last step, without its gradient: what a batch that continues
        this one carries (:attr:`SequenceBatch.carried`).
        """
        self._register()
        if self.layout == "steps" or batch.targets is None:
            return self._model_steps(batch)
        return self._model_time(batch)

    def guide(self, batch: SequenceBatch) -> None:
        """The approximate posterior, over the latent sites of :meth:`model`.

        Raises:
            ValueError: if the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("the posterior reads the targets, and this batch has none")
        self._register()
        if self.layout == "steps":
            self._guide_steps(batch)
        else:
            self._guide_time(batch)

    def sequences(self, batch: SequenceBatch) -> pyro.plate:
        """The plate over sequences."""
        return pyro.plate("sequences", batch.num_sequences, dim=-1)

    def emitted(self, features: Tensor, batch: SequenceBatch) -> OverTime:
        """The distribution of the targets of a sequence, from what the emission reads, time first."""
        emission: Any = self.emission
        if self.time_chunk is None:
            return OverTime(emission(features), batch.mask)
        return EmissionPath(emission, features, batch.mask, self.time_chunk)

    def latent_weight(self) -> LatentWeight:
        """The handler that gives the latent sites their weight."""
        return LatentWeight(self.kl_weight)

    def loss_module(self, objective: pyro.infer.ELBO) -> LossModule:
        """A module whose forward is the loss of a batch, for a plain PyTorch loop."""
        return LossModule(self, objective)

    @contextmanager
    def using_layout(self, layout: Layout) -> Iterator[None]:
        """Another layout for the duration of a ``with`` block."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    @torch.no_grad()
    def generate(
        self, start: Tensor, num_steps: int, *handlers: AbstractContextManager[Any]
    ) -> Tensor:
        r"""Draw sequences from the model: z from the prior, each y fed back as the next input.

        Args:
            start: :math:`u_1`, (batch, ...).
            num_steps: steps to draw.
            *handlers: around the program, the first outermost, such as
                :class:`pyro_zf.analysis.Decoding`; those around this call do not act on it.

        Returns:
            Tensor: :math:`y_{1:T}`, (batch, time, ...).
        """
        batch = SequenceBatch.to_generate(start, num_steps)
        with pyro.poutine.block(), local_parameters(), ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler)
            trace = pyro.poutine.trace(self.model).get_trace(batch)
        ys: list[Any] = [trace.nodes[f"y_{t}"]["value"] for t in range(1, num_steps + 1)]
        return torch.stack(ys, dim=1)

    def _model_steps(self, batch: SequenceBatch) -> State:
        raise NotImplementedError

    def _model_time(self, batch: SequenceBatch) -> State:
        raise NotImplementedError

    def _guide_steps(self, batch: SequenceBatch) -> None:
        raise NotImplementedError

    def _guide_time(self, batch: SequenceBatch) -> None:
        raise NotImplementedError

    def _register(self) -> None:
        """Make the parameters known to Pyro's optimisers."""
        if _local.get():
            return
        pyro.module(self.name, self)
        store: Any = pyro.get_param_store()
        for key, parameter in self.named_parameters():
            full = f"{self.name}$$${key}"
            if parameter.requires_grad and store[full].unconstrained() is not parameter:
                # Pyro would go on training the parameters of the other module, in silence.
                raise ValueError(
                    f"another module is registered with Pyro as {self.name!r}: call "
                    "pyro.clear_param_store() first, or give this model another name= (weights "
                    "that were saved with a store come back by load_state_dict)"
                )


def at_step(
    distribution: TorchDistributionMixin, batch: SequenceBatch, t: int
) -> TorchDistributionMixin:
    """A step's distribution, silent for sequences that have ended."""
    return distribution if batch.mask is None else distribution.mask(batch.mask[:, t])


class LossModule(nn.Module):
    """The loss of a model under an objective, in nats per sequence.

    Its parameters are those of the model; nothing is put into Pyro's parameter store. An average
    over the real sequences of the batch, so that it does not grow with the batch.

    Args:
        model: the model to train.
        objective: any :class:`pyro.infer.ELBO` with a ``differentiable_loss``.

    Raises:
        TypeError: if the objective has none, as :class:`pyro.infer.RenyiELBO`. Such objectives
            train by :class:`pyro.infer.SVI` or :class:`pyro_zf.infer.SVI`.
    """

    def __init__(self, model: SequenceModel, objective: pyro.infer.ELBO) -> None:
        super().__init__()
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                f"{type(objective).__name__} has no differentiable_loss; train it by "
                "pyro.infer.SVI, or take TraceIWAE for an importance-weighted bound"
            )
        self.model = model
        self.objective = objective

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Nats per sequence."""
        with local_parameters():
            loss = self.objective.differentiable_loss(self.model.model, self.model.guide, batch)
        return loss / batch.num_real

"""The base class of all models: a pair of Pyro programs over a :class:`SequenceBatch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.distributions import ChunkedEmission, OverTime
from pyro_zf.models.options import ModelOptions
from pyro_zf.nn.cells import Cell, State
from pyro_zf.nn.emissions import emits_symbols
from pyro_zf.nn.mlp import join

__all__ = [
    "AUX_PREFIX",
    "LAYOUTS",
    "LatentWeight",
    "Layout",
    "LossModule",
    "SequenceModel",
    "local_parameters",
]

Layout = Literal["steps", "time"]
LAYOUTS: tuple[Layout, ...] = ("steps", "time")

#: Prefix of the names of sites that are training costs and not part of the joint density.
AUX_PREFIX = "aux_"

_local = ContextVar("local_parameters", default=False)


@contextmanager
def local_parameters() -> Iterator[None]:
    """Run programs without adding parameters to Pyro's store, for callers that already hold them."""
    token = _local.set(True)
    try:
        yield
    finally:
        _local.reset(token)


class LatentWeight(Messenger):
    """Multiplies the log-probability of the sites inside it, like :func:`pyro.poutine.scale`.

    Unlike that handler, it accepts a weight of exactly zero. It must enclose the latent sites of both model
    *and* guide: the analytic KL uses the weight of the guide, and a sampled KL uses both.
    """

    def __init__(self, weight: float | Tensor) -> None:
        super().__init__()
        if not isinstance(weight, Tensor) and not weight >= 0:
            raise ValueError(f"a KL weight must not be negative, it is {weight}")
        self.weight = weight

    def _process_message(self, msg: Any) -> None:
        msg["scale"] = self.weight * msg["scale"]


class SequenceModel(nn.Module):
    r"""A model of sequences as two Pyro programs, in two layouts.

    Layout ``"steps"`` has one site for each step (``z_1`` to ``z_T``, ``y_1`` to ``y_T``), and layout
    ``"time"`` has one site for the whole sequence (``z``, ``y``). A subclass defines ``model_steps``,
    ``guide_steps``, ``model_time`` and ``guide_time``. Each of these programs opens a plate over sequences
    (:meth:`sequences`), puts :meth:`latent_weight` around its latent sites and :meth:`real_steps` around the
    sites of a step, and adds auxiliary costs as ``pyro.factor`` sites whose names begin with
    :data:`AUX_PREFIX`. A model program returns the state after the last step, detached.

    Such a model works with Pyro's inference (the page on programs lists the exceptions) and with the
    objectives, the trainer and the evaluation of this package. It inherits :meth:`loss_module`,
    :meth:`generate`, and :meth:`without_auxiliary_costs`, which switches the auxiliary costs off.

    Args:
        layout: ``"time"`` for training, ``"steps"`` for handlers that act on single steps.
        kl_weight: weight of the latent sites in training, a float or a tensor. It is an attribute that can be
            changed during training, for example to anneal the KL.
        aux_weight: factor that multiplies the weights of all auxiliary costs. It is also an attribute that
            can be changed during training.
        time_chunk: number of steps that priors, emissions and auxiliary costs score at a time in layout
            ``"time"``. Intermediate values are recomputed in the backward pass to save memory. None scores
            all steps at once.
        covariate_size: size of the covariates that every network is conditioned on; 0 for none.
        name: name under which the parameters are registered with :func:`pyro.module`.

    Raises:
        ValueError: if the layout is unknown, or if ``time_chunk`` is below one.
    """

    #: The constructor options that are plain values, as a documented dataclass.
    Options: ClassVar[type[ModelOptions]] = ModelOptions
    #: Maps each option that weights an auxiliary cost to the name of that cost.
    letters: ClassVar[dict[str, str]] = {}
    has_latents: ClassVar[bool] = False
    #: Description of the auxiliary costs of each preset, by the name of the preset.
    preset_note: ClassVar[Mapping[str, str]] = {}

    embedding: nn.Module
    emission: nn.Module
    #: Number of values per step, or number of symbols; None accepts any batch.
    data_size: int | None = None
    #: A network over the inputs alone, whose state replaces the input; or None.
    deterministic: Cell | None
    #: The run that the model was loaded from, see :func:`pyro_zf.load`; None for other models.
    trained: Any = None

    def __init__(
        self,
        layout: Layout = "time",
        kl_weight: float | Tensor = 1.0,
        name: str = "model",
        aux_weight: float | Tensor = 1.0,
        time_chunk: int | None = None,
        covariate_size: int = 0,
    ) -> None:
        super().__init__()
        if time_chunk is not None and time_chunk < 1:
            raise ValueError(f"time_chunk must be at least 1, not {time_chunk}")
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; there are {LAYOUTS}")
        self.time_chunk = time_chunk
        self.layout = layout
        self.kl_weight = kl_weight
        self.aux_weight = aux_weight
        self.name = name
        self.covariate_size = covariate_size
        self.deterministic = None
        self.emission = None  # type: ignore[assignment]  # every system of the package sets it

    @classmethod
    def preset(cls, dataset: str, preset: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the training settings and options that the system's paper gives for a data set.

        Args:
            dataset: name of the data set.
            preset: ``"paper"`` or ``"small"``.
            settings: settings of the preset of the data set, which the result overrides.
        """
        return {}

    # The two programs

    def model(self, batch: SequenceBatch) -> State:
        """The generative program. For a batch without targets, it generates them step by step.

        It returns the detached state after the last step, from which a batch that continues this one starts
        (:attr:`SequenceBatch.carried`).

        Raises:
            ValueError: if the batch does not have the covariates that the model is conditioned on.
        """
        self.check(batch)
        if self.layout == "steps" or batch.targets is None:
            return self.model_steps(batch)
        return self.model_time(batch)

    def guide(self, batch: SequenceBatch) -> None:
        """The approximate posterior over the latent sites of :meth:`model`.

        Raises:
            ValueError: if the batch has no targets, or not the covariates that the model is conditioned on.
        """
        if batch.targets is None:
            raise ValueError("the posterior reads the targets, and this batch has none")
        self.check(batch)
        if self.layout == "steps":
            self.guide_steps(batch)
        else:
            self.guide_time(batch)

    def model_steps(self, batch: SequenceBatch) -> State:
        """The generative program with one site for each step."""
        raise _not_defined(self, "model_steps")

    def model_time(self, batch: SequenceBatch) -> State:
        """The generative program with one site for the whole sequence."""
        raise _not_defined(self, "model_time")

    def guide_steps(self, batch: SequenceBatch) -> None:
        """The approximate posterior with one site for each step."""
        raise _not_defined(self, "guide_steps")

    def guide_time(self, batch: SequenceBatch) -> None:
        """The approximate posterior with one site for the whole sequence."""
        raise _not_defined(self, "guide_time")

    # Building blocks of the programs

    def sequences(self, batch: SequenceBatch) -> pyro.plate:
        """The plate over sequences."""
        return pyro.plate("sequences", batch.num_sequences, dim=-1)

    def real_steps(self, batch: SequenceBatch, t: int) -> AbstractContextManager[Any]:
        """Context for the sites of step t (counted from 0), which masks sequences that have ended."""
        if batch.mask is None:
            return nullcontext()
        mask: AbstractContextManager[Any] = poutine.mask(mask=batch.mask[:, t])  # type: ignore[no-untyped-call, call-overload]
        return mask

    def latent_weight(self) -> LatentWeight:
        """Handler that applies the KL weight to the latent sites inside it."""
        return LatentWeight(self.kl_weight)

    def input_at(
        self, batch: SequenceBatch, t: int, y_before: Tensor | None, carried: State = ()
    ) -> tuple[Tensor, State]:
        """The features :math:`u_t` of the input of step t, and the state of the network over the inputs.

        Args:
            batch: the sequences. If they have no targets, the input is ``y_before``.
            t: the step, counted from 0.
            y_before: the value that was drawn at the previous step; not used at the first step.
            carried: the state of the network over the inputs, if the model has one.

        Raises:
            ValueError: if the model has such a network, and its state is missing after the first step.
        """
        given = batch.targets is not None or t == 0 or y_before is None
        data = batch.inputs[:, t] if given else y_before
        features = self.embedding(data)
        if self.deterministic is None:
            return features, ()
        if t > 0 and not carried:
            raise ValueError(
                f"{type(self).__name__}.input_at needs the state that it returned at the step before"
            )
        state = carried or self.deterministic.initial(features.shape[:-1])
        both = join(features, self.covariates_at(batch, t))
        state = self.deterministic.after(both, None, self.deterministic.before(both, state))
        return state[0], state

    def target_at(self, batch: SequenceBatch, t: int) -> Tensor | None:
        """The target of step t (counted from 0), or None if it is to be sampled."""
        return None if batch.targets is None else batch.targets[:, t]

    def covariates_at(self, batch: SequenceBatch, t: int) -> Tensor | None:
        """The covariates of step t (counted from 0), or None if there are none."""
        c = batch.covariates
        return c if c is None or c.dim() == 2 else c[:, t]

    def emitted(self, features: Tensor, batch: SequenceBatch) -> OverTime:
        """The distribution of the targets of a sequence, given the inputs of the emission, time first."""
        emission: Any = self.emission
        if self.time_chunk is None:
            return OverTime(emission(features), batch.mask)
        return ChunkedEmission(emission, features, batch.mask, self.time_chunk)

    # Use of a model

    def loss_module(self, objective: pyro.infer.ELBO) -> LossModule:
        """Return a module whose forward computes the loss of a batch, for a plain PyTorch training loop."""
        return LossModule(self, objective)

    @contextmanager
    def using_layout(self, layout: Layout) -> Iterator[None]:
        """Use another layout for the duration of a ``with`` block.

        Raises:
            ValueError: if the layout is unknown.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; there are {LAYOUTS}")
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    @contextmanager
    def without_auxiliary_costs(self) -> Iterator[None]:
        """Reduce the program to the density :math:`p(y, z)` for the duration of a ``with`` block.

        Auxiliary costs are factors of the program, so Pyro's own inference (:class:`pyro.infer.Importance`,
        :class:`pyro.infer.MCMC`, :class:`pyro.infer.RenyiELBO`, :class:`pyro.infer.Predictive`) would count
        them as part of the density. Inside the block, their weights are zero and the KL weight is one.

        Example:
            >>> from pyro.infer import Importance
            >>> from pyro_zf import ZForcing
            >>> zf = ZForcing(data_size=4, hidden_size=8, latent_size=2, mlp_size=8)
            >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
            >>> with zf.without_auxiliary_costs():
            ...     run = Importance(zf.model, zf.guide, num_samples=3).run(batch)
            >>> bool(run.get_log_normalizer() < 0)
            True
        """
        before = self.aux_weight, self.kl_weight
        self.aux_weight, self.kl_weight = 0.0, 1.0
        try:
            yield
        finally:
            self.aux_weight, self.kl_weight = before

    @torch.no_grad()
    def generate(
        self,
        start: Tensor,
        num_steps: int,
        *handlers: AbstractContextManager[Any],
        covariates: Tensor | None = None,
    ) -> Tensor:
        r"""Draw sequences from the model, with z from the prior and each y fed back as the next input.

        Args:
            start: :math:`u_1`, (batch, ...).
            num_steps: number of steps to draw.
            *handlers: handlers to run the program in, the first outermost, such as
                :class:`pyro_zf.analysis.Decoding`. Handlers around this call have no effect on the program.
            covariates: covariates that the model is conditioned on, (batch, size) or (batch, time, size).

        Returns:
            Tensor: :math:`y_{1:T}`, (batch, time, ...).

        Raises:
            ValueError: if ``start`` has the wrong shape, or ``num_steps`` is below one.
        """
        batch = SequenceBatch.to_generate(start, num_steps, covariates=covariates)
        if self.data_size is not None and not emits_symbols(self.emission):
            if start.dim() != 2 or start.shape[1] != self.data_size:
                raise ValueError(
                    f"start must be (batch, {self.data_size}), the input of the first step of each "
                    f"sequence, not {tuple(start.shape)}"
                )
        elif self.data_size is not None and start.dim() != 1:
            raise ValueError(f"start must be (batch,), one symbol each, not {tuple(start.shape)}")
        with poutine.block(), local_parameters(), ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler)
            trace = poutine.trace(self.model).get_trace(batch)
        ys: list[Any] = [trace.nodes[f"y_{t}"]["value"] for t in range(1, num_steps + 1)]
        return torch.stack(ys, dim=1)

    def check(self, batch: SequenceBatch) -> None:
        """Reject a batch that does not fit the model, and register the parameters for Pyro's optimisers.

        Raises:
            TypeError: if it is not a batch, or its values do not have the type of the parameters.
            ValueError: if its values or covariates have the wrong shape, a weight is random
                (:class:`pyro.nn.PyroSample`), or another module is registered under the name of this model.
        """
        self._check_values(batch)
        size = 0 if batch.covariates is None else batch.covariates.shape[-1]
        if size != self.covariate_size:
            raise ValueError(
                f"{type(self).__name__} is conditioned on {self.covariate_size} covariates, and the "
                f"batch has {size}"
            )
        for module in self.modules():
            if random := getattr(module, "_pyro_samples", None):
                raise ValueError(
                    f"{', '.join(random)} of a {type(module).__name__} is a PyroSample, but random weights "
                    "are not supported: the networks run inside the plate over sequences, and those of "
                    "torch.nn.LSTM are out of Pyro's reach"
                )
        if _local.get():
            return
        pyro.module(self.name, self)
        store: Any = pyro.get_param_store()
        for key, parameter in self.named_parameters():
            full = f"{self.name}$$${key}"
            if parameter.requires_grad and store[full].unconstrained() is not parameter:
                # Pyro would silently continue to train the parameters of the other module.
                raise ValueError(
                    f"another module is registered with Pyro as {self.name!r}: call "
                    "pyro.clear_param_store() first, or give this model another name= (weights "
                    "that were saved with a store come back by load_state_dict)"
                )

    def _check_values(self, batch: SequenceBatch) -> None:
        name = type(self).__name__
        if not isinstance(batch, SequenceBatch):
            raise TypeError(
                f"{name} takes a SequenceBatch, not a {type(batch).__name__}: use "
                "SequenceBatch.from_targets(tensor, lengths)"
            )
        if self.data_size is None:
            return
        x, symbols = batch.inputs, emits_symbols(self.emission)
        if symbols and (x.dim() != 2 or x.is_floating_point()):
            raise ValueError(
                f"{name} takes symbols, (batch, time) whole numbers, not {tuple(x.shape)} {x.dtype}"
            )
        if symbols:
            return
        if x.dim() != 3 or x.shape[2] != self.data_size:
            raise ValueError(
                f"{name} takes {self.data_size} values per step, (batch, time, {self.data_size}), but "
                f"the batch is {tuple(x.shape)}"
            )
        expected = next(self.parameters()).dtype
        if not x.is_floating_point():
            raise TypeError(
                f"the batch holds {x.dtype}, not floating-point numbers: call batch.numeric() for bits, "
                "or convert the targets with .float()"
            )
        for values in (x, batch.covariates):
            if values is None or values.dtype == expected or not values.is_floating_point():
                continue
            if not torch.is_autocast_enabled(x.device.type):
                raise TypeError(
                    f"the batch holds {values.dtype} and the model {expected}: call batch.to(dtype={expected})"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's parameter store attaches weak references to parameters. They cannot be pickled, and the store
        # sets them again when it needs them.
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return super().__getstate__()  # type: ignore[no-any-return]


def _not_defined(model: SequenceModel, name: str) -> NotImplementedError:
    other = "time" if name.endswith("steps") else "steps"
    return NotImplementedError(
        f'{type(model).__name__} does not define {name}: define it, or use layout="{other}"'
    )


class LossModule(nn.Module):
    """The loss of a model under an objective, in nats per sequence.

    Its parameters are those of the model, and nothing is added to Pyro's parameter store. The loss is
    averaged over the nonempty sequences of the batch, so that it does not grow with the batch.

    Args:
        model: the model to train.
        objective: any :class:`pyro.infer.ELBO` with a ``differentiable_loss``.

    Raises:
        TypeError: if the objective has no ``differentiable_loss``, like :class:`pyro.infer.RenyiELBO`. Train
            with such objectives through :class:`pyro.infer.SVI` or :class:`pyro_zf.infer.SVI`.
    """

    def __init__(self, model: SequenceModel, objective: pyro.infer.ELBO) -> None:
        super().__init__()
        if isinstance(objective, type):
            raise TypeError(
                f"the objective is the class {objective.__name__}; give {objective.__name__}()"
            )
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                f"{type(objective).__name__} has no differentiable_loss; train it by "
                "pyro.infer.SVI, or take TraceIWAE for an importance-weighted bound"
            )
        self.model = model
        self.objective = objective

    def forward(self, batch: SequenceBatch) -> Tensor:
        """The loss in nats per sequence."""
        with local_parameters():
            loss = self.objective.differentiable_loss(self.model.model, self.model.guide, batch)
        return loss / batch.num_real

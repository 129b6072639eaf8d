"""A recurrent model with latents: its parts, which are built from options, and its programs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.distributions import AtMean
from pyro_zf.models import derived
from pyro_zf.models.base import AUX_PREFIX, Layout, SequenceModel
from pyro_zf.models.options import LatentOptions
from pyro_zf.nn.auxiliary import AuxiliaryCost, StepStates, build_aux_cost
from pyro_zf.nn.cells import Cell, InputWindow, LatentChain, LSTMCell, State, make_cell
from pyro_zf.nn.emissions import (
    emits_counts,
    emits_symbols,
    make_emission,
    named_emission,
    reads_input,
)
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.mlp import ACTIVATIONS, Log1p, declared
from pyro_zf.nn.posteriors import ResidualPosterior, build_posterior, named_posterior, reads
from pyro_zf.nn.priors import build_prior
from pyro_zf.nn.recurrent import BackwardLSTM, ForwardLSTM
from pyro_zf.sequence.paths import LatentPath
from pyro_zf.sequence.system import Core, RecurrentSystem

__all__ = ["CORES", "LATENT_SOURCES", "LatentSequenceModel", "LatentSource", "embedding_layer"]

CORES: tuple[Core, ...] = ("auto", "eager", "fused")
LatentSource = Literal["posterior", "prior", "prior-mean"]
LATENT_SOURCES: tuple[LatentSource, ...] = ("posterior", "prior", "prior-mean")


def embedding_layer(
    data_size: int,
    emission: object,
    size: int | None,
    default_symbol_size: int,
    activation: str | None = None,
) -> tuple[nn.Module, int]:
    """Build the layer that embeds the data of an emission, and return it with its output size.

    Symbols are always embedded. Numbers pass through a linear layer, with an activation if one is named; if
    ``size`` is None, there is no such layer. Counts are read as log(1 + y).

    Raises:
        ValueError: if ``data_size`` is below one.
    """
    if data_size < 1:
        raise ValueError(f"data_size must be at least 1, it is {data_size}")
    if emits_symbols(emission):
        size = size or default_symbol_size
        return nn.Embedding(data_size, size), size
    layers: list[nn.Module] = [Log1p()] if emits_counts(emission) else []
    if size:
        layers.append(nn.Linear(data_size, size))
        layers += [ACTIVATIONS[activation]()] if activation else []
    if not layers:
        return nn.Identity(), data_size
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers), size or data_size


def check_input_size(emission: object, input_size: int = 0) -> None:
    """Check that an emission was made for the input that the model passes to it.

    Raises:
        ValueError: if its attribute ``input_size`` has another value.
    """
    own = getattr(emission, "input_size", input_size)
    if own != input_size:
        raise ValueError(
            f"{type(emission).__name__} was made with input_size={own}, but here it needs input_size={input_size}"
        )


def instance(part: str, given: object) -> None:
    """Reject a class where a module is expected.

    Raises:
        TypeError: if ``given`` is a subclass of :class:`torch.nn.Module`.
    """
    if isinstance(given, type) and issubclass(given, nn.Module):
        raise TypeError(f"{part} is the class {given.__name__}; give an instance of it")


class LatentSequenceModel(SequenceModel, RecurrentSystem):
    r"""A recurrent model with latents. The published systems are subclasses.

    A system declares its data flow (see :class:`~pyro_zf.sequence.RecurrentSystem`). The programs of layout
    ``"time"`` are derived from this declaration, and so are those of layout ``"steps"`` unless a subclass
    writes them out, as the published systems do. Any part can be replaced by a custom module: a prior maps
    the state to a distribution, a posterior maps the state and a context to one, and an emission maps the
    state to one.

    Args:
        data_size: number of values per step, or of symbols for a categorical emission.
        prior, posterior, emission: modules or names; the defaults are the names in the options.
        cell: a :class:`~pyro_zf.nn.Cell`, a name, or a function that builds a cell from the size of the input
            and the size of the latents that it reads.
        backward: a module to use instead of the standard backward network, see :mod:`pyro_zf.nn.recurrent`.
        aux: weights of auxiliary costs by name. A name is a key of :data:`pyro_zf.nn.AUX_COSTS`, or a custom
            name with a pair ``(module, weight)``.
        form, emission_form: parametrisation of the Gaussians of prior and posterior, and of those of the
            emission.
        prior_reads, cell_reads, emission_reads: names of the inputs of prior, cell and emission.
        latent_sizes: sizes of additional latents of a step, by name.
        sequence_latent_size: total size of the latents that have one value for a whole sequence.
        deterministic: whether to replace the inputs by the states of a network over the inputs alone.
        core: the recurrence that draws paths in layout ``"time"``. ``"fused"`` has a hand-written backward
            pass and supports the standard parts, ``"eager"`` is a loop of PyTorch operations, and ``"auto"``
            selects ``"fused"`` where it is supported.
        layout, kl_weight, aux_weight, time_chunk, covariate_size, name: see
            :class:`~pyro_zf.models.SequenceModel`.
        **options: fields of :attr:`Options`.

    Raises:
        ValueError: if a name is unknown, a weight is negative, or a probability lies outside 0..1.
        TypeError: if an option is unknown, or a class is given where a module is expected.
    """

    Options = LatentOptions
    has_latents = True
    #: The latents for which ``model_steps`` and ``guide_steps`` are written out. A system that declares other
    #: latents, or has None here, uses the programs that are derived from its declaration.
    written_for: ClassVar[tuple[str, ...] | None] = None
    #: Whether the written-out programs have the mask of the skip gradient.
    writes_gradient_mask: ClassVar[bool] = False

    def __init__(
        self,
        data_size: int,
        *,
        prior: str | nn.Module | None = None,
        posterior: str | nn.Module | None = None,
        emission: str | nn.Module | None = None,
        cell: str | Cell | Callable[[int, int], Cell] | None = None,
        backward: nn.Module | None = None,
        aux: Mapping[str, float | tuple[AuxiliaryCost, float]] | None = None,
        form: GaussianForm | None = None,
        emission_form: GaussianForm | None = None,
        prior_reads: tuple[str, ...] | None = None,
        cell_reads: tuple[str, ...] | None = None,
        emission_reads: tuple[str, ...] | None = None,
        latent_sizes: Mapping[str, int] | None = None,
        sequence_latent_size: int = 0,
        deterministic: bool = False,
        core: Core = "auto",
        layout: Layout = "time",
        kl_weight: float | Tensor = 1.0,
        aux_weight: float | Tensor = 1.0,
        time_chunk: int | None = None,
        covariate_size: int = 0,
        name: str = "model",
        **options: Any,
    ) -> None:
        super().__init__(layout, kl_weight, name, aux_weight, time_chunk, covariate_size)
        parts = {"prior": prior, "posterior": posterior, "emission": emission, "cell": cell}
        for part, given in {**parts, "backward": backward}.items():
            instance(part, given)
        names = {k: x for k, x in parts.items() if isinstance(x, str)}
        o: Any = self.Options.of(**names, **options)
        self.options = o
        if core not in CORES:
            raise ValueError(f"unknown core {core!r}; there are {CORES}")
        self.core = core
        self.latent_source: LatentSource = "posterior"
        self.prior_reads = prior_reads or self.prior_reads
        self.cell_reads = cell_reads or self.cell_reads
        self.emission_reads = emission_reads or self.emission_reads
        self.data_size, self.latent_size = data_size, o.latent_size
        self.backward_size = o.backward_size or o.hidden_size
        self.condition_size = covariate_size + sequence_latent_size
        mlp: dict[str, Any] = {"mlp_size": o.mlp_size, "activation": o.activation}
        rnn: dict[str, Any] = {"orthogonal": o.orthogonal, "forget_bias": o.forget_bias}
        self._mlp = {**mlp, "depth": o.mlp_depth}

        # Data, inputs, latents
        emission = o.emission if emission is None else emission
        named = named_emission(emission) if isinstance(emission, str) else emission
        symbols = emits_symbols(named)
        self.embedding, embedded_size = embedding_layer(
            data_size, named, o.embedding_size, o.hidden_size, o.feature_activation
        )
        self.latent_embedding, latent_width = embedding_layer(
            o.latent_size, None, o.latent_embedding_size, 0, o.feature_activation
        )
        input_size = embedded_size
        self.recognition_reads_input = deterministic
        if deterministic and o.input_window > 1:
            raise ValueError(
                f"{type(self).__name__} has no input_window: a recurrent network already reads its inputs"
            )
        if deterministic:
            self.deterministic = LSTMCell(embedded_size + covariate_size, 0, o.hidden_size, **rnn)
            input_size = o.hidden_size
        elif o.input_window > 1:
            self.deterministic = InputWindow(embedded_size, o.input_window)
            input_size = o.input_window * embedded_size
        # An emission over rows of values reads the input if it consists of such rows.
        rows = reads_input(named) and not deterministic and isinstance(self.embedding, nn.Identity)
        if rows:
            self.emission_reads = ("input", *(k for k in self.emission_reads if k != "input"))
        sizes = {"input": input_size, "z": latent_width, **(latent_sizes or {})}

        # The forward network
        read_size = sum(sizes[k] for k in self.cell_reads)
        sizes_of_cell = (input_size + self.condition_size, read_size)
        if isinstance(cell, Cell):
            self.cell = cell
        elif callable(cell):
            self.cell = cell(*sizes_of_cell)
        else:
            self.cell = self.build_cell(*sizes_of_cell)
        sizes["state"] = self.cell.state_sizes[0]

        # The networks over the targets
        source = reads(named_posterior(o.posterior) if posterior is None or isinstance(posterior, str)
                       else posterior)  # fmt: skip
        recognition_size = embedded_size + covariate_size + (o.hidden_size if deterministic else 0)
        self._make_backward = partial(BackwardLSTM, recognition_size, self.backward_size, **rnn)
        self.backward_network = backward
        if backward is not None:
            self.backward_size = int(backward.size)  # type: ignore[arg-type]
        elif source == "backward":
            self.backward_network = self._make_backward()
        self.recognition_network = None
        if source == "forward":
            self.recognition_network = ForwardLSTM(recognition_size, self.backward_size, **rnn)
        context_size = recognition_size if source == "target" else self.backward_size

        # Prior, posterior, emission
        raw = {**sizes, "z": o.latent_size}  # priors read latents without the embedding layer
        self.prior_size = sum(raw[k] for k in self.prior_reads) + self.condition_size
        networks = {**self._mlp, "form": form}
        if prior is None or isinstance(prior, str):
            prior = build_prior(o.prior, self.prior_size, o.latent_size, **networks)
        self.prior = prior
        if posterior is None or isinstance(posterior, str):
            posterior = build_posterior(
                o.posterior, prior, self.posterior_reads_of(self.prior_size), context_size,
                o.latent_size, **networks,
            )  # fmt: skip
        self.posterior = posterior
        self._emission = emission if isinstance(emission, str) else None
        self._emission_options = {
            "data_size": data_size,
            "form": emission_form,
            **o.emission_options,
        }
        of_input = {"input_size": input_size if rows else 0} if reads_input(named) else {}
        self.emission_size = sum(sizes[k] for k in self.emission_reads) + self.condition_size
        self.emission = (
            make_emission(emission, self.emission_size, **self._emission_options, **of_input)
            if isinstance(emission, str)
            else emission
        )
        check_input_size(self.emission, **of_input)
        if emits_symbols(self.emission) != symbols:
            raise ValueError(
                f"{type(self.emission).__name__} emits symbols, which the name {emission!r} did not say: "
                "give its entry in EMISSIONS the attribute kinds = ('categorical',)"
            )
        self.aux = nn.ModuleDict()
        self.aux_weights = {}
        self.add_costs(aux)

    def build_cell(self, input_size: int, latent_size: int) -> Cell:
        """Build the forward network that the options describe."""
        o: Any = self.options
        return make_cell(
            o.cell, input_size, latent_size, o.hidden_size, num_layers=o.num_layers,
            orthogonal=o.orthogonal, forget_bias=o.forget_bias,
        )  # fmt: skip

    def posterior_reads_of(self, size: int) -> int:
        """Number of leading features of the prior that the posterior reads; by default all of them."""
        return size

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "prior" and isinstance(self._modules.get("posterior"), ResidualPosterior):
            self.posterior.follow(value)  # type: ignore[operator]

    def extra_repr(self) -> str:
        default = asdict(self.Options())
        changed = {k: x for k, x in asdict(self.options).items() if x != default[k]}
        return ", ".join(f"{k}={x!r}" for k, x in changed.items())

    # Auxiliary costs

    def add_costs(self, aux: Mapping[str, float | tuple[AuxiliaryCost, float]] | None) -> None:
        """Add the costs of the option ``aux``, after the costs that the system itself defines.

        Raises:
            ValueError: if a cost exists already, or if nothing would train the backward network.
        """
        for name, weight in (aux or {}).items():
            if name in self.aux:
                raise ValueError(
                    f"the cost {name!r} has an option of its own here; leave it out of aux"
                )
            if isinstance(weight, tuple):
                self.add_aux(name, *weight)
            else:
                self.add_aux(name, self.build_aux(name), weight)
        costs = [cost for cost in self.active_aux().values() if cost.reads_backward]
        trained = reads(self.posterior) == "backward"
        if costs and not (trained or any(cost.trains_backward for cost in costs)):
            raise ValueError(
                f"nothing would train the backward network: {type(self.posterior).__name__} does not "
                "read b; take a posterior that does, or add the cost u, which predicts from it"
            )

    def build_aux(self, name: str) -> AuxiliaryCost:
        """Build the auxiliary cost of this name, for the sizes of this model.

        Raises:
            ValueError: if the name is unknown, or the cost does not apply to this system.
        """
        if name in ("h", "activity") and isinstance(self.cell, LatentChain):
            raise ValueError(
                f"the cost {name!r} is for a forward state that reads z, and here there is none"
            )
        return build_aux_cost(
            name,
            latent_size=self.latent_size,
            hidden_size=self.cell.state_sizes[0],
            backward_size=self.backward_size,
            make_emission=self.reverse_emission,
            covariate_size=self.condition_size,
            **self._mlp,
        )

    def add_aux(self, name: str, cost: AuxiliaryCost, weight: float) -> None:
        """Add an auxiliary cost, as the site ``aux_NAME``.

        Raises:
            ValueError: if the weight is negative.
            TypeError: if the cost is a class.
        """
        instance(f"the cost {name!r}", cost)
        self.set_aux_weight(name, weight)
        self.aux[name] = cost
        if cost.reads_backward and self.backward_network is None:
            self.backward_network = self._make_backward()

    def set_aux_weight(self, name: str, weight: float) -> None:
        """Set the weight of a cost; 0 switches it off.

        Raises:
            ValueError: if the weight is negative.
        """
        if not weight >= 0:
            raise ValueError(
                f"the weight of an auxiliary cost must not be negative, it is {weight}"
            )
        self.aux_weights[name] = weight

    def reverse_emission(self, size: int, name: str | None = None) -> nn.Module:
        """Build an emission over the same data for the state, of ``size`` values, of another network.

        Args:
            size: size of the state.
            name: an emission by name; by default it is of the same kind as the emission of the model.

        Raises:
            ValueError: if the emission is a custom module for states of another size, or ``name`` is for another
                kind of data.
        """
        size += self.condition_size
        name = name or self._emission
        if name is not None:
            kinds, own = (
                declared(emission, "kinds", ())
                for emission in (named_emission(name), self.emission)
            )
            if kinds and own and not set(kinds) & set(own):
                raise ValueError(
                    f"reverse_emission {name!r} is for {' and '.join(kinds)} data, and the emission of the model is "
                    f"for {' and '.join(own)} data"
                )
            return make_emission(name, size, **self._emission_options)
        if size == self.emission_size and not getattr(self.emission, "input_size", 0):
            return copy.deepcopy(self.emission)
        raise ValueError(
            f"an emission module of your own reads {self.emission_size} values, but the backward "
            f"network has {size} units: give one for these, as reverse_emission of ZForcing or as the "
            "cost (ReversePrediction(emission), weight)"
        )

    def scores_backward_states(self, batch: SequenceBatch) -> bool:
        """Whether the model program needs :math:`b_{1:T}` for an auxiliary cost; never in generation."""
        return batch.targets is not None and self.reads_backward_states

    def aux_factors(
        self, batch: SequenceBatch, t: int, states: StepStates, leave_out: tuple[str, ...] = ()
    ) -> None:
        """Add the factors of the auxiliary costs of step t (counted from 0), in layout ``"steps"``.

        ``leave_out`` names the costs that the program writes out itself.
        """
        for name, cost in self.active_aux().items():
            scored = t > 0 or not (cost.skips_start_symbol and batch.has_start_symbol)
            if scored and name not in leave_out:
                pyro.factor(f"{AUX_PREFIX}{name}_{t + 1}", self.weighted_aux(name, states))

    # The programs

    def model(self, batch: SequenceBatch) -> State:
        """Run the model program. If ``latent_source`` is ``"prior-mean"``, z is the mean of its prior."""
        if self.latent_source != "prior-mean":
            return super().model(batch)
        with _PriorsAtMean(self.latents):
            return super().model(batch)

    def guide(self, batch: SequenceBatch) -> None:
        """Run the guide program, or sample z from the prior if ``latent_source`` says so."""
        if self.latent_source == "posterior":
            super().guide(batch)
        else:  # draw from the model itself, which sees the inputs but not the targets
            with poutine.block(hide_fn=lambda msg: bool(msg.get("is_observed"))):  # type: ignore[no-untyped-call]
                self.model(batch)

    def model_steps(self, batch: SequenceBatch) -> State:
        """Run the model step by step, as derived from :attr:`latents`."""
        return derived.model_steps(self, batch)

    def guide_steps(self, batch: SequenceBatch) -> None:
        """Run the guide step by step, as derived from :attr:`latents`."""
        derived.guide_steps(self, batch)

    def model_time(self, batch: SequenceBatch) -> State:
        """Run the model with one site for all steps, as derived from :attr:`latents`."""
        return derived.model_time(self, batch)

    def guide_time(self, batch: SequenceBatch) -> None:
        """Run the guide with one site for all steps, as derived from :attr:`latents`."""
        derived.guide_time(self, batch)

    @property
    def follows_declaration(self) -> bool:
        """Whether the programs of layout ``"steps"`` are derived from the declaration, not written out."""
        return (
            tuple(self.latents) != self.written_for
            or (self.skip_gradient > 0 and not self.writes_gradient_mask)
            or self.options.input_window > 1
            or any(
                "input" in getattr(self, reads) and "input" not in getattr(type(self), reads)
                for reads in ("prior_reads", "emission_reads")
            )
        )

    @property
    def programs_are_derived(self) -> bool:
        """Whether the programs of layout ``"time"`` are derived from the declaration, not custom."""
        own, base = type(self), LatentSequenceModel
        return all(
            getattr(own, name) is getattr(base, name)
            for name in ("model", "guide", "model_time", "guide_time")
        )

    @contextmanager
    def drawing_latents_from(self, source: LatentSource) -> Iterator[None]:
        r"""Draw z without the targets for the duration of a ``with`` block, as at test time.

        Args:
            source: ``"prior"`` makes the guide draw z from the prior. The bounds of
                :func:`~pyro_zf.infer.batch_bounds` are then :math:`\mathbb E_p[\log p(y \mid z)]` and
                its importance-weighted form, which are both lower bounds on :math:`\log p(y)`.
                ``"prior-mean"`` puts z at the mean of the prior in guide, model and generation. The
                reported value is then the log-likelihood of a deterministic model (Shabanian et al.
                2017, figure 3). ``"posterior"`` changes nothing.

        Raises:
            ValueError: if the name is unknown, or the mean of the prior is not available.
        """
        if source not in LATENT_SOURCES:
            raise ValueError(f"latents are drawn from one of {LATENT_SOURCES}, not {source!r}")
        if source == "prior-mean":
            with torch.no_grad():  # raises an error if the prior has no mean
                like = next(self.parameters())
                AtMean.of(self.prior(like.new_zeros(1, self.prior_size)))
        before, self.latent_source = self.latent_source, source
        try:
            yield
        finally:
            self.latent_source = before


class _PriorsAtMean(Messenger):
    """Puts latents at the mean of their priors, in both layouts.

    Args:
        names: names of the latents.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        name: str = msg["name"]
        if name in self.names or name.rpartition("_")[0] in self.names:
            fn: Any = msg["fn"]
            msg["fn"] = fn.at_mean() if isinstance(fn, LatentPath) else AtMean.of(fn)

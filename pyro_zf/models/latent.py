"""What the systems with latents have in common: their parts, and how data flow between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.cores import CORES, Core
from pyro_zf.models.base import Layout
from pyro_zf.models.programs import LATENTS, LatentPrograms, Latents, MeanOf
from pyro_zf.nn.auxiliary import AuxiliaryCost, build_aux_cost
from pyro_zf.nn.emissions import emits_symbols, make_emission, named_emission
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.lstm import (
    BackwardLSTM,
    ChainTransition,
    ForwardLSTM,
    InputLSTM,
    LSTMTransition,
    State,
    Transition,
)
from pyro_zf.nn.mlp import ACTIVATIONS, join
from pyro_zf.nn.posteriors import ResidualPosterior, build_posterior, named_posterior, reads
from pyro_zf.nn.priors import build_prior
from pyro_zf.recurrence import Recurrence, Shared, Start

__all__ = ["LatentSequenceModel", "embed_data"]


def embed_data(
    data_size: int,
    symbols: bool,
    size: int | None,
    default_symbol_size: int,
    activation: str | None = None,
) -> tuple[nn.Module, int]:
    """The layer on the data, and the size of what it gives.

    Symbols are always embedded. Numbers go through a linear layer, with an activation if one is
    named, or through nothing where ``size`` is None.
    """
    if symbols:
        size = size or default_symbol_size
        return nn.Embedding(data_size, size), size
    if not size:
        return nn.Identity(), data_size
    layer = nn.Linear(data_size, size)
    return (nn.Sequential(layer, ACTIVATIONS[activation]()) if activation else layer), size


class LatentSequenceModel(LatentPrograms):
    r"""A recurrent model with a latent at each step. The published systems are subclasses.

    .. math::

        z_t &\sim p(z_t \mid x_t), \qquad x_t = \mathrm{seen}(u_t, h_{t-1}) \\
        h_t &= \mathrm{transition}(u_t, z_t, h_{t-1}) \\
        y_t &\sim p(y_t \mid \mathrm{output}(u_t, z_t, h_t))

    with :math:`q(z_t \mid x_t, c_t)`, where :math:`c_t` is the state :math:`b_t` of a backward
    network, or what else the posterior reads (:mod:`pyro_zf.nn.posteriors`). A transition with
    ``lag = 1`` moves before the latent is drawn: then :math:`x_t` is a function of :math:`h_t`.

    A subclass passes its transition and sets its options; one with another data flow overrides
    :meth:`embedded_inputs`, :meth:`backward_states`, :meth:`posterior_context` or
    :meth:`embed_latent`. Any part can be replaced by a module of your own: a prior maps
    :math:`x_t` to a distribution, a posterior :math:`(x_t, c_t)`, an emission its output.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        emission: a key of :data:`pyro_zf.nn.EMISSIONS`, or a module.
        hidden_size: units of the forward network.
        backward_size: units of the network that the posterior reads; by default as the forward one.
        latent_size: size of z.
        mlp_size: units of the hidden layers of prior, posterior, emission and auxiliary networks.
        mlp_depth: hidden layers of prior, posterior and auxiliary networks.
        emission_depth: hidden layers of the emission.
        activation: of the hidden layers, a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        embedding_size: size of a linear layer on the data, shared by all networks that read them,
            or None for no such layer. Symbols are always embedded; None then means ``hidden_size``.
        latent_embedding_size: size of a linear layer between z and the forward network, or None for
            no such layer.
        feature_activation: an activation after these two layers, or None.
        orthogonal: orthogonal recurrent weights.
        forget_bias: initial bias of the forget gates.
        form, emission_form: how networks' outputs become Gaussians: of prior and posterior, of an
            emission that has Gaussians.
        prior: a key of :data:`pyro_zf.nn.PRIORS`, or a module.
        posterior: a key of :data:`pyro_zf.nn.POSTERIORS`, or a module.
        transition: a module in place of the LSTM, or a function of (size of the embedded input, size of
            the embedded latent) that makes one.
        backward: a module in place of the standard backward network.
        deterministic: whether an LSTM over the inputs alone takes the place of the inputs.
        aux: auxiliary costs with their weights: keys of :data:`pyro_zf.nn.AUX_COSTS`, or modules by a
            name of your own with ``(module, weight)``.
        echo_size: size of a latent :math:`\tilde b_t` that follows z, 0 for none; :attr:`echo` gives
            its distribution.
        echo_read, echo_emitted: whether the transition and the emission read it.
        skip_gradient: probability with which, at a step of a sequence, the inputs of prior and
            posterior are detached in training.
        skip_per: whether a coin is thrown for each ``"step"`` or for each ``"sequence"``.
        core: the recurrence that draws paths in layout "time", see :func:`pyro_zf.cores.sample_path`.
        layout, kl_weight, aux_weight, time_chunk, name: see :class:`~pyro_zf.models.SequenceModel`.

    Raises:
        ValueError: for an unknown name, a weight below zero, or a probability outside 0..1.
    """

    def __init__(
        self,
        data_size: int,
        *,
        emission: str | nn.Module = "bernoulli",
        hidden_size: int = 1024,
        backward_size: int | None = None,
        latent_size: int = 256,
        mlp_size: int = 1024,
        mlp_depth: int = 1,
        emission_depth: int = 1,
        activation: str = "clipped-leaky-relu",
        embedding_size: int | None = None,
        latent_embedding_size: int | None = None,
        feature_activation: str | None = None,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        form: GaussianForm | None = None,
        emission_form: GaussianForm | None = None,
        prior: str | nn.Module = "gaussian",
        posterior: str | nn.Module = "smoothing",
        transition: Transition | Callable[[int, int], Transition] | None = None,
        backward: nn.Module | None = None,
        deterministic: bool = False,
        aux: Mapping[str, float | tuple[AuxiliaryCost, float]] | None = None,
        echo_size: int = 0,
        echo_read: bool = True,
        echo_emitted: bool = True,
        skip_gradient: float = 0.0,
        skip_per: Literal["step", "sequence"] = "step",
        core: Core = "auto",
        layout: Layout = "time",
        kl_weight: float | Tensor = 1.0,
        aux_weight: float | Tensor = 1.0,
        time_chunk: int | None = None,
        name: str = "model",
    ) -> None:
        super().__init__(layout, kl_weight, name, aux_weight, time_chunk)
        if not 0 <= skip_gradient <= 1:
            raise ValueError(f"skip_gradient is a probability, not {skip_gradient}")
        if skip_per not in ("step", "sequence"):
            raise ValueError(f"a coin is thrown per 'step' or per 'sequence', not {skip_per!r}")
        if core not in CORES:
            raise ValueError(f"unknown core {core!r}; there are {CORES}")
        self.core = core
        backward_size = backward_size or hidden_size
        mlp: dict[str, Any] = {"mlp_size": mlp_size, "activation": activation}
        rnn: dict[str, Any] = {"orthogonal": orthogonal, "forget_bias": forget_bias}
        self.data_size, self.latent_size, self.hidden_size = data_size, latent_size, hidden_size
        self.backward_size = backward_size
        self.skip_gradient, self.skip_per = skip_gradient, skip_per
        self.latents: Latents = "posterior"
        self._mlp = {**mlp, "depth": mlp_depth}

        heads: dict[str, Any] = {**mlp, "depth": emission_depth, "form": emission_form}
        self._emission = emission if isinstance(emission, str) else None
        self._emission_options = {"data_size": data_size, **heads}
        symbols = emits_symbols(named_emission(emission) if isinstance(emission, str) else emission)

        self.embedding, input_size = embed_data(
            data_size, symbols, embedding_size, hidden_size, feature_activation
        )
        self.latent_embedding, read_size = embed_data(
            latent_size, False, latent_embedding_size, 0, feature_activation
        )
        embedded_size = input_size
        self.deterministic = InputLSTM(input_size, hidden_size, **rnn) if deterministic else None
        if self.deterministic is not None:
            input_size = hidden_size
        if transition is not None and echo_size and not (echo_read and echo_emitted):
            raise ValueError(
                "a transition of your own decides itself where b~ goes: leave that option"
            )
        if isinstance(transition, Transition):
            self.transition = transition
        elif transition is not None:
            self.transition = transition(input_size, read_size + echo_size)
        else:
            self.transition = LSTMTransition(
                input_size, read_size + echo_size, hidden_size, **rnn,
                emitted=echo_size if echo_emitted else 0, read=None if echo_read else read_size,
            )  # fmt: skip

        kind = named_posterior(posterior) if isinstance(posterior, str) else posterior
        source = reads(kind)
        recognition_size = embedded_size + (hidden_size if deterministic else 0)
        self._make_backward = partial(BackwardLSTM, recognition_size, backward_size, **rnn)
        self.backward_network = backward or (
            self._make_backward() if source == "backward" else None
        )
        self.recognition_network = (
            ForwardLSTM(recognition_size, backward_size, **rnn) if source == "forward" else None
        )
        context_size = recognition_size if source == "target" else backward_size
        seen_size = self.transition.seen_size
        options = {**self._mlp, "form": form}
        if isinstance(prior, str):
            prior = build_prior(prior, seen_size, latent_size, **options)
        self.prior = prior
        if isinstance(posterior, str):
            posterior = build_posterior(
                posterior, prior, self.transition.posterior_reads, context_size, latent_size,
                **options,
            )  # fmt: skip
        self.posterior = posterior
        self.emission = (
            make_emission(emission, self.transition.output_size, **self._emission_options)
            if isinstance(emission, str)
            else emission
        )
        if emits_symbols(self.emission) != symbols:
            raise ValueError(
                f"{type(self.emission).__name__} emits symbols, which the name {emission!r} did not say: "
                "give its entry in EMISSIONS the attribute kinds = ('categorical',)"
            )
        self.aux = nn.ModuleDict()
        self.aux_weights: dict[str, float] = {}
        self._add_all(aux)
        self._shared = Shared()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "prior" and isinstance(self._modules.get("posterior"), ResidualPosterior):
            self.posterior.follow(value)  # type: ignore[operator]

    # Auxiliary costs

    def _add_all(self, aux: Mapping[str, float | tuple[AuxiliaryCost, float]] | None) -> None:
        """The costs of the option ``aux``, after those that a system has of its own."""
        for name, weight in (aux or {}).items():
            if name in self.aux:
                raise ValueError(
                    f"the cost {name!r} has an option of its own here; leave it out of aux"
                )
            if isinstance(weight, tuple):
                self.add_aux(name, *weight)
            else:
                self.add_aux(name, self.build_aux(name), weight)
        costs = [cost for cost in self._active_aux().values() if cost.reads_backward]
        trained = reads(self.posterior) == "backward"
        if costs and not (trained or any(cost.trains_backward for cost in costs)):
            raise ValueError(
                f"nothing would train the backward network: {type(self.posterior).__name__} does not "
                "read b; take a posterior that does, or add the cost u, which predicts from it"
            )

    def build_aux(self, name: str) -> AuxiliaryCost:
        """The auxiliary cost of a name, for the sizes of this model.

        Raises:
            ValueError: if there is none of that name, or not for this system.
        """
        if name in ("h", "activity") and isinstance(self.transition, ChainTransition):
            raise ValueError(
                f"the cost {name!r} is for a forward state that reads z, and here there is none"
            )
        return build_aux_cost(
            name,
            latent_size=self.latent_size,
            hidden_size=self.transition.state_sizes[0],
            backward_size=self.backward_size,
            make_emission=self._reverse_emission,
            **self._mlp,
        )

    def add_aux(self, name: str, cost: AuxiliaryCost, weight: float) -> None:
        """Add an auxiliary cost, site ``aux_NAME``.

        Raises:
            ValueError: if the weight is negative.
        """
        self.set_aux_weight(name, weight)
        self.aux[name] = cost
        if cost.reads_backward and self.backward_network is None:
            self.backward_network = self._make_backward()

    def set_aux_weight(self, name: str, weight: float) -> None:
        """Another weight for a cost; 0 switches it off.

        Raises:
            ValueError: if the weight is negative.
        """
        if not weight >= 0:
            raise ValueError(
                f"the weight of an auxiliary cost must not be negative, it is {weight}"
            )
        self.aux_weights[name] = weight

    def _reverse_emission(self, size: int) -> nn.Module:
        """An emission over the same data, for a state of another network."""
        if self._emission is not None:
            return make_emission(self._emission, size, **self._emission_options)
        if size == self.transition.output_size:
            return copy.deepcopy(self.emission)
        raise ValueError(
            f"an emission module of your own reads {self.transition.output_size} values, but the "
            f"backward network has {size} units: give one for these, as reverse_emission of ZForcing or "
            "as the cost (ReversePrediction(emission), weight)"
        )

    # Data flow

    def start(self, batch: SequenceBatch) -> Start:
        """What the batch begins with: what is carried over, in parts, or zeros."""
        if batch.carried is None:
            return Start()
        number, lag = len(self.transition.state_sizes), self.transition.lag
        expected = number + lag + 2 * (self.deterministic is not None)
        if len(batch.carried) != expected:
            raise ValueError(
                f"the batch carries {len(batch.carried)} states; {type(self).__name__} leaves {expected}"
            )
        rest = batch.carried[number + lag :]
        return Start(
            batch.carried[:number], batch.carried[number] if lag else None, rest if rest else None
        )

    def embedded_inputs(self, batch: SequenceBatch) -> tuple[Tensor, State]:
        """What the transition reads beside the latent, time first; the last state of a network over it."""
        inputs = self.embedding(batch.inputs).transpose(0, 1)
        if self.deterministic is None:
            return inputs, ()
        return self.deterministic.run(inputs, self.start(batch).inputs)

    def recognition_inputs(self, batch: SequenceBatch, inputs: Tensor) -> Tensor:
        """What the networks over the targets read, batch first."""
        targets = self.embedding(batch.targets)
        if self.deterministic is None:
            return targets
        return torch.cat([inputs.transpose(0, 1), targets], dim=-1)

    def backward_states(self, batch: SequenceBatch, inputs: Tensor) -> Tensor:
        r""":math:`b_{1:T}`, time first."""
        assert self.backward_network is not None
        return self.backward_network(self.recognition_inputs(batch, inputs), batch)

    def posterior_context(self, recurrence: Recurrence) -> Tensor:
        """What the posterior reads beside the state, time first."""
        source = reads(self.posterior)
        if source == "backward":
            return recurrence.b
        targets = self.recognition_inputs(recurrence.batch, recurrence.inputs)
        if self.recognition_network is None:
            return targets.transpose(0, 1)
        return self.recognition_network(targets, recurrence.batch)

    def embed_latent(self, z: Tensor, b_tilde: Tensor | None = None) -> Tensor:
        """What the transition reads of the latents."""
        z = self.latent_embedding(z)
        return z if b_tilde is None else join(z, b_tilde)

    @property
    def latent_layer(self) -> nn.Module | None:
        """The layer on z that :meth:`embed_latent` consists of; None where that is one's own."""
        standard = type(self).embed_latent is LatentSequenceModel.embed_latent
        return self.latent_embedding if standard else None

    @contextmanager
    def drawing_latents_from(self, latents: Latents) -> Iterator[None]:
        r"""Draw z without the targets for the duration of a ``with`` block: the model at test time.

        Args:
            latents: ``"prior"`` makes the guide draw z from the prior: the bounds of
                :func:`~pyro_zf.infer.batch_bounds` are then :math:`\mathbb E_p[\log p(y \mid z)]` and
                its importance-weighted form, both lower bounds of :math:`\log p(y)`.
                ``"prior-mean"`` puts z at the mean of the prior, in guide, model and generation:
                what is reported is then the log-likelihood of a deterministic model (Shabanian et
                al. 2017, figure 3). ``"posterior"`` changes nothing.

        Raises:
            ValueError: if there is no such name, or the mean of the prior is not known.
        """
        if latents not in LATENTS:
            raise ValueError(f"latents are drawn from one of {LATENTS}, not {latents!r}")
        if latents == "prior-mean":
            with torch.no_grad():  # one without a mean says so here
                like = next(self.parameters())
                MeanOf(self.prior)(like.new_zeros(1, self.transition.seen_size))
        before, self.latents = self.latents, latents
        try:
            yield
        finally:
            self.latents = before

r"""Z-Forcing (Goyal, Sordoni, Côté, Ke and Bengio 2017, https://arxiv.org/abs/1711.05411).

.. math::

    b_t &= \mathrm{LSTM}(y_t, b_{t+1})                               && \text{eq. 6} \\
    z_t &\sim p(z_t \mid h_{t-1}) = \mathcal N(f^{(p)}(h_{t-1}))     && \text{eq. 5} \\
    z_t &\sim q(z_t \mid h_{t-1}, b_t) = \mathcal N(f^{(q)}(h_{t-1}, b_t)) && \text{eq. 7} \\
    h_t &= \mathrm{LSTM}([u_t, z_t], h_{t-1})                        && \text{eq. 4} \\
    y_t &\sim p(y_t \mid h_t) = \mathrm{emission}(f^{(o)}(h_t))

and the objective of eq. 10, the evidence lower bound with two auxiliary costs

.. math::

    \sum_t \mathbb E_q \big[ \log p(y_t \mid h_t) + \alpha \log p(b_t \mid z_t)
    + \beta \log p(u_t \mid b_t) \big] - \mathrm{KL}(q(z_t) \,\|\, p(z_t)).

========  ==========================================  ===============
symbol    meaning                                     paper
========  ==========================================  ===============
u_t       input, the target of the step before        x_t
y_t       target                                      x_{t+1}
z_t       latent                                      z_t
h_t       state of the forward network                h_t
b_t       state of the backward network               b_t
========  ==========================================  ===============
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch, masked, with_particles
from pyro_zf.models.base import AUX_PREFIX, Layout, SequenceModel
from pyro_zf.models.released import convert_released
from pyro_zf.nn.auxiliary import AuxiliaryCost, ReversePrediction, StateReconstruction, StepStates
from pyro_zf.nn.emissions import CategoricalEmission, build_emission
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.lstm import BackwardLSTM, LSTMTransition, Transition
from pyro_zf.nn.posteriors import SmoothingPosterior
from pyro_zf.nn.priors import GaussianPrior
from pyro_zf.paths import OverTime, PosteriorPath, PriorPath, Recurrence, Shared

__all__ = ["DETACH", "VARIANTS", "ZForcing"]

Detach = Literal["target", "posterior", "backward"]
DETACH: tuple[Detach, ...] = ("target", "posterior", "backward")

_RELEASED_FORM = GaussianForm(scale="log-variance", clamp=8.0, log_scale_limits=None)

#: Options under a name. ``"released-code"`` are the deviations of the authors' released code.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released-code": {
        "aux_condition": "zh",
        "aux_form": GaussianForm("log-variance", clamp=8.0, log_scale_limits=None, mean="tanh"),
        "form": _RELEASED_FORM,
        "emission_form": GaussianForm("log-variance", log_scale_limits=None),
        "emission_depth": 0,
        "embedding_size": 512,
        "latent_embedding_size": "mlp",
    },
}


class ZForcing(SequenceModel):
    r"""Z-Forcing: a recurrent model whose latents are made to reconstruct the backward states.

    The defaults are the paper's for sequential MNIST; where the paper is silent, the docstring of
    the option says what was chosen. Any part can be replaced by a module of your own: a prior maps
    :math:`h_{t-1}` to a distribution, a posterior :math:`(h_{t-1}, b_t)`, an emission :math:`h_t`.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        emission: a key of :data:`pyro_zf.nn.EMISSIONS`, or a module.
        hidden_size: units of the forward network.
        backward_size: units of the backward network; by default as the forward one.
        latent_size: size of z.
        mlp_size: units of the hidden layer of :math:`f^{(p)}, f^{(q)}, f^{(a)}, f^{(o)}`.
        mlp_depth: hidden layers of :math:`f^{(p)}, f^{(q)}, f^{(a)}`.
        emission_depth: hidden layers of :math:`f^{(o)}`.
        activation: of the hidden layers, a key of :data:`pyro_zf.nn.ACTIVATIONS`.
        embedding_size: size of a linear layer on the data, shared by forward and backward network,
            or None for no such layer (paper). Symbols are always embedded; None then means
            ``hidden_size``.
        latent_embedding_size: size of a linear layer between z and the forward network, ``"mlp"``
            for ``mlp_size``, or None for no such layer (paper).
        orthogonal: orthogonal recurrent weights. The paper does not say; the released code does it.
        forget_bias: initial bias of the forget gates. The paper does not say; zero in the code.
        form, aux_form, emission_form: how networks' outputs become Gaussians: of prior and
            posterior, of the auxiliary network, of a Gaussian emission.
        aux_condition: ``"z"`` (eq. 8), or ``"zh"``, where the auxiliary network reads
            :math:`h_{t-1}` too.
        alpha: weight of :math:`\log p(b_t \mid z_t)`. The default is the smaller of the two that
            the paper reports (table 2); what it used for MNIST is not published. 0 switches it off.
        beta: weight of :math:`\log p(u_t \mid b_t)`, likewise.
        detach: what the cost with weight alpha does not train. ``"target"``: the backward network
            through the target :math:`b_t`, as in the released code. ``"posterior"``: the letter of
            section 3.4, no parameter of the posterior; the gradient stops at :math:`z_t`, so the
            cost trains the auxiliary network alone and z is observed rather than forced.
            ``"backward"``: :math:`b_t` is detached before the posterior too, so that the backward
            network learns from :math:`\beta \log p(u_t \mid b_t)` alone.
        prior, posterior, transition, backward, reverse_emission: modules in place of the standard
            ones.
        variant: ``"paper"`` or ``"released-code"``: options that are not given come from
            :data:`VARIANTS`.
        layout, kl_weight, name: see :class:`~pyro_zf.models.SequenceModel`.

    Raises:
        ValueError: for an unknown name, or a weight below zero.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.optim import ClippedAdam
        >>> pyro.clear_param_store()
        >>> zf = ZForcing(data_size=4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> svi = SVI(zf.model, zf.guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> svi.step(batch) > 0
        True
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
        emission_depth: int | None = None,
        activation: str = "clipped-leaky-relu",
        embedding_size: int | None = None,
        latent_embedding_size: int | Literal["mlp"] | None = None,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        form: GaussianForm | None = None,
        aux_form: GaussianForm | None = None,
        emission_form: GaussianForm | None = None,
        aux_condition: Literal["z", "zh"] | None = None,
        alpha: float = 0.0025,
        beta: float = 0.0025,
        detach: Detach = "target",
        prior: nn.Module | None = None,
        posterior: nn.Module | None = None,
        transition: Transition | None = None,
        backward: nn.Module | None = None,
        reverse_emission: nn.Module | None = None,
        variant: str = "paper",
        layout: Layout = "time",
        kl_weight: float | Tensor = 1.0,
        name: str = "zforcing",
    ) -> None:
        super().__init__(layout, kl_weight, name)
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; there are {sorted(VARIANTS)}")
        if detach not in DETACH:
            raise ValueError(f"unknown detach {detach!r}; there are {DETACH}")
        given = VARIANTS[variant]
        form = form or given.get("form")
        aux_form = aux_form or given.get("aux_form")
        emission_form = emission_form or given.get("emission_form")
        aux_condition = aux_condition or given.get("aux_condition", "z")
        if emission_depth is None:
            emission_depth = given.get("emission_depth", 1)
        embedding_size = embedding_size or given.get("embedding_size")
        latent_embedding_size = latent_embedding_size or given.get("latent_embedding_size")
        if latent_embedding_size == "mlp":
            latent_embedding_size = mlp_size
        backward_size = backward_size or hidden_size

        self.latent_size = latent_size
        self.detach = detach
        self.aux_weights: dict[str, float] = {}
        self.alpha, self.beta = alpha, beta

        mlp: dict[str, Any] = {"mlp_size": mlp_size, "activation": activation}
        heads = {**mlp, "depth": emission_depth}
        if emission == "gaussian":
            heads["form"] = emission_form
        if isinstance(emission, str):
            reverse_emission = reverse_emission or build_emission(
                emission, backward_size, data_size, **heads
            )
            emission = build_emission(emission, hidden_size, data_size, **heads)
        elif reverse_emission is None and backward_size != hidden_size:
            raise ValueError(
                f"an emission module of your own reads {hidden_size} values, but the backward network "
                f"has {backward_size} units: give a reverse_emission for these"
            )
        symbols = isinstance(emission, CategoricalEmission)
        if symbols:
            self.embedding: nn.Module = nn.Embedding(data_size, embedding_size or hidden_size)
        elif embedding_size:
            self.embedding = nn.Linear(data_size, embedding_size)
        else:
            self.embedding = nn.Identity()
        input_size = embedding_size or (hidden_size if symbols else data_size)
        self.latent_embedding = (
            nn.Linear(latent_size, latent_embedding_size)
            if latent_embedding_size
            else nn.Identity()
        )
        rnn: dict[str, Any] = {"orthogonal": orthogonal, "forget_bias": forget_bias}
        self.transition = transition or LSTMTransition(
            input_size, latent_embedding_size or latent_size, hidden_size, **rnn
        )
        self.backward_network = backward or BackwardLSTM(input_size, backward_size, **rnn)
        self.prior = prior or GaussianPrior(
            hidden_size, latent_size, depth=mlp_depth, form=form, **mlp
        )
        self.posterior = posterior or SmoothingPosterior(
            hidden_size, backward_size, latent_size, depth=mlp_depth, form=form, **mlp
        )
        self.emission = emission
        self.aux = nn.ModuleDict(
            {
                "b": StateReconstruction(
                    latent_size, backward_size, hidden_size, aux_condition, depth=mlp_depth,
                    form=aux_form, **mlp,
                ),
                "u": ReversePrediction(reverse_emission or copy.deepcopy(emission)),
            }
        )  # fmt: skip
        self._shared = Shared()

    @classmethod
    def from_released_state_dict(
        cls, weights: Mapping[str, Any], z_force: bool = False, **options: Any
    ) -> ZForcing:
        """A model that computes what the authors' released class computes with these weights.

        Args:
            weights: a ``state_dict`` of that class, or the dictionary that its ``save`` wrote,
                whose ``z_force`` then wins over the argument.
            z_force: whether it was run with that flag: the auxiliary network then reads z alone.
            **options: passed on, for example ``alpha`` and ``layout``.

        Raises:
            ValueError: if the names are not that class's, or belong to an option that it has and
                this one has not (conditional layer normalisation).
        """
        released_options, backward, state = convert_released(weights, z_force)
        model = cls(**{**released_options, "backward": backward, **options})
        model.to(state["prior.network.0.weight"].dtype).load_state_dict(state)
        return model

    @property
    def alpha(self) -> float:
        r"""Weight of :math:`\log p(b_t \mid z_t)`."""
        return self.aux_weights["b"]

    @alpha.setter
    def alpha(self, weight: float) -> None:
        self._set_aux_weight("b", weight)

    @property
    def beta(self) -> float:
        r"""Weight of :math:`\log p(u_t \mid b_t)`."""
        return self.aux_weights["u"]

    @beta.setter
    def beta(self, weight: float) -> None:
        self._set_aux_weight("u", weight)

    # One site a step: the specification, to be read beside the paper.

    def _model_steps(self, batch: SequenceBatch) -> None:
        generating = batch.targets is None
        u = batch.inputs.unbind(1)
        projected = self._projected(batch.inputs).unbind(1)
        y = [None] * batch.num_steps if batch.targets is None else batch.targets.unbind(1)
        scored = not generating and self._active_aux()
        b = self._recurrence(batch).b.unbind(0) if scored else None
        step = self.transition.stepper()
        state = self.transition.initial((batch.num_sequences,))
        u_t = projected[0]
        with self.sequences(batch):
            for t in pyro.markov(range(batch.num_steps)):
                h_prev = state[0]
                with self.latent_weight():
                    z_t = pyro.sample(f"z_{t + 1}", _at(self.prior(h_prev), batch, t))
                state = step(u_t, self.latent_embedding(z_t), state)
                y_t = pyro.sample(f"y_{t + 1}", _at(self.emission(state[0]), batch, t), obs=y[t])
                if b is not None:
                    for name, cost in self._active_aux().items():
                        if t > 0 or not (cost.skips_start_symbol and batch.has_start_symbol):
                            log_prob = self._aux_cost(name, StepStates(u[t], z_t, h_prev, b[t]))
                            if batch.mask is not None:
                                log_prob = masked(log_prob[None], batch.mask[None, :, t])[0]
                            pyro.factor(f"{AUX_PREFIX}{name}_{t + 1}", log_prob)
                if t + 1 < batch.num_steps:
                    u_t = self._projected(y_t) if generating else projected[t + 1]

    def _guide_steps(self, batch: SequenceBatch) -> None:
        states = self._recurrence(batch).b
        b = (states.detach() if self.detach == "backward" else states).unbind(0)
        u = self._projected(batch.inputs).unbind(1)
        step = self.transition.stepper()
        state = self.transition.initial((batch.num_sequences,))
        with self.sequences(batch):
            for t in pyro.markov(range(batch.num_steps)):
                h_prev = state[0]
                q = self.posterior(h_prev, b[t].expand(*h_prev.shape[:-1], -1))
                with self.latent_weight():
                    z_t = pyro.sample(f"z_{t + 1}", _at(q, batch, t))
                state = step(u[t], self.latent_embedding(z_t), state)

    # One site for the sequence: the same densities, batched over time.

    def _model_time(self, batch: SequenceBatch) -> None:
        with self.sequences(batch):
            recurrence = self._recurrence(batch)
            with self.latent_weight():
                z = pyro.sample("z", PriorPath(recurrence, self.prior, self.latent_size))
            h = recurrence.states(z)
            pyro.sample("y", OverTime(self.emission(h), batch.mask), obs=batch.targets)
            if not self._active_aux():
                return
            particles = z.dim() - 3
            states = StepStates(
                u=with_particles(batch.inputs.transpose(0, 1), particles),
                z=z.movedim(-2, 0),
                h_prev=recurrence.previous_states(z),
                b=with_particles(recurrence.b, particles),
            )
            for name, cost in self._active_aux().items():
                log_prob = masked(
                    self._aux_cost(name, states),
                    None if batch.mask is None else batch.mask.transpose(0, 1),
                )
                if cost.skips_start_symbol and batch.has_start_symbol:
                    log_prob = log_prob[1:]
                pyro.factor(f"{AUX_PREFIX}{name}", log_prob.sum(0))

    def _guide_time(self, batch: SequenceBatch) -> None:
        detach = self.detach == "backward"
        q = PosteriorPath(self._recurrence(batch), self.posterior, self.latent_size, detach)
        with self.sequences(batch), self.latent_weight():
            pyro.sample("z", q)

    def _recurrence(self, batch: SequenceBatch) -> Recurrence:
        return Recurrence(
            self.transition,
            self.backward_network,
            self.embedding,
            self.latent_embedding,
            batch,
            self._shared,
        )

    def _projected(self, inputs: Tensor) -> Tensor:
        return self.transition.project(self.embedding(inputs))

    def _set_aux_weight(self, name: str, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(
                f"the weight of an auxiliary cost must not be negative, it is {weight}"
            )
        self.aux_weights[name] = weight

    def _active_aux(self) -> dict[str, AuxiliaryCost]:
        return {name: cost for name, cost in self.aux.items() if self.aux_weights[name] != 0}  # type: ignore[misc]

    def _aux_cost(self, name: str, states: StepStates) -> Tensor:
        if self.detach == "posterior" and name == "b":
            states = states._replace(z=states.z.detach(), h_prev=states.h_prev.detach())
        return self.aux_weights[name] * self.aux[name](states)


def _at(
    distribution: TorchDistributionMixin, batch: SequenceBatch, t: int
) -> TorchDistributionMixin:
    """A step's distribution, silent for sequences that have ended."""
    return distribution if batch.mask is None else distribution.mask(batch.mask[:, t])

r"""Z-Forcing (Goyal, Sordoni, Côté, Ke and Bengio 2017, https://arxiv.org/abs/1711.05411).

.. math::

    h_t &= \mathrm{LSTM}([u_t, z_t], h_{t-1})                        && \text{eq. 4} \\
    z_t &\sim p(z_t \mid h_{t-1}) = \mathcal N(f^{(p)}(h_{t-1}))     && \text{eq. 5} \\
    b_t &= \mathrm{LSTM}(y_t, b_{t+1})                               && \text{eq. 6} \\
    z_t &\sim q(z_t \mid h_{t-1}, b_t) = \mathcal N(f^{(q)}(h_{t-1}, b_t)) && \text{eq. 7} \\
    b_t &\sim p(b_t \mid z_t) = \mathcal N(f^{(a)}(z_t))             && \text{eq. 8} \\
    y_t &\sim p(y_t \mid h_t) = \mathrm{emission}(f^{(o)}(h_t))

and the objective of eq. 10, the evidence lower bound with two auxiliary costs, of which the first is eq. 9:

.. math::

    \sum_t \mathbb E_q \big[ \log p(y_t \mid h_t) + \alpha \log p(b_t \mid z_t)
    + \beta \log p(u_t \mid b_t) \big] - \mathrm{KL}(q(z_t) \,\|\, p(z_t)).

========  ==========================================  ===============
symbol    meaning                                     paper
========  ==========================================  ===============
u_t       input, the target of the previous step      x_t
y_t       target                                      x_{t+1}
z_t       latent                                      z_t
h_t       state of the forward network                h_t
b_t       state of the backward network               b_t
c_t       covariates, if the model has any
========  ==========================================  ===============
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyro
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel, instance
from pyro_zf.models.options import LatentOptions, backward_units
from pyro_zf.models.released import convert_released
from pyro_zf.nn.auxiliary import ReversePrediction, StateReconstruction, StepStates
from pyro_zf.nn.cells import State
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.mlp import join

__all__ = ["DETACH", "VARIANTS", "ZForcing", "ZForcingOptions"]

Detach = Literal["target", "posterior", "backward"]
DETACH: tuple[Detach, ...] = ("target", "posterior", "backward")

#: Sets of options by name. ``"released-code"`` contains the deviations of the authors' released code.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released-code": {
        "aux_condition": "zh",
        "aux_form": GaussianForm("log-variance", clamp=8.0, log_scale_limits=None, mean="tanh"),
        "form": GaussianForm(scale="log-variance", clamp=8.0, log_scale_limits=None),
        "emission_form": GaussianForm("log-variance", log_scale_limits=None),
        "emission_depth": 0,
        "embedding_size": 512,
        "latent_embedding_size": "mlp",
    },
}

#: The weight of both costs at the size of the paper, and the number of units of b for which it holds, by data set. Speech
#: uses the weight of the authors' research code (see docs/training.md). IMDB, other text and arrays use the
#: weight of table 2 of the paper. The paper has no run on Penn Treebank; its weight was found in short runs
#: (docs/collapse.md). The cost with weight alpha is a sum over the units of b, so alpha is scaled in inverse
#: proportion to their number in a model of another size.
STRENGTH = {
    "timit": (5e-4, 1024), "blizzard": (5e-4, 2048), "wav": (5e-4, 1024), "imdb": (2.5e-3, 500),
    "ptb": (7.5e-4, 1024), "text": (2.5e-3, 500), "hdf5": (2.5e-3, 1024),
}  # fmt: skip
#: The weight for MNIST is not published. These were found in short runs on a CPU (docs/small_results.md has those by
#: pixel) and are alpha and beta times the size of b, over whose values the cost is a sum.
STRENGTH_OF_FRAMES = {"row": 0.128, "pixel": 0.0128}


@dataclass(frozen=True)
class ZForcingOptions(LatentOptions):
    """Options of Z-Forcing."""

    alpha: float = 0.0025
    """Weight of log p(b_t | z_t), eq. 8. The default is the smaller of the two values that the
    paper reports (table 2); its value for MNIST is not published. 0 switches the cost off."""
    beta: float = 0.0025
    """Weight of log p(u_t | b_t), eq. 10. The default is chosen as for alpha."""
    reverse_emission: str | None = None
    """Distribution of the data given the backward state, in the cost with weight beta. The default is that of
    ``emission``."""
    detach: Detach = "target"
    """Where the gradient of the cost with weight alpha stops: target, posterior or backward."""
    aux_condition: Literal["z", "zh"] = "z"
    """Inputs of the network of eq. 8: z as in the paper, or zh for z and h_{t-1}."""
    variant: Literal["paper", "released-code"] = "paper"
    """Architecture of the paper, or of the authors' released code."""


class ZForcing(LatentSequenceModel):
    r"""Z-Forcing: a recurrent model whose latents are trained to reconstruct the backward states.

    By default, the LSTMs have the size that the paper uses for sequential MNIST, z has the size of its speech
    models, and the weights of the costs are those of its table 2 (IMDB). The presets of the data sets have
    other weights. Where the paper gives no value, the option states the choice. The paper mentions no layer
    on the data or on z, does not specify the initialisation of recurrent weights (orthogonal here, as in the
    released code), and gives no bias to the forget gate.

    Args:
        data_size: number of values per step, or of symbols for a categorical emission.
        alpha, beta, detach, aux_condition, variant: see :class:`ZForcingOptions`. With ``detach="target"``,
            the cost does not train the backward network through the target :math:`b_t`, as in the released
            code. With ``"posterior"``, it trains no parameter of the posterior (section 3.4); its gradient
            stops at :math:`z_t` and does not reach the forward network either. With ``"backward"``,
            :math:`b_t` is also detached before the posterior, so that the backward network learns only from
            :math:`\beta \log p(u_t \mid b_t)`.
        aux_form: parametrisation of the Gaussian of eq. 8.
        reverse_emission: the emission of the cost with weight beta, a name or a module. The default is another
            emission of the same kind. One that predicts each value from others of the same step asks less of
            :math:`b_t` than one whose values are independent. A module is needed if the emission is a custom
            module for states of another size.
        **options: options of :class:`~pyro_zf.models.LatentSequenceModel`. ``latent_embedding_size`` may also
            be ``"mlp"``, which stands for ``mlp_size``.

    Raises:
        ValueError: if a name is unknown or a weight is negative.

    Example:
        >>> import pyro, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.optim import ClippedAdam
        >>> from pyro_zf import SequenceBatch
        >>> pyro.clear_param_store()
        >>> zf = ZForcing(data_size=4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> svi = SVI(zf.model, zf.guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> svi.step(batch) > 0
        True
    """

    Options = ZForcingOptions
    letters: ClassVar[dict[str, str]] = {"alpha": "b", "beta": "u"}
    written_for = ("z",)

    def __init__(
        self,
        data_size: int,
        *,
        aux_form: GaussianForm | None = None,
        reverse_emission: str | nn.Module | None = None,
        aux: Mapping[str, Any] | None = None,
        name: str = "zforcing",
        **options: Any,
    ) -> None:
        instance("reverse_emission", reverse_emission)
        variant = options.get("variant", "paper")
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; there are {sorted(VARIANTS)}")
        module = reverse_emission if isinstance(reverse_emission, nn.Module) else None
        options["reverse_emission"] = None if module else reverse_emission
        given = {k: x for k, x in options.items() if x is not None}
        chosen = {"aux_form": aux_form, **VARIANTS[variant], **given}
        aux_form = aux_form or chosen.pop("aux_form")
        chosen.pop("aux_form", None)
        if chosen.get("latent_embedding_size") == "mlp":
            chosen["latent_embedding_size"] = chosen.get("mlp_size", 1024)
        super().__init__(data_size, name=name, **chosen)
        o: Any = self.options
        if o.detach not in DETACH:
            raise ValueError(f"unknown detach {o.detach!r}; there are {DETACH}")
        self.detach = o.detach
        reconstruction = StateReconstruction(
            self.latent_size, self.backward_size, self.cell.state_sizes[0], o.aux_condition,
            form=aux_form, covariate_size=self.condition_size, **self._mlp,
        )  # fmt: skip
        self.add_aux("b", reconstruction, o.alpha)  # eq. 8, 9
        prediction = module or self.reverse_emission(self.backward_size, o.reverse_emission)
        self.add_aux("u", ReversePrediction(prediction), o.beta)  # eq. 10
        self.add_costs(aux)

    # The programs of layout "steps", to be read alongside the equations. Steps are counted from 0 here.

    def model_steps(self, batch: SequenceBatch) -> State:
        """The generative program. Without targets, it generates data."""
        if self.follows_declaration:
            return super().model_steps(batch)
        b = self.backward_states(batch) if self.scores_backward_states(batch) else None  # eq. 6
        alpha, beta = self.aux_weights["b"], self.aux_weights["u"]
        state, _ = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)
            y_t = None
            for t in pyro.markov(range(batch.num_steps)):
                c_t = self.covariates_at(batch, t)
                u_t, _ = self.input_at(batch, t, y_t)
                with self.real_steps(batch, t):
                    state = self.cell.before(join(u_t, c_t), state)  # unchanged for an LSTM
                    h_before = state[0]
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", self.prior(join(h_before, c_t)))  # eq. 5
                    z_read = self.latent_embedding(z_t)
                    state = self.cell.after(join(u_t, c_t), z_read, state)  # eq. 4
                    h_t = state[0]
                    y_t = pyro.sample(
                        f"y_{t + 1}", self.emission(join(h_t, c_t)), obs=self.target_at(batch, t)
                    )
                    if batch.targets is None:
                        continue
                    b_t = None if b is None else b[t]
                    states = StepStates(batch.clean_inputs[:, t], z_t, h_before, h_t, b_t, c_t)
                    if alpha:
                        log_p_b = self.aux["b"](self.seen_by_reconstruction(states))  # eq. 8
                        pyro.factor(f"aux_b_{t + 1}", self.aux_weight * alpha * log_p_b)  # eq. 9
                    if beta and not (t == 0 and batch.has_start_symbol):
                        log_p_u = self.aux["u"](states)  # eq. 10
                        pyro.factor(f"aux_u_{t + 1}", self.aux_weight * beta * log_p_u)
                    self.aux_factors(batch, t, states, leave_out=("b", "u"))
        return tuple(x.detach() for x in state)

    def guide_steps(self, batch: SequenceBatch) -> None:
        """The approximate posterior."""
        if self.follows_declaration:
            return super().guide_steps(batch)
        b = self.posterior_context(batch)  # eq. 6
        state, _ = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)
            for t, b_t in zip(pyro.markov(range(batch.num_steps)), b.unbind(0), strict=True):
                c_t = self.covariates_at(batch, t)
                u_t, _ = self.input_at(batch, t, None)
                with self.real_steps(batch, t):
                    state = self.cell.before(join(u_t, c_t), state)
                    x_t = join(state[0], c_t)
                    q_t = self.posterior(x_t, b_t.expand(*x_t.shape[:-1], -1))  # eq. 7
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", q_t)
                    z_read = self.latent_embedding(z_t)
                    state = self.cell.after(join(u_t, c_t), z_read, state)  # eq. 4

    # Parts that depend on `detach`

    def posterior_context(
        self, batch: SequenceBatch, u: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor:
        context = super().posterior_context(batch, u, b)
        return context.detach() if self.detach == "backward" else context

    def seen_by_reconstruction(self, states: StepStates) -> StepStates:
        """The states that the cost of eq. 8 receives. Its target is always a constant."""
        if self.detach != "posterior":
            return states
        return states._replace(z=states.z.detach(), h_prev=states.h_prev.detach())

    def weighted_aux(self, name: str, states: StepStates) -> Tensor:
        """The weighted cost of one step. ``detach`` determines which states are constants."""
        return super().weighted_aux(
            name, self.seen_by_reconstruction(states) if name == "b" else states
        )

    # Options

    @property
    def alpha(self) -> float:
        r"""Weight of :math:`\log p(b_t \mid z_t)`."""
        return self.aux_weights["b"]

    @alpha.setter
    def alpha(self, weight: float) -> None:
        self.set_aux_weight("b", weight)

    @property
    def beta(self) -> float:
        r"""Weight of :math:`\log p(u_t \mid b_t)`."""
        return self.aux_weights["u"]

    @beta.setter
    def beta(self, weight: float) -> None:
        self.set_aux_weight("u", weight)

    @classmethod
    def preset(cls, dataset: str, preset: str, settings: dict[str, Any]) -> dict[str, Any]:
        size = backward_units(settings)
        if (frame := settings.get("frame")) is not None:
            strength = STRENGTH_OF_FRAMES[frame] / size
            return {"alpha": strength, "beta": strength}
        weight, units = STRENGTH[dataset]
        return {"alpha": weight * units / size, "beta": weight}

    @classmethod
    def from_released_state_dict(
        cls, weights: Mapping[str, Any], z_force: bool = False, **options: Any
    ) -> ZForcing:
        """Build a model that computes the same as the authors' released class with these weights.

        Args:
            weights: a ``state_dict`` of that class, or the dictionary that its ``save`` wrote,
                whose ``z_force`` then takes precedence over the argument.
            z_force: whether that class was run with this flag, so that its auxiliary network reads only z.
            **options: further options of the model, for example ``alpha`` and ``layout``.

        Raises:
            ValueError: if the names are not those of that class, or belong to an option that this
                class does not have (conditional layer normalisation).
        """
        released_options, backward, state = convert_released(weights, z_force)
        model = cls(**{**released_options, "backward": backward, **options})
        model.to(state["prior.network.0.weight"].dtype).load_state_dict(state)
        return model

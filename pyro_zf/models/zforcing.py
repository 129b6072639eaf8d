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

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.models.released import convert_released
from pyro_zf.nn.auxiliary import ReversePrediction, StateReconstruction, StepStates
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.recurrence import Recurrence

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


class ZForcing(LatentSequenceModel):
    r"""Z-Forcing: a recurrent model whose latents are made to reconstruct the backward states.

    The defaults are the paper's for sequential MNIST; where the paper is silent, the docstring of
    the option says what was chosen. Any part can be replaced by a module of your own: a prior maps
    :math:`h_{t-1}` to a distribution, a posterior :math:`(h_{t-1}, b_t)`, an emission :math:`h_t`.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        alpha: weight of :math:`\log p(b_t \mid z_t)`. The default is the smaller of the two that
            the paper reports (table 2); what it used for MNIST is not published. 0 switches it off.
        beta: weight of :math:`\log p(u_t \mid b_t)`, likewise.
        detach: what the cost with weight alpha does not train. ``"target"``: the backward network
            through the target :math:`b_t`, as in the released code. ``"posterior"``: the letter of
            section 3.4, no parameter of the posterior; the gradient stops at :math:`z_t`, so the
            cost trains the auxiliary network alone and z is observed rather than forced.
            ``"backward"``: :math:`b_t` is detached before the posterior too, so that the backward
            network learns from :math:`\beta \log p(u_t \mid b_t)` alone.
        aux_condition: ``"z"`` (eq. 8), or ``"zh"``, where the auxiliary network reads
            :math:`h_{t-1}` too.
        aux_form: how the auxiliary network's output becomes a Gaussian.
        reverse_emission: a module in place of the standard one; needed with an emission module.
        variant: ``"paper"`` or ``"released-code"``: options that are not given come from
            :data:`VARIANTS`.
        **options: of :class:`~pyro_zf.models.LatentSequenceModel`. The paper mentions no layer on the
            data (``embedding_size``) or on z (``latent_embedding_size``, a number or ``"mlp"`` for
            ``mlp_size``), does not say how recurrent weights start (orthogonal here, as in the
            released code) and gives no bias to the forget gate.

    Raises:
        ValueError: for an unknown name, or a weight below zero.

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

    def __init__(
        self,
        data_size: int,
        *,
        alpha: float = 0.0025,
        beta: float = 0.0025,
        detach: Detach = "target",
        aux_condition: Literal["z", "zh"] | None = None,
        aux_form: GaussianForm | None = None,
        reverse_emission: nn.Module | None = None,
        variant: str = "paper",
        name: str = "zforcing",
        **options: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; there are {sorted(VARIANTS)}")
        if detach not in DETACH:
            raise ValueError(f"unknown detach {detach!r}; there are {DETACH}")
        given = {k: v for k, v in options.items() if v is not None}
        chosen = {**VARIANTS[variant], **given}
        aux_form = aux_form or chosen.pop("aux_form", None)
        default_condition = chosen.pop("aux_condition", "z")
        if chosen.get("latent_embedding_size") == "mlp":
            chosen["latent_embedding_size"] = chosen.get("mlp_size", 1024)
        aux = chosen.pop("aux", {})
        super().__init__(data_size, name=name, **chosen)
        self.detach = detach
        hidden_size = self.transition.state_sizes[0]
        reconstruction = StateReconstruction(
            self.latent_size, self.backward_size, hidden_size, aux_condition or default_condition,
            form=aux_form, **self._mlp,
        )  # fmt: skip
        self.add_aux("b", reconstruction, alpha)
        prediction = reverse_emission or self._reverse_emission(self.backward_size)
        self.add_aux("u", ReversePrediction(prediction), beta)
        self._add_all(aux)

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
        self.set_aux_weight("b", weight)

    @property
    def beta(self) -> float:
        r"""Weight of :math:`\log p(u_t \mid b_t)`."""
        return self.aux_weights["u"]

    @beta.setter
    def beta(self, weight: float) -> None:
        self.set_aux_weight("u", weight)

    def posterior_context(self, recurrence: Recurrence) -> Tensor:
        context = super().posterior_context(recurrence)
        return context.detach() if self.detach == "backward" else context

    def _aux_cost(self, name: str, states: StepStates) -> Tensor:
        if self.detach == "posterior" and name == "b":
            states = states._replace(z=states.z.detach(), h_prev=states.h_prev.detach())
        return super()._aux_cost(name, states)

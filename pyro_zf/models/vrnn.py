r"""VRNN (Chung, Kastner, Dinh, Goel, Courville and Bengio 2015, https://arxiv.org/abs/1506.02216).

.. math::

    h_t &= \mathrm{LSTM}([\varphi_x(u_t), \varphi_z(z_{t-1})], h_{t-1})      && \text{eq. 7} \\
    z_t &\sim p(z_t \mid h_t) = \mathcal N(f^{(p)}(h_t))                      && \text{eq. 5} \\
    z_t &\sim q(z_t \mid h_t, y_t) = \mathcal N(f^{(q)}(h_t, \varphi_x(y_t))) && \text{eq. 9} \\
    y_t &\sim p(y_t \mid h_t, z_t) = \mathrm{emission}(f^{(o)}(h_t, \varphi_z(z_t))) && \text{eq. 6}

===============  =======================================================  ===============
symbol           meaning                                                  paper
===============  =======================================================  ===============
u_t              input, the target of the previous step                   x_{t-1}
y_t              target                                                   x_t
z_t              latent                                                   z_t
h_t              state that has read u_1..u_t and z_1..z_{t-1}            h_{t-1}
φ_x, φ_z         features of data and latents                             φ_τ
===============  =======================================================  ===============

The index of h differs from the paper, whose :math:`h_{t-1}` has read :math:`x_{t-1} = u_t` and is therefore
:math:`h_t` here. The first state has read the start symbol :math:`u_1`, whereas it is zero in the paper. In
contrast to Z-Forcing, the posterior does not depend on future observations (filtering), the prior depends on
the last observation, and z is a direct input of the emission. ``prior="standard-normal"`` gives VRNN-I, and
``emission="gaussian-mixture"`` gives VRNN-GMM (with 20 components in the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.models.options import LatentOptions
from pyro_zf.nn.auxiliary import StepStates
from pyro_zf.nn.cells import Cell, ReadsPreviousLatent, State
from pyro_zf.nn.mlp import join

__all__ = ["VRNN", "VRNNI", "VRNNIOptions", "VRNNOptions"]


@dataclass(frozen=True)
class VRNNOptions(LatentOptions):
    """Options of VRNN. By default, the layers on data and latents have ``mlp_size`` units and the activation
    of the hidden layers. The paper uses four such layers each for speech; the default here is one."""

    posterior: str = "filtering"
    """Posterior: filtering as in the paper, smoothing, flow, res_q or recognition."""


@dataclass(frozen=True)
class VRNNIOptions(VRNNOptions):
    """Options of VRNN-I."""

    prior: str = "standard-normal"
    """Prior: standard-normal as in the paper, gaussian (conditional), mixture or flow."""


class VRNN(LatentSequenceModel):
    """VRNN: a model with a prior that depends on the past and a filtering posterior.

    Args:
        data_size: number of values per step, or of symbols for a categorical emission.
        **options: options of :class:`VRNNOptions` and :class:`~pyro_zf.models.LatentSequenceModel`.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> vrnn.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
    """

    Options = VRNNOptions
    written_for = ("z",)
    emission_reads = ("state", "z")

    def __init__(self, data_size: int, *, name: str = "vrnn", **options: Any) -> None:
        size = options.get("mlp_size") or self.Options.mlp_size
        layers = {
            "embedding_size": size,
            "latent_embedding_size": size,
            "feature_activation": options.get("activation") or self.Options.activation,
        }
        given = {k: x for k, x in options.items() if x is not None}
        super().__init__(data_size, name=name, **{**layers, **given})

    @classmethod
    def preset(cls, dataset: str, preset: str, settings: dict[str, Any]) -> dict[str, Any]:
        """A lower learning rate for speech: with 4e-3, training diverged before update 1,000 (docs/results.md)."""
        if preset == "small" and dataset in ("timit", "blizzard", "wav"):
            return {"learning_rate": 1e-3}
        return {}

    def build_cell(self, input_size: int, latent_size: int) -> Cell:
        return ReadsPreviousLatent(super().build_cell(input_size, latent_size), latent_size)

    # The programs of layout "steps", to be read alongside the equations. Steps are counted from 0 here.

    def model_steps(self, batch: SequenceBatch) -> State:
        """The generative program. Without targets, it generates data."""
        if self.follows_declaration:
            return super().model_steps(batch)
        b = self.backward_states(batch) if self.scores_backward_states(batch) else None
        state, _ = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)
            y_t = None
            for t in pyro.markov(range(batch.num_steps)):
                c_t = self.covariates_at(batch, t)
                u_t, _ = self.input_at(batch, t, y_t)
                with self.real_steps(batch, t):
                    state = self.cell.before(join(u_t, c_t), state)  # eq. 7; it reads z_{t-1}
                    h_t = state[0]
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", self.prior(join(h_t, c_t)))  # eq. 5
                    z_features = self.latent_embedding(z_t)
                    state = self.cell.after(join(u_t, c_t), z_features, state)  # stores z_t
                    p_y = self.emission(join(h_t, z_features, c_t))  # eq. 6
                    y_t = pyro.sample(f"y_{t + 1}", p_y, obs=self.target_at(batch, t))
                    if batch.targets is not None:
                        b_t = None if b is None else b[t]
                        states = StepStates(batch.clean_inputs[:, t], z_t, h_t, h_t, b_t, c_t)
                        self.aux_factors(batch, t, states)
        return tuple(x.detach() for x in state)

    def guide_steps(self, batch: SequenceBatch) -> None:
        """The approximate posterior."""
        if self.follows_declaration:
            return super().guide_steps(batch)
        targets = self.posterior_context(batch)  # the features of y_t
        state, _ = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)
            for t, target_t in zip(
                pyro.markov(range(batch.num_steps)), targets.unbind(0), strict=True
            ):
                c_t = self.covariates_at(batch, t)
                u_t, _ = self.input_at(batch, t, None)
                with self.real_steps(batch, t):
                    state = self.cell.before(join(u_t, c_t), state)  # eq. 7
                    x_t = join(state[0], c_t)
                    q_t = self.posterior(x_t, target_t.expand(*x_t.shape[:-1], -1))  # eq. 9
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", q_t)
                    state = self.cell.after(join(u_t, c_t), self.latent_embedding(z_t), state)


class VRNNI(VRNN):
    """VRNN-I: a VRNN whose prior is a standard normal, independent of the past."""

    Options = VRNNIOptions

r"""STORN (Bayer and Osendorfer 2014, https://arxiv.org/abs/1411.7610).

.. math::

    z_t &\sim p(z_t) = \mathcal N(0, I) \\
    h_t &= \mathrm{LSTM}([u_t, z_t], h_{t-1}) \\
    y_t &\sim p(y_t \mid h_t) = \mathrm{emission}(f^{(o)}(h_t)) \\
    g_t &= \mathrm{LSTM}(y_t, g_{t-1}) \\
    z_t &\sim q(z_t \mid y_{1:t}) = \mathcal N(f^{(q)}(g_t))

========  =======================================================  ==========
symbol    meaning                                                  paper
========  =======================================================  ==========
u_t       input, the target of the previous step                   x_{t-1}
y_t       target                                                   x_t
z_t       latent                                                   z_t
h_t       state of the generating network                          h_t
g_t       state of the recognition network                         h^r_t
========  =======================================================  ==========

In contrast to all other systems here, neither prior nor posterior depends on :math:`h`. The latents of a
sequence are therefore independent a priori, and all of them are drawn at once. As in Z-Forcing, and unlike in
VRNN and SRNN, z reaches the emission only through :math:`h_t`. The paper uses simple recurrent networks; the
comparisons in the literature use LSTMs or GRUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.models.options import LatentOptions
from pyro_zf.nn.auxiliary import StepStates
from pyro_zf.nn.cells import State
from pyro_zf.nn.mlp import join

__all__ = ["STORN", "STORNOptions"]


@dataclass(frozen=True)
class STORNOptions(LatentOptions):
    """Options of STORN. ``backward_size`` is the number of units of the recognition network."""

    prior: str = "standard-normal"
    """Prior: standard-normal as in the paper, gaussian (conditional), mixture or flow."""
    posterior: str = "recognition"
    """Posterior: recognition as in the paper, smoothing, filtering, flow or res_q."""


class STORN(LatentSequenceModel):
    """STORN: a recurrent network that reads latents which are independent of each other.

    Args:
        data_size: number of values per step, or of symbols for a categorical emission.
        **options: options of :class:`STORNOptions` and :class:`~pyro_zf.models.LatentSequenceModel`.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> storn = STORN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> storn.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
    """

    Options = STORNOptions
    written_for = ("z",)

    def __init__(self, data_size: int, *, name: str = "storn", **options: Any) -> None:
        super().__init__(data_size, name=name, **options)

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
                    state = self.cell.before(join(u_t, c_t), state)
                    h_before = state[0]
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", self.prior(join(h_before, c_t)))  # p(z_t)
                    # h_t = LSTM([u_t, z_t], h_{t-1})
                    state = self.cell.after(join(u_t, c_t), self.latent_embedding(z_t), state)
                    p_y = self.emission(join(state[0], c_t))  # p(y_t | h_t)
                    y_t = pyro.sample(f"y_{t + 1}", p_y, obs=self.target_at(batch, t))
                    if batch.targets is not None:
                        b_t = None if b is None else b[t]
                        u = batch.clean_inputs[:, t]
                        self.aux_factors(batch, t, StepStates(u, z_t, h_before, state[0], b_t, c_t))
        return tuple(x.detach() for x in state)

    def guide_steps(self, batch: SequenceBatch) -> None:
        """The approximate posterior."""
        if self.follows_declaration:
            return super().guide_steps(batch)
        g = self.posterior_context(batch)  # g_t = LSTM(y_t, g_{t-1})
        state, _ = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)
            for t, g_t in zip(pyro.markov(range(batch.num_steps)), g.unbind(0), strict=True):
                c_t = self.covariates_at(batch, t)
                u_t, _ = self.input_at(batch, t, None)
                with self.real_steps(batch, t):
                    state = self.cell.before(join(u_t, c_t), state)
                    x_t = join(state[0], c_t)
                    q_z = self.posterior(x_t, g_t.expand(*x_t.shape[:-1], -1))  # q(z_t | y_{1:t})
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", q_z)
                    state = self.cell.after(join(u_t, c_t), self.latent_embedding(z_t), state)

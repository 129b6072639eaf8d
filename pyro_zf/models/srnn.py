r"""SRNN (Fraccaro, Sønderby, Paquet and Winther 2016, https://arxiv.org/abs/1605.07571).

.. math::

    d_t &= \mathrm{LSTM}(u_t, d_{t-1}) \\
    z_t &\sim p(z_t \mid z_{t-1}, d_t) = \mathcal N(f^{(p)}(z_{t-1}, d_t)) \\
    y_t &\sim p(y_t \mid z_t, d_t) = \mathrm{emission}(f^{(o)}(z_t, d_t)) \\
    a_t &= \mathrm{LSTM}([d_t, y_t], a_{t+1}) \\
    z_t &\sim q(z_t \mid z_{t-1}, a_t) = \mathcal N(\mu^{(p)}_t + \Delta_t, \operatorname{diag}
    \sigma_t^2), \quad [\Delta_t, \log \sigma_t] = f^{(q)}(z_{t-1}, a_t)

where :math:`\mu^{(p)}_t` is the mean of the prior, the residual parametrisation :math:`\mathrm{res}_q`.

========  ====================================================  ==========
symbol    meaning                                               paper
========  ====================================================  ==========
u_t       input, the target of the previous step                u_t
y_t       target                                                x_t
z_t       latent, which is also the state                       z_t
d_t       state of the deterministic network                    d_t
a_t       state of the backward network (b_t in other systems)  a_t
========  ====================================================  ==========

In contrast to all other systems, the deterministic network never reads z. It is computed in one call for the
whole sequence, and only the chain z_t | z_{t-1} is sequential. The posterior depends on the future through
:math:`a_t` (smooth), and its mean is a correction of the mean of the prior (res_q). The paper uses GRUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.models.options import LatentOptions
from pyro_zf.nn.auxiliary import StepStates
from pyro_zf.nn.cells import Cell, LatentChain, State
from pyro_zf.nn.mlp import join

__all__ = ["SRNN", "SRNNOptions"]


@dataclass(frozen=True)
class SRNNOptions(LatentOptions):
    """Options of SRNN. ``backward_size`` is the number of units of the network with the states a_t."""

    posterior: str = "res_q"
    """Posterior: res_q (smooth + res_q, the paper's best), smoothing without the residual, filtering (the
    paper's filt, which reads d_t and y_t), flow or recognition."""


class SRNN(LatentSequenceModel):
    """SRNN: a chain of latents on top of a deterministic recurrent network.

    Args:
        data_size: number of values per step, or of symbols for a categorical emission.
        **options: options of :class:`SRNNOptions` and :class:`~pyro_zf.models.LatentSequenceModel`.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> srnn = SRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> srnn.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
    """

    Options = SRNNOptions
    written_for = ("z",)
    prior_reads = ("state", "input")
    emission_reads = ("state", "input")

    def __init__(self, data_size: int, *, name: str = "srnn", **options: Any) -> None:
        super().__init__(data_size, deterministic=True, name=name, **options)

    def build_cell(self, input_size: int, latent_size: int) -> Cell:
        return LatentChain(latent_size)

    def posterior_reads_of(self, size: int) -> int:
        return self.cell.state_sizes[0]  # z_{t-1}; d_t enters through a_t

    # The programs of layout "steps", to be read alongside the equations. Steps are counted from 0 here.

    def model_steps(self, batch: SequenceBatch) -> State:
        """The generative program. Without targets, it generates data."""
        if self.follows_declaration:
            return super().model_steps(batch)
        a = self.backward_states(batch) if self.scores_backward_states(batch) else None
        state, carried = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)  # z_0
            y_t = None
            for t in pyro.markov(range(batch.num_steps)):
                c_t = self.covariates_at(batch, t)
                d_t, carried = self.input_at(batch, t, y_t, carried)  # d_t = LSTM(u_t, d_{t-1})
                with self.real_steps(batch, t):
                    state = self.cell.before(join(d_t, c_t), state)
                    z_before = state[0]
                    with self.latent_weight():
                        p_z = self.prior(join(z_before, d_t, c_t))  # p(z_t | z_{t-1}, d_t)
                        z_t = pyro.sample(f"z_{t + 1}", p_z)
                    state = self.cell.after(join(d_t, c_t), self.latent_embedding(z_t), state)
                    p_y = self.emission(join(state[0], d_t, c_t))  # p(y_t | z_t, d_t)
                    y_t = pyro.sample(f"y_{t + 1}", p_y, obs=self.target_at(batch, t))
                    if batch.targets is not None:
                        a_t = None if a is None else a[t]
                        u_t = batch.clean_inputs[:, t]
                        states = StepStates(u_t, z_t, z_before, state[0], a_t, c_t)
                        self.aux_factors(batch, t, states)
        return tuple(x.detach() for x in (*state, *carried))

    def guide_steps(self, batch: SequenceBatch) -> None:
        """The approximate posterior."""
        if self.follows_declaration:
            return super().guide_steps(batch)
        a = self.posterior_context(batch)  # a_t = LSTM([d_t, y_t], a_{t+1})
        state, carried = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), state)
            for t, a_t in zip(pyro.markov(range(batch.num_steps)), a.unbind(0), strict=True):
                c_t = self.covariates_at(batch, t)
                d_t, carried = self.input_at(batch, t, None, carried)
                with self.real_steps(batch, t):
                    state = self.cell.before(join(d_t, c_t), state)
                    x_t = join(state[0], d_t, c_t)
                    a_t = a_t.expand(*x_t.shape[:-1], -1)
                    q_z = self.posterior(x_t, a_t)  # q(z_t | z_{t-1}, a_t)
                    with self.latent_weight():
                        z_t = pyro.sample(f"z_{t + 1}", q_z)
                    state = self.cell.after(join(d_t, c_t), self.latent_embedding(z_t), state)

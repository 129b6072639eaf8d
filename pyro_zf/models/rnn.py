r"""A recurrent network without latents: RNN-Gauss, RNN-GMM and their discrete counterparts.

.. math::

    h_t &= \mathrm{LSTM}(u_t, h_{t-1}) \\
    y_t &\sim p(y_t \mid h_t) = \mathrm{emission}(f^{(o)}(h_t))

========  ==========================================
symbol    meaning
========  ==========================================
u_t       input, the target of the previous step
y_t       target
h_t       state
========  ==========================================

``emission="gaussian"`` gives the RNN-Gauss and ``"gaussian-mixture"`` the RNN-GMM of the papers' tables
(Chung et al. 2015, https://arxiv.org/abs/1506.02216). ``"autoregressive-gaussian"`` gives the baseline of Dai
et al. 2019 (https://arxiv.org/abs/1902.01388), which models the values within a frame one after the other and
with which latent-variable models of speech have to be compared. The log-likelihood is exact: the ELBO is the
log-likelihood, and the KL is zero.
"""

from __future__ import annotations

from typing import Any

import pyro
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.base import SequenceModel
from pyro_zf.models.latent import check_input_size, embedding_layer, instance
from pyro_zf.models.options import ModelOptions
from pyro_zf.nn.cells import Cell, InputWindow, State, make_cell
from pyro_zf.nn.emissions import (
    emits_counts,
    emits_symbols,
    make_emission,
    named_emission,
    reads_input,
)
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.mlp import join
from pyro_zf.sequence.system import carried_states, join_over_time

__all__ = ["RNN"]


class RNN(SequenceModel):
    """A recurrent network without latents. Its guide is empty.

    Args:
        data_size: number of values per step, or of symbols for a categorical emission.
        emission, cell: modules or names; the defaults are the names in the options.
        emission_form: parametrisation of the Gaussians of the emission, if it has any.
        layout, time_chunk, covariate_size, name, kl_weight, aux_weight: see
            :class:`~pyro_zf.models.SequenceModel`. The weights have no effect without latents.
        **options: fields of :class:`~pyro_zf.models.ModelOptions`.

    Example:
        >>> import torch
        >>> from pyro_zf.infer import Trace_ELBO
        >>> rnn = RNN(4, hidden_size=8, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> rnn.loss_module(Trace_ELBO())(batch).item() > 0
        True
    """

    def __init__(
        self,
        data_size: int,
        *,
        emission: str | nn.Module | None = None,
        cell: str | Cell | None = None,
        emission_form: GaussianForm | None = None,
        layout: Any = "time",
        kl_weight: float | Tensor = 1.0,
        aux_weight: float | Tensor = 1.0,
        time_chunk: int | None = None,
        covariate_size: int = 0,
        name: str = "rnn",
        **options: Any,
    ) -> None:
        super().__init__(layout, kl_weight, name, aux_weight, time_chunk, covariate_size)
        names = {"emission": emission, "cell": cell}
        names = {k: x for k, x in names.items() if isinstance(x, str)}
        for part, given in (("emission", emission), ("cell", cell)):
            instance(part, given)
        self.options = o = ModelOptions.of(**names, **options)
        self.data_size = data_size
        named = emission if isinstance(emission, nn.Module) else named_emission(o.emission)
        # An emission over rows of values reads the input if it consists of such rows.
        embedded = o.embedding_size or emits_symbols(named) or emits_counts(named)
        self.emission_reads_input = reads_input(named) and not embedded
        rows = data_size * o.input_window if self.emission_reads_input else 0
        of_input = {"input_size": rows} if reads_input(named) else {}
        if not isinstance(emission, nn.Module):
            emission = make_emission(
                o.emission, rows + o.hidden_size + covariate_size, data_size, form=emission_form,
                **o.emission_options, **of_input,
            )  # fmt: skip
        check_input_size(emission, **of_input)
        self.embedding, input_size = embedding_layer(
            data_size, emission, o.embedding_size, o.hidden_size
        )
        if o.input_window > 1:
            self.deterministic = InputWindow(input_size, o.input_window)
            input_size *= o.input_window
        self.cell = cell if isinstance(cell, Cell) else make_cell(
            o.cell, input_size + covariate_size, 0, o.hidden_size, num_layers=o.num_layers,
            orthogonal=o.orthogonal, forget_bias=o.forget_bias,
        )  # fmt: skip
        self.emission = emission

    def model_steps(self, batch: SequenceBatch) -> State:
        """The generative program with one site for each step. Without targets, it generates data."""
        start, window = self.start(batch)
        with self.sequences(batch):
            state = self.cell.initial((batch.num_sequences,), start)
            y_t = None
            for t in pyro.markov(range(batch.num_steps)):
                c_t = self.covariates_at(batch, t)
                u_t, window = self.input_at(batch, t, y_t, window)
                state = self.cell.after(
                    join(u_t, c_t), None, self.cell.before(join(u_t, c_t), state)
                )
                h_t = state[0]  # h_t = LSTM(u_t, h_{t-1})
                with self.real_steps(batch, t):
                    seen = u_t if self.emission_reads_input else None
                    p_y = self.emission(join(seen, h_t, c_t))  # p(y_t | h_t)
                    y_t = pyro.sample(f"y_{t + 1}", p_y, obs=self.target_at(batch, t))
        return tuple(x.detach() for x in (*state, *window))

    def model_time(self, batch: SequenceBatch) -> State:
        """The generative program with one site for the whole sequence."""
        c = batch.covariates_over_time
        start, window = self.start(batch)
        with self.sequences(batch):
            u = self.embedding(batch.inputs.transpose(0, 1))
            if self.deterministic is not None:
                _, u, window = self.deterministic.run(u, None, window or None)
            states = self.cell.run(join_over_time(u, c), None, start)
            seen = u if self.emission_reads_input else None
            y = self.emitted(join_over_time(seen, states.after, c), batch)
            pyro.sample("y", y, obs=batch.targets)
        return tuple(x.detach() for x in (*states.last, *window))

    def start(self, batch: SequenceBatch) -> tuple[State | None, State]:
        """The states of the cell and of the input window from which a batch starts."""
        return carried_states(self, self.cell, self.deterministic, batch)

    def guide_steps(self, batch: SequenceBatch) -> None:
        """An empty program, since there are no latents to infer."""

    def guide_time(self, batch: SequenceBatch) -> None:
        """An empty program, since there are no latents to infer."""

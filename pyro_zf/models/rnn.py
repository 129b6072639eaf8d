r"""A recurrent network without latents: RNN-Gauss, RNN-GMM and their discrete likes.

.. math::

    h_t &= \mathrm{LSTM}(u_t, h_{t-1}) \\
    y_t &\sim p(y_t \mid h_t) = \mathrm{emission}(f^{(o)}(h_t))

========  ==========================================
symbol    meaning
========  ==========================================
u_t       input, the target of the step before
y_t       target
h_t       state
========  ==========================================

``emission="gaussian"`` is RNN-Gauss and ``"gaussian-mixture"`` RNN-GMM of the papers' tables (Chung et
al. 2015, https://arxiv.org/abs/1506.02216). ``"autoregressive-gaussian"`` is the baseline of Dai et
al. 2019 (https://arxiv.org/abs/1902.01388), which models the values within a frame one after the
other and which latent models of speech have to be compared with. Its log-likelihood is exact: the
ELBO is the log-likelihood, and the KL is zero.
"""

from __future__ import annotations

from typing import Any

import pyro
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.base import SequenceModel, at_step
from pyro_zf.models.latent import embed_data
from pyro_zf.nn.emissions import emits_symbols, make_emission
from pyro_zf.nn.gaussian import GaussianForm
from pyro_zf.nn.lstm import InputLSTM, State

__all__ = ["RNN"]


class RNN(SequenceModel):
    """A recurrent network without latents. Its guide is empty.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        emission: a key of :data:`pyro_zf.nn.EMISSIONS`, or a module.
        hidden_size: units.
        mlp_size, emission_depth, activation: hidden layers of the emission.
        embedding_size: size of a linear layer on the data, or None for no such layer. Symbols are
            always embedded; None then means ``hidden_size``.
        orthogonal: orthogonal recurrent weights.
        forget_bias: initial bias of the forget gates.
        emission_form: how the emission's output becomes Gaussians, if it has any.
        **options: of :class:`~pyro_zf.models.SequenceModel`.

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
        emission: str | nn.Module = "bernoulli",
        hidden_size: int = 1024,
        mlp_size: int = 1024,
        emission_depth: int = 1,
        activation: str = "clipped-leaky-relu",
        embedding_size: int | None = None,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        emission_form: GaussianForm | None = None,
        name: str = "rnn",
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        if isinstance(emission, str):
            emission = make_emission(
                emission, hidden_size, data_size,
                mlp_size=mlp_size, depth=emission_depth, activation=activation, form=emission_form,
            )  # fmt: skip
        self.embedding, input_size = embed_data(
            data_size, emits_symbols(emission), embedding_size, hidden_size
        )
        self.network = InputLSTM(input_size, hidden_size, orthogonal, forget_bias)
        self.emission = emission

    def _model_steps(self, batch: SequenceBatch) -> State:
        with self.sequences(batch):
            if batch.targets is not None:
                states, last = self._states(batch)
                for t, h in enumerate(states.unbind(0)):
                    y = at_step(self.emission(h), batch, t)
                    pyro.sample(f"y_{t + 1}", y, obs=batch.targets[:, t])
                return last
            u, carried = batch.inputs[:, 0], batch.carried
            for t in pyro.markov(range(batch.num_steps)):
                h, carried = self.network.step(self.embedding(u), carried)
                u = pyro.sample(f"y_{t + 1}", at_step(self.emission(h), batch, t))
            return tuple(x.detach() for x in carried or ())

    def _model_time(self, batch: SequenceBatch) -> State:
        with self.sequences(batch):
            states, last = self._states(batch)
            pyro.sample("y", self.emitted(states, batch), obs=batch.targets)
        return last

    def _guide_steps(self, batch: SequenceBatch) -> None:
        """Nothing to infer."""

    def _guide_time(self, batch: SequenceBatch) -> None:
        """Nothing to infer."""

    def _states(self, batch: SequenceBatch) -> tuple[Tensor, State]:
        states, last = self.network.run(self.embedding(batch.inputs).transpose(0, 1), batch.carried)
        return states, tuple(x.detach() for x in last)

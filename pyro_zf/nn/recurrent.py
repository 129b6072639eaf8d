r"""Networks over the targets, whose states the posterior reads.

A backward network is any module with ``forward(targets, batch) -> (time, batch, size)`` and an attribute
``size``. ``targets`` are the (embedded) targets, batch first, concatenated with the covariates; ``batch``
gives the lengths. State t must not depend on padding and should summarise :math:`y_t, \dots, y_T`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.nn.cells import initialize_rnn, run_rnn

__all__ = ["BackwardLSTM", "ForwardLSTM"]


class BackwardLSTM(nn.Module):
    r"""The backward network :math:`b_t = f(y_t, b_{t+1})` (Goyal et al. 2017, eq. 6).

    Each sequence is read backwards from its own end, so that its states do not depend on padding.

    Args:
        input_size: size of the (embedded) targets.
        size: number of units.
        orthogonal: whether to initialise recurrent weights as orthogonal (orthonormal columns) instead of
            uniform.
        forget_bias: initial bias of the forget gate. The other biases start at zero.
        num_layers: number of layers; the last layer gives :math:`b_t`. The paper uses one layer.
    """

    def __init__(
        self,
        input_size: int,
        size: int,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        self.size = size
        self.lstm = initialize_rnn(nn.LSTM(input_size, size, num_layers), orthogonal, forget_bias)

    def forward(
        self, targets: Float[Tensor, "batch time input"], batch: SequenceBatch
    ) -> Float[Tensor, "time batch size"]:
        """The states in temporal order, time first."""
        states = run_rnn(self.lstm, batch.reverse(targets).transpose(0, 1))[0]
        states = states.to(next(self.lstm.parameters()).dtype)  # also under autocast
        return batch.reverse(states.transpose(0, 1)).transpose(0, 1)


class ForwardLSTM(nn.Module):
    r"""A recognition network :math:`g_t = f(y_t, g_{t-1})`, which has read :math:`y_1, \dots, y_t`.

    The options are those of :class:`BackwardLSTM`.
    """

    def __init__(
        self, input_size: int, size: int, orthogonal: bool = True, forget_bias: float = 0.0
    ) -> None:
        super().__init__()
        self.size = size
        self.lstm = initialize_rnn(nn.LSTM(input_size, size), orthogonal, forget_bias)

    def forward(
        self, targets: Float[Tensor, "batch time input"], batch: SequenceBatch
    ) -> Float[Tensor, "time batch size"]:
        """The states in temporal order, time first."""
        states = run_rnn(self.lstm, targets.transpose(0, 1))[0]
        return states.to(next(self.lstm.parameters()).dtype)

"""The two recurrent networks: forward with a latent input, and backward over the targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_zf.batch import SequenceBatch, with_particles

__all__ = ["BackwardLSTM", "LSTMTransition", "State", "Transition"]

State = tuple[Tensor, ...]


class Transition(nn.Module):
    r"""The forward recurrence :math:`h_t = f(u_t, z_t, h_{t-1})` (Goyal et al. 2017, eq. 4).

    A subclass defines :attr:`state_sizes`, :meth:`project` and :meth:`stepper`; the first entry of
    its state is :math:`h_t`. In exchange it gets :meth:`initial` and :meth:`run`, and works in both
    layouts with any number of particle dimensions. What does not depend on the recurrence belongs
    into :meth:`project`, which sees all steps at once.
    """

    #: Sizes of the tensors in the state, :math:`h` first.
    state_sizes: tuple[int, ...]

    def project(self, inputs: Float[Tensor, "*batch input"]) -> Tensor:
        """The part of a step that depends on the input alone, for any leading dimensions."""
        raise NotImplementedError

    def stepper(self) -> Callable[[Tensor, Tensor, State], State]:
        """A function of (projected input, z, state) that returns the next state."""
        raise NotImplementedError

    def initial(self, batch_shape: torch.Size | tuple[int, ...]) -> State:
        """The state before the first step: zeros."""
        like = next(self.parameters())
        return tuple(like.new_zeros(*batch_shape, size) for size in self.state_sizes)

    def run(
        self,
        inputs: Float[Tensor, "time batch input"],
        z: Float[Tensor, "time *particles batch latent"],
    ) -> Float[Tensor, "time *particles batch hidden"]:
        """All states of a path whose latents are known."""
        step, state, states = self.stepper(), self.initial(z.shape[1:-1]), []
        for u, z_t in zip(self.project(inputs).unbind(0), z.unbind(0), strict=True):
            state = step(u, z_t, state)
            states.append(state[0])
        return torch.stack(states)


class LSTMTransition(Transition):
    """An LSTM that reads :math:`[u_t, z_t]`. Its weights are those of one :class:`torch.nn.LSTM`.

    Args:
        input_size: size of the (embedded) input.
        latent_size: size of the (embedded) latent.
        hidden_size: units.
        orthogonal: recurrent weights orthogonal (columns orthonormal) instead of uniform.
        forget_bias: initial bias of the forget gate. The other biases start at zero.
    """

    def __init__(
        self,
        input_size: int,
        latent_size: int,
        hidden_size: int,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.state_sizes = (hidden_size, hidden_size)
        self.lstm = _initialised_lstm(
            input_size + latent_size, hidden_size, orthogonal, forget_bias
        )

    def project(self, inputs: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        weight, _, bias_input, bias_recurrent = self._weights()
        return F.linear(inputs, weight[:, : self.input_size], bias_input + bias_recurrent)

    def stepper(self) -> Callable[[Tensor, Tensor, State], State]:
        # Sliced here, once: a slice taken at each step would fill a whole weight with zeros in
        # each step's backward.
        input_weight, recurrent_weight, _, _ = self._weights()
        latent_weight = input_weight[:, self.input_size :]

        def step(u: Tensor, z: Tensor, state: State) -> State:
            h, c = state
            gates = u + F.linear(z, latent_weight) + F.linear(h, recurrent_weight)
            i, f, g, o = gates.to(c.dtype).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

        return step

    def run(
        self,
        inputs: Float[Tensor, "time batch input"],
        z: Float[Tensor, "time *particles batch latent"],
    ) -> Float[Tensor, "time *particles batch hidden"]:
        shape = z.shape[:-1]
        u = with_particles(inputs, len(shape) - 2)
        both = torch.cat([u.expand(*shape, -1), z], dim=-1).flatten(1, -2)
        return self.lstm(both)[0].to(self._weights()[0].dtype).reshape(*shape, -1)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and recurrent weights, input and recurrent biases."""
        input_weight, recurrent_weight, input_bias, recurrent_bias = self.lstm.all_weights[0]
        return input_weight, recurrent_weight, input_bias, recurrent_bias


class BackwardLSTM(nn.Module):
    r"""The backward network :math:`b_t = f(y_t, b_{t+1})` (Goyal et al. 2017, eq. 6).

    Each sequence is read from its own end, so that padding is never seen.

    Args:
        input_size: size of the (embedded) targets.
        hidden_size: units.
        orthogonal: recurrent weights orthogonal (columns orthonormal) instead of uniform.
        forget_bias: initial bias of the forget gate. The other biases start at zero.
        num_layers: layers, of which the last gives :math:`b_t`. The paper has one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.lstm = _initialised_lstm(input_size, hidden_size, orthogonal, forget_bias, num_layers)

    def forward(
        self, targets: Float[Tensor, "batch time input"], batch: SequenceBatch
    ) -> Float[Tensor, "time batch hidden"]:
        """States in the order of time, time first."""
        states = self.lstm(batch.reverse(targets).transpose(0, 1))[0]
        states = states.to(next(self.lstm.parameters()).dtype)  # under autocast too
        return batch.reverse(states.transpose(0, 1)).transpose(0, 1)


def _initialised_lstm(
    input_size: int, hidden_size: int, orthogonal: bool, forget_bias: float, num_layers: int = 1
) -> nn.LSTM:
    lstm = nn.LSTM(input_size, hidden_size, num_layers)
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()
            elif name.startswith("weight_hh") and orthogonal:
                nn.init.orthogonal_(parameter)
            if name.startswith("bias_ih"):
                parameter[hidden_size : 2 * hidden_size] = forget_bias
    return lstm

"""The recurrent networks: forward with a latent input, over the inputs alone, over the targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_zf.batch import SequenceBatch, with_particles
from pyro_zf.nn.mlp import join

__all__ = [
    "BackwardLSTM",
    "ChainTransition",
    "ForwardLSTM",
    "InputLSTM",
    "LSTMTransition",
    "State",
    "Transition",
]

State = tuple[Tensor, ...]


class Transition(nn.Module):
    r"""The forward recurrence :math:`h_t = f(u_t, z_t, h_{t-1})` (Goyal et al. 2017, eq. 4).

    A subclass defines :attr:`state_sizes`, :meth:`project` and :meth:`stepper`; the first entry of
    its state is :math:`h_t`. In exchange it gets :meth:`initial` and :meth:`run`, and works in both
    layouts with any number of particle dimensions. What does not depend on the recurrence belongs
    into :meth:`project`, which sees all steps at once. :meth:`seen` and :meth:`output` say what the
    other networks read of a step; both are given one step or all of them.
    """

    #: Sizes of the tensors in the state, :math:`h` first.
    state_sizes: tuple[int, ...]
    #: 0 where :math:`h_t` reads :math:`z_t`, which therefore depends on :math:`h_{t-1}`; 1 where it
    #: reads :math:`z_{t-1}`, so that :math:`z_t` depends on :math:`h_t`.
    lag: int = 0
    #: Size of the (embedded) latent that a step reads; needed where ``lag`` is 1.
    latent_size: int

    @property
    def seen_size(self) -> int:
        """Size of what :meth:`seen` gives."""
        return self.state_sizes[0]

    @property
    def posterior_reads(self) -> int:
        """How many values of what is seen, the first ones, the posterior reads."""
        return self.seen_size

    @property
    def output_size(self) -> int:
        """Size of what :meth:`output` gives."""
        return self.state_sizes[0]

    def seen(self, u: Tensor, h: Tensor) -> Tensor:
        """What prior and posterior read: the (embedded) input and the state before z is drawn."""
        return h

    def output(self, u: Tensor, z: Tensor, h: Tensor) -> Tensor:
        """What the emission reads: the (embedded) input and latent, and the state after both."""
        return h

    def project(self, inputs: Float[Tensor, "*batch input"]) -> Tensor:
        """The part of a step that depends on the input alone, for any leading dimensions."""
        raise NotImplementedError

    def stepper(self) -> Callable[[Tensor, Tensor, State], State]:
        """A function of (projected input, z, state) that returns the next state."""
        raise NotImplementedError

    def initial(
        self, batch_shape: torch.Size | tuple[int, ...], carried: State | None = None
    ) -> State:
        """The state before the first step: the one carried over from what came before, or zeros."""
        if carried is not None:
            return tuple(x.expand(*batch_shape, -1) for x in carried)
        like = next(self.parameters())
        return tuple(like.new_zeros(*batch_shape, size) for size in self.state_sizes)

    def run(
        self,
        inputs: Float[Tensor, "time batch input"],
        z: Float[Tensor, "time *particles batch latent"],
        carried: State | None = None,
    ) -> tuple[Float[Tensor, "time *particles batch hidden"], State]:
        """All :math:`h_t` of a path whose latents are known, and the whole state after the last."""
        step, state, states = self.stepper(), self.initial(z.shape[1:-1], carried), []
        for u, z_t in zip(self.project(inputs).unbind(0), z.unbind(0), strict=True):
            state = step(u, z_t, state)
            states.append(state[0])
        return torch.stack(states), state


class LSTMTransition(Transition):
    """An LSTM that reads :math:`[u_t, z_t]`. Its weights are those of one :class:`torch.nn.LSTM`.

    Args:
        input_size: size of the (embedded) input.
        latent_size: size of the (embedded) latent.
        hidden_size: units.
        orthogonal: recurrent weights orthogonal (columns orthonormal) instead of uniform.
        forget_bias: initial bias of the forget gate. The other biases start at zero.
        lag: 1 to read :math:`[u_t, z_{t-1}]`, see :class:`Transition`.
        emitted: how many values of the latent, the last ones, the emission reads beside h.
        read: how many values of the latent, the first ones, the LSTM reads; by default all.
    """

    def __init__(
        self,
        input_size: int,
        latent_size: int,
        hidden_size: int,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        lag: int = 0,
        emitted: int = 0,
        read: int | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.state_sizes = (hidden_size, hidden_size)
        self.lag = lag
        self.emitted = emitted
        self.read = latent_size if read is None else read
        self.latent_size = latent_size
        self.lstm = _initialised_lstm(input_size + self.read, hidden_size, orthogonal, forget_bias)

    @property
    def output_size(self) -> int:
        return self.state_sizes[0] + self.emitted

    def output(self, u: Tensor, z: Tensor, h: Tensor) -> Tensor:
        if not self.emitted:
            return h
        return join(h, z[..., self.latent_size - self.emitted :])

    def project(self, inputs: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        weight, _, bias_input, bias_recurrent = self.weights
        return F.linear(inputs, weight[:, : self.input_size], bias_input + bias_recurrent)

    def stepper(self) -> Callable[[Tensor, Tensor, State], State]:
        # Sliced here, once: a slice taken at each step would fill a whole weight with zeros in
        # each step's backward.
        input_weight, recurrent_weight, _, _ = self.weights
        latent_weight = input_weight[:, self.input_size :]

        def step(u: Tensor, z: Tensor, state: State) -> State:
            h, c = state
            gates = u + F.linear(self._read(z), latent_weight) + F.linear(h, recurrent_weight)
            i, f, g, o = gates.to(c.dtype).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

        return step

    def run(
        self,
        inputs: Float[Tensor, "time batch input"],
        z: Float[Tensor, "time *particles batch latent"],
        carried: State | None = None,
    ) -> tuple[Float[Tensor, "time *particles batch hidden"], State]:
        shape = z.shape[:-1]
        u = with_particles(inputs, len(shape) - 2)
        both = torch.cat([u.expand(*shape, -1), self._read(z)], dim=-1).flatten(1, -2)
        start = None
        if carried is not None:
            start = tuple(
                x.flatten(0, -2).unsqueeze(0).contiguous() for x in self.initial(shape[1:], carried)
            )
        states, last = self.lstm(both, start)
        dtype = self.weights[0].dtype
        return (
            states.to(dtype).reshape(*shape, -1),
            tuple(x.to(dtype).reshape(*shape[1:], -1) for x in last),
        )

    def _read(self, z: Tensor) -> Tensor:
        return z if self.read == self.latent_size else z[..., : self.read]

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and recurrent weights, input and recurrent biases."""
        input_weight, recurrent_weight, input_bias, recurrent_bias = self.lstm.all_weights[0]
        return input_weight, recurrent_weight, input_bias, recurrent_bias


class ChainTransition(Transition):
    r"""The latents as their own state, beside a deterministic network (Fraccaro et al. 2016).

    The input :math:`u_t` is the state :math:`d_t` of that network. The prior reads
    :math:`[z_{t-1}, d_t]`, the posterior :math:`z_{t-1}` of it, the emission :math:`[z_t, d_t]`.

    Args:
        input_size: size of d.
        latent_size: size of the (embedded) latent.
    """

    def __init__(self, input_size: int, latent_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.state_sizes = (latent_size,)
        self.register_buffer("start", torch.zeros(latent_size), persistent=False)

    @property
    def seen_size(self) -> int:
        return self.state_sizes[0] + self.input_size

    @property
    def posterior_reads(self) -> int:
        return self.state_sizes[0]

    @property
    def output_size(self) -> int:
        return self.seen_size

    def seen(self, u: Tensor, h: Tensor) -> Tensor:
        return join(h, u)

    def output(self, u: Tensor, z: Tensor, h: Tensor) -> Tensor:
        return self.seen(u, h)

    def project(self, inputs: Tensor) -> Tensor:
        return inputs

    def stepper(self) -> Callable[[Tensor, Tensor, State], State]:
        return lambda u, z, state: (z,)

    def initial(
        self, batch_shape: torch.Size | tuple[int, ...], carried: State | None = None
    ) -> State:
        if carried is not None:
            return super().initial(batch_shape, carried)
        start = self.get_buffer("start")
        return (start.new_zeros(*batch_shape, *start.shape),)

    def run(
        self,
        inputs: Float[Tensor, "time batch input"],
        z: Float[Tensor, "time *particles batch latent"],
        carried: State | None = None,
    ) -> tuple[Float[Tensor, "time *particles batch hidden"], State]:
        return z, (z[-1],)


class InputLSTM(nn.Module):
    r"""A network over the inputs alone, :math:`d_t = f(u_t, d_{t-1})`.

    Args:
        input_size: size of the (embedded) input.
        hidden_size: units.
        orthogonal: recurrent weights orthogonal (columns orthonormal) instead of uniform.
        forget_bias: initial bias of the forget gate. The other biases start at zero.
    """

    def __init__(
        self, input_size: int, hidden_size: int, orthogonal: bool = True, forget_bias: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.lstm = _initialised_lstm(input_size, hidden_size, orthogonal, forget_bias)

    def forward(
        self, inputs: Float[Tensor, "time batch input"]
    ) -> Float[Tensor, "time batch hidden"]:
        """All states at once."""
        return self.run(inputs)[0]

    def run(
        self, inputs: Float[Tensor, "time batch input"], carried: State | None = None
    ) -> tuple[Float[Tensor, "time batch hidden"], State]:
        """All states, and what to hand to the steps that follow, (batch, hidden) each."""
        start = None if carried is None else tuple(x.unsqueeze(0).contiguous() for x in carried)
        states, last = self.lstm(inputs, start)
        dtype = self.lstm.weight_hh_l0.dtype
        return states.to(dtype), tuple(x[0].to(dtype) for x in last)

    def step(
        self, u: Float[Tensor, "*batch input"], carried: State | None
    ) -> tuple[Float[Tensor, "*batch hidden"], State]:
        """One state, and what to hand to the next step; None before the first."""
        output, carried = self.run(u.reshape(1, -1, u.shape[-1]), carried)
        return output.reshape(*u.shape[:-1], -1), carried


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


class ForwardLSTM(InputLSTM):
    r"""A recognition network :math:`g_t = f(y_t, g_{t-1})`, which has read the targets up to now."""

    def forward(  # type: ignore[override]
        self, targets: Float[Tensor, "batch time input"], batch: SequenceBatch
    ) -> Float[Tensor, "time batch hidden"]:
        """States in the order of time, time first."""
        return super().forward(targets.transpose(0, 1))


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

r"""Recurrent cells: one step of the forward network.

A latent is drawn in the middle of a step, so a cell has two halves: :meth:`Cell.before` runs before the
latent is drawn and :meth:`Cell.after` afterwards. Most cells use only the second.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_zf.batch import with_particles
from pyro_zf.names import there_are
from pyro_zf.nn.mlp import join

__all__ = [
    "CELLS",
    "Cell",
    "GRUCell",
    "InputWindow",
    "LSTMCell",
    "LatentChain",
    "ReadsPreviousLatent",
    "State",
    "Trajectory",
    "cpu_has_bfloat16",
    "initialize_rnn",
    "make_cell",
    "run_rnn",
]

State = tuple[Tensor, ...]


class Trajectory(NamedTuple):
    """The states of a cell along a path of latents, time first.

    ``before`` is the first entry of the state from which each latent is drawn, ``after`` that of the
    state that has read the latent, and ``last`` the whole state after the last step.
    """

    before: Float[Tensor, "time *batch hidden"]
    after: Float[Tensor, "time *batch hidden"]
    last: State


class Cell(nn.Module):
    r"""One step of the forward network, :math:`h_t = f(u_t, z_t, h_{t-1})`.

    A subclass sets :attr:`state_sizes` and defines :meth:`after`, and optionally :meth:`before`. The
    state is a tuple of tensors; the other networks read its first entry, :math:`h_t`. All methods accept
    any number of leading batch dimensions. Override :meth:`run` if all steps can be computed together
    once the latents are known.

    Example:
        >>> class Elman(Cell):
        ...     def __init__(self, input_size, latent_size, hidden_size):
        ...         super().__init__()
        ...         self.state_sizes = (hidden_size,)
        ...         self.linear = nn.Linear(input_size + latent_size + hidden_size, hidden_size)
        ...
        ...     def after(self, u, z, state):
        ...         return (torch.tanh(self.linear(join(u, z, state[0]))),)
        >>> Elman(4, 2, 8).run(torch.zeros(5, 3, 4), torch.zeros(5, 3, 2)).after.shape
        torch.Size([5, 3, 8])
    """

    #: Sizes of the tensors in the state, :math:`h` first.
    state_sizes: tuple[int, ...]

    def initial(
        self, batch_shape: torch.Size | tuple[int, ...], carried: State | None = None
    ) -> State:
        """The state before the first step: ``carried`` from an earlier batch, or zeros."""
        if carried is not None:
            return tuple(x.expand(*batch_shape, -1) for x in carried)
        like = next(itertools.chain(self.parameters(), self.buffers()))
        return tuple(like.new_zeros(*batch_shape, size) for size in self.state_sizes)

    def before(self, u: Float[Tensor, "... input"], state: State) -> State:
        """The state from which the latent is drawn. By default the state is unchanged before the draw."""
        return state

    def after(
        self, u: Float[Tensor, "... input"], z: Float[Tensor, "... latent"] | None, state: State
    ) -> State:
        """The state after reading the input and the latent."""
        raise NotImplementedError

    def run(
        self,
        inputs: Float[Tensor, "time ... input"],
        z: Float[Tensor, "time ... latent"] | None,
        carried: State | None = None,
    ) -> Trajectory:
        """All states along a path of known latents, computed step by step."""
        shape = inputs.shape[1:-1] if z is None else z.shape[1:-1]
        state, before, after = self.initial(shape, carried), [], []
        latents = [None] * len(inputs) if z is None else z.unbind(0)
        # Use `unbind`, not `x[t]`: the backward of indexing fills a tensor of T steps with zeros.
        for u_t, z_t in zip(inputs.unbind(0), latents, strict=True):
            state = self.before(u_t, state)
            before.append(state[0])
            state = self.after(u_t, z_t, state)
            after.append(state[0])
        return Trajectory(torch.stack(before), torch.stack(after), state)


class _RNNCell(Cell):
    """An LSTM or GRU with one or more layers, the first of which reads :math:`[u_t, z_t]`."""

    #: Class of the module that holds the weights, and the name of the attribute that it is stored as.
    kind: ClassVar[type[nn.LSTM | nn.GRU]]
    attribute: ClassVar[str]
    #: Number of tensors in the state of a layer.
    per_layer: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        latent_size: int,
        hidden_size: int,
        num_layers: int = 1,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.input_size, self.latent_size = input_size, latent_size
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.state_sizes = (hidden_size,) * self.per_layer * num_layers
        rnn = self.kind(input_size + latent_size, hidden_size, num_layers)
        setattr(self, self.attribute, initialize_rnn(rnn, orthogonal, forget_bias))

    @property
    def rnn(self) -> nn.RNNBase:
        """The module that holds the weights."""
        rnn: nn.RNNBase = getattr(self, self.attribute)
        return rnn

    def _layer(self, from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        """The new state of a layer, given the linear parts of its gates."""
        raise NotImplementedError

    def after(
        self, u: Float[Tensor, "... input"], z: Float[Tensor, "... latent"] | None, state: State
    ) -> State:
        x, n = (u if z is None else join(u, z)), self.per_layer
        layers: list[State] = []
        for index, (w_ih, w_hh, b_ih, b_hh) in enumerate(self.rnn.all_weights):
            first = (self.num_layers - 1 - index) * n  # the top layer comes first in the state
            old = state[first : first + n]
            from_input, from_hidden = F.linear(x, w_ih, b_ih), F.linear(old[0], w_hh, b_hh)
            # Gates are computed in the precision of the state, also under autocast.
            new = self._layer(from_input.to(old[0].dtype), from_hidden.to(old[0].dtype), old)
            layers.insert(0, new)
            x = new[0]
        return tuple(x for layer in layers for x in layer)

    def run(
        self,
        inputs: Float[Tensor, "time ... input"],
        z: Float[Tensor, "time ... latent"] | None,
        carried: State | None = None,
    ) -> Trajectory:
        both = inputs
        if z is not None:
            both = join(with_particles(inputs, z.dim() - inputs.dim()), z)
        shape, n, dtype = both.shape[1:-1], self.per_layer, self.rnn.weight_hh_l0.dtype
        start = self.initial(shape, carried)

        def by_layer(kind: int) -> Tensor:
            """h or c of all layers, lowest layer first, as PyTorch modules expect it."""
            return torch.stack([x.reshape(-1, x.shape[-1]) for x in start[kind::n][::-1]])

        given = None
        if carried is not None:
            given = (by_layer(0), by_layer(1)) if n == 2 else by_layer(0)
        after, last = run_rnn(self.rnn, both.flatten(1, -2), given)
        kinds = last if n == 2 else (last,)
        end = tuple(
            kinds[kind][layer].to(dtype).reshape(*shape, -1)
            for layer in range(self.num_layers - 1, -1, -1)
            for kind in range(n)
        )
        after = after.to(dtype).reshape(*both.shape[:-1], -1)
        return Trajectory(torch.cat([start[0].unsqueeze(0), after[:-1]]), after, end)


class LSTMCell(_RNNCell):
    """An LSTM that reads :math:`[u_t, z_t]` (Goyal et al. 2017, eq. 4).

    Args:
        input_size: size of the (embedded) input.
        latent_size: size of the (embedded) latent; 0 for a network over the inputs alone.
        hidden_size: number of units in each layer.
        num_layers: number of layers; the last layer gives :math:`h_t`. The papers use one layer.
        orthogonal: whether to initialise recurrent weights as orthogonal (orthonormal columns) instead of
            uniform.
        forget_bias: initial bias of the forget gates. The other biases start at zero.
    """

    kind, attribute, per_layer = nn.LSTM, "lstm", 2

    def _layer(self, from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        i, f, g, o = (from_input + from_hidden).chunk(4, dim=-1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRUCell(_RNNCell):
    """A GRU that reads :math:`[u_t, z_t]`, with the options of :class:`LSTMCell`; it has no forget gate."""

    kind, attribute, per_layer = nn.GRU, "gru", 1

    def _layer(self, from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        (r, z, n), (hr, hz, hn) = from_input.chunk(3, dim=-1), from_hidden.chunk(3, dim=-1)
        update = torch.sigmoid(z + hz)
        candidate = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        return ((1 - update) * candidate + update * state[0],)


class ReadsPreviousLatent(Cell):
    r"""A cell that advances before the latent is drawn and reads the previous latent (VRNN).

    The state is :math:`h_t = f(u_t, z_{t-1}, h_{t-1})`, and :math:`z_t` depends on :math:`h_t`. The last
    latent is part of the state.

    Args:
        cell: the cell that computes f.
        latent_size: size of the (embedded) latent that the cell reads.
    """

    def __init__(self, cell: Cell, latent_size: int) -> None:
        super().__init__()
        self.cell, self.latent_size = cell, latent_size
        self.state_sizes = (*cell.state_sizes, latent_size)

    def before(self, u: Float[Tensor, "... input"], state: State) -> State:
        return (*self.cell.after(u, state[-1], state[:-1]), state[-1])

    def after(
        self, u: Float[Tensor, "... input"], z: Float[Tensor, "... latent"] | None, state: State
    ) -> State:
        assert z is not None
        return (*state[:-1], z)

    def run(
        self,
        inputs: Float[Tensor, "time ... input"],
        z: Float[Tensor, "time ... latent"] | None,
        carried: State | None = None,
    ) -> Trajectory:
        assert z is not None
        first = self.initial(z.shape[1:-1], carried)[-1].unsqueeze(0)
        rest = None if carried is None else carried[:-1]
        states = self.cell.run(inputs, torch.cat([first, z[:-1]]), rest)
        return Trajectory(states.after, states.after, (*states.last, z[-1]))


class LatentChain(Cell):
    r"""A cell whose state is the latent itself, :math:`h_t = z_t` (SRNN, Fraccaro et al. 2016).

    Args:
        latent_size: size of the (embedded) latent.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.state_sizes = (latent_size,)
        # Without parameters, it is this that gives the initial state its dtype and its device.
        self.register_buffer("start", torch.zeros(latent_size), persistent=False)

    def after(
        self, u: Float[Tensor, "... input"], z: Float[Tensor, "... latent"] | None, state: State
    ) -> State:
        assert z is not None
        return (z,)

    def run(
        self,
        inputs: Float[Tensor, "time ... input"],
        z: Float[Tensor, "time ... latent"] | None,
        carried: State | None = None,
    ) -> Trajectory:
        assert z is not None
        first = self.initial(z.shape[1:-1], carried)[0].unsqueeze(0)
        return Trajectory(torch.cat([first, z[:-1]]), z, (z[-1],))


class InputWindow(Cell):
    r"""The inputs of the last K steps, :math:`[u_t, u_{t-1}, \ldots, u_{t-K+1}]`; zeros before the first step.

    It takes the place of a network over the inputs, so that a model reads several preceding values at a step.

    Args:
        input_size: size of the input of a step. Values after these, such as covariates, are left out.
        length: number of steps K.

    Example:
        >>> inputs = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
        >>> InputWindow(1, 2).run(inputs, None).after.squeeze(1)
        tensor([[1., 0.],
                [2., 1.],
                [3., 2.]])
    """

    def __init__(self, input_size: int, length: int) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"an input window has at least one step, not {length}")
        self.input_size, self.length = input_size, length
        self.state_sizes = (length * input_size,)
        # Without parameters, it is this that gives the initial state its dtype and its device.
        self.register_buffer("start", torch.zeros(length * input_size), persistent=False)

    def after(
        self, u: Float[Tensor, "... input"], z: Float[Tensor, "... latent"] | None, state: State
    ) -> State:
        return (join(u[..., : self.input_size], state[0][..., : -self.input_size]),)

    def run(
        self,
        inputs: Float[Tensor, "time ... input"],
        z: Float[Tensor, "time ... latent"] | None,
        carried: State | None = None,
    ) -> Trajectory:
        (start,) = self.initial(inputs.shape[1:-1], carried)
        earlier = torch.stack(start.unflatten(-1, (self.length, -1)).unbind(-2)[::-1])
        every = torch.cat([earlier, inputs[..., : self.input_size]])
        steps = len(inputs)
        # Shifted by one step more for each entry of the window, the last input first.
        after = join(*(every[self.length - k :][:steps] for k in range(self.length)))
        before = torch.cat([start.unsqueeze(0), after[:-1]])
        return Trajectory(before, after, (after[-1],))

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, length={self.length}"


#: Cells by name, as accepted by ``--cell``. Each is a function of the arguments of :class:`LSTMCell`.
#: Add an entry to register your own.
CELLS: dict[str, type[Cell]] = {"lstm": LSTMCell, "gru": GRUCell}


def make_cell(
    name: str, input_size: int, latent_size: int, hidden_size: int, **options: object
) -> Cell:
    """Build a cell from :data:`CELLS`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in CELLS:
        raise ValueError(f"cell {there_are(name, sorted(CELLS))}")
    return CELLS[name](input_size, latent_size, hidden_size, **options)  # type: ignore[call-arg]


def run_rnn(rnn: nn.RNNBase, inputs: Float[Tensor, "time batch input"], start: Any = None) -> Any:
    """Run an ``nn.LSTM`` or ``nn.GRU``, also under autocast on processors without bfloat16.

    On such processors, PyTorch 2.13 fails to run an LSTM under autocast, so it is computed in the precision
    of its weights.
    """
    low = not inputs.is_cuda and torch.is_autocast_enabled("cpu")
    if not low or cpu_has_bfloat16():
        return rnn(inputs, start)
    with torch.autocast("cpu", enabled=False):
        return rnn(inputs.to(next(rnn.parameters()).dtype), start)


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, which PyTorch's LSTM under autocast needs."""
    with torch.random.fork_rng([]):
        lstm = nn.LSTM(2, 2, dtype=torch.float32)  # autocast does not apply to double precision
    try:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            lstm(torch.zeros(1, 1, 2, dtype=torch.float32))
    except RuntimeError:
        return False
    return True


def initialize_rnn(rnn: nn.RNNBase, orthogonal: bool, forget_bias: float = 0.0) -> nn.RNNBase:
    """Zero the biases, except ``forget_bias`` of LSTMs; optionally make recurrent weights orthogonal."""
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()
            elif name.startswith("weight_hh") and orthogonal:
                nn.init.orthogonal_(parameter)
            if name.startswith("bias_ih") and isinstance(rnn, nn.LSTM):
                parameter[rnn.hidden_size : 2 * rnn.hidden_size] = forget_bias
    return rnn

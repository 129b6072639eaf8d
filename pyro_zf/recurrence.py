"""The recurrent networks on a batch: computed once, for guide and model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch, with_particles
from pyro_zf.cores import Core, Path, lagged, shielded
from pyro_zf.nn.lstm import State, Transition

__all__ = ["Recurrence", "RecurrentNetworks", "Shared", "Start"]


class Shared:
    """What the guide leaves for the model, so that it is not computed twice.

    It is handed out once, and only to a caller that would compute the very same thing: the same
    tensor objects, unchanged parameters, the same gradient mode and precision. Anything else
    (a copy, a detached latent, an optimiser step in between) is a miss.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._value: Any = None

    def put(self, tensors: Iterable[Any], parameters: Iterable[Tensor], value: Any) -> None:
        """Leave a value that was computed from these tensors with these parameters."""
        self._key, self._value = self._full_key(tensors, parameters), value

    def take(self, tensors: Iterable[Any], parameters: Iterable[Tensor]) -> Any:
        """The value left under the same tensors and parameters, or None."""
        key, value = self._key, self._value
        # Whoever takes it owns it: from here on, it keeps no graph alive.
        self._key = self._value = None
        return value if key == self._full_key(tensors, parameters) else None

    @staticmethod
    def _full_key(tensors: Iterable[Any], parameters: Iterable[Tensor]) -> tuple[Any, ...]:
        return (
            tuple(_Identity(x) for x in tensors),
            tuple((id(p), _version(p), p.requires_grad) for p in parameters),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return Shared()

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()


class _Identity:
    """Equal only to itself around the same, unmodified object; holds it, so its id stays its own."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.version = _version(value)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Identity)
            and self.value is other.value
            and self.version == other.version
        )

    __hash__ = None  # type: ignore[assignment]


def _version(value: Any) -> int | None:
    """Counts changes in place; inference tensors, which cannot be trained on, have no count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


class Start(NamedTuple):
    """What a batch begins with where it continues another; None for zeros.

    ``state`` is that of the transition, ``read`` what one with lag reads at the first step,
    ``inputs`` the state of a network over the inputs.
    """

    state: State | None = None
    read: Tensor | None = None
    inputs: State | None = None


@runtime_checkable
class RecurrentNetworks(Protocol):
    """What a recurrence needs of a model; all tensors have time first."""

    transition: Transition
    latent_size: int
    #: Which recurrence draws paths, see :func:`pyro_zf.cores.sample_path`.
    core: Core
    #: How many steps are scored at a time, None for all.
    time_chunk: int | None

    @property
    def echo(self) -> Any:
        """Maps z to the distribution of b~, or None."""

    @property
    def latent_layer(self) -> nn.Module | None:
        """The layer on z that :meth:`embed_latent` consists of, None where it is something else."""

    def start(self, batch: SequenceBatch) -> Start:
        """What the batch begins with."""

    def embedded_inputs(self, batch: SequenceBatch) -> tuple[Tensor, State]:
        """What the transition reads beside the latent, and the last state of a network over it."""

    def backward_states(self, batch: SequenceBatch, inputs: Tensor) -> Tensor:
        r""":math:`b_{1:T}`."""

    def posterior_context(self, recurrence: Recurrence) -> Tensor:
        """What the posterior reads beside the state."""

    def embed_latent(self, z: Tensor, b_tilde: Tensor | None = None) -> Tensor:
        """What the transition reads of the latents."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that the above depend on."""


class Recurrence:
    r"""The recurrent networks of a model on a batch: the states along any path of latents, and b.

    Args:
        networks: the model.
        batch: the sequences.
        shared: where the guide leaves its states.
        skip: where prior and posterior get no gradient from state and context, (\*particles, batch,
            time), or None.
    """

    def __init__(
        self,
        networks: RecurrentNetworks,
        batch: SequenceBatch,
        shared: Shared,
        skip: Bool[Tensor, "*particles batch time"] | None = None,
    ) -> None:
        self.networks = networks
        self.transition = networks.transition
        self.batch = batch
        self.mask = None if batch.mask is None else batch.mask.transpose(0, 1)
        self.skip = None if skip is None else skip.movedim(-1, 0).unsqueeze(-1)
        #: The path of b~ that goes with the path of z; the program sets it once it is drawn.
        self.b_tilde: Tensor | None = None
        self.start = networks.start(batch)
        self.drawn: tuple[Tensor, Tensor | None] | None = None
        self._shared = shared
        self._h: Tensor | None = None
        self._before: Tensor | None = None
        self._last: State = ()
        self._b: Tensor | None = None
        self._path: tuple[Tensor, Tensor | None] | None = None

    @cached_property
    def _inputs(self) -> tuple[Tensor, State]:
        return self.networks.embedded_inputs(self.batch)

    @property
    def inputs(self) -> Float[Tensor, "time batch input"]:
        """Embedded inputs."""
        return self._inputs[0]

    @cached_property
    def context(self) -> Float[Tensor, "time batch context"]:
        """What the posterior reads beside the state."""
        return self.networks.posterior_context(self)

    @property
    def b(self) -> Float[Tensor, "time batch backward"]:
        r""":math:`b_{1:T}`, computed once."""
        if self._b is None:
            self._b = self.networks.backward_states(self.batch, self.inputs)
        return self._b

    def states(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch hidden"]:
        r""":math:`h_{1:T}` along the path z, computed once."""
        if not self._knows(z) or self._h is None:
            key = self._key(z, self.b_tilde)
            if (found := self._shared.take(key, self.networks.parameters())) is not None:
                self._h, self._before, self._last, b, self.__dict__["_inputs"] = found
                self._b = self._b if b is None else b
            else:
                self._before = None
                read = lagged(self.latent_inputs(z), self.transition.lag, self.start.read)
                self._h, self._last = self.transition.run(self.inputs, read, self.start.state)
            self._path = (z, self.b_tilde)
        return self._h

    def previous_states(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch hidden"]:
        r"""The state before each :math:`z_t` is drawn: :math:`h_{0:T-1}`, or :math:`h_{1:T}` with lag."""
        h = self.states(z)
        if self.transition.lag:
            return h
        if self._before is not None:
            return self._before
        first = self.transition.initial(h.shape[1:-1], self.start.state)[0].unsqueeze(0)
        return torch.cat([first, h[:-1]])

    def seen(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch seen"]:
        """What prior and posterior read of the path before each step; shielded where skipped."""
        h = self.previous_states(z)
        inputs = with_particles(self.inputs, h.dim() - self.inputs.dim())
        return shielded(self.transition.seen(inputs, h), self.skip)

    def output(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch output"]:
        """What the emission reads at each step."""
        h = self.states(z)
        inputs = with_particles(self.inputs, h.dim() - self.inputs.dim())
        return self.transition.output(inputs, self.latent_inputs(z), h)

    def latent_inputs(
        self, z: Float[Tensor, "*particles batch time latent"]
    ) -> Float[Tensor, "time *particles batch read"]:
        """What the transition and the emission read of the latents of each step."""
        z = z.movedim(-2, 0)
        if self.b_tilde is None:
            return self.networks.embed_latent(z)
        return self.networks.embed_latent(z, self.b_tilde.movedim(-2, 0))

    def end(self, z: Float[Tensor, "*particles batch time latent"]) -> State:
        """What a batch that continues this one begins with, without its gradient."""
        self.states(z)
        read = (self.latent_inputs(z)[-1],) if self.transition.lag else ()
        return tuple(x.detach() for x in (*self._last, *read, *self._inputs[1]))

    def remember(self, z: Tensor, b_tilde: Tensor | None, path: Path) -> None:
        """Keep the states of a path that was drawn here; z and b~ have time last but one."""
        self.drawn = self._path = (z, b_tilde)
        self.b_tilde, self._h, self._last = b_tilde, path.h, path.last
        self._before = path.before

    def forget(self) -> None:
        """Compute the states anew at the next call of :meth:`states`."""
        self._path = self._h = None

    def share(self) -> None:
        """Leave what is remembered for another recurrence on the same batch."""
        assert self._path is not None
        values = (self._h, self._before, self._last, self._b, self._inputs)
        self._shared.put(self._key(*self._path), self.networks.parameters(), values)

    def _knows(self, z: Tensor) -> bool:
        return self._path is not None and self._path[0] is z and self._path[1] is self.b_tilde

    def _key(self, z: Tensor, b_tilde: Tensor | None) -> tuple[Any, ...]:
        batch = self.batch
        return (z, b_tilde, batch.inputs, batch.targets, batch.lengths, *(batch.carried or ()))

"""Feed-forward networks with the activation function of the papers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_zf.distributions.noise import uniform
from pyro_zf.names import there_are

__all__ = [
    "ACTIVATIONS",
    "ELEMENTWISE",
    "MLP",
    "ClippedLeakyReLU",
    "Dropout",
    "Log1p",
    "activation_of",
    "declared",
    "join",
]


class ClippedLeakyReLU(nn.Module):
    r"""Leaky ReLU with slope 1/3, clipped at :math:`\pm 3` (Goyal et al. 2017, section 4.1).

    Example:
        >>> import torch
        >>> ClippedLeakyReLU()(torch.tensor([-30.0, -3.0, 2.0, 30.0]))
        tensor([-3., -1.,  2.,  3.])
    """

    def __init__(self, negative_slope: float = 1 / 3, bound: float = 3.0) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.bound = bound

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        leaky = torch.nn.functional.leaky_relu(x, self.negative_slope)
        # Equivalent to a clamp, but its backward takes one kernel instead of four.
        return torch.nn.functional.hardtanh(leaky, -self.bound, self.bound)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope:.3g}, bound={self.bound:g}"


#: Hidden activations by name. Add an entry to register your own.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "clipped-leaky-relu": ClippedLeakyReLU,
    "leaky-relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
}


#: Activations that act on each element separately.
ELEMENTWISE = (
    ClippedLeakyReLU, nn.LeakyReLU, nn.ReLU, nn.Tanh, nn.Softplus, nn.GELU, nn.ELU, nn.SiLU,
    nn.Sigmoid, nn.Identity,
)  # fmt: skip


def activation_of(name: str) -> Callable[[], nn.Module]:
    """Look up an entry of :data:`ACTIVATIONS`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {there_are(name, sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


class Dropout(nn.Module):
    """Dropout whose mask is the same for any number of processes.

    As in :class:`torch.nn.Dropout`, each value is set to zero with probability ``p`` in training, and the
    others are scaled so that the mean stays the same. The mask is drawn with
    :func:`~pyro_zf.distributions.noise.uniform`.

    Args:
        p: probability that a value is set to zero, below 1.

    Raises:
        ValueError: if ``p`` is out of range.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout probability must be at least 0 and below 1, it is {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        if not self.training or not self.p:
            return x
        return x * ((uniform(x.shape, x) >= self.p) / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class MLP(nn.Sequential):
    """``depth`` hidden layers of equal width and a linear layer; ``depth=0`` gives the linear layer alone.

    Args:
        in_size: size of the last dimension of the input.
        hidden_size: width of the hidden layers.
        out_size: size of the last dimension of the output.
        depth: number of hidden layers. The papers use one.
        activation: a key of :data:`ACTIVATIONS`.
        dropout: probability that an input of a layer is set to zero in training, see :class:`Dropout`.

    Raises:
        ValueError: if the activation is unknown or the depth is negative.
    """

    def __init__(
        self,
        in_size: int,
        hidden_size: int,
        out_size: int,
        depth: int = 1,
        activation: str = "clipped-leaky-relu",
        dropout: float = 0.0,
    ) -> None:
        make_activation = activation_of(activation)
        if depth < 0:
            raise ValueError(f"depth must not be negative, it is {depth}")
        drop = [Dropout(dropout)] if dropout else []
        layers: list[nn.Module] = [*drop]
        for _ in range(depth):
            layers += [nn.Linear(in_size, hidden_size), make_activation(), *drop]
            in_size = hidden_size
        super().__init__(*layers, nn.Linear(in_size, out_size))


class Log1p(nn.Module):
    r""":math:`\log(1 + x)`, the form in which networks read counts."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.log1p(x)


def declared(part: Any, name: str, default: Any) -> Any:
    """A class attribute of a part, or of the class that a :class:`functools.partial` wraps."""
    while isinstance(part, functools.partial):
        part = part.func
    return getattr(part, name, default)


def join(*features: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
    """Concatenate features in the last dimension, broadcasting the others; None is skipped.

    Example:
        >>> join(torch.zeros(3, 2), None, torch.ones(1)).shape
        torch.Size([3, 3])
    """
    given = [x for x in features if x is not None]
    if len(given) == 1:
        return given[0]
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in given))
    return torch.cat([x.expand(*shape, x.shape[-1]) for x in given], dim=-1)

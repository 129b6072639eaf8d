"""Options that systems share. The options of a single system are defined next to that system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pyro_zf.names import nearest

__all__ = ["LatentOptions", "ModelOptions", "backward_units"]


@dataclass(frozen=True)
class ModelOptions:
    """Options of every model."""

    emission: str = "bernoulli"
    """Distribution of the data: bernoulli, autoregressive-bernoulli, convolutional-bernoulli, categorical,
    gaussian, gaussian-mixture, autoregressive-gaussian, logistic-mixture, poisson, negative-binomial or
    beta-binomial. By default the one for the kind of data."""
    input_window: int = 1
    """Number of preceding steps whose values are the input of a step. The models of the papers read one."""
    max_count: int | None = None
    """Largest possible count, for emission beta-binomial. The default is the largest count in the data."""
    cell: str = "lstm"
    """Forward network: lstm or gru."""
    num_layers: int = 1
    """Number of layers of the forward network."""
    hidden_size: int = 1024
    """Number of units in each layer of the forward network and in the backward network."""
    mlp_size: int = 1024
    """Number of units in the hidden layers of prior, posterior, emission and auxiliary networks."""
    emission_mlp_size: int | None = None
    """Number of units in the hidden layers of the emission, or of channels of a convolutional one. The default is
    ``mlp_size``."""
    emission_depth: int = 1
    """Number of hidden layers of the emission, or of residual blocks of a convolutional one."""
    dropout: float = 0.0
    """Probability that an input of a layer of the emission, a value of the state or a hidden unit, is set to
    zero in training. In a convolutional emission, these are the values of the state."""
    activation: str = "clipped-leaky-relu"
    """Activation of the hidden layers: clipped-leaky-relu, leaky-relu, relu, tanh, softplus or gelu."""
    embedding_size: int | None = None
    """Size of a linear layer on the data that all networks over the data share, or none. Symbols are always
    embedded, by default in ``hidden_size`` dimensions."""
    orthogonal: bool = True
    """Whether to initialise recurrent weights as orthogonal instead of uniform."""
    forget_bias: float = 0.0
    """Initial bias of the forget gates of LSTMs."""

    @property
    def emission_options(self) -> dict[str, Any]:
        """Options of the emission, for :func:`~pyro_zf.nn.emissions.make_emission`."""
        return {
            "mlp_size": self.emission_mlp_size or self.mlp_size, "depth": self.emission_depth,
            "activation": self.activation, "dropout": self.dropout, "max_count": self.max_count,
        }  # fmt: skip

    @classmethod
    def of(cls, **values: Any) -> Any:
        """Build the options from values by name.

        Raises:
            TypeError: if a name is unknown. The message gives the closest known name.
            ValueError: if a size is negative.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                hint = nearest(name, names, "{!r}")
                raise TypeError(f"{cls.__name__} has no option {name!r}{hint}")
            if "_size" in name and isinstance(values[name], int) and values[name] < 0:
                raise ValueError(f"{name} must not be negative, it is {values[name]}")
        window = values.get("input_window", 1)
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"input_window is a whole number of at least 1, not {window!r}")
        return cls(**values)


@dataclass(frozen=True)
class LatentOptions(ModelOptions):
    """Options of every system with latents."""

    latent_size: int = 256
    """Size of z at each step."""
    prior: str = "gaussian"
    """Prior: gaussian (conditional), standard-normal, mixture or flow."""
    posterior: str = "smoothing"
    """Posterior: smoothing, filtering, flow, res_q or recognition."""
    backward_size: int | None = None
    """Number of units in the network over the targets. The default is that of the forward network."""
    mlp_depth: int = 1
    """Number of hidden layers of prior, posterior and auxiliary networks."""
    latent_embedding_size: int | None = None
    """Size of a linear layer between z and the forward network, or none."""
    feature_activation: str | None = None
    """Activation after the linear layers on data and z, or none."""


def backward_units(settings: Mapping[str, Any]) -> int:
    """Number of units of b in a model with these options, at least 1."""
    return max(settings.get("backward_size") or settings["hidden_size"], 1)

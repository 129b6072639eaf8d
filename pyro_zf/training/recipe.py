"""Learning rate over a training, and averages of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_zf.training.config import TrainConfig

__all__ = ["averaged_weights", "averages_of", "rate_factor", "set_rate"]


def rate_factor(config: TrainConfig, update: int, done: float, halvings: int = 0) -> float:
    """Factor of the learning rate at an update.

    Args:
        config: settings: warm-up, decay and where the decay starts.
        update: number of updates so far.
        done: fraction of the training that is done, 0 to 1.
        halvings: how often the rate was halved, by ``plateau`` or after a divergence.

    Example:
        >>> config = TrainConfig(learning_rate_decay="linear", decay_start=0.5, warmup_updates=10)
        >>> [round(rate_factor(config, update, update / 100), 2) for update in (0, 4, 50, 75, 99)]
        [0.1, 0.5, 1.0, 0.5, 0.02]
    """
    factor = 0.5**halvings
    if update < config.warmup_updates:
        factor *= (update + 1) / config.warmup_updates
    if config.learning_rate_decay in ("linear", "cosine"):
        left = 1 - min(max(done - config.decay_start, 0.0) / (1 - config.decay_start), 1.0)
        if config.learning_rate_decay == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        factor *= left
    return factor


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; in place if it is a tensor, which a CUDA graph has recorded."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def averages_of(model: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving averages of the weights of a model; None without a decay.

    The decay starts small and rises to its value as (1 + n) / (10 + n) after n updates, so that the
    initial weights do not dominate the averages early in training.
    """
    if not decay:
        return None

    def average(mean: Tensor, weight: Tensor, number: Any) -> Tensor:
        kept = torch.clamp((1 + number) / (10 + number), max=decay)  # a tensor on the device
        return torch.lerp(weight, mean, kept.to(mean.dtype))

    return AveragedModel(model, avg_fn=average)


@contextmanager
def averaged_weights(model: nn.Module, averages: AveragedModel | None) -> Iterator[None]:
    """Context in which a model has its averaged weights, if there are any."""
    if averages is None:
        yield
        return
    own = [p.detach().clone() for p in model.parameters()]
    _copy(list(averages.module.parameters()), model)
    try:
        yield
    finally:
        _copy(own, model)


@torch.no_grad()
def _copy(values: list[Tensor] | list[nn.Parameter], model: nn.Module) -> None:
    for p, value in zip(model.parameters(), values, strict=True):
        p.copy_(value)

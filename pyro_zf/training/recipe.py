"""Learning rate over a training, averages of its weights, and dropout of recurrent weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_zf.training.config import TrainConfig

__all__ = [
    "averaged_weights", "averages_of", "rate_factor", "recurrent_dropout", "recurrent_weights", "set_rate",
]  # fmt: skip


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
    _copy(averages.module.parameters(), model.parameters())
    try:
        yield
    finally:
        _copy(own, model.parameters())


@torch.no_grad()
def _copy(values: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def recurrent_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights between the states of LSTMs and GRUs, whose names begin with ``weight_hh`` in PyTorch."""
    return [
        weight for name, weight in model.named_parameters()
        if name.rpartition(".")[2].startswith("weight_hh")
    ]  # fmt: skip


@contextmanager
def recurrent_dropout(model: nn.Module, p: float, seed: int) -> Iterator[None]:
    """Context in which some recurrent weights are zero while the gradients of an update are computed.

    This is DropConnect (Wan et al. 2013) of the weights between the states of LSTMs and GRUs, as in Merity et al.
    2018 (https://arxiv.org/abs/1708.02182): each weight is zero with probability ``p`` for all steps of all
    sequences, and the others are multiplied by 1 / (1 - p). On exit, the weights are restored, and their
    gradients are corrected for the masks.

    Args:
        model: a model with :func:`recurrent_weights`.
        p: probability that a weight is zero, below 1; 0 changes nothing.
        seed: seed of the masks. Several processes with the same seed have the same masks.

    Example:
        >>> rnn = nn.GRU(1, 2)
        >>> before = rnn.weight_hh_l0.clone()
        >>> with recurrent_dropout(rnn, 0.5, seed=0):
        ...     ratios = rnn.weight_hh_l0 / before
        >>> sorted(set(ratios.flatten().tolist()))
        [0.0, 2.0]
        >>> torch.equal(rnn.weight_hh_l0, before)
        True
    """
    if not p:
        yield
        return
    weights = recurrent_weights(model)
    own = [weight.detach().clone() for weight in weights]
    generator = torch.Generator(weights[0].device).manual_seed(seed)
    masks = []
    with torch.no_grad():
        for weight in weights:
            noise = torch.rand(weight.shape, generator=generator, device=weight.device)
            masks.append((noise >= p).to(weight.dtype) / (1 - p))
            weight.mul_(masks[-1])
    try:
        yield
    finally:
        _copy(own, weights)
        for weight, mask in zip(weights, masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask)

"""What a recurrence gives, and what all of its writings use."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_zf.nn.lstm import State

__all__ = ["Path", "draw_noise", "lagged", "shielded"]


class Path(NamedTuple):
    """A latent path and the states along it, time first.

    ``last`` is the whole state after the last step. ``q_mean`` and ``q_log_scale`` are None for a posterior that does not give them as it goes,
    ``b_tilde`` where there is no such latent. ``before``, the states that each latent was drawn from,
    and ``noise``, of which z is mean plus scale times it, are None where they are not at hand.
    """

    h: Float[Tensor, "time *particles batch hidden"]
    z: Float[Tensor, "time *particles batch latent"]
    q_mean: Float[Tensor, "time *particles batch latent"] | None
    q_log_scale: Float[Tensor, "time *particles batch latent"] | None
    b_tilde: Float[Tensor, "time *particles batch backward"] | None = None
    last: State = ()
    before: Float[Tensor, "time *particles batch hidden"] | None = None
    noise: Float[Tensor, "time *particles batch latent"] | None = None


def draw_noise(
    num_steps: int, batch_shape: torch.Size, sizes: tuple[int, ...], like: Tensor
) -> list[Float[Tensor, "time *particles batch _"]]:
    """Standard normal numbers for some latents of all steps, one tensor a latent.

    On a CPU they are drawn step by step, in the order in which a program with one site a step draws
    them: the same seed gives the same path in both layouts. On a GPU they are drawn at once.
    """
    noise = [like.new_empty(num_steps, *batch_shape, size) for size in sizes]
    if like.device.type != "cpu":
        return [x.normal_() for x in noise]
    for of_step in zip(*(x.unbind(0) for x in noise), strict=True):
        for x in of_step:
            x.normal_()
    return noise


def shielded(x: Tensor, skip: Tensor | None) -> Tensor:
    """The same values, without their gradient where ``skip`` is True."""
    return x if skip is None else torch.where(skip, x.detach(), x)


def lagged(
    read: Float[Tensor, "time *batch latent"], lag: int, carried: Tensor | None = None
) -> Float[Tensor, "time *batch latent"]:
    """Each step's latent, ``lag`` steps late; before the first what is carried over, or zeros."""
    if not lag:
        return read
    first = torch.zeros_like(read[:lag]) if carried is None else carried.expand_as(read[:lag])
    return torch.cat([first, read[:-lag]])

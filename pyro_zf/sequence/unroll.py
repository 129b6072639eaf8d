"""The recurrence itself: a shared loop that steps a cell through time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from pyro_zf.nn.cells import Cell, State

__all__ = ["at_steps", "unroll"]


def at_steps(x: Tensor | None, num_steps: int) -> list[Any]:
    """The values of each step of a tensor with time first, or None for each step if there is no tensor."""
    return [None] * num_steps if x is None else list(x.unbind(0))


def unroll(
    cell: Cell,
    inputs: Iterable[Tensor],
    state: State,
    choose: Callable[[int, Tensor], Tensor],
    then: Callable[[int, Tensor, State], State] | None = None,
) -> tuple[list[Tensor], list[Tensor], State]:
    r"""Step a cell through time, along latents that are chosen step by step.

    Args:
        cell: the forward network.
        inputs: :math:`u_1, u_2, \dots` An iterator may use what was drawn at the previous step.
        state: the state before the first step.
        choose: maps (t, the state from which the latents of step t are drawn) to the part of the cell's
            inputs that comes from these latents. It draws the latents or looks them up. Steps are counted
            from 0.
        then: called after each step with (t, the state before the draw, the whole state after it). It
            returns the state from which the next step continues.

    Returns:
        The states before each draw, those after it, and the whole state at the end.
    """
    before, after = [], []
    for t, u_t in enumerate(inputs):
        state = cell.before(u_t, state)
        h = state[0]
        state = cell.after(u_t, choose(t, h), state)
        before.append(h)
        after.append(state[0])
        if then is not None:
            state = then(t, h, state)
    return before, after, state

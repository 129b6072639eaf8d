"""Weights that change from update to update."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearSchedule"]


@dataclass(frozen=True)
class LinearSchedule:
    """Moves from ``start`` at update 0 by ``increment`` per update towards ``stop``, and stays there.

    The papers' KL annealing is ``LinearSchedule(0.2, 1.0, 5e-5)`` (Goyal et al. 2017, section 4.1).

    Example:
        >>> weight = LinearSchedule(0.2, 1.0, 5e-5)
        >>> weight(0), round(weight(100), 6), weight(1_000_000)
        (0.2, 0.205, 1.0)
    """

    start: float
    stop: float
    increment: float

    def __call__(self, update: int) -> float:
        way = min(abs(self.stop - self.start), abs(self.increment) * update)
        if way == abs(self.stop - self.start):
            return self.stop
        return self.start + way if self.stop > self.start else self.start - way

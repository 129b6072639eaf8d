"""What the values of a step are, and how well a model does that knows only their frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["Kind", "Statistics", "Values"]

Kind = Literal["binary", "real", "categorical"]


@dataclass(frozen=True)
class Values:
    """What a step holds, and how stored values become what a model is trained on.

    Args:
        kind: bits, real numbers, or symbols.
        size: values of a step, or number of symbols.
        mean, std: of the training data, of all values or of each; real numbers are normalised by
            them, and likelihoods are of the normalised numbers.
        start: the symbol before the first step; zeros for numbers.

    Example:
        >>> import numpy as np
        >>> Values("real", 2, mean=10.0, std=4.0).targets(np.array([[10, 14]], dtype=np.int16))
        tensor([[0., 1.]])
    """

    kind: Kind
    size: int
    mean: float | Float[np.ndarray, " size"] = 0.0
    std: float | Float[np.ndarray, " size"] = 1.0
    start: int = 0

    def targets(
        self, stored: Shaped[np.ndarray, "..."], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Stored values as a model reads them: normalised numbers, or indices of symbols.

        Bits can be had as bytes, ``dtype=torch.uint8``, where they are stored as whole numbers; what is
        stored as other numbers may be grey levels and comes in single precision then.
        """
        if dtype == torch.uint8 and not (self.kind == "binary" and stored.dtype.kind in "biu"):
            dtype = torch.float32
        if self.kind == "categorical":
            return torch.from_numpy(stored.astype(np.int64))
        if self.kind == "binary":
            return torch.from_numpy(np.ascontiguousarray(stored)).to(dtype)
        centred = stored.astype(np.float64, copy=False) - self.mean
        return torch.from_numpy(centred / self.std).to(dtype)

    def restored(self, targets: Tensor) -> Shaped[np.ndarray, "..."]:
        """The way back, for pictures and sounds."""
        values = targets.detach().cpu().numpy()
        return values * self.std + self.mean if self.kind == "real" else values

    def start_symbol(self, num_sequences: int, like: Tensor) -> Tensor:
        """:math:`u_1` of sequences to generate; ``like`` gives device and precision."""
        if self.kind == "categorical":
            return torch.full((num_sequences,), self.start, device=like.device)
        return like.new_zeros(num_sequences, self.size)


@dataclass
class Statistics:
    """Sums over a split from which its frequencies or its moments follow.

    Args:
        kind, size: as of :class:`Values`.
        num_sequences, num_steps: of the split.
        sums: of the values of each dimension (real numbers: less ``shift``), or counts of each symbol.
        squares: likewise of their squares.
        shift: the first values of real numbers, so that large numbers of small spread lose nothing.
    """

    kind: Kind
    size: int
    num_sequences: int = 0
    num_steps: int = 0
    sums: Float[np.ndarray, " size"] = field(default=None)  # type: ignore[arg-type]
    squares: Float[np.ndarray, " size"] = field(default=None)  # type: ignore[arg-type]
    shift: Float[np.ndarray, " size"] = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name in ("sums", "squares", "shift"):
            if getattr(self, name) is None:
                setattr(self, name, np.zeros(self.size))

    def add(self, steps: Shaped[np.ndarray, "..."], num_sequences: int = 1) -> None:
        """Count the steps (steps, size), or symbols (steps,), of so many sequences."""
        first = self.num_steps == 0
        self.num_sequences += num_sequences
        self.num_steps += len(steps)
        if self.kind == "categorical":
            self.sums += np.bincount(steps.astype(np.int64).ravel(), minlength=self.size)
            return
        if not len(steps):
            return
        values = steps.reshape(len(steps), -1).astype(np.float64)
        if self.kind == "real":
            if first:
                self.shift = values[0].copy()
            values -= self.shift
        self.sums += values.sum(0)
        self.squares += (values**2).sum(0)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all values together; a deviation of 0 is given as 1."""
        means, variances = self._moments()
        mean = means.mean()
        variance = (variances + np.square(means - mean)).mean()
        return float(mean), float(_deviation(variance))

    def moments_by_dimension(self) -> tuple[np.ndarray, np.ndarray]:
        """Likewise for each value of a step."""
        means, variances = self._moments()
        return means, _deviation(variances)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        count = max(self.num_steps, 1)
        mean = self.sums / count
        return mean + self.shift, np.maximum(self.squares / count - np.square(mean), 0.0)

    def nats(self, train: Statistics, values: Values) -> float:
        """Negative log-likelihood of the split, in nats in all, under the marginal of ``train``.

        Symbols: their (add-one smoothed) frequencies. Bits: each value's. Numbers: one Gaussian for
        all, a standard one after normalisation.
        """
        if self.kind == "categorical":
            p = (train.sums + 1) / (train.sums + 1).sum()
            return float(-(self.sums * np.log(p)).sum())
        if self.kind == "binary":
            p = (train.sums + 1) / (train.num_steps + 2)
            return float(
                -(self.sums * np.log(p) + (self.num_steps - self.sums) * np.log1p(-p)).sum()
            )
        n = self.num_steps
        mean = values.mean - self.shift
        deviation = self.squares - 2 * mean * self.sums + n * np.square(mean)
        return float(
            (0.5 * deviation / np.square(values.std) + 0.5 * n * math.log(2 * math.pi)).sum()
        )

    @classmethod
    def of(cls, kind: Kind, size: int, sequences: Iterable[np.ndarray]) -> Statistics:
        """Those of sequences in memory."""
        statistics = cls(kind, size)
        for sequence in sequences:
            statistics.add(sequence)
        return statistics


def _deviation(variance: Any) -> Any:
    return np.where(variance > 0, np.sqrt(variance), 1.0)

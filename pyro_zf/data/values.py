"""Description of the values of a step, and statistics for normalisation and for baselines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["Kind", "Statistics", "Values"]

Kind = Literal["binary", "real", "counts", "categorical"]


@dataclass(frozen=True)
class Values:
    """Description of the values of a step, and their conversion from stored values to model targets.

    Args:
        kind: kind of the values: ``"binary"``, ``"real"``, ``"counts"`` (whole numbers from 0) or
            ``"categorical"`` (symbols).
        size: number of values per step, or number of symbols.
        mean, std: mean and standard deviation of the training data, over all values or for each value of a
            step. Real numbers are normalised by them, and likelihoods refer to the normalised numbers.
        start: the start symbol. For other data, the input of the first step is zero.
        high: the largest count in the data.

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
    high: int = 0

    @property
    def normalises(self) -> bool:
        """Whether real numbers are shifted or scaled."""
        return bool(np.any(self.mean != 0.0) or np.any(self.std != 1.0))

    def targets(
        self, stored: Shaped[np.ndarray, "..."], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Convert stored values to targets of a model: normalised numbers, or indices of symbols.

        With ``dtype=torch.uint8``, bits are returned as bytes if they are stored as whole numbers. Values of
        other types may be grey levels and are returned as floating-point numbers, by default of PyTorch's default
        type.
        """
        if dtype == torch.uint8 and not (self.kind == "binary" and stored.dtype.kind in "biu"):
            dtype = None
        dtype = dtype or torch.get_default_dtype()
        if self.kind == "categorical":
            return torch.from_numpy(stored.astype(np.int64))
        if self.kind in ("binary", "counts"):
            return torch.from_numpy(np.ascontiguousarray(stored)).to(dtype)
        centred = stored.astype(np.float64, copy=False) - self.mean
        return torch.from_numpy(centred / self.std).to(dtype)

    def restored(self, targets: Tensor) -> Shaped[np.ndarray, "..."]:
        """Undo the normalisation, for pictures and sounds."""
        values = targets.detach().cpu().numpy()
        return values * self.std + self.mean if self.kind == "real" else values

    def start_symbol(self, num_sequences: int, like: Tensor) -> Tensor:
        """Input :math:`u_1` of sequences to generate, with the device and type of ``like``."""
        if self.kind == "categorical":
            return torch.full((num_sequences,), self.start, device=like.device)
        return like.new_zeros(num_sequences, self.size)


@dataclass
class Statistics:
    """Sums over a split, from which its frequencies or moments are computed.

    Args:
        kind, size: as in :class:`Values`.
        num_sequences, num_steps: number of sequences and steps of the split.
        sums: sum of the values of each dimension, after subtraction of ``shift``, or count of each symbol.
        squares: sum of the squared values of each dimension, after subtraction of ``shift``.
        shift: the values of the first step for real numbers, otherwise zero. Subtracting them avoids a loss
            of precision for large numbers with a small variance.
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
        """Add the steps of one or more sequences, with shape (steps, size), or (steps,) for symbols."""
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

    @property
    def varies(self) -> bool:
        """Whether the values are not all the same."""
        means, variances = self._moments()
        return bool((variances > 0).any() or (means != means[0]).any())

    def constant(self) -> Int[np.ndarray, " constant"]:
        """Indices of the values of a step that are the same in all steps."""
        return np.flatnonzero(self._moments()[1] == 0)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation over all values. A standard deviation of 0 is replaced by 1."""
        means, variances = self._moments()
        mean = means.mean()
        variance = (variances + np.square(means - mean)).mean()
        return float(mean), float(_deviation(variance))

    def moments_by_dimension(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each value of a step. A standard deviation of 0 is replaced by 1."""
        means, variances = self._moments()
        return means, _deviation(variances)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        count = max(self.num_steps, 1)
        mean = self.sums / count
        return mean + self.shift, np.maximum(self.squares / count - np.square(mean), 0.0)

    def nats(self, train: Statistics, values: Values) -> float:
        """Total negative log-likelihood of the split in nats under the marginal distribution of ``train``.

        Symbols use the frequencies with add-one smoothing, and bits a separate frequency for each value of a
        step. Counts use a geometric distribution with the mean of each value of a step, smoothed in the same
        way. Real numbers use a Gaussian with the mean and standard deviation by which they are normalised, or,
        if they are not, with those of each value of a step in ``train``.
        """
        if self.kind == "categorical":
            p = (train.sums + 1) / (train.sums + 1).sum()
            return float(-(self.sums * np.log(p)).sum())
        if self.kind == "binary":
            p = (train.sums + 1) / (train.num_steps + 2)
            return float(
                -(self.sums * np.log(p) + (self.num_steps - self.sums) * np.log1p(-p)).sum()
            )
        if self.kind == "counts":
            q = (train.sums + 1) / (train.sums + train.num_steps + 2)  # p(y) = (1 - q) q^y
            return float(-(self.num_steps * np.log1p(-q) + self.sums * np.log(q)).sum())
        n, mean, std = self.num_steps, values.mean, values.std
        log_std: Any = 0.0  # of the normalised numbers, to which the likelihood refers
        if not values.normalises:
            mean, std = train.moments_by_dimension()
            log_std = np.log(std)
        mean = mean - self.shift
        deviation = self.squares - 2 * mean * self.sums + n * np.square(mean)
        return float(
            (0.5 * deviation / np.square(std) + n * (log_std + 0.5 * math.log(2 * math.pi))).sum()
        )

    @classmethod
    def of(cls, kind: Kind, size: int, sequences: Iterable[np.ndarray]) -> Statistics:
        """Compute the sums of sequences in memory."""
        statistics = cls(kind, size)
        for sequence in sequences:
            statistics.add(sequence)
        return statistics


def _deviation(variance: Any) -> Any:
    return np.where(variance > 0, np.sqrt(variance), 1.0)

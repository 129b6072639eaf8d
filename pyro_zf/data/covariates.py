"""Covariates that a model is conditioned on: one vector per sequence, or one per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from pyro_zf.batch import SequenceBatch
from pyro_zf.data.datasets import DataError, SequenceDataset
from pyro_zf.data.values import Statistics, Values

__all__ = ["ConditionedDataset", "covariates_of", "one_hot"]


@dataclass(frozen=True)
class ConditionedDataset:
    """A data set whose batches include covariates.

    Args:
        dataset: the sequences.
        covariates: array of shape (sequences, size), or (sequences, time, size) for covariates of each step.

    Raises:
        DataError: if the numbers of covariates and sequences differ.
    """

    dataset: SequenceDataset
    covariates: Float[np.ndarray, "sequences *time size"]

    def __post_init__(self) -> None:
        if len(self.covariates) != len(self.dataset):
            raise DataError(
                f"there are covariates for {len(self.covariates)} sequences, but the data set has "
                f"{len(self.dataset)}"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def values(self) -> Values:
        """Description of the values of a step."""
        return self.dataset.values

    @property
    def lengths(self) -> Int[np.ndarray, " sequences"] | None:
        """Number of steps of each sequence, or None if all have the same length."""
        return self.dataset.lengths

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest sequence."""
        return self.dataset.num_steps

    @property
    def block(self) -> int | None:
        """Number of sequences that are read together, or None if all are in memory."""
        return self.dataset.block

    @property
    def gives_bytes(self) -> bool:
        """Whether :meth:`batch` accepts ``dtype=torch.uint8``."""
        return bool(getattr(self.dataset, "gives_bytes", False))

    @property
    def targets(self) -> Any:
        """The targets of a data set that is in memory."""
        return self.dataset.targets  # type: ignore[attr-defined]

    def statistics(self) -> Statistics:
        """Sums over the split."""
        return self.dataset.statistics()

    def at_epoch(self, epoch: int) -> ConditionedDataset:
        """Return the data of an epoch, which may be resampled."""
        return ConditionedDataset(self.dataset.at_epoch(epoch), self.covariates)

    def batch(self, index: Int[np.ndarray, " batch"], **options: Any) -> SequenceBatch:
        """Return the sequences at ``index``, padded to the longest of them."""
        batch = self.dataset.batch(index, **options)
        c = self.covariates[index]
        if c.ndim == 3:
            c = c[:, : batch.num_steps]
        covariates = torch.from_numpy(np.ascontiguousarray(c)).to(torch.get_default_dtype())
        return replace(batch, covariates=covariates)


def one_hot(classes: Sequence[str], names: Sequence[str]) -> Float[np.ndarray, "sequences classes"]:
    """One-hot vectors for classes. The vector of a class that is not in ``names`` is zero."""
    place = {name: i for i, name in enumerate(names)}
    vectors = np.zeros((len(classes), len(names)), dtype=np.float32)
    for row, name in zip(vectors, classes, strict=True):
        if name in place:
            row[place[name]] = 1.0
    return vectors


def covariates_of(
    array: np.ndarray, where: str, most_classes: int = 1000
) -> tuple[Float[np.ndarray, "..."], tuple[str, ...] | None]:
    """Convert an array to covariates; also return the names of the classes, or None if there are none.

    Whole numbers of shape (N,) are classes and are converted to one-hot vectors. Other numbers of shape (N,)
    are one covariate per sequence, shape (N, C) gives C covariates per sequence, and shape (N, T, C) gives C
    covariates per step.

    Raises:
        DataError: if the array has another shape or type, or contains values that are not finite.
    """
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2, 3):
        raise DataError(
            f"{where} has shape {array.shape} and type {array.dtype}; covariates must be numbers of shape "
            "(N,), (N, C) or (N, T, C)"
        )
    if array.ndim == 1 and array.dtype.kind in "iub":
        low, high = int(array.min(initial=0)), int(array.max(initial=0))
        if low < 0 or high >= most_classes:
            raise DataError(
                f"{where}: classes must be whole numbers from 0 to {most_classes - 1}, but they range from "
                f"{low} to {high}"
            )
        names = tuple(map(str, range(high + 1)))
        return one_hot([str(x) for x in array], names), names
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{where}: some values are not finite")
    return values if values.ndim > 1 else values[:, None], None

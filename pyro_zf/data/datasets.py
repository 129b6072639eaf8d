"""What a data set is, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped

from pyro_zf.batch import SequenceBatch

__all__ = ["DataError", "DataSource", "SequenceDataset", "Splits"]


class DataError(Exception):
    """Data that are missing or wrong; the message is one line that says what and where."""


@dataclass(frozen=True)
class SequenceDataset:
    """Sequences of one split, kept as small as their type allows until a batch is made.

    Args:
        targets: (sequences, time, values), or (sequences, time) for symbols.
        lengths: steps of each sequence, or None where all have the same.
        resample: for data that are drawn anew each epoch: maps an epoch to its targets.
    """

    targets: Shaped[np.ndarray, "sequences time ..."]
    lengths: Int[np.ndarray, " sequences"] | None = None
    resample: Callable[[int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def at_epoch(self, epoch: int) -> SequenceDataset:
        """The data of an epoch: these, or a fresh draw of them."""
        if self.resample is None:
            return self
        return SequenceDataset(self.resample(epoch), self.lengths)

    def batch(
        self, index: Int[np.ndarray, " batch"], dtype: torch.dtype = torch.float32
    ) -> SequenceBatch:
        """The sequences at ``index``, as floating-point numbers of ``dtype``."""
        targets = torch.from_numpy(np.ascontiguousarray(self.targets[index])).to(dtype)
        lengths = None if self.lengths is None else torch.from_numpy(self.lengths[index])
        return SequenceBatch.from_targets(targets, lengths)


@dataclass(frozen=True)
class DataSource:
    """Where data came from, for logs and results.

    Args:
        name: what to call the data beside a number.
        detail: where they were found and how they were split.
        comparable: whether a likelihood on them compares with published ones.
    """

    name: str
    detail: str
    comparable: bool


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data, and what there is to say of them.

    Args:
        train, valid, test: the splits.
        source: where they came from.
        kind: of the values of a step.
        frame_shape: how to lay out one step (or all steps, for images) in a picture.
        unit: what a sequence is, for printing ("image").
    """

    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset
    source: DataSource
    kind: Literal["binary", "real", "categorical"]
    unit: str = "sequence"

    def __getitem__(self, split: str) -> SequenceDataset:
        if split not in ("train", "valid", "test"):
            raise DataError(f"unknown split {split!r}; there are train, valid and test")
        dataset: SequenceDataset = getattr(self, split)
        return dataset

    @property
    def data_size(self) -> int:
        """Values of a step."""
        return int(self.train.targets.shape[2])

    @property
    def num_steps(self) -> int:
        """Steps of the longest sequence."""
        return int(self.train.targets.shape[1])

    def marginal_nats(self, split: str = "test") -> float:
        """Negative log-likelihood of a split in nats per sequence under independent Bernoullis.

        Each value of a sequence has the (add-one smoothed) frequency of the training data: the
        score of a model that knows nothing but the mean picture.
        """
        train = self.train.targets.reshape(len(self.train), -1)
        p = (train.sum(0, dtype=np.int64) + 1) / (len(train) + 2)
        mean = self[split].targets.reshape(len(self[split]), -1).mean(0, dtype=np.float64)
        return float(-(mean * np.log(p) + (1 - mean) * np.log1p(-p)).sum())

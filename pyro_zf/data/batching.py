"""Batches in an order that a seed and an epoch determine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pyro_zf.batch import SequenceBatch
from pyro_zf.data.datasets import SequenceDataset

__all__ = ["Batches"]


class Batches:
    """The batches of a data set, epoch by epoch.

    The order of an epoch is a function of ``seed`` and the epoch alone, so that training can go on
    from the middle of one. Without a seed the order is that of the data.

    Args:
        dataset: the sequences.
        batch_size: sequences a batch; the last may have fewer.
        seed: of the shuffling, or None.
        limit: read so many sequences only: a fixed random subset, since files are often sorted.

    Raises:
        ValueError: if the batch size is below one.

    Example:
        >>> import numpy as np
        >>> data = SequenceDataset(np.arange(10, dtype=np.uint8).reshape(5, 2, 1))
        >>> [batch.num_sequences for batch in Batches(data, batch_size=2)]
        [2, 2, 1]
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        batch_size: int,
        seed: int | None = None,
        limit: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._indices = np.arange(len(dataset))
        if limit is not None and limit < len(dataset):
            self._indices = np.sort(np.random.default_rng(0).permutation(self._indices)[:limit])

    @property
    def num_sequences(self) -> int:
        """Sequences an epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.num_sequences // self.batch_size)

    def __iter__(self) -> Iterator[SequenceBatch]:
        return self.epoch(0)

    def epoch(
        self, epoch: int, first: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[SequenceBatch]:
        """Batches ``first``, ``first + 1``, .. of an epoch, on a device."""
        order = self._indices
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        data = self.dataset.at_epoch(epoch)
        for start in range(first * self.batch_size, len(order), self.batch_size):
            yield data.batch(order[start : start + self.batch_size]).to(device, non_blocking=True)

"""Batches in an order that is determined by a seed and the epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset

from pyro_zf.batch import SequenceBatch
from pyro_zf.data.datasets import DataError, SequenceDataset, TextStream

__all__ = ["Batches", "StreamBatches", "make_batches", "padding_ratio"]

#: Number of batches whose sequences are sorted by length, or shuffled in memory, at a time.
POOL = 50


class _Epochs(ABC):
    """Base class of batched data that are iterated epoch by epoch."""

    def __init__(self, batch_size: int, workers: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if workers < 0:
            raise ValueError(f"workers must not be negative, got {workers}")
        self.batch_size = batch_size
        self.workers = workers

    @property
    @abstractmethod
    def num_sequences(self) -> int:
        """Number of sequences per epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches per epoch."""

    @abstractmethod
    def _made(self, epoch: int) -> Dataset[SequenceBatch]:
        """The batches of an epoch as a map-style data set."""

    def __iter__(self) -> Iterator[SequenceBatch]:
        return self.epoch(0)

    def epoch(
        self, epoch: int, first: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[SequenceBatch]:
        """Iterate over the batches ``first``, ``first + 1``, ... of an epoch on a device."""
        made = self._made(epoch)
        pinned = torch.device(device).type == "cuda"
        numbers = range(first, len(self))
        source: Iterable[SequenceBatch]
        if self.workers:
            source = (
                DataLoader(
                    made, batch_size=None, sampler=numbers, num_workers=self.workers,
                    pin_memory=pinned, generator=torch.Generator(),  # keep the global random state
                )
            )  # fmt: skip
        else:
            source = (made[k].pin_memory() if pinned else made[k] for k in numbers)
        try:
            for batch in source:
                yield batch.to(device, non_blocking=True).numeric()
        except DataError as error:
            if not self.workers:
                raise
            # An error from a worker includes the text of a traceback; the last line is the message.
            line = str(error).strip().splitlines()[-1]
            raise DataError(line.partition("DataError: ")[2] or line) from None


class Batches(_Epochs):
    """Batches of a data set.

    The order depends on ``seed`` and the epoch only, so training can resume in the middle of an epoch.
    Without a seed, the order of the data is kept. With bucketing, sequences of similar length are batched
    together, and the batches are shuffled. If a file does not fit into memory, blocks of neighbouring
    sequences are read in random order, and the sequences of many blocks are shuffled together.

    Args:
        dataset: the sequences.
        batch_size: number of sequences per batch; the last batch may be smaller.
        seed: seed for shuffling, or None to keep the order of the data.
        limit: maximum number of sequences. They are a fixed random subset, since files are often sorted.
        bucketed: whether to batch sequences of similar length together.
        workers: number of worker processes that prefetch batches; 0 loads them in the current process.

    Raises:
        ValueError: if the batch size is below one.

    Example:
        >>> import numpy as np
        >>> from pyro_zf.data import ArrayDataset
        >>> data = ArrayDataset(np.arange(10, dtype=np.uint8).reshape(5, 2, 1))
        >>> [batch.num_sequences for batch in Batches(data, batch_size=2)]
        [2, 2, 1]
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        batch_size: int,
        seed: int | None = None,
        limit: int | None = None,
        bucketed: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        self.dataset = dataset
        self.seed = seed
        self.bucketed = bucketed and dataset.lengths is not None
        self._indices = _limited(np.arange(len(dataset)), limit)

    @property
    def num_sequences(self) -> int:
        """Number of sequences per epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return -(-self.num_sequences // self.batch_size)

    def order(self, epoch: int) -> list[Int[np.ndarray, " _"]]:
        """Indices of the sequences of each batch of an epoch."""
        order = self._indices
        rng = None if self.seed is None else np.random.default_rng((self.seed, epoch))
        pool = len(order) if rng is None else POOL * self.batch_size
        if rng is not None and self.dataset.block is None:
            order = rng.permutation(order)
        elif rng is not None:
            order = _blocks_mixed(order, self.dataset.block, pool, rng)
        batches = []
        for start in range(0, len(order), max(pool, 1)):
            part = order[start : start + pool]
            if self.bucketed:
                assert self.dataset.lengths is not None
                part = part[np.argsort(self.dataset.lengths[part], kind="stable")]
            cut = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            if self.bucketed and rng is not None:
                # A batch that is not full stays last.
                full = [c for c in cut if len(c) == self.batch_size]
                cut = [full[i] for i in rng.permutation(len(full))] + cut[len(full) :]
            batches += cut
        return batches

    def _made(self, epoch: int) -> Dataset[SequenceBatch]:
        return _Selected(self.dataset.at_epoch(epoch), self.order(epoch))


class StreamBatches(_Epochs):
    """A text cut into parallel streams of consecutive segments, for truncated back-propagation.

    Batch k contains the k-th segment of each stream. If a model starts from the final states of batch k-1
    (:attr:`~pyro_zf.batch.SequenceBatch.continues`), it reads each stream as one sequence, with gradients
    that are truncated at the boundaries of segments. The order is always that of the text.

    Args:
        stream: the text.
        num_streams: number of parallel streams; each starts with a state of zeros.
        limit: approximate maximum number of segments; the first segments of each stream are used.
        workers: number of worker processes that prefetch batches; 0 loads them in the current process.

    Raises:
        ValueError: if the number of streams is below one.
    """

    def __init__(
        self, stream: TextStream, num_streams: int, limit: int | None = None, workers: int = 0
    ) -> None:
        num_streams = min(num_streams, max(len(stream), 1), limit or num_streams)
        super().__init__(num_streams, workers)
        self.stream = stream
        total = len(stream.symbols)
        self.steps_a_stream = -(-total // num_streams)
        self.starts = np.minimum(np.arange(num_streams) * self.steps_a_stream, total)
        self._read = self.steps_a_stream
        if limit is not None:
            self._read = min(self._read, -(-limit // num_streams) * stream.segment)

    @property
    def num_sequences(self) -> int:
        """Number of segments per epoch."""
        return sum(int((self._lengths(k) > 0).sum()) for k in range(len(self)))

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return -(-self._read // self.stream.segment)

    def _lengths(self, k: int) -> Int[np.ndarray, " batch"]:
        ends = np.minimum(self.starts + self._read, len(self.stream.symbols))
        ends = np.minimum(ends, np.append(self.starts[1:], len(self.stream.symbols)))
        left = ends - self.starts - k * self.stream.segment
        return np.clip(left, 0, self.stream.segment)

    def piece(self, k: int) -> SequenceBatch:
        """Return batch k."""
        batch = self.stream.pieces(self.starts + k * self.stream.segment, self._lengths(k))
        return replace(batch, continues=k > 0)

    def _made(self, epoch: int) -> Dataset[SequenceBatch]:
        return _Pieces(self)


class _Selected(Dataset[SequenceBatch]):
    """Batches of chosen sequences."""

    def __init__(self, data: SequenceDataset, order: list[Int[np.ndarray, " _"]]) -> None:
        self.data, self.order = data, order

    def __getitem__(self, k: int) -> SequenceBatch:
        # Bits are stored as bytes until they are on the device.
        options = {"dtype": torch.uint8} if getattr(self.data, "gives_bytes", False) else {}
        return self.data.batch(self.order[k], **options)


class _Pieces(Dataset[SequenceBatch]):
    """Batches of a stream."""

    def __init__(self, batches: StreamBatches) -> None:
        self.batches = batches

    def __getitem__(self, k: int) -> SequenceBatch:
        return self.batches.piece(k)


def make_batches(
    dataset: SequenceDataset,
    batch_size: int,
    seed: int | None = None,
    limit: int | None = None,
    workers: int = 0,
) -> Batches | StreamBatches:
    """Create batches that suit the data: streams for a text with carried state, else bucketed sequences."""
    if isinstance(dataset, TextStream) and dataset.carried:
        return StreamBatches(dataset, batch_size, limit, workers)
    return Batches(dataset, batch_size, seed, limit, bucketed=True, workers=workers)


def padding_ratio(batches: Batches, epoch: int = 0) -> float:
    """Fraction of the steps in the batches of an epoch that are padding."""
    lengths: Any = batches.dataset.lengths
    if lengths is None:
        return 0.0
    order = batches.order(epoch)
    room = sum(len(index) * int(lengths[index].max(initial=0)) for index in order)
    return 1.0 - sum(int(lengths[index].sum()) for index in order) / max(room, 1)


def _limited(indices: Int[np.ndarray, " n"], limit: int | None) -> Int[np.ndarray, " m"]:
    if limit is None or limit >= len(indices):
        return indices
    return np.sort(np.random.default_rng(0).permutation(indices)[:limit])


def _blocks_mixed(
    indices: Int[np.ndarray, " n"], block: int | None, pool: int, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Order blocks randomly, and shuffle the sequences within each pool of blocks."""
    assert block is not None
    edges = np.flatnonzero(np.diff(indices // block)) + 1
    parts = np.split(indices, edges)
    mixed = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
    return np.concatenate(
        [rng.permutation(mixed[i : i + pool]) for i in range(0, len(mixed), pool)]
    )

"""Batches in an order that a seed and an epoch determine."""

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

#: Sequences of how many batches are sorted by length, or are in memory at a time.
POOL = 50


class _Epochs(ABC):
    """What is read batch by batch, epoch by epoch."""

    def __init__(self, batch_size: int, workers: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if workers < 0:
            raise ValueError(f"workers must not be negative, it is {workers}")
        self.batch_size = batch_size
        self.workers = workers

    @property
    @abstractmethod
    def num_sequences(self) -> int:
        """Sequences an epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches an epoch."""

    @abstractmethod
    def _made(self, epoch: int) -> Dataset[SequenceBatch]:
        """The batches of an epoch, by their number."""

    def __iter__(self) -> Iterator[SequenceBatch]:
        return self.epoch(0)

    def epoch(
        self, epoch: int, first: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[SequenceBatch]:
        """Batches ``first``, ``first + 1``, .. of an epoch, on a device."""
        made = self._made(epoch)
        pinned = torch.device(device).type == "cuda"
        numbers = range(first, len(self))
        source: Iterable[SequenceBatch]
        if self.workers:
            source = (
                DataLoader(
                    made, batch_size=None, sampler=numbers, num_workers=self.workers,
                    pin_memory=pinned, generator=torch.Generator(),  # the global one is training's
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
            # From a worker it comes with the text of a traceback, of which the last line says it.
            line = str(error).strip().splitlines()[-1]
            raise DataError(line.partition("DataError: ")[2] or line) from None


class Batches(_Epochs):
    """The batches of a data set, epoch by epoch.

    The order of an epoch is a function of ``seed`` and the epoch alone, so that training can go on
    from the middle of one. Without a seed the order is that of the data. Sequences of different
    lengths are put together with others of about their length; then the order is only that of the
    batches. From a file too large for memory, blocks of neighbouring sequences are read at a time,
    in random order, and the sequences of many blocks are mixed.

    Args:
        dataset: the sequences.
        batch_size: sequences a batch; the last may have fewer.
        seed: of the shuffling, or None.
        limit: read so many sequences only: a fixed random subset, since files are often sorted.
        bucketed: whether to put sequences of about the same length together.
        workers: processes that prepare batches ahead; 0 does it in this one.

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
        """Sequences an epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        """Batches an epoch."""
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
                # The batch that is not full stays last, so that all others are.
                full = [c for c in cut if len(c) == self.batch_size]
                cut = [full[i] for i in rng.permutation(len(full))] + cut[len(full) :]
            batches += cut
        return batches

    def _made(self, epoch: int) -> Dataset[SequenceBatch]:
        return _Selected(self.dataset.at_epoch(epoch), self.order(epoch))


class StreamBatches(_Epochs):
    """A text cut into parallel streams, in segments that go on where those before them ended.

    Batch k holds the k-th segment of each stream. A model that is given the states in which it left
    batch k-1 (:attr:`~pyro_zf.batch.SequenceBatch.continues`) reads each stream as one sequence, with
    gradients that end at the borders of segments (truncated back-propagation). The order is always
    that of the text.

    Args:
        stream: the text.
        num_streams: parallel streams; each begins with a state of zeros.
        limit: read about so many segments only: the first ones of each stream.
        workers: processes that prepare batches ahead; 0 does it in this one.

    Raises:
        ValueError: if there is not a stream.
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
        """Segments an epoch."""
        return sum(int((self._lengths(k) > 0).sum()) for k in range(len(self)))

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self._read // self.stream.segment)

    def _lengths(self, k: int) -> Int[np.ndarray, " batch"]:
        ends = np.minimum(self.starts + self._read, len(self.stream.symbols))
        ends = np.minimum(ends, np.append(self.starts[1:], len(self.stream.symbols)))
        left = ends - self.starts - k * self.stream.segment
        return np.clip(left, 0, self.stream.segment)

    def piece(self, k: int) -> SequenceBatch:
        """Batch k."""
        batch = self.stream.pieces(self.starts + k * self.stream.segment, self._lengths(k))
        return replace(batch, continues=k > 0)

    def _made(self, epoch: int) -> Dataset[SequenceBatch]:
        return _Pieces(self)


class _Selected(Dataset[SequenceBatch]):
    """Batches of chosen sequences."""

    def __init__(self, data: SequenceDataset, order: list[Int[np.ndarray, " _"]]) -> None:
        self.data, self.order = data, order

    def __getitem__(self, k: int) -> SequenceBatch:
        # Bits are a byte each until they are on their device.
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
    """Batches as the data want them: in carried streams, by length, or as they come."""
    if isinstance(dataset, TextStream) and dataset.carried:
        return StreamBatches(dataset, batch_size, limit, workers)
    return Batches(dataset, batch_size, seed, limit, bucketed=True, workers=workers)


def padding_ratio(batches: Batches, epoch: int = 0) -> float:
    """Steps of padding over all steps of an epoch's batches."""
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
    """Blocks in random order; the sequences of each pool of blocks shuffled."""
    assert block is not None
    edges = np.flatnonzero(np.diff(indices // block)) + 1
    parts = np.split(indices, edges)
    mixed = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
    return np.concatenate(
        [rng.permutation(mixed[i : i + pool]) for i in range(0, len(mixed), pool)]
    )

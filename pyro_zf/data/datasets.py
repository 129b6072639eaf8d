"""Interfaces and containers that are common to all data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped

from pyro_zf.batch import SequenceBatch
from pyro_zf.data.values import Kind, Statistics, Values

__all__ = [
    "ArrayDataset",
    "DataError",
    "DataSource",
    "SequenceDataset",
    "Splits",
    "TextStream",
]


class DataError(Exception):
    """Data are missing or invalid. The message is a single line that names the problem and the file."""


@runtime_checkable
class SequenceDataset(Protocol):
    """Sequences of one split. They are stored compactly and converted when a batch is created."""

    @property
    def values(self) -> Values:
        """Description of the values of a step."""

    def __len__(self) -> int:
        """Number of sequences."""

    @property
    def lengths(self) -> Int[np.ndarray, " sequences"] | None:
        """Number of steps of each sequence, or None if all have the same length."""

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest sequence."""

    @property
    def block(self) -> int | None:
        """Number of sequences that are read together, or None if all are in memory."""

    def statistics(self) -> Statistics:
        """Sums over the split."""

    def at_epoch(self, epoch: int) -> SequenceDataset:
        """Return the data of an epoch, which may be resampled."""

    def batch(self, index: Int[np.ndarray, " batch"]) -> SequenceBatch:
        """Return the sequences at ``index``, padded to the longest of them."""


@dataclass(frozen=True)
class ArrayDataset:
    """Sequences in memory, padded to a common length.

    Args:
        targets: array of shape (sequences, time, values), or (sequences, time) for symbols.
        lengths: number of steps of each sequence, or None if all have the same length.
        resample: function that maps an epoch to its targets, for data that are resampled each epoch.
        values: description of the values of a step. Default: bits, or symbols if there is no third dimension.

    Raises:
        DataError: if the lengths do not match the targets.
    """

    targets: Shaped[np.ndarray, "sequences time ..."]
    lengths: Int[np.ndarray, " sequences"] | None = None
    resample: Callable[[int], np.ndarray] | None = None
    values: Values = field(default=None)  # type: ignore[assignment]
    #: Whether :meth:`batch` accepts ``dtype=torch.uint8``; see :meth:`Values.targets`.
    gives_bytes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lengths is not None:
            check_lengths(self.lengths, len(self.targets), self.targets.shape[1], "lengths")
        if self.values is None:
            symbols = self.targets.ndim == 2
            size = int(self.targets.max(initial=0)) + 1 if symbols else self.targets.shape[2]
            object.__setattr__(self, "values", Values("categorical" if symbols else "binary", size))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest sequence."""
        return int(self.targets.shape[1] if self.lengths is None else self.lengths.max(initial=1))

    @property
    def block(self) -> int | None:
        """None, since all data are in memory."""
        return None

    def statistics(self) -> Statistics:
        """Sums over the split."""
        if self.lengths is None:
            statistics = Statistics(self.values.kind, self.values.size)
            statistics.add(self.targets.reshape(-1, *self.targets.shape[2:]), len(self))
            return statistics
        rows = (row[:n] for row, n in zip(self.targets, self.lengths, strict=True))
        return Statistics.of(self.values.kind, self.values.size, rows)

    def at_epoch(self, epoch: int) -> ArrayDataset:
        """Return the data of an epoch, which may be resampled."""
        if self.resample is None:
            return self
        return ArrayDataset(self.resample(epoch), self.lengths, None, self.values)

    def batch(
        self, index: Int[np.ndarray, " batch"], dtype: torch.dtype | None = None
    ) -> SequenceBatch:
        """Return the sequences at ``index``, padded to the longest of them."""
        if self.lengths is None:
            targets = self.values.targets(self.targets[index], dtype)
            return SequenceBatch.from_targets(targets, start=self.values.start)
        lengths = self.lengths[index]
        targets = self.values.targets(self.targets[index, : max(lengths.max(initial=1), 1)], dtype)
        return SequenceBatch.from_targets(
            targets, torch.from_numpy(lengths.astype(np.int64)), self.values.start
        )


@dataclass(frozen=True)
class TextStream:
    """One long sequence of symbols, read in segments with a fixed number of steps.

    The input of the first step of a segment is the last symbol of the previous segment, so every symbol is
    predicted exactly once from its true predecessor. Only the first symbol of the text is predicted from the
    start symbol.

    Args:
        symbols: the text.
        values: description of the values of a step.
        segment: number of steps per segment; the last segment may be shorter.
        carried: whether each segment starts from the final state of the previous segment.
    """

    symbols: Shaped[np.ndarray, " time"]
    values: Values
    segment: int = 100
    carried: bool = True

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise DataError(f"a segment must have at least one step, got {self.segment}")

    def __len__(self) -> int:
        return -(-len(self.symbols) // self.segment)

    @property
    def lengths(self) -> Int[np.ndarray, " sequences"]:
        """Number of steps of each segment."""
        starts = np.arange(len(self)) * self.segment
        return np.minimum(self.segment, len(self.symbols) - starts)

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest segment."""
        return min(self.segment, len(self.symbols))

    @property
    def block(self) -> int | None:
        """None, since all data are in memory."""
        return None

    def statistics(self) -> Statistics:
        """Sums over the text."""
        statistics = Statistics(self.values.kind, self.values.size)
        statistics.add(self.symbols, len(self))
        return statistics

    def at_epoch(self, epoch: int) -> TextStream:
        """Return this data set, which is the same in every epoch."""
        return self

    def batch(self, index: Int[np.ndarray, " batch"]) -> SequenceBatch:
        """Return the segments at ``index``."""
        starts = np.asarray(index) * self.segment
        return self.pieces(starts, np.minimum(self.segment, len(self.symbols) - starts))

    def pieces(
        self, starts: Int[np.ndarray, " batch"], lengths: Int[np.ndarray, " batch"]
    ) -> SequenceBatch:
        """Return parts of the text as a batch. A length of 0 marks an empty row, which is ignored."""
        width = max(int(lengths.max(initial=1)), 1)
        steps = starts[:, None] + np.arange(width)
        padded = np.clip(steps, 0, len(self.symbols) - 1)
        targets = self.symbols[padded]
        before = self.symbols[np.clip(steps - 1, 0, len(self.symbols) - 1)]
        before[:, 0] = np.where(starts == 0, self.values.start, before[:, 0])
        full = bool((lengths == width).all())
        return SequenceBatch(
            self.values.targets(before), self.values.targets(targets),
            None if full else torch.from_numpy(lengths.astype(np.int64)),
            # The flag is one for the batch: with the beginning of the text among the rows, no first
            # input is predicted in reverse.
            has_start_symbol=bool((starts == 0).any()),
        )  # fmt: skip


def text_of(
    symbols: Shaped[np.ndarray, " time"], vocabulary: Sequence[str], joiner: str, ends: bool
) -> str:
    """Convert the indices of symbols to readable text.

    Args:
        symbols: the indices.
        vocabulary: the symbols.
        joiner: string between two symbols.
        ends: whether the text ends before the first ``<eos>``.
    """
    if ends and "<eos>" in vocabulary:
        end = symbols == vocabulary.index("<eos>")
        symbols = symbols[: int(np.argmax(end))] if end.any() else symbols
    return joiner.join(vocabulary[int(i)] for i in symbols)


def held_out(number: int, found: str) -> int:
    """Number of sequences for validation, and for test, of a given number: 5 %, at least one.

    Args:
        number: number of sequences.
        found: the beginning of the message if there are too few, such as ``"mine.txt has 2 lines"``.

    Raises:
        DataError: if there are fewer than three.
    """
    if number < 3:
        raise DataError(f"{found}; at least 3 are needed for training, validation and test")
    return max(round(0.05 * number), 1)


def check_lengths(lengths: np.ndarray, num_sequences: int, num_steps: int, where: str) -> None:
    """Reject lengths that do not match the sequences.

    Raises:
        DataError: if the number of lengths is wrong, or a length lies outside 0..T.
    """
    if lengths.shape != (num_sequences,) or not np.issubdtype(lengths.dtype, np.integer):
        raise DataError(
            f"{where}: {lengths.dtype} of shape {lengths.shape}; it should be {num_sequences} whole "
            "numbers, one per sequence"
        )
    wrong = np.flatnonzero((lengths < 0) | (lengths > num_steps))
    if len(wrong):
        raise DataError(
            f"{where}: sequence {wrong[0]} has length {lengths[wrong[0]]}, but the array has "
            f"{num_steps} steps ({len(wrong)} such lengths)"
        )


@dataclass(frozen=True)
class DataSource:
    """Origin of the data, for logs and results.

    Args:
        name: name of the data, to print next to results.
        detail: location of the data, and how they were split.
        comparable: whether likelihoods on these data are comparable with published results.
        key: hash of the data and of how they were prepared, or the empty string.
    """

    name: str
    detail: str
    comparable: bool
    key: str = ""


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data with metadata.

    Args:
        train, valid, test: the splits.
        source: origin of the data.
        unit: name of a sequence, for printing ("image").
        step_unit: name of a step ("frame").
        vocabulary: the symbols, in the order of their indices.
        joiner: string that separates two symbols of a text.
        unknown: index of the symbol for words that are not in the vocabulary, if there is one.
        sample_rate: sampling rate of sound in Hz; a step is then a frame of samples.
        findings: summary of the data, as a sequence of lines.
        covariate_names: names of the classes, if the covariates are classes.
    """

    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset
    source: DataSource
    unit: str = "sequence"
    step_unit: str = "step"
    vocabulary: tuple[str, ...] | None = None
    joiner: str = ""
    unknown: int | None = None
    sample_rate: int | None = None
    findings: tuple[str, ...] = ()
    covariate_names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls, datasets: Mapping[str, SequenceDataset], source: DataSource, **options: Any
    ) -> Splits:
        """Create splits from a mapping of split names to data sets."""
        train, valid, test = (datasets[split] for split in ("train", "valid", "test"))
        return cls(train, valid, test, source, **options)

    def __getitem__(self, split: str) -> SequenceDataset:
        if split not in ("train", "valid", "test"):
            raise DataError(f"unknown split {split!r}; it must be train, valid or test")
        dataset: SequenceDataset = getattr(self, split)
        return dataset

    @property
    def values(self) -> Values:
        """Description of the values of a step."""
        return self.train.values

    @property
    def kind(self) -> Kind:
        """Kind of the values: bits, real numbers, counts or symbols."""
        return self.values.kind

    @property
    def data_size(self) -> int:
        """Number of values per step, or number of symbols."""
        return self.values.size

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest training sequence."""
        return self.train.num_steps

    @property
    def covariate_size(self) -> int:
        """Number of covariates per sequence or step; 0 if there are none."""
        covariates = getattr(self.train, "covariates", None)
        return 0 if covariates is None else int(covariates.shape[-1])

    @property
    def is_image(self) -> bool:
        """Whether a sequence is an image of 28 x 28 bits."""
        return self.unit == "image"

    def statistics(self, split: str) -> Statistics:
        """Sums over a split, which are computed once and cached."""
        if split not in self._statistics:
            self._statistics[split] = self[split].statistics()
        return self._statistics[split]

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        return {}

    def marginal_nats(self, split: str = "test") -> float:
        """Negative log-likelihood of a split in nats per sequence under a baseline without memory.

        For images, each pixel has its own frequency, estimated on the training data with add-one smoothing.
        For other data, all steps have the same distribution; see :meth:`~pyro_zf.data.Statistics.nats`.
        """
        if self.is_image and hasattr(self.train, "targets"):
            test: Any = self[split]
            train = self.train.targets.reshape(len(self.train), -1)
            p = (train.sum(0, dtype=np.int64) + 1) / (len(train) + 2)
            mean = test.targets.reshape(len(test), -1).mean(0, dtype=np.float64)
            return float(-(mean * np.log(p) + (1 - mean) * np.log1p(-p)).sum())
        statistics = self.statistics(split)
        total = statistics.nats(self.statistics("train"), self.values)
        return total / max(statistics.num_sequences, 1)

    @property
    def marginal_name(self) -> str:
        """Name of this baseline."""
        if self.is_image:
            return "independent pixels"
        return {
            "real": "iid Gaussian", "categorical": "unigram frequencies", "binary": "independent bits",
            "counts": "independent geometric counts",
        }[self.kind]  # fmt: skip

    @property
    def hidden_symbol(self) -> int:
        """Value that replaces an input hidden by word dropout: ``<unk>``, the start symbol, or 0."""
        if self.unknown is not None:
            return self.unknown
        return self.values.start if self.kind == "categorical" else 0

    def content_key(self) -> str:
        """Hash of the sums over the splits, which distinguishes different data of the same kind."""
        if self.is_image:  # the name alone identifies the data
            return ""
        digest = hashlib.sha256()
        for split in ("train", "valid", "test"):
            s = self.statistics(split)
            digest.update(f"{s.num_sequences} {s.num_steps}".encode())
            digest.update(np.round(np.concatenate([s.sums, s.squares]), 3).tobytes())
        return digest.hexdigest()[:16]

    def text(self, symbols: Shaped[np.ndarray, " time"]) -> str:
        """Convert symbols to readable text."""
        assert self.vocabulary is not None
        return text_of(symbols, self.vocabulary, self.joiner, ends=False)

    def encode(self, text: str) -> Int[np.ndarray, " time"]:
        """Convert a text to the indices of its symbols, which are characters or whitespace-separated words.

        Raises:
            DataError: if the text is empty, or a symbol is not in the vocabulary and there is no ``<unk>``.
        """
        assert self.vocabulary is not None
        known = {symbol: i for i, symbol in enumerate(self.vocabulary)}
        symbols = text.split() if self.joiner else list(text)
        if not symbols:
            raise DataError("the text is empty")
        indices = []
        for symbol in symbols:
            index = known.get(symbol, known.get(symbol.lower(), self.unknown))
            if index is None:
                raise DataError(f"{symbol!r} is not a symbol of {self.source.name}")
            indices.append(index)
        return np.array(indices, dtype=np.int64)

    def batch_of_texts(self, texts: Sequence[str]) -> SequenceBatch:
        """Encode texts with :meth:`encode` and combine them in a batch.

        Raises:
            DataError: if a text cannot be encoded.
        """
        symbols = [torch.from_numpy(self.encode(text)) for text in texts]
        lengths = torch.tensor([len(s) for s in symbols])
        padded = torch.nn.utils.rnn.pad_sequence(symbols, batch_first=True)
        return SequenceBatch.from_targets(padded, lengths, self.values.start)

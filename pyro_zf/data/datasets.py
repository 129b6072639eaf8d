"""What a data set is, wherever it comes from."""

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
    """Data that are missing or wrong; the message is one line that says what and where."""


@runtime_checkable
class SequenceDataset(Protocol):
    """Sequences of one split, kept as small as their type allows until a batch is made."""

    @property
    def values(self) -> Values:
        """What a step holds."""

    def __len__(self) -> int:
        """Number of sequences."""

    @property
    def lengths(self) -> Int[np.ndarray, " sequences"] | None:
        """Steps of each sequence, or None where all have the same."""

    @property
    def num_steps(self) -> int:
        """Steps of the longest sequence."""

    @property
    def block(self) -> int | None:
        """Sequences that are read together, or None where all are in memory."""

    def statistics(self) -> Statistics:
        """Sums over the split."""

    def at_epoch(self, epoch: int) -> SequenceDataset:
        """The data of an epoch: these, or a fresh draw of them."""

    def batch(self, index: Int[np.ndarray, " batch"]) -> SequenceBatch:
        """The sequences at ``index``, padded to the longest of them."""


@dataclass(frozen=True)
class ArrayDataset:
    """Sequences in memory, padded to one length.

    Args:
        targets: (sequences, time, values), or (sequences, time) for symbols.
        lengths: steps of each sequence, or None where all have the same.
        resample: for data that are drawn anew each epoch: maps an epoch to its targets.
        values: what a step holds; by default bits, or symbols where there is no third dimension.

    Raises:
        DataError: if the lengths do not fit.
    """

    targets: Shaped[np.ndarray, "sequences time ..."]
    lengths: Int[np.ndarray, " sequences"] | None = None
    resample: Callable[[int], np.ndarray] | None = None
    values: Values = field(default=None)  # type: ignore[assignment]
    #: That :meth:`batch` takes ``dtype=torch.uint8``, see :meth:`Values.targets`.
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
        """Steps of the longest sequence."""
        return int(self.targets.shape[1] if self.lengths is None else self.lengths.max(initial=1))

    @property
    def block(self) -> int | None:
        """All is in memory."""
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
        """The data of an epoch: these, or a fresh draw of them."""
        if self.resample is None:
            return self
        return ArrayDataset(self.resample(epoch), self.lengths, None, self.values)

    def batch(
        self, index: Int[np.ndarray, " batch"], dtype: torch.dtype = torch.float32
    ) -> SequenceBatch:
        """The sequences at ``index``, padded to the longest of them."""
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
    """One long sequence of symbols, read in segments of a fixed number of steps.

    The input of a segment's first step is the symbol before it, so that every symbol is predicted
    once and from a true past; only the first of all follows the start symbol.

    Args:
        symbols: the text.
        values: what a step holds.
        segment: steps of a segment; the last may have fewer.
        carried: whether a segment begins with the state in which a model left the one before.
    """

    symbols: Shaped[np.ndarray, " time"]
    values: Values
    segment: int = 100
    carried: bool = True

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise DataError(f"a segment has at least one step, not {self.segment}")

    def __len__(self) -> int:
        return -(-len(self.symbols) // self.segment)

    @property
    def lengths(self) -> Int[np.ndarray, " sequences"]:
        """Steps of each segment."""
        starts = np.arange(len(self)) * self.segment
        return np.minimum(self.segment, len(self.symbols) - starts)

    @property
    def num_steps(self) -> int:
        """Steps of a segment."""
        return min(self.segment, len(self.symbols))

    @property
    def block(self) -> int | None:
        """All is in memory."""
        return None

    def statistics(self) -> Statistics:
        """Sums over the text."""
        statistics = Statistics(self.values.kind, self.values.size)
        statistics.add(self.symbols, len(self))
        return statistics

    def at_epoch(self, epoch: int) -> TextStream:
        """The same in every epoch."""
        return self

    def batch(self, index: Int[np.ndarray, " batch"]) -> SequenceBatch:
        """The segments at ``index``."""
        starts = np.asarray(index) * self.segment
        return self.pieces(starts, np.minimum(self.segment, len(self.symbols) - starts))

    def pieces(
        self, starts: Int[np.ndarray, " batch"], lengths: Int[np.ndarray, " batch"]
    ) -> SequenceBatch:
        """Stretches of the text; one of length 0 is a row that is no sequence."""
        width = max(int(lengths.max(initial=1)), 1)
        steps = starts[:, None] + np.arange(width)
        padded = np.clip(steps, 0, len(self.symbols) - 1)
        targets = self.symbols[padded]
        before = self.symbols[np.clip(steps - 1, 0, len(self.symbols) - 1)]
        before[:, 0] = np.where(starts == 0, self.values.start, before[:, 0])
        full = bool((lengths == width).all())
        return SequenceBatch(
            self.values.targets(before), self.values.targets(targets),
            None if full else torch.from_numpy(lengths.astype(np.int64)), has_start_symbol=False,
        )  # fmt: skip


def check_lengths(lengths: np.ndarray, num_sequences: int, num_steps: int, where: str) -> None:
    """Refuse lengths that are no numbers of steps of these sequences.

    Raises:
        DataError: if there are not as many, or one lies outside 0..T.
    """
    if lengths.shape != (num_sequences,) or not np.issubdtype(lengths.dtype, np.integer):
        raise DataError(
            f"{where}: {lengths.dtype} of shape {lengths.shape}; it should be {num_sequences} whole "
            "numbers, one a sequence"
        )
    wrong = np.flatnonzero((lengths < 0) | (lengths > num_steps))
    if len(wrong):
        raise DataError(
            f"{where}: sequence {wrong[0]} has length {lengths[wrong[0]]}, and the array has "
            f"{num_steps} steps ({len(wrong)} such lengths)"
        )


@dataclass(frozen=True)
class DataSource:
    """Where data came from, for logs and results.

    Args:
        name: what to call the data beside a number.
        detail: where they were found and how they were split.
        comparable: whether a likelihood on them compares with published ones.
        key: a hash of the data and of how they were prepared, or the empty string.
    """

    name: str
    detail: str
    comparable: bool
    key: str = ""


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data, and what there is to say of them.

    Args:
        train, valid, test: the splits.
        source: where they came from.
        unit: what a sequence is, for printing ("image").
        step_unit: what a step is ("frame").
        vocabulary: the symbols, in the order of their indices.
        joiner: what stands between two symbols of a text.
        unknown: the symbol for words that are not in the vocabulary, if there is one.
        sample_rate: of sound, in Hz; a step is then a frame of samples.
        findings: what was found, a line each.
        covariate_names: names of the classes that the covariates stand for, if they are classes.
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
        """From a data set for each name of a split."""
        train, valid, test = (datasets[split] for split in ("train", "valid", "test"))
        return cls(train, valid, test, source, **options)

    def __getitem__(self, split: str) -> SequenceDataset:
        if split not in ("train", "valid", "test"):
            raise DataError(f"unknown split {split!r}; there are train, valid and test")
        dataset: SequenceDataset = getattr(self, split)
        return dataset

    @property
    def values(self) -> Values:
        """What a step holds."""
        return self.train.values

    @property
    def kind(self) -> Kind:
        """Bits, real numbers or symbols."""
        return self.values.kind

    @property
    def data_size(self) -> int:
        """Values of a step, or number of symbols."""
        return self.values.size

    @property
    def num_steps(self) -> int:
        """Steps of the longest training sequence."""
        return self.train.num_steps

    @property
    def covariate_size(self) -> int:
        """Size of the covariates of a sequence or step; 0 without any."""
        covariates = getattr(self.train, "covariates", None)
        return 0 if covariates is None else int(covariates.shape[-1])

    @property
    def is_image(self) -> bool:
        """Whether a sequence is a picture of 28 times 28 bits."""
        return self.unit == "image"

    def statistics(self, split: str) -> Statistics:
        """Sums over a split, computed once."""
        if split not in self._statistics:
            self._statistics[split] = self[split].statistics()
        return self._statistics[split]

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        return {}

    def marginal_nats(self, split: str = "test") -> float:
        """Negative log-likelihood of a split in nats per sequence, of a model that knows no past.

        Pictures: each pixel has the (add-one smoothed) frequency of the training data. Others: all
        steps are alike, see :meth:`~pyro_zf.data.Statistics.nats`.
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
        """What that model is called."""
        if self.is_image:
            return "independent pixels"
        return {
            "real": "iid Gaussian", "categorical": "unigram frequencies", "binary": "independent bits"
        }[self.kind]  # fmt: skip

    @property
    def hidden_symbol(self) -> int:
        """What takes the place of an input that is hidden from a model: ``<unk>``, the start, or 0."""
        if self.unknown is not None:
            return self.unknown
        return self.values.start if self.kind == "categorical" else 0

    def content_key(self) -> str:
        """A hash of the sums over the splits, by which other data of the same kind are told apart."""
        if self.is_image:  # there is one of each name
            return ""
        digest = hashlib.sha256()
        for split in ("train", "valid", "test"):
            s = self.statistics(split)
            digest.update(f"{s.num_sequences} {s.num_steps}".encode())
            digest.update(np.round(np.concatenate([s.sums, s.squares]), 3).tobytes())
        return digest.hexdigest()[:16]

    def text(self, symbols: Shaped[np.ndarray, " time"]) -> str:
        """Symbols as a reader sees them."""
        assert self.vocabulary is not None
        return self.joiner.join(self.vocabulary[int(i)] for i in symbols)

    def encode(self, text: str) -> Int[np.ndarray, " time"]:
        """Indices of the symbols of a text: of its characters, or of its words between blanks.

        Raises:
            DataError: if there is none, or one that the vocabulary has not and there is no ``<unk>``.
        """
        assert self.vocabulary is not None
        known = {symbol: i for i, symbol in enumerate(self.vocabulary)}
        symbols = text.split() if self.joiner else list(text)
        if not symbols:
            raise DataError("there is no symbol in an empty text")
        indices = []
        for symbol in symbols:
            index = known.get(symbol, known.get(symbol.lower(), self.unknown))
            if index is None:
                raise DataError(f"{symbol!r} is no symbol of {self.source.name}")
            indices.append(index)
        return np.array(indices, dtype=np.int64)

    def batch_of_texts(self, texts: Sequence[str]) -> SequenceBatch:
        """Texts as a batch, encoded by :meth:`encode`.

        Raises:
            DataError: as there.
        """
        symbols = [torch.from_numpy(self.encode(text)) for text in texts]
        lengths = torch.tensor([len(s) for s in symbols])
        padded = torch.nn.utils.rnn.pad_sequence(symbols, batch_first=True)
        return SequenceBatch.from_targets(padded, lengths, self.values.start)

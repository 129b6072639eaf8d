"""Prepared data: one HDF5 file a data set and its options, written whole or not at all, read lazily."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from jaxtyping import Int, Shaped

from pyro_zf.batch import SequenceBatch
from pyro_zf.data import blocks
from pyro_zf.data.datasets import DataError
from pyro_zf.data.download import cache_dir, locked
from pyro_zf.data.values import Statistics, Values

__all__ = [
    "Prepared",
    "StoredDataset",
    "Writer",
    "key_of",
    "prepared",
    "reserve",
    "write_statistics",
]

log = logging.getLogger(__name__)

#: Of the files' layout and of how data are prepared: another one makes all of them anew.
FORMAT = 2
SPLITS = ("train", "valid", "test")
#: Bytes that HDF5 may write beside the data.
MARGIN = 16 * 2**20
#: Values a chunk of a file, each with a checksum.
CHUNK = 2**16


def key_of(source: Any, options: Mapping[str, Any]) -> str:
    """A hash of what data are made of and how."""
    text = json.dumps([FORMAT, source, dict(sorted(options.items()))], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reserve(file: h5py.File, nbytes: int) -> None:
    """Make sure of the space for so many bytes before HDF5 writes them.

    HDF5 does not survive a write that fails: what it holds in memory can be neither written nor let
    go, and the process may crash. So the file is made longer beforehand, with room for what HDF5
    writes on closing.

    Raises:
        OSError: if there is no such space.
    """
    end = file.id.get_filesize()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.id.get_vfd_handle(), 0, end + nbytes + MARGIN)
    elif shutil.disk_usage(Path(file.filename).parent).free < nbytes + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_statistics(file: h5py.File, split: str, statistics: Statistics) -> None:
    """Sums over a split, beside its ``lengths``."""
    for name in _SUMS:
        file.create_dataset(f"{split}/{name}", data=getattr(statistics, name))


def _read_statistics(path: Path, split: str, values: Values) -> Statistics:
    with _opened(path) as file:
        group = file[split]
        lengths = group["lengths"][...]
        sums = {name: group[name][...] for name in _SUMS}
    num_steps = int(lengths.sum(dtype=np.int64))
    return Statistics(values.kind, values.size, len(lengths), num_steps, **sums)


_SUMS = ("sums", "squares", "shift")


class Writer:
    """Takes the sequences of a data set one by one, and writes them in blocks.

    Args:
        file: an open file.
        values: what a step holds; moments are those of stored, not of normalised values.
        dtype: to store.
    """

    def __init__(self, file: h5py.File, values: Values, dtype: np.dtype | type) -> None:
        self.statistics = {split: Statistics(values.kind, values.size) for split in SPLITS}
        self._lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._waiting: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._bytes = dict.fromkeys(SPLITS, 0)
        self._file = file
        shape = () if values.kind == "categorical" else (values.size,)
        chunk = (max(CHUNK // max(values.size if shape else 1, 1), 1), *shape)
        for split in SPLITS:
            file.create_dataset(
                f"{split}/values", (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk,
                fletcher32=True,
            )  # fmt: skip

    def add(self, split: str, sequence: Shaped[np.ndarray, "steps ..."]) -> None:
        """One sequence; one without steps is left out."""
        if not len(sequence):
            return
        self.statistics[split].add(sequence)
        self._lengths[split].append(len(sequence))
        self._waiting[split].append(sequence)
        self._bytes[split] += sequence.nbytes
        if self._bytes[split] > 8 * blocks.BLOCK_BYTES:
            self._flush(split)

    def close(self) -> None:
        """Write what is left, and the sums."""
        for split in SPLITS:
            self._flush(split)
            lengths = np.asarray(self._lengths[split], dtype=np.int32)
            reserve(self._file, lengths.nbytes)
            self._file.create_dataset(f"{split}/lengths", data=lengths)
            write_statistics(self._file, split, self.statistics[split])

    def _flush(self, split: str) -> None:
        if not self._waiting[split]:
            return
        values = self._file[f"{split}/values"]
        block = np.concatenate(self._waiting[split])
        reserve(self._file, block.nbytes)
        values.resize(len(values) + len(block), axis=0)
        values[len(values) - len(block) :] = block
        self._waiting[split], self._bytes[split] = [], 0


@dataclass(frozen=True)
class Prepared:
    """A prepared file, and what was noted when it was made."""

    path: Path
    notes: dict[str, Any]
    key: str

    def statistics(self, split: str, values: Values) -> Statistics:
        """Sums over a split."""
        return _read_statistics(self.path, split, values)

    def dataset(self, split: str, values: Values) -> StoredDataset:
        """The sequences of a split."""
        with _opened(self.path) as file:
            return StoredDataset(self.path, split, values, file[f"{split}/lengths"][...])

    def all_steps(self, split: str) -> Shaped[np.ndarray, "steps ..."]:
        """All steps of a split behind each other, in memory."""
        with _opened(self.path) as file:
            return file[f"{split}/values"][...]


@dataclass(frozen=True)
class StoredDataset:
    """Sequences of different lengths in a prepared file.

    A split that is small is read once; of a large one, blocks of neighbouring sequences are read as
    they are wanted and the latest are kept. A process that is forked opens the file anew.

    Args:
        path, split: the file and its group.
        values: what a step holds.
        steps: of each sequence.
    """

    path: Path
    split: str
    values: Values
    steps: Int[np.ndarray, " sequences"]
    #: That :meth:`batch` takes ``dtype=torch.uint8``, see :meth:`Values.targets`.
    gives_bytes: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " sequences"] | None:
        """Steps of each sequence, or None where all have the same."""
        same = len(self.steps) == 0 or (self.steps == self.steps[0]).all()
        return None if same else self.steps

    @property
    def num_steps(self) -> int:
        """Steps of the longest sequence."""
        return int(self.steps.max(initial=1))

    @cached_property
    def block(self) -> int | None:
        """Sequences that are read together, or None where all are in memory."""
        size = self._blocks.nbytes
        return None if size <= blocks.IN_MEMORY else max(blocks.BLOCK_BYTES * len(self) // size, 1)

    def statistics(self) -> Statistics:
        """Sums over the split."""
        return _read_statistics(self.path, self.split, self.values)

    def at_epoch(self, epoch: int) -> StoredDataset:
        """The same in every epoch."""
        return self

    def batch(
        self, index: Int[np.ndarray, " batch"], dtype: torch.dtype = torch.float32
    ) -> SequenceBatch:
        """The sequences at ``index``, padded to the longest of them."""
        rows = [self[int(i)] for i in index]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        stored = np.zeros(
            (len(rows), max(lengths.max(initial=1), 1), *rows[0].shape[1:]), rows[0].dtype
        )
        for row, values in zip(stored, rows, strict=True):
            row[: len(values)] = values
        targets = self.values.targets(stored, dtype)
        return SequenceBatch.from_targets(
            targets, None if self.lengths is None else torch.from_numpy(lengths), self.values.start
        )

    def __getitem__(self, i: int) -> Shaped[np.ndarray, "steps ..."]:
        """One sequence as it is stored.

        Raises:
            DataError: if the file is damaged.
        """
        size = self.block or max(len(self.steps), 1)
        first = i // size * size
        offsets = self._offsets
        last = min(first + size, len(self.steps))
        try:
            block = self._blocks.read(int(offsets[first]), int(offsets[last]))
        except DataError as error:
            raise DataError(f"{self.path} is damaged: delete it and it is made anew") from error
        return block[offsets[i] - offsets[first] : offsets[i + 1] - offsets[first]]

    @cached_property
    def _blocks(self) -> blocks.H5Blocks:
        return blocks.H5Blocks(self.path, f"{self.split}/values")

    @cached_property
    def _offsets(self) -> Int[np.ndarray, " sequences_and_one"]:
        return np.concatenate([[0], np.cumsum(self.steps, dtype=np.int64)])


def prepared(name: str, key: str, build: Callable[[h5py.File], dict[str, Any]]) -> Prepared:
    """The prepared file of a name and a key; made by ``build`` if it is not there.

    Of several processes that want the same file one makes it, and the others wait. It is written
    under another name until it is whole; a damaged one is made anew.

    Args:
        name, key: the file is ``prepared/NAME-KEY.h5`` in the cache.
        build: fills an open file and returns what is to be noted, as plain types.

    Raises:
        DataError: if it cannot be written.
    """
    folder = cache_dir() / "prepared"
    path = folder / f"{name}-{key}.h5"
    if (notes := _notes(path)) is not None:
        return Prepared(path, notes, key)
    try:
        with locked(folder, path.stem):
            notes = _notes(path)  # another process may have made it meanwhile
            if notes is None:
                for left in folder.glob(f".{path.stem}.*.part"):  # by a process that was killed
                    left.unlink()
                notes = _build(path, build)
        return Prepared(path, notes, key)
    except PermissionError as error:
        raise DataError(
            f"no permission to write prepared data into {folder}: name another folder by "
            "$PYRO_ZF_CACHE"
        ) from error
    except OSError as error:
        raise DataError(
            f"could not write prepared data into {folder} ({error.strerror or error}); free some "
            "space there, or name another folder by $PYRO_ZF_CACHE"
        ) from error


def _build(path: Path, build: Callable[[h5py.File], dict[str, Any]]) -> dict[str, Any]:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".part")
    os.close(handle)
    try:
        with _writing(Path(temporary)) as file:
            notes = build(file)
            file.attrs["notes"] = json.dumps(notes)
            file.attrs["format"] = FORMAT
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # others may share the cache
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return notes


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[h5py.File]:
    """An open file, closed whatever happens, and no longer than it has to be."""
    file = h5py.File(path, "w")
    try:
        reserve(file, 0)
        yield file
        file.flush()
        size = file.id.get_filesize()
        file.close()
        if path.stat().st_size > size:
            os.truncate(path, size)  # what was reserved and not needed
    except BaseException:
        with contextlib.suppress(Exception):
            file.close()
        raise


def _notes(path: Path) -> dict[str, Any] | None:
    """What was noted in a prepared file; None if there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") == FORMAT and all(f"{s}/lengths" in file for s in SPLITS):
                notes: dict[str, Any] = json.loads(file.attrs["notes"])
                return notes
    except (OSError, KeyError, ValueError, RuntimeError):
        pass
    log.warning("%s is damaged: it is made anew", path)
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError) as error:
        raise DataError(f"{path} is damaged: delete it and it is made anew") from error

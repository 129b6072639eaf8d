"""Cache of prepared data: one HDF5 file per data set and options, written atomically and read lazily."""

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
    "digest_of",
    "identity_of",
    "key_of",
    "opened",
    "prepared",
    "reserve",
    "write_statistics",
]

log = logging.getLogger(__name__)

#: Version of the file layout and of the preparation. Files with another version are prepared again.
FORMAT = 4
SPLITS = ("train", "valid", "test")
#: Number of bytes that HDF5 may write in addition to the data.
MARGIN = 16 * 2**20
#: Number of values per chunk of a file; each chunk has a checksum.
CHUNK = 2**16


def key_of(source: Any, options: Mapping[str, Any]) -> str:
    """Hash of the sources of the data and of the options for their preparation."""
    text = json.dumps([FORMAT, source, dict(sorted(options.items()))], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """Hash of the content of a file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def identity_of(path: Path) -> list[Any]:
    """Attributes of a file that change when it is written or replaced; for files too large to be hashed."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def reserve(file: h5py.File, nbytes: int) -> None:
    """Reserve disk space for a number of bytes before HDF5 writes them.

    HDF5 cannot recover from a failed write: its buffers can be neither written nor discarded, and the process
    may crash. Therefore the file is extended in advance, including space for what HDF5 writes on closing.

    Raises:
        OSError: if there is not enough space.
    """
    end = file.id.get_filesize()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.id.get_vfd_handle(), 0, end + nbytes + MARGIN)
    elif shutil.disk_usage(Path(file.filename).parent).free < nbytes + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_statistics(file: h5py.File, split: str, statistics: Statistics) -> None:
    """Write the sums over a split to the group that contains its ``lengths``."""
    for name in _SUMS:
        create_checked(file, f"{split}/{name}", getattr(statistics, name))


def create_checked(file: h5py.File, name: str, data: np.ndarray) -> None:
    """Create an array with a checksum, which is verified when it is read."""
    options = {"chunks": data.shape, "fletcher32": True} if data.size else {}
    file.create_dataset(name, data=data, **options)


def _read_statistics(path: Path, split: str, values: Values) -> Statistics:
    with opened(path) as file:
        group = file[split]
        lengths = group["lengths"][...]
        sums = {name: group[name][...] for name in _SUMS}
    num_steps = int(lengths.sum(dtype=np.int64))
    return Statistics(values.kind, values.size, len(lengths), num_steps, **sums)


_SUMS = ("sums", "squares", "shift")


class Writer:
    """Accepts the sequences of a data set one by one and writes them in blocks.

    Args:
        file: an open HDF5 file.
        values: description of the values of a step. Statistics refer to stored values before normalisation.
        dtype: type of the stored values.
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
        """Add a sequence. Sequences without steps are ignored."""
        if not len(sequence):
            return
        self.statistics[split].add(sequence)
        self._lengths[split].append(len(sequence))
        self._waiting[split].append(sequence)
        self._bytes[split] += sequence.nbytes
        if self._bytes[split] > 8 * blocks.BLOCK_BYTES:
            self._flush(split)

    def close(self) -> None:
        """Write the remaining sequences and the sums."""
        for split in SPLITS:
            self._flush(split)
            lengths = np.asarray(self._lengths[split], dtype=np.int32)
            reserve(self._file, lengths.nbytes)
            create_checked(self._file, f"{split}/lengths", lengths)
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
    """A prepared file with the notes that were stored when it was created."""

    path: Path
    notes: dict[str, Any]
    key: str

    def statistics(self, split: str, values: Values) -> Statistics:
        """Sums over a split."""
        return _read_statistics(self.path, split, values)

    def dataset(self, split: str, values: Values) -> StoredDataset:
        """Return the sequences of a split."""
        with opened(self.path) as file:
            return StoredDataset(self.path, split, values, file[f"{split}/lengths"][...])

    def all_steps(self, split: str) -> Shaped[np.ndarray, "steps ..."]:
        """Load all steps of a split, concatenated, into memory."""
        with opened(self.path) as file:
            return file[f"{split}/values"][...]


@dataclass(frozen=True)
class StoredDataset:
    """Sequences of different lengths in a prepared file.

    A small split is read once. For a large split, blocks of neighbouring sequences are read on demand, and
    recent blocks are cached. Forked processes open the file again.

    Args:
        path: the prepared file.
        split: name of the split, which is a group in the file.
        values: description of the values of a step.
        steps: number of steps of each sequence.
    """

    path: Path
    split: str
    values: Values
    steps: Int[np.ndarray, " sequences"]
    #: Whether :meth:`batch` accepts ``dtype=torch.uint8``; see :meth:`Values.targets`.
    gives_bytes: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " sequences"] | None:
        """Number of steps of each sequence, or None if all have the same length."""
        same = len(self.steps) == 0 or (self.steps == self.steps[0]).all()
        return None if same else self.steps

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest sequence."""
        return int(self.steps.max(initial=1))

    @cached_property
    def block(self) -> int | None:
        """Number of sequences that are read together, or None if all are in memory."""
        size = self._blocks.nbytes
        return None if size <= blocks.IN_MEMORY else max(blocks.BLOCK_BYTES * len(self) // size, 1)

    def statistics(self) -> Statistics:
        """Sums over the split."""
        return _read_statistics(self.path, self.split, self.values)

    def at_epoch(self, epoch: int) -> StoredDataset:
        """Return this data set, which is the same in every epoch."""
        return self

    def batch(
        self, index: Int[np.ndarray, " batch"], dtype: torch.dtype | None = None
    ) -> SequenceBatch:
        """Return the sequences at ``index``, padded to the longest of them."""
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
        """Return one sequence as it is stored.

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
            raise DataError(
                f"{self.path} is damaged: delete it, and it will be prepared again"
            ) from error
        return block[offsets[i] - offsets[first] : offsets[i + 1] - offsets[first]]

    @cached_property
    def _blocks(self) -> blocks.H5Blocks:
        return blocks.H5Blocks(self.path, f"{self.split}/values")

    @cached_property
    def _offsets(self) -> Int[np.ndarray, " sequences_and_one"]:
        return np.concatenate([[0], np.cumsum(self.steps, dtype=np.int64)])


def prepared(name: str, key: str, build: Callable[[h5py.File], dict[str, Any]]) -> Prepared:
    """Return a prepared file from the cache; if it does not exist, create it with ``build``.

    If several processes request the same file, one creates it and the others wait. The file has a temporary
    name until it is complete. A damaged file is prepared again.

    Args:
        name, key: the file is ``prepared/NAME-KEY.h5`` in the cache.
        build: function that fills an open file and returns notes of plain types to store with it.

    Raises:
        DataError: if the file cannot be written.
    """
    folder = cache_dir() / "prepared"
    path = folder / f"{name}-{key}.h5"
    if (notes := _notes(path)) is not None:
        return Prepared(path, notes, key)
    try:
        with locked(folder, path.stem):
            notes = _notes(path)  # another process may have created it in the meantime
            if notes is None:
                for left in folder.glob(f".{path.stem}.*.part"):  # left by a killed process
                    left.unlink()
                notes = _build(path, build)
        return Prepared(path, notes, key)
    except PermissionError as error:
        raise DataError(
            f"no permission to write prepared data to {folder}: specify another folder with "
            "$PYRO_ZF_CACHE"
        ) from error
    except OSError as error:
        raise DataError(
            f"could not write prepared data to {folder} ({error.strerror or error}); free some "
            "disk space, or specify another folder with $PYRO_ZF_CACHE"
        ) from error


def _build(path: Path, build: Callable[[h5py.File], dict[str, Any]]) -> dict[str, Any]:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".part")
    os.close(handle)
    try:
        with _writing(Path(temporary)) as file:
            notes = build(file)
            text = json.dumps(notes)
            file.attrs["notes"], file.attrs["digest"] = text, key_of(text, {})
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
    """Open a file for writing. It is always closed, and reserved space that was not used is released."""
    file = h5py.File(path, "w")
    try:
        reserve(file, 0)
        yield file
        file.flush()
        size = file.id.get_filesize()
        file.close()
        if path.stat().st_size > size:
            os.truncate(path, size)  # release the unused reserved space
    except BaseException:
        with contextlib.suppress(Exception):
            file.close()
        raise


def _notes(path: Path) -> dict[str, Any] | None:
    """Read the notes of a prepared file; None if the file does not exist or is damaged."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") == FORMAT and all(f"{s}/lengths" in file for s in SPLITS):
                text = file.attrs["notes"]
                notes: dict[str, Any] = json.loads(text)
                if file.attrs["digest"] == key_of(text, {}):
                    return notes
    except (OSError, KeyError, ValueError, RuntimeError):
        pass
    log.warning("%s is damaged or has another format: it is prepared again", path)
    return None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a prepared file for reading.

    Raises:
        DataError: if it is damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged: delete it, and it will be prepared again") from error

"""Block-wise access to an array in an HDF5 file, with a cache of recently read blocks."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped

from pyro_zf.data.datasets import DataError

__all__ = ["BLOCK_BYTES", "IN_MEMORY", "KEPT_BYTES", "H5Blocks"]

#: Arrays up to this number of bytes are read at once; larger arrays are read in blocks.
IN_MEMORY = 128 * 2**20
#: Number of bytes per block, and maximum number of bytes in the cache.
BLOCK_BYTES = 2**20
KEPT_BYTES = 128 * 2**20


class H5Blocks:
    """Array in an HDF5 file that is read in blocks.

    The file is opened on first access, and again in each forked process.

    Args:
        path: the HDF5 file.
        name: name of the array in the file.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._open: dict[int, h5py.File] = {}
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return H5Blocks, (self.path, self.name)

    def __repr__(self) -> str:
        return f"H5Blocks({str(self.path)!r}, {self.name!r})"

    @property
    def array(self) -> h5py.Dataset:
        """The HDF5 data set, whose values are not read yet."""
        process = os.getpid()
        if process not in self._open:
            self._open.clear()
            self._open[process] = h5py.File(self.path, "r")
        return self._open[process][self.name]

    @property
    def nbytes(self) -> int:
        """Size of the array in memory in bytes."""
        return int(self.array.size * self.array.dtype.itemsize)

    @property
    def kept_bytes(self) -> int:
        """Size of the cache in bytes."""
        return sum(block.nbytes for block in self._kept.values())

    def read(self, first: int, last: int) -> Shaped[np.ndarray, "rows ..."]:
        """Return rows ``first`` (included) to ``last`` (excluded). Blocks are cached by their first row.

        Raises:
            DataError: if the file is damaged.
        """
        if (block := self._kept.get(first)) is None:
            try:
                block = self.array[first:last]
            except OSError as error:
                raise DataError(f"{self.path} is damaged ({error})") from error
            self._kept[first] = block
            while len(self._kept) > 1 and self.kept_bytes > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(first)
        return block

"""The user's own arrays in an HDF5 file, which is read in blocks and never loaded as a whole."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from jaxtyping import Int

from pyro_zf.batch import SequenceBatch
from pyro_zf.data import blocks
from pyro_zf.data.covariates import ConditionedDataset, covariates_of, one_hot
from pyro_zf.data.datasets import DataError, DataSource, Splits, check_lengths, held_out
from pyro_zf.data.store import (
    SPLITS,
    create_checked,
    identity_of,
    key_of,
    opened,
    prepared,
    reserve,
    write_statistics,
)
from pyro_zf.data.values import Kind, Statistics, Values

__all__ = ["Extreme", "H5Dataset", "Sampled", "kind_of", "load_hdf5"]

log = logging.getLogger(__name__)

#: Upper limit on the number of symbols for whole numbers that are interpreted as symbols.
MAX_SYMBOLS = 100_000
#: Upper limit of counts, up to which single precision holds every whole number.
MAX_COUNT = 2**24


@dataclass(frozen=True)
class H5Dataset:
    """Rows of an array of shape (N, T, D) or (N, T) in an HDF5 file.

    Args:
        path: the HDF5 file.
        key: name of the array in the file.
        values: description of the values of a step.
        rows: indices of the rows that belong to this data set, in the order of the file.
        steps: number of steps of each row, or None if all rows have T steps.
        totals: sums over these rows.
    """

    path: Path
    key: str
    values: Values
    rows: Int[np.ndarray, " sequences"]
    steps: Int[np.ndarray, " sequences"] | None
    totals: Statistics
    #: Whether :meth:`batch` accepts ``dtype=torch.uint8``; see :meth:`Values.targets`.
    gives_bytes: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Int[np.ndarray, " sequences"] | None:
        """Number of steps of each sequence, or None if all have the same length."""
        return self.steps

    @property
    def num_steps(self) -> int:
        """Number of steps of the longest sequence."""
        return int(self._blocks.array.shape[1] if self.steps is None else self.steps.max(initial=1))

    @cached_property
    def _rows_a_block(self) -> int:
        return rows_a_block(self._blocks.array)

    @cached_property
    def block(self) -> int | None:
        """Number of sequences that are read together, or None if all are in memory."""
        if self._blocks.nbytes <= blocks.IN_MEMORY:
            return None
        share = len(self.rows) / max(len(self._blocks.array), 1)
        return max(round(self._rows_a_block * share), 1)

    def statistics(self) -> Statistics:
        """Sums over the split."""
        return self.totals

    def at_epoch(self, epoch: int) -> H5Dataset:
        """Return this data set, which is the same in every epoch."""
        return self

    def batch(
        self, index: Int[np.ndarray, " batch"], dtype: torch.dtype | None = None
    ) -> SequenceBatch:
        """Return the sequences at ``index``, padded to the longest of them."""
        stored = np.stack([self._row(int(self.rows[i])) for i in index])
        lengths = None
        if self.steps is not None:
            lengths = self.steps[index].astype(np.int64)
            stored = stored[:, : max(lengths.max(initial=1), 1)]
            behind = np.arange(stored.shape[1]) >= lengths[:, None]
            stored[behind] = 0  # the padding in the file may be anything, even NaN
        targets = self.values.targets(stored, dtype)
        return SequenceBatch.from_targets(
            targets, None if lengths is None else torch.from_numpy(lengths), self.values.start
        )

    def _row(self, row: int) -> np.ndarray:
        size = self._rows_a_block
        first = row // size * size
        found = self._blocks.read(first, first + size)[row - first]
        return found[:, None] if found.ndim == 1 and self.values.kind != "categorical" else found

    @cached_property
    def _blocks(self) -> blocks.H5Blocks:
        return blocks.H5Blocks(self.path, self.key)


def rows_a_block(array: h5py.Dataset) -> int:
    """Number of rows that are read together: about one megabyte, in whole chunks if the file is chunked."""
    row = max(array.dtype.itemsize * array.size // max(len(array), 1), 1)
    rows = max(blocks.BLOCK_BYTES // row, 1)
    if array.chunks:
        chunk = array.chunks[0]
        rows = max(rows // chunk, 1) * chunk
    return min(rows, max(len(array), 1))


def load_hdf5(
    path: Path | str,
    key: str | None = None,
    kind: Kind | None = None,
    condition_on: str | None = None,
) -> Splits:
    """Load arrays of shape (N, T, D) or (N, T) from an HDF5 file.

    The file contains either arrays ``train``, ``valid`` and ``test``, or a single array, which is split
    90/5/5 at random. An optional array ``lengths`` (or ``NAME_lengths`` for an array NAME) of N whole
    numbers gives the number of valid steps of each row; later steps are ignored. Unless the kind of the
    values is given, it is inferred and printed: whole numbers that are all 0 or 1 are bits; other integers
    that are not negative are symbols if the shape is (N, T), and counts if it is (N, T, D); everything else
    is real numbers, which are normalised by the mean and standard deviation of each of the D values.

    Args:
        path: the HDF5 file.
        key: name of the array to read.
        kind: kind of the values. Default: inferred.
        condition_on: name of an array with covariates of the N sequences, or suffix NAME of three such arrays
            (``train_NAME``, ...); see :func:`~pyro_zf.data.covariates.covariates_of`.

    Raises:
        DataError: if an array does not exist or contains values that are not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    try:
        with h5py.File(path, "r") as file:
            arrays = _arrays(file, path, key, condition_on)
            covariates, names = _covariates(file, path, arrays, condition_on)
            sources = _files_of(file, path, arrays)
            source = [identity_of(p) for p in sources]
            stored = prepared(
                "hdf5", key_of(source, {"key": key, "kind": kind}),
                lambda target: _scan(target, file, path, arrays, kind),
            )  # fmt: skip
    except OSError as error:
        otherwise = f"{path} is damaged or not an HDF5 file"
        if path.suffix in (".npy", ".npz", ".csv"):
            otherwise = f"{path} is not an HDF5 file; h5py.File(NAME, 'w')['x'] = array writes one"
        raise DataError(_why(path, error, otherwise)) from error
    notes = stored.notes
    raw = Values(notes["kind"], notes["size"])
    totals = {split: stored.statistics(split, raw) for split in SPLITS}
    values = raw
    if raw.kind == "real":
        mean, std = totals["train"].moments_by_dimension()
        values = Values("real", raw.size, mean, std)
    elif raw.kind == "counts":
        values = Values("counts", raw.size, high=int(notes["high"]))
    elif raw.kind == "categorical":
        values = Values("categorical", raw.size + 1, start=raw.size)
        for total in totals.values():
            total.size, total.sums = values.size, np.append(total.sums, 0.0)
    datasets: dict[str, Any] = {}
    for split in SPLITS:
        with opened(stored.path) as file:
            rows, steps = file[f"{split}/rows"][...], file[f"{split}/lengths"][...]
        same = not notes["ragged"]
        datasets[split] = H5Dataset(
            path, notes["arrays"][split], values, rows, None if same else steps, totals[split]
        )
        if covariates:
            of_rows = covariates[notes["arrays"][split]][rows]
            datasets[split] = ConditionedDataset(datasets[split], of_rows)
    findings = [
        f"kind {raw.kind} ({notes['why']}), {raw.size} "
        + ("symbols" if raw.kind == "categorical" else "values per step")
    ]
    findings += [
        f"{split}: {len(datasets[split]):,} sequences of {notes['arrays'][split]}, {totals[split].num_steps:,} steps"
        for split in SPLITS
    ]
    if notes["empty"]:
        findings.append(f"{notes['empty']:,} sequences of length 0 were left out")
    findings += notes["remarks"]
    for remark in notes["warnings"]:
        log.warning("%s: %s", path.name, remark)
    if covariates:
        size = next(iter(covariates.values())).shape[-1]
        findings.append(f"conditioned on {condition_on}: {size} {'classes' if names else 'values'}")
    return Splits.of(
        datasets,
        covariate_names=names,
        source=DataSource(f"arrays of {path.name}", f"{path}, {notes['how']}", False, stored.key),
        findings=tuple(findings),
    )  # fmt: skip


def _covariates(
    file: h5py.File, path: Path, arrays: dict[str, str], name: str | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Map each data array to the covariates of its rows; also return the names of the classes."""
    if name is None:
        return {}, None
    found: dict[str, np.ndarray] = {}
    for data in arrays.values():
        candidates = (f"{data}_{name}", name)
        there = next((c for c in candidates if isinstance(file.get(c), h5py.Dataset)), None)
        if there is None:
            raise DataError(
                f"{path} has no array {' or '.join(candidates)} to condition on; it has "
                f"{', '.join(_names(file))}"
            )
        found[data] = file[there][...]
        if len(found[data]) != len(file[data]):
            raise DataError(
                f"{path}: {there} has {len(found[data])} rows, but {data} has {len(file[data])}"
            )
        if found[data].ndim == 3 and found[data].shape[1] < file[data].shape[1]:
            raise DataError(
                f"{path}: {there} has {found[data].shape[1]} steps, but {data} has {file[data].shape[1]}"
            )
    kinds = {data: _kind_of_covariates(x) for data, x in found.items()}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{kind} for {data}" for data, kind in kinds.items())
        raise DataError(
            f"{path}: the covariates {name} must be of the same kind, but they are {each}"
        )
    names: tuple[str, ...] | None = None
    if all(x.ndim == 1 and x.dtype.kind in "iub" for x in found.values()):
        _, names = covariates_of(np.concatenate(list(found.values())), f"{path}: {name}")
        assert names is not None
        return {k: one_hot([str(i) for i in x], names) for k, x in found.items()}, names
    return {k: covariates_of(x, f"{path}: {name}")[0] for k, x in found.items()}, None


def _kind_of_covariates(x: np.ndarray) -> str:
    if x.ndim == 1 and x.dtype.kind in "iub":
        return "classes"
    size = x.shape[-1] if x.ndim > 1 else 1
    return f"vectors of size {size} {'for each step' if x.ndim == 3 else 'for each sequence'}"


def _arrays(
    file: h5py.File, path: Path, key: str | None, condition_on: str | None
) -> dict[str, str]:
    """Map each split (or ``""`` for all splits) to the name of its array."""
    if key is not None:
        if not isinstance(file.get(key), h5py.Dataset):
            raise DataError(
                f"{path} has no array {key!r}; it has {', '.join(_names(file)) or 'none'}"
            )
        return {"": key}
    if all(isinstance(file.get(split), h5py.Dataset) for split in SPLITS):
        return {split: split for split in SPLITS}
    names = [
        n for n in _names(file)
        if n.rpartition("/")[2] != "lengths" and not n.endswith("_lengths")
        and not (condition_on and (n == condition_on or n.endswith(f"_{condition_on}")))
    ]  # fmt: skip
    if not names and (links := _links(file)):
        raise DataError(
            f"{path} has no arrays of its own, only {links} links to other files, which are not followed: "
            "give the file that holds the array"
        )
    if len(names) != 1:
        raise DataError(
            f"{path} has {len(names)} arrays ({', '.join(names[:5]) or 'none'}): select one with --hdf5-key, "
            "or name three of them train, valid and test"
        )
    return {"": names[0]}


def _why(path: Path, error: OSError, otherwise: str) -> str:
    """What an error of the HDF5 library means, in one line; ``otherwise`` if it has no known cause."""
    reason = str(error).splitlines()[0]
    if "SWMR" in reason or "consistency flags" in reason:
        return (
            f"{path} is open for writing in another program, or was left open by one that crashed: close "
            f"that program, or run h5clear -s {path.name}"
        )
    if "unable to lock" in reason or "errno = 11" in reason:
        return f"{path} is open in another program that has locked it: close it there, or copy the file"
    if "plugin" in reason or "not registered" in reason or "not available" in reason:
        return (
            f"{path} is compressed by a filter that is not installed here ({reason}): write it again with "
            f"gzip, for example by h5repack -f GZIP=4 {path.name} plain.h5 where the filter is installed"
        )
    return f"{otherwise} ({reason})"


def _files_of(file: h5py.File, path: Path, arrays: dict[str, str]) -> list[Path]:
    """All files that hold values of the arrays: by external links and as sources of virtual arrays.

    Raises:
        DataError: if one of them does not exist.
    """
    found = {path: None}
    for name in arrays.values():
        array = file[name]
        own = Path(array.file.filename)
        found[own] = None
        for source in array.virtual_sources() if array.is_virtual else ():
            if source.file_name == ".":
                continue
            other = own.parent / source.file_name
            if not other.is_file():
                raise DataError(
                    f"{path}: {name} is a virtual array, and {other}, which holds a part of it, is missing"
                )
            found[other] = None
    return list(found)


def _links(file: h5py.File, used: Collection[str] = ()) -> int:
    """Number of entries that are links to other files, apart from arrays that are used."""
    found = 0

    def visit(group: h5py.Group) -> None:
        nonlocal found
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                found += f"{group.name.rstrip('/')}/{name}".lstrip("/") not in used
            elif isinstance(link, h5py.HardLink) and isinstance(group.get(name), h5py.Group):
                visit(group[name])

    visit(file)
    return found


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return names


def _lengths(file: h5py.File, path: Path, name: str) -> np.ndarray | None:
    array = file[name]
    folder = name.rpartition("/")[0]
    for candidate in (f"{name}_lengths", f"{folder}/lengths".lstrip("/")):
        if candidate in file:
            lengths = file[candidate][...]
            check_lengths(lengths, array.shape[0], array.shape[1], f"{path}: {candidate}")
            return lengths.astype(np.int64)
    return None


def _scan(
    target: h5py.File, file: h5py.File, path: Path, arrays: dict[str, str], kind: Kind | None
) -> dict[str, Any]:
    """Read all arrays once in blocks, to infer the kind, compute the sums and check for non-finite values."""
    shapes = {n: file[n].shape for n in arrays.values()}
    for name, shape in shapes.items():
        if shape is None or len(shape) not in (2, 3) or 0 in shape:
            raise DataError(f"{path}: {name} has shape {shape}; it should be (N, T, D) or (N, T)")
        if file[name].dtype.kind not in "fiub":
            raise DataError(f"{path}: {name} holds {file[name].dtype}, which is not numeric")
    if len({shape[2:] for shape in shapes.values()}) > 1:
        raise DataError(
            f"{path}: train, valid and test differ in the number of values per step: {shapes}"
        )
    lengths = {name: _lengths(file, path, name) for name in shapes}
    extremes = (Extreme(-1), Extreme(1))
    whole, sampled = True, Sampled()
    for name in shapes:
        for steps, (first, rows) in _blocks(file, path, name, lengths[name]):
            sampled.add(steps)
            for extreme in extremes:
                extreme.add(steps, name, first, rows)
            whole = whole and (steps.dtype.kind in "iub" or bool((steps == np.rint(steps)).all()))
    low, high = (extreme.value for extreme in extremes)
    if low > high:
        raise DataError(f"{path}: {', '.join(shapes)} has no steps: all lengths are 0")
    if low == high:
        raise DataError(
            f"{path}: all values of {', '.join(shapes)} are {low:g}: there is nothing to learn"
        )
    for extreme in extremes:
        if abs(extreme.value) > float(np.finfo(np.float32).max):
            raise DataError(f"{path}: {extreme.where} is beyond the range of 32-bit numbers")
    symbols = all(len(shape) == 2 for shape in shapes.values())
    integers = all(file[n].dtype.kind in "iub" for n in shapes)
    found, why = kind_of(kind, low, high, whole, symbols, integers, str(path))
    size = int(high) + 1 if found == "categorical" else next(iter(shapes.values()))[2:] or (1,)
    size = size if isinstance(size, int) else int(size[0])
    owners = _owners(file, shapes, arrays)
    totals = {split: Statistics(found, size) for split in SPLITS}
    for name, owner in owners.items():
        for _, (first, rows) in _blocks(file, path, name, lengths[name]):
            for i, split in enumerate(SPLITS):
                mine = [r for j, r in enumerate(rows) if owner[first + j] == i and len(r)]
                if mine:
                    totals[split].add(np.concatenate(mine), len(mine))
    used = {}
    empty, numbers = 0, []
    for i, split in enumerate(SPLITS):
        name = arrays.get(split) or arrays[""]
        chosen = np.flatnonzero(owners[name] == i)
        used[split] = name
        kept = lengths[name]
        counted = np.full(len(chosen), shapes[name][1]) if kept is None else kept[chosen]
        empty += int((counted == 0).sum())
        chosen, counted = chosen[counted > 0], counted[counted > 0]
        numbers.append(str(len(chosen)))
        if not len(chosen):
            raise DataError(
                f"{path}: no sequence of {name} with at least one step is left for the {split} split"
            )
        reserve(target, 4 * chosen.nbytes)
        create_checked(target, f"{split}/rows", chosen)
        create_checked(target, f"{split}/lengths", counted)
        write_statistics(target, split, totals[split])
    return {
        "kind": found, "why": why, "size": size, "arrays": used, "high": high,
        "remarks": _remarks(file, shapes, totals["train"]),
        "warnings": sampled.far(extremes) if found in ("real", "counts") else [],
        "ragged": any(x is not None for x in lengths.values()), "empty": empty,
        "how": "with the splits of the file" if "" not in arrays else f"split {'/'.join(numbers)} at random",
    }  # fmt: skip


@dataclass
class Extreme:
    """The lowest (sign -1) or highest (sign 1) value, its first position, and how often it occurs."""

    sign: int
    value: float = 0.0
    count: int = 0
    where: str = ""

    def __post_init__(self) -> None:
        self.value = -self.sign * np.inf

    def add(self, steps: np.ndarray, name: str, first: int, rows: list[np.ndarray]) -> None:
        """Take a block into account, whose steps are those of ``rows``, the first of which is ``first``."""
        if not steps.size:
            return
        found = float(steps.max() if self.sign > 0 else steps.min())
        if found == self.value:
            self.count += int((steps == found).sum())
        elif self.sign * found > self.sign * self.value:
            self.value, self.count = found, int((steps == found).sum())
            row = next(j for j, row in enumerate(rows) if (row == found).any())
            place = np.argwhere(rows[row] == found)[0]
            where = f"{name}[{first + row}]" if not name.endswith(" ") else f"{name}{first + row}"
            self.where = f"{where} holds {found:g} at step {place[0]}"


@dataclass
class Sampled:
    """A sample of the values, to find those that are far from the rest."""

    values: list[np.ndarray] = field(default_factory=list)

    def add(self, steps: np.ndarray) -> None:
        """Take every n-th value of a block, at most a thousand."""
        flat = steps.reshape(-1)
        self.values.append(flat[:: max(flat.size // 1000, 1)].astype(np.float64))

    def far(self, extremes: tuple[Extreme, Extreme]) -> list[str]:
        """Warnings for a lowest or highest value more than 50 interquartile ranges from the median."""
        values = np.concatenate(self.values)
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        spread = high - low
        if spread == 0:  # most values are the same: take the deviation of the others
            inner = values[(values > extremes[0].value) & (values < extremes[1].value)]
            spread = inner.std() if len(inner) else 0.0
        if not spread > 0:
            return []
        return [
            f"{x.where} ({x.count:,} such values), {abs(x.value - median) / spread:.3g} times the interquartile "
            f"range from the median, {median:.3g}: if it marks missing values, end the sequences before it"
            for x in extremes
            if abs(x.value - median) > 50 * spread
        ]


def _remarks(file: h5py.File, shapes: dict[str, Any], train: Statistics) -> list[str]:
    """Lines with counts of what is not used from the file."""
    lines = []
    used = {*shapes, *(f"{name}_lengths" for name in shapes)}
    used |= {f"{name.rpartition('/')[0]}/lengths".lstrip("/") for name in shapes}
    if unused := [name for name in _names(file) if name not in used]:
        shown = ", ".join(unused[:5]) + (", .." if len(unused) > 5 else "")
        lines.append(f"{len(unused)} other arrays of the file are not read as sequences: {shown}")
    if links := _links(file, shapes):
        lines.append(f"{links} links to other files were not followed")
    if train.kind == "real" and train.size > 1:
        constant = train.constant()
        if len(constant):
            lines.append(
                f"{len(constant)} of {train.size} values per step are constant in the training data, the "
                f"first at index {constant[0]}"
            )
    return lines


def _blocks(
    file: h5py.File, path: Path, name: str, lengths: np.ndarray | None
) -> Iterator[tuple[np.ndarray, tuple[int, list[np.ndarray]]]]:
    """Iterate over the valid steps in blocks: concatenated, and as the first row and a list of rows."""
    array = file[name]
    size = rows_a_block(array)
    for first in range(0, len(array), size):
        try:
            block = array[first : first + size]
        except OSError as error:
            raise DataError(_why(path, error, f"{path}: {name} is damaged")) from error
        rows = list(block) if lengths is None else [
            row[:n] for row, n in zip(block, lengths[first : first + size], strict=True)
        ]  # fmt: skip
        steps = np.concatenate(rows)
        if steps.dtype.kind == "f" and not np.isfinite(steps).all():
            for j, row in enumerate(rows):
                if not np.isfinite(row).all():
                    where = np.argwhere(~np.isfinite(row))[0]
                    raise DataError(
                        f"{path}: {name}[{first + j}] holds {row[tuple(where)]} at step {where[0]}: "
                        "remove it or end the sequence before it with an array of lengths"
                    )
        yield steps, (first, rows)


def kind_of(
    given: Kind | None,
    low: float,
    high: float,
    whole: bool,
    symbols: bool,
    integers: bool,
    where: str,
) -> tuple[Kind, str]:
    """Kind of values, and how it was found.

    Args:
        given: the kind, if it was given.
        low, high: range of the values.
        whole: whether all are whole numbers.
        symbols: whether a step is a single value, of shape (N, T).
        integers: whether they are stored as integers.
        where: the data, for messages.

    Raises:
        DataError: if the values are not of the kind that was given.
    """  # fmt: skip
    if given is None:
        if whole and low >= 0 and high <= 1:
            return "binary", "inferred: all values are 0 or 1"
        if whole and low >= 0 and integers:
            if symbols and high < MAX_SYMBOLS:
                return "categorical", "inferred: whole numbers of shape (N, T)"
            if high < MAX_COUNT:
                return "counts", f"inferred: integers from {low:g} to {high:g}"
        if whole and low >= 0 and high < MAX_COUNT:
            return "real", (
                "inferred; all values are whole numbers that are stored as floats: --kind counts"
                f"{' or --kind categorical' if symbols else ''} takes them as such"
            )
        if whole:
            return "real", f"inferred; all values are whole numbers, from {low:g} to {high:g}"
        return "real", "inferred"
    if given == "counts" and not (whole and low >= 0 and high < MAX_COUNT):
        raise DataError(
            f"{where} has no counts, which are whole numbers from 0 to {MAX_COUNT - 1}: its values range from "
            f"{low:g} to {high:g}{'' if whole else ' and are not all whole'}"
        )
    if given == "binary" and not (whole and low >= 0 and high <= 1):
        raise DataError(f"{where} is not binary: its values range from {low:g} to {high:g}")
    if given == "categorical" and not (whole and 0 <= low <= high < MAX_SYMBOLS and symbols):
        raise DataError(
            f"{where} is not categorical, which requires whole numbers from 0 to {MAX_SYMBOLS - 1} of shape "
            f"(N, T); its values range from {low:g} to {high:g}"
        )
    return given, "as given"


def _owners(
    file: h5py.File, shapes: dict[str, tuple[int, ...]], arrays: dict[str, str]
) -> dict[str, np.ndarray]:
    """Map each array to the split of each row, as an index into ``SPLITS``.

    Large arrays are split by block, so that rows which are read together belong to the same split.
    """
    if "" not in arrays:
        return {arrays[s]: np.full(shapes[arrays[s]][0], i) for i, s in enumerate(SPLITS)}
    name = arrays[""]
    number = shapes[name][0]
    together = rows_a_block(file[name])
    together = together if number >= 100 * together else 1
    blocks_of_rows = -(-number // together)
    order = np.random.default_rng(0).permutation(blocks_of_rows)
    small = held_out(blocks_of_rows, f"{file.filename}: {name} has {number} sequences")
    owner = np.zeros(blocks_of_rows, dtype=np.int8)
    owner[order[:small]], owner[order[small : 2 * small]] = 1, 2
    return {name: np.repeat(owner, together)[:number]}

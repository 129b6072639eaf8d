"""Data that are given in Python: tensors, data loaders, or splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pyro_zf.batch import SequenceBatch
from pyro_zf.data.arrays import Extreme, Sampled, kind_of
from pyro_zf.data.covariates import ConditionedDataset, covariates_of
from pyro_zf.data.datasets import (
    ArrayDataset,
    DataError,
    DataSource,
    SequenceDataset,
    Splits,
    held_out,
)
from pyro_zf.data.store import SPLITS
from pyro_zf.data.values import Kind, Values

__all__ = ["splits_of"]

log = logging.getLogger(__name__)


def splits_of(data: Any, kind: Kind | None = None) -> Splits:
    """Convert data that are given in Python to splits in memory.

    Args:
        data: one of

            - :class:`Splits`, which are returned as they are;
            - a :class:`torch.utils.data.DataLoader`, whose batches are a tensor of values, a tuple (values,
              lengths) or (values, lengths, covariates), a mapping with these names, or a
              :class:`~pyro_zf.SequenceBatch` whose inputs are the delayed targets. It is read once, with a
              fixed order where it shuffles; its sequences are split 90/5/5 at random;
            - a tensor of all values, or a list of such batches;
            - a mapping of ``"train"``, ``"valid"`` and ``"test"`` to any of these.

            Values have shape (batch, time, size), or (batch, time) for symbols. Covariates are those of
            :func:`~pyro_zf.data.covariates.covariates_of`: whole numbers of shape (batch,) are classes.
        kind: kind of the values. Default: as for :func:`~pyro_zf.data.load_hdf5`. Real numbers are not
            normalised.

    Raises:
        DataError: if the batches have another form, or there are fewer than three sequences.

    Example:
        >>> loader = DataLoader((torch.rand(40, 6, 4) > 0.5).float(), batch_size=8)
        >>> splits = splits_of(loader)
        >>> splits.kind, len(splits.train), len(splits.test)
        ('binary', 36, 2)
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Mapping):
        if missing := [split for split in SPLITS if split not in data]:
            raise DataError(
                f"data has no {', '.join(missing)}: give a mapping of train, valid and test to loaders"
            )
        read = {split: _read(data[split], f"the {split} data") for split in SPLITS}
        parts = {split: found.rows for split, found in read.items()}
        how, empty = "with the splits given", sum(found.empty for found in read.values())
        starts = {found.start for found in read.values()}
    else:
        whole = _read(data, "the data")
        number, empty, starts = len(whole.rows), whole.empty, {whole.start}
        small = held_out(number, f"the data have {number} sequences")
        order = np.random.default_rng(0).permutation(number)
        places = {
            "train": order[2 * small :], "valid": order[:small], "test": order[small : 2 * small],
        }  # fmt: skip
        parts = {split: [whole.rows[i] for i in np.sort(of)] for split, of in places.items()}
        how = f"split {'/'.join(str(len(part)) for part in parts.values())} at random"
    values, why, warnings = _values(
        [row for part in parts.values() for row, _ in part], kind, starts
    )
    covariates, names = _covariates(parts)
    datasets: dict[str, SequenceDataset] = {}
    for split, part in parts.items():
        datasets[split] = _dataset([row for row, _ in part], values)
        if covariates is not None:
            datasets[split] = ConditionedDataset(datasets[split], covariates[split])
    findings = [f"kind {values.kind} ({why}), {values.size} " + (
        "symbols" if values.kind == "categorical" else "values per step"
    )]  # fmt: skip
    findings += [f"{split}: {len(dataset):,} sequences" for split, dataset in datasets.items()]
    if empty:
        findings.append(f"{empty:,} sequences of length 0 were left out")
    splits = Splits.of(
        datasets, DataSource("data given in Python", how, False), findings=tuple(findings),
        covariate_names=names,
    )  # fmt: skip
    if splits.kind == "real":
        mean, std = splits.statistics("train").moments_by_dimension()
        if max(abs(mean).max(), std.max()) > 10 or std.min() < 0.01:
            warnings.append(
                f"the values have means of up to {abs(mean).max():.3g} and standard deviations {std.min():.3g} to "
                f"{std.max():.3g}; they are not normalised automatically, and training works best with means near "
                "0 and standard deviations near 1"
            )
    for warning in warnings:
        log.warning("the data: %s", warning)
    return splits


Row = tuple[np.ndarray, "np.ndarray | None"]


@dataclass
class _Found:
    """Sequences with their covariates, the number of those without steps, and the start symbol, if given."""

    rows: list[Row]
    empty: int = 0
    start: int | None = None


def _read(data: Any, what: str) -> _Found:
    """The sequences of all batches."""
    if isinstance(data, torch.Tensor):
        data = [data]
    elif isinstance(data, list) and all(isinstance(x, torch.Tensor) for x in data):
        raise DataError(
            f"{what}: a list of tensors may be of batches or of sequences; give a DataLoader, or one tensor "
            "and the lengths as [(values, lengths)]"
        )
    elif not isinstance(data, (DataLoader, list, tuple)):
        if isinstance(data, np.ndarray):
            raise DataError(f"{what} are a NumPy array: give torch.from_numpy(array)")
        raise DataError(
            f"{what} cannot be of type {type(data).__name__}: give Splits, a DataLoader, a tensor, or a mapping of "
            "train, valid and test to these"
        )
    found = _Found([])
    with torch.random.fork_rng([]):  # a loader that shuffles gives the same order each time
        torch.manual_seed(0)
        generator = getattr(data, "generator", None)
        state = None if generator is None else generator.get_state()
        for batch in data:
            _add(batch, what, found)
        if generator is not None and state is not None:
            generator.set_state(state)
    if not found.rows:
        raise DataError(f"{what} have no sequences with at least one step")
    return found


def _add(batch: Any, what: str, found: _Found) -> None:
    targets, lengths, covariates = _parts(batch, what, found)
    if targets.dim() not in (2, 3) or targets.shape[-1] == 0:
        raise DataError(
            f"{what}: a batch has shape {tuple(targets.shape)}; it should be (batch, time, size), or (batch, "
            "time) for symbols"
        )
    if targets.is_complex():
        raise DataError(f"{what}: a batch holds {targets.dtype}, which is not supported")
    number = [targets.shape[1]] * len(targets)
    if lengths is not None:
        whole = lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.dim() != 1
        number = lengths.reshape(-1).tolist()
        if (
            whole
            or len(number) != len(targets)
            or not all(0 <= n <= targets.shape[1] for n in number)
        ):
            raise DataError(
                f"{what}: a batch of {len(targets)} sequences of {targets.shape[1]} steps has lengths "
                f"{lengths.tolist()}; they should be whole numbers of shape (batch,), one per sequence"
            )
    plain = targets.detach().cpu()
    values = (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()
    of_rows: list[np.ndarray | None] = [None] * len(values)
    if covariates is not None:
        if covariates.dim() == 0 or len(covariates) != len(targets):
            raise DataError(
                f"{what}: a batch of {len(targets)} sequences has covariates of shape {tuple(covariates.shape)}"
            )
        of_rows = list(covariates.detach().cpu().numpy())
    for row, n, c in zip(values, number, of_rows, strict=True):
        if n:
            found.rows.append((row[:n], c))
    found.empty += sum(n == 0 for n in number)


def _parts(
    batch: Any, what: str, found: _Found
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Values, lengths and covariates of a batch of a loader."""
    if isinstance(batch, SequenceBatch):
        return _parts_of_batch(batch, what, found)
    if isinstance(batch, Mapping):
        names = ("values", "lengths", "covariates")
        if "values" not in batch or not set(batch) <= set(names):
            found_names = ", ".join(map(str, batch))
            raise DataError(
                f"{what}: a batch has the entries {found_names}; they should be values, and if need be lengths "
                "and covariates"
            )
        batch = [batch.get(name) for name in names]
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if not 1 <= len(parts) <= 3 or not all(x is None or isinstance(x, torch.Tensor) for x in parts):
        kinds = ", ".join(type(x).__name__ for x in parts)
        raise DataError(
            f"{what}: a batch is ({kinds}); it should be a tensor of values, (values, lengths), (values, "
            "lengths, covariates) or a SequenceBatch"
        )
    values, lengths, covariates = [*parts, None, None][:3]
    if values is None:
        raise DataError(f"{what}: a batch has no values")
    return values, lengths, covariates


def _parts_of_batch(
    batch: SequenceBatch, what: str, found: _Found
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    if batch.targets is None:
        raise DataError(f"{what}: a SequenceBatch without targets cannot be learnt from")
    if batch.continues or not batch.has_start_symbol:
        raise DataError(
            f"{what}: a SequenceBatch that continues another is not supported here: give Splits of TextStreams"
        )
    first, later = batch.inputs[:, 0], batch.inputs[:, 1:]
    mask = torch.ones_like(later, dtype=torch.bool)
    if batch.mask is not None:
        mask = (
            batch.mask[:, 1:].reshape(*later.shape[:2], *(1,) * (later.dim() - 2)).expand_as(later)
        )
    delayed = torch.equal(later[mask], batch.targets[:, :-1][mask])
    start = first.reshape(-1)[0] if first.numel() else None
    symbols = not first.is_floating_point() and first.dim() == 1
    if start is not None and symbols and found.start in (None, int(start)):
        found.start = int(start)
    expected = found.start if symbols and found.start is not None else 0
    same = start is None or bool(torch.eq(first, expected).all())
    if not (delayed and same):
        raise DataError(
            f"{what}: the inputs of a SequenceBatch are not the targets delayed by one step after a start "
            "symbol (zero for numbers), which is what models are trained on here"
        )
    return batch.targets, batch.lengths, batch.covariates


def _values(
    rows: list[np.ndarray], kind: Kind | None, starts: set[int | None]
) -> tuple[Values, str, list[str]]:
    """Kind, size and range of the values, how the kind was found, and warnings."""
    shapes = {row.shape[1:] for row in rows}
    if len(shapes) > 1:
        raise DataError(f"sequences differ in the shape of a step: {sorted(shapes)}")
    (shape,) = shapes
    extremes, sampled, whole = (Extreme(-1), Extreme(1)), Sampled(), True
    for i, row in enumerate(rows):
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            flat = row.reshape(len(row), -1)
            step, place = np.argwhere(~np.isfinite(flat))[0]
            raise DataError(
                f"the data contain values that are not finite: sequence {i} has {flat[step, place]} at step {step}"
            )
        sampled.add(row)
        for extreme in extremes:
            extreme.add(row, "sequence ", i, [row])
        whole = whole and (row.dtype.kind in "iub" or bool((row == np.rint(row)).all()))
    low, high = (extreme.value for extreme in extremes)
    if low == high:
        raise DataError(f"all values of the data are {low:g}: there is nothing to learn")
    for extreme in extremes:
        if abs(extreme.value) > float(np.finfo(np.float32).max):
            raise DataError(f"{extreme.where} is beyond the range of 32-bit numbers")
    integers = all(row.dtype.kind in "iub" for row in rows)
    found, why = kind_of(kind, low, high, whole, not shape, integers, "the data")
    if found == "binary" and not shape and integers:  # one symbol of two per step
        found = "categorical" if kind is None else found
    if found == "categorical":
        given = starts - {None}
        if len(given) > 1:
            raise DataError(f"the batches begin with different start symbols: {sorted(given)}")  # type: ignore[type-var]
        start = given.pop() if given else int(high) + 1
        assert start is not None
        return Values("categorical", max(int(high), start) + 1, start=start), why, []
    warnings = sampled.far(extremes) if found in ("real", "counts") else []
    size = shape[0] if shape else 1
    return Values(found, size, high=int(high) if found == "counts" else 0), why, warnings


def _covariates(
    parts: Mapping[str, list[Row]],
) -> tuple[dict[str, np.ndarray] | None, tuple[str, ...] | None]:
    """Covariates of the sequences of each split, and the names of the classes."""
    every = [c for part in parts.values() for _, c in part]
    given = [c for c in every if c is not None]
    if not given:
        return None, None
    if len(given) < len(every):
        raise DataError(
            f"{len(every) - len(given)} of {len(every)} sequences have no covariates: give them in all batches"
        )
    if len({(c.shape[-1:], c.ndim) for c in given}) > 1:
        raise DataError("sequences differ in the shape of their covariates")
    if given[0].ndim == 2:  # per step: padded like the values
        rows = [row for part in parts.values() for row, _ in part]
        if any(len(c) < len(row) for c, row in zip(given, rows, strict=True)):
            raise DataError("there are covariates for fewer steps than a sequence has")
        most = max(len(c) for c in given)
        steps = [len(row) for row in rows]  # what follows is padding and may be anything
        given = [np.pad(c[:n], ((0, most - n), (0, 0))) for c, n in zip(given, steps, strict=True)]
    values, names = covariates_of(np.stack(given), "covariates of the data")
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    return dict(zip(parts, np.split(values, ends), strict=True)), names


def _dataset(rows: list[np.ndarray], values: Values) -> ArrayDataset:
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max(), *rows[0].shape[1:]), rows[0].dtype)
    for into, row in zip(padded, rows, strict=True):
        into[: len(row)] = row
    if padded.ndim == 2 and values.kind != "categorical":
        padded = padded[:, :, None]
    same = bool((lengths == lengths[0]).all())
    return ArrayDataset(padded, None if same else lengths, None, values)

"""Data that are given in Python: tensors, data loaders, or splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pyro_zf.batch import SequenceBatch
from pyro_zf.data.covariates import ConditionedDataset, covariates_of
from pyro_zf.data.datasets import ArrayDataset, DataError, DataSource, SequenceDataset, Splits
from pyro_zf.data.values import Kind, Values

__all__ = ["splits_of"]

SPLITS = ("train", "valid", "test")


def splits_of(data: Any, kind: Kind | None = None) -> Splits:
    """Convert data that are given in Python to splits in memory.

    Args:
        data: one of

            - :class:`Splits`, which are returned as they are;
            - a :class:`torch.utils.data.DataLoader`, whose batches are a tensor of values, a tuple (values,
              lengths) or (values, lengths, covariates), a mapping with these names, or a
              :class:`~pyro_zf.SequenceBatch`. It is read once; its sequences are split 90/5/5 at random;
            - a mapping of ``"train"``, ``"valid"`` and ``"test"`` to such loaders.

            Values have shape (batch, time, size), or (batch, time) for symbols.
        kind: kind of the values. Default: bits if all values are 0 or 1; integers are counts, or symbols if
            they have no third dimension; other numbers are real. Real numbers are not normalised.

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
        parts = {split: _read(data[split], f"the {split} data") for split in SPLITS}
        how = "with the splits given"
    elif isinstance(data, (DataLoader, Sequence)):
        whole = _read(data, "the data")
        if len(whole) < 3:
            raise DataError(
                f"the data have {len(whole)} sequences; at least 3 are needed for training, validation "
                "and test"
            )
        order = np.random.default_rng(0).permutation(len(whole))
        small = max(round(0.05 * len(whole)), 1)
        chosen = {
            "valid": order[:small],
            "test": order[small : 2 * small],
            "train": order[2 * small :],
        }
        parts = {split: [whole[i] for i in np.sort(chosen[split])] for split in SPLITS}
        how = "split 90/5/5 at random"
    else:
        raise DataError(
            f"data cannot be a {type(data).__name__}: give Splits, a DataLoader, or a mapping of train, "
            "valid and test to DataLoaders"
        )
    values, why = _values([row[0] for part in parts.values() for row in part], kind)
    datasets = {split: _dataset(part, values) for split, part in parts.items()}
    findings = [f"kind {values.kind} ({why}), {values.size} " + (
        "symbols" if values.kind == "categorical" else "values per step"
    )]  # fmt: skip
    findings += [f"{split}: {len(dataset):,} sequences" for split, dataset in datasets.items()]
    return Splits.of(
        datasets, DataSource("data given in Python", how, False), findings=tuple(findings)
    )


Row = tuple[np.ndarray, "np.ndarray | None"]


def _read(batches: Iterable[Any], what: str) -> list[Row]:
    """The sequences of all batches, each with its covariates."""
    rows: list[Row] = []
    for batch in batches:
        targets, lengths, covariates = _parts(batch, what)
        if targets.dim() not in (2, 3):
            raise DataError(
                f"{what}: a batch has shape {tuple(targets.shape)}; it should be (batch, time, size), or "
                "(batch, time) for symbols"
            )
        number = [targets.shape[1]] * len(targets) if lengths is None else lengths.tolist()
        if len(number) != len(targets) or min(number) < 0 or max(number) > targets.shape[1]:
            raise DataError(
                f"{what}: a batch of {len(targets)} sequences of {targets.shape[1]} steps has lengths {number}"
            )
        values = targets.detach().cpu().numpy()
        if targets.is_floating_point() and not all(
            np.isfinite(row[:n]).all() for row, n in zip(values, number, strict=True)
        ):
            raise DataError(f"{what}: a batch contains values that are not finite")
        of_rows: Any = [None] * len(targets)
        if covariates is not None:
            of_rows, _ = covariates_of(
                covariates.detach().cpu().float().numpy(), f"{what}: covariates"
            )
            if len(of_rows) != len(targets):
                raise DataError(
                    f"{what}: a batch of {len(targets)} sequences has covariates for {len(of_rows)}"
                )
        rows += [(row[:n], c) for row, n, c in zip(values, number, of_rows, strict=True) if n]
    if not rows:
        raise DataError(f"{what} have no sequences with at least one step")
    return rows


def _parts(batch: Any, what: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Values, lengths and covariates of a batch of a loader."""
    if isinstance(batch, SequenceBatch):
        if batch.targets is None:
            raise DataError(f"{what}: a SequenceBatch without targets cannot be learnt from")
        return batch.targets, batch.lengths, batch.covariates
    if isinstance(batch, Mapping):
        names = ("values", "lengths", "covariates")
        if "values" not in batch or not set(batch) <= set(names):
            found = ", ".join(map(str, batch))
            raise DataError(
                f"{what}: a batch has the entries {found}; they should be values, and if need be lengths and "
                "covariates"
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
    if not isinstance(values, torch.Tensor):
        raise DataError(f"{what}: a batch has no values")
    return values, lengths, covariates


def _values(rows: list[np.ndarray], kind: Kind | None) -> tuple[Values, str]:
    """Kind, size and range of the values, and how the kind was found."""
    shapes = {row.shape[1:] for row in rows}
    if len(shapes) > 1:
        raise DataError(f"sequences differ in the shape of a step: {sorted(shapes)}")
    (shape,) = shapes
    low, high = min(float(x.min()) for x in rows), max(float(x.max()) for x in rows)
    whole = all(x.dtype.kind in "iub" or bool((x == np.rint(x)).all()) for x in rows)
    integers = all(x.dtype.kind in "iub" for x in rows)
    why = "as given"
    if kind is None:
        why = "inferred"
        if whole and low >= 0 and high <= 1:
            kind = "binary"
        elif integers and low >= 0:
            kind = "counts" if shape else "categorical"
        else:
            kind = "real"
    elif kind != "real" and (not whole or low < 0 or (kind == "binary" and high > 1)):
        raise DataError(f"the data are not {kind}: their values range from {low:g} to {high:g}")
    if kind == "categorical":
        if shape:
            raise DataError("symbols must have shape (batch, time)")
        return Values("categorical", int(high) + 2, start=int(high) + 1), why
    size = shape[0] if shape else 1
    return Values(kind, size, high=int(high) if kind == "counts" else 0), why


def _dataset(rows: list[Row], values: Values) -> SequenceDataset:
    lengths = np.array([len(row) for row, _ in rows])
    first = rows[0][0]
    padded = np.zeros((len(rows), lengths.max(), *first.shape[1:]), first.dtype)
    for into, (row, _) in zip(padded, rows, strict=True):
        into[: len(row)] = row
    if padded.ndim == 2 and values.kind != "categorical":
        padded = padded[:, :, None]
    same = bool((lengths == lengths[0]).all())
    dataset = ArrayDataset(padded, None if same else lengths, None, values)
    covariates = [c for _, c in rows if c is not None]
    if not covariates:
        return dataset
    if covariates[0].ndim == 2:  # per step: pad them like the values
        most = max(lengths.max(), *(len(c) for c in covariates))
        covariates = [np.pad(c, ((0, most - len(c)), (0, 0))) for c in covariates]
    return ConditionedDataset(dataset, np.stack(covariates))

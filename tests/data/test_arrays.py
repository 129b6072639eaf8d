"""Tests of user arrays: inferred kinds, reading, and rejected input."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_zf.data import Batches, DataError, blocks, load_hdf5, make_batches

SPLITS = ("train", "valid", "test")
RNG = np.random.default_rng(0)
REAL = RNG.normal(5.0, [1.0, 20.0], (40, 6, 2)).astype(np.float32)
BITS = RNG.integers(0, 2, (40, 6, 3))
SYMBOLS = RNG.integers(0, 9, (40, 6))


@pytest.fixture
def write(tmp_path: Path, cache: Path) -> Any:
    number = itertools.count()

    def writer(**content: Any) -> Path:
        path = tmp_path / f"mine{next(number)}.h5"
        with h5py.File(path, "w") as file:
            for name, array in content.items():
                file[name] = array
        return path

    return writer


def rows_of(data: Any, split: str) -> np.ndarray:
    (batch,) = Batches(data[split], 1000)
    return batch.targets.numpy()


@pytest.mark.parametrize(
    ("array", "kind", "size"),
    [
        (REAL, "real", 2), (REAL[..., 0], "real", 1), (BITS, "binary", 3),
        (BITS[..., 0].astype(np.float64), "binary", 1), (BITS.astype(bool), "binary", 3),
        (SYMBOLS, "categorical", 10), (BITS * 2, "counts", 3), (BITS * 2.0, "real", 3), (SYMBOLS.astype(float), "real", 1),
        (SYMBOLS - 3, "real", 1),
    ],
)  # fmt: skip
def test_the_kind_is_inferred(array: np.ndarray, kind: str, size: int, write: Any) -> None:
    data = load_hdf5(write(x=array))
    assert (data.kind, data.data_size) == (kind, size), "symbols include a start symbol"
    assert [len(data[s]) for s in SPLITS] == [36, 2, 2]
    assert kind in data.findings[0]
    found = np.concatenate([rows_of(data, s) for s in SPLITS])
    expected = array.reshape(40, 6, -1).astype(float)
    if kind == "real":
        rows = np.concatenate([data[s].rows for s in SPLITS])  # type: ignore[attr-defined]
        train = expected[data.train.rows].reshape(-1, expected.shape[-1])  # type: ignore[attr-defined]
        expected = ((expected - train.mean(0)) / train.std(0))[rows]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = np.concatenate([data[s].rows for s in SPLITS])  # type: ignore[attr-defined]
    assert sorted(rows) == list(range(40)), "each row is in exactly one split"


def test_given_splits_lengths_and_keys(write: Any) -> None:
    lengths = RNG.integers(1, 7, 40)
    ragged = REAL.copy()
    for row, n in zip(ragged, lengths, strict=True):
        row[n:] = np.nan  # padding may be anything
    data = load_hdf5(write(train=ragged, train_lengths=lengths, valid=REAL[:3], test=REAL[:4]))
    assert [len(data[s]) for s in SPLITS] == [40, 3, 4]
    assert np.array_equal(data.train.lengths, lengths)  # type: ignore[arg-type]
    (batch,) = Batches(data.train, 100)
    assert batch.targets is not None
    assert batch.mask is not None
    assert batch.targets.isfinite().all()
    real = batch.targets[batch.mask]
    assert real.mean(0).abs().max() < 1e-5
    assert (real.std(0, correction=0) - 1).abs().max() < 1e-5
    two = write(a=REAL, b=SYMBOLS)
    with pytest.raises(DataError, match=r"has 2 arrays \(a, b\): select one with --hdf5-key"):
        load_hdf5(two)
    assert load_hdf5(two, "b").kind == "categorical"
    assert load_hdf5(two, "b", "real").kind == "real"
    with pytest.raises(DataError, match=r"has no array 'c'; it has a, b"):
        load_hdf5(two, "c")
    nested = write(**{"group/x": REAL, "group/lengths": lengths})
    assert np.array_equal(
        np.sort(load_hdf5(nested).train.lengths), np.sort(lengths[load_hdf5(nested).train.rows])
    )  # type: ignore[arg-type, attr-defined]


def test_sequences_without_steps_are_left_out(write: Any) -> None:
    lengths = RNG.integers(1, 7, 40)
    lengths[::3] = 0
    data = load_hdf5(write(x=REAL, x_lengths=lengths))
    assert sum(len(data[s]) for s in SPLITS) == 26
    assert all(data[s].lengths.min() > 0 for s in SPLITS)  # type: ignore[union-attr]
    assert data.findings[-1] == "14 sequences of length 0 were left out"
    assert sum(data.statistics(s).num_sequences for s in SPLITS) == 26
    with pytest.raises(DataError, match="has no steps: all lengths are 0"):
        load_hdf5(write(x=REAL, x_lengths=0 * lengths))
    with pytest.raises(DataError, match="no sequence of valid with at least one step is left"):
        load_hdf5(write(train=REAL, valid=REAL, valid_lengths=0 * lengths, test=REAL))


def test_large_numbers_of_small_spread(write: Any) -> None:
    times = 1.7e9 + RNG.normal(0.0, 6.5, (50, 8, 1))
    data = load_hdf5(write(wavelengths=times))
    assert data.values.std == pytest.approx(times.std(), rel=0.05)
    rows = np.concatenate([rows_of(data, s) for s in SPLITS])
    assert abs(rows.mean()) < 0.05
    assert rows.std() == pytest.approx(1.0, abs=0.05)
    assert data.marginal_nats("train") == pytest.approx(8 * 0.5 * (1 + np.log(2 * np.pi)), rel=1e-6)
    wide = load_hdf5(write(x=REAL.astype(np.longdouble)))
    np.testing.assert_allclose(rows_of(wide, "test"), rows_of(load_hdf5(write(x=REAL)), "test"))


def test_a_damaged_chunk_of_the_users_file(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "crc.h5"
    with h5py.File(path, "w") as file:
        array = file.create_dataset("x", data=REAL, chunks=(10, 6, 2), fletcher32=True)
        place = array.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"crc\.h5: x is damaged"):
        load_hdf5(path)


def broken(value: float) -> np.ndarray:
    array = REAL.copy()
    array[7, 3, 1] = value
    return array


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": broken(np.nan)}, r"x\[7\] holds nan at step 3"),
        ({"x": broken(np.inf)}, r"x\[7\] holds inf at step 3"),
        (
            {"x": REAL, "x_lengths": np.full(40, 7)},
            r"sequence 0 has length 7, .* 6 steps \(40 such",
        ),
        ({"x": REAL, "x_lengths": np.full(40, -1)}, "sequence 0 has length -1"),
        ({"x": REAL, "lengths": np.full(39, 2)}, r"int64 of shape \(39,\); it should be 40 whole"),
        ({"x": REAL, "lengths": np.full(40, 2.5)}, r"float64 of shape \(40,\)"),
        ({"x": REAL[0, 0]}, r"x has shape \(2,\); it should be \(N, T, D\) or \(N, T\)"),
        ({"x": REAL[:0]}, r"x has shape \(0, 6, 2\)"),
        ({"x": h5py.Empty("f")}, "x has shape None"),
        ({"x": REAL[:2]}, "x has 2 sequences; at least 3 are needed"),
        ({"x": np.full((5, 2), b"a")}, "x holds .*, which is not numeric"),
        (
            {"train": REAL, "valid": REAL, "test": REAL[..., :1]},
            "differ in the number of values per step",
        ),
        ({}, r"has 0 arrays \(none\)"),
    ],
)
def test_arrays_that_are_refused(
    content: dict[str, Any], message: str, write: Any, cache: Path
) -> None:
    path = write(**content)
    with pytest.raises(DataError, match=message) as error:
        load_hdf5(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    prepared = cache / "prepared"
    assert not prepared.exists() or [p.name for p in prepared.iterdir()] == [".locks"]


def test_wrong_kinds_and_invalid_files(write: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not binary: its values range from 0 to 8"):
        load_hdf5(write(x=SYMBOLS), kind="binary")
    with pytest.raises(
        DataError, match="is not categorical, which requires whole numbers from 0 to 99999"
    ):
        load_hdf5(write(x=SYMBOLS + 10**12), kind="categorical")
    with pytest.raises(DataError, match="is not categorical"):
        load_hdf5(write(x=REAL), kind="categorical")
    with pytest.raises(DataError, match="is not a file"):
        load_hdf5(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match="is damaged or not an HDF5 file"):
        load_hdf5(tmp_path / "text.h5")
    whole = write(x=REAL).read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is damaged or not an HDF5 file"):
        load_hdf5(tmp_path / "half.h5")


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    number=st.integers(3, 300), steps=st.integers(1, 5), chunk=st.integers(1, 40), seed=st.integers(0, 3)
)  # fmt: skip
def test_large_arrays_are_read_in_blocks(
    number: int,
    steps: int,
    chunk: int,
    seed: int,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "large.h5"
    array = np.arange(number * steps, dtype=np.float32).reshape(number, steps, 1)
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x", data=array, chunks=(min(chunk, number), steps, 1), compression="gzip"
        )
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "IN_MEMORY", 0)
        patch.setattr(blocks, "BLOCK_BYTES", 64)
        patch.setattr(blocks, "KEPT_BYTES", 200)
        data = load_hdf5(path)
        seen: list[float] = []
        for split in SPLITS:
            for batch in make_batches(data[split], 4, seed=seed).epoch(1):
                seen += data.values.restored(batch.targets).ravel().tolist()  # type: ignore[arg-type]
            read = data[split]._blocks  # type: ignore[attr-defined]
            assert read.kept_bytes <= 200 or len(read._kept) == 1
        np.testing.assert_allclose(np.sort(seen), array.ravel(), atol=0.01)

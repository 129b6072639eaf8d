"""Settings of the data: how they are declared, validated and used to load a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pyro_zf.data import (
    DataError,
    Splits,
    load_blizzard,
    load_hdf5,
    load_imdb,
    load_mnist,
    load_ptb,
    load_text,
    load_timit,
    load_wav,
)
from pyro_zf.data.mnist import Binarization, Frame
from pyro_zf.data.text import Level
from pyro_zf.data.values import Kind
from pyro_zf.training.checks import UsageError, check_name, check_options

__all__ = ["DATASETS", "DataConfig", "build_data", "check_data", "data_record"]

Dataset = Literal["mnist", "timit", "blizzard", "imdb", "ptb", "wav", "text", "hdf5"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)


@dataclass(frozen=True)
class DataConfig:
    """Selection of a data set, and how it is converted to sequences."""

    dataset: Dataset = "mnist"
    """Data set to train on: one of those in the papers, or your own sound files (wav), text or arrays
    (hdf5)."""
    data: Path | None = None
    """Path of your own data: a folder of sound files (wav), a UTF-8 text file (text) or an HDF5 file
    (hdf5)."""
    data_dir: Path | None = None
    """Folder with the data sets of the papers. It is searched before $PYRO_ZF_DATA and the user cache
    (mnist and ptb), or instead of them (timit, blizzard and imdb)."""
    protocol: str = "default"
    """How the data are split and segmented. default avoids leakage between splits; srnn (timit), vrnn
    (blizzard) and sentences (imdb) are the protocols behind the published results."""
    segment: int | None = None
    """Length of the segments that sequences are cut into: frames (timit, blizzard, wav), characters (ptb) or
    symbols (text)."""
    carry_state: bool | None = None
    """Whether each text segment starts from the final state of the previous segment (ptb, text)."""
    frame: Frame | None = None
    """Unit that one step of an image consists of (mnist)."""
    binarization: Binarization = "fixed"
    """fixed uses Larochelle's binarization; stochastic resamples the bits from grey levels each epoch
    (mnist)."""
    shift: int = 0
    """Largest number of pixels by which training images are shifted in each direction, at random in each epoch
    (mnist)."""
    shift_epochs: int | None = None
    """Number of epochs with shifts. Default: all (mnist)."""
    level: Level | None = None
    """Unit that one step of your own text consists of (text)."""
    vocabulary_size: int | None = None
    """Number of words (imdb, by default 16000) or symbols (text) to keep, chosen by their frequency in the
    training data."""
    sample_rate: int | None = None
    """Sampling rate in Hz to which your own sound files are converted (wav). Default: the most common rate
    among the files."""
    frame_size: int | None = None
    """Number of audio samples per step for your own sound files (wav). Default: 200."""
    hdf5_key: str | None = None
    """Name of the array to read from an HDF5 file (hdf5)."""
    kind: Kind | None = None
    """Kind of the values in your own arrays (hdf5). Default: inferred from the data and printed."""
    condition_on: str | None = None
    """Covariates that all networks are conditioned on: label (mnist, if the digits have labels), speaker
    (timit), or the name of an array in your file (hdf5)."""
    workers: int | None = None
    """Number of worker processes that prefetch batches. Default: none; the training process loads them
    itself."""


#: Options that apply to some data sets only.
_ONLY_OF: dict[str, tuple[str, ...]] = {
    "data": ("wav", "text", "hdf5"),
    "data_dir": ("mnist", "timit", "blizzard", "imdb", "ptb"),
    "protocol": ("timit", "blizzard", "imdb"),
    "segment": ("timit", "blizzard", "ptb", "wav", "text"),
    "carry_state": ("ptb", "text"),
    "frame": ("mnist",),
    "binarization": ("mnist",),
    "shift": ("mnist",),
    "shift_epochs": ("mnist",),
    "level": ("text",),
    "vocabulary_size": ("imdb", "text"),
    "sample_rate": ("wav",),
    "frame_size": ("wav",),
    "hdf5_key": ("hdf5",),
    "kind": ("hdf5",),
    "condition_on": ("mnist", "timit", "hdf5"),
}
_HINTS = {"data_dir": "; use --data for your own files"}
_EXAMPLES = {"wav": "a folder of sound files", "text": "a UTF-8 text file", "hdf5": "an HDF5 file"}


def check_data(config: DataConfig) -> None:
    """Reject options that do not apply to the data set.

    Raises:
        UsageError: for the first such option.
    """
    if getattr(config, "own_data", False):
        given = [name for name in _ONLY_OF if getattr(config, name) != getattr(type(config), name)]
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')} selects or converts data, but the data were given to train()"
            )
        return
    check_name("dataset", config.dataset, dict.fromkeys(DATASETS))
    shown = f"--dataset {config.dataset}"
    check_options(config, _ONLY_OF, config.dataset, shown, _HINTS)
    if config.dataset in _EXAMPLES and config.data is None:
        raise UsageError(
            f"--dataset {config.dataset} needs --data, the path of {_EXAMPLES[config.dataset]}"
        )
    for option in ("segment", "vocabulary_size", "sample_rate", "frame_size"):
        value = getattr(config, option)
        flag = f"--{option.replace('_', '-')}"
        if value is not None and value < 1:
            raise UsageError(f"{flag} must be at least 1, got {value}")
        if value is not None and value > 10**7:
            raise UsageError(f"{flag} must be at most 10,000,000, got {value}")
    if not 0 <= config.shift < 28:
        raise UsageError(f"--shift must be from 0 to 27 pixels, got {config.shift}")
    if config.shift_epochs is not None and not config.shift:
        raise UsageError("--shift-epochs requires --shift")
    if config.shift_epochs is not None and config.shift_epochs < 1:
        raise UsageError(f"--shift-epochs must be at least 1, got {config.shift_epochs}")
    if config.workers is not None and config.workers < 0:
        raise UsageError(f"--workers must not be negative, got {config.workers}")
    if config.workers is not None and config.workers > 1000:
        raise UsageError(f"--workers must be at most 1,000, got {config.workers}")


def build_data(config: DataConfig, evaluated: bool = False) -> Splits:
    """Load the data of a resolved configuration.

    Args:
        config: the configuration.
        evaluated: whether the data are for evaluating a trained model; training images are then not shifted.

    Raises:
        DataError: if the data are missing or malformed.
    """
    if evaluated:
        config = dataclasses.replace(config, shift=0, shift_epochs=None)
    given: dict[str, Any] = {
        option: getattr(config, option)
        for option, datasets in _ONLY_OF.items()
        if config.dataset in datasets and getattr(config, option) is not None
    }
    path = given.pop("data", None)
    names = {"carry_state": "carried", "hdf5_key": "key"}
    options = {names.get(name, name): value for name, value in given.items()}
    return _LOADERS[config.dataset](*([path] if path else []), **options)


_LOADERS: dict[str, Callable[..., Splits]] = {
    "mnist": load_mnist,
    "timit": load_timit,
    "blizzard": load_blizzard,
    "imdb": load_imdb,
    "ptb": load_ptb,
    "wav": load_wav,
    "text": load_text,
    "hdf5": load_hdf5,
}


def data_record(splits: Splits) -> dict[str, Any]:
    """The properties of the data that a model depends on, as plain types.

    They are saved with the run and compared when the run is loaded.
    """
    values = splits.values
    return {
        "name": splits.source.name,
        "kind": values.kind,
        "size": values.size,
        "mean": np.asarray(values.mean).tolist(),
        "std": np.asarray(values.std).tolist(),
        "start": values.start,
        "high": values.high,
        "unit": splits.unit,
        "step_unit": splits.step_unit,
        "sample_rate": splits.sample_rate,
        "joiner": splits.joiner,
        "vocabulary": None if splits.vocabulary is None else list(splits.vocabulary),
        "covariates": splits.covariate_size,
        "covariate_names": None if splits.covariate_names is None else list(splits.covariate_names),
        "num_steps": splits.num_steps,
        "content": splits.content_key(),
    }


def check_same_data(run: Path, trained_on: Any, found: dict[str, Any]) -> None:
    """Check that the data are those that a run was trained on, by comparing their records.

    Raises:
        DataError: if they differ.
    """
    if not isinstance(trained_on, dict):
        raise DataError(f"{run} was written by an older version, which did not record its data")
    for name, value in trained_on.items():
        if found.get(name) == value:
            continue
        if name in ("mean", "std") and np.allclose(found[name], value, rtol=1e-9):
            continue
        differs = "" if name == "name" else f" with {'' if name == 'content' else 'an'}other {name}"
        raise DataError(
            f"{run} was trained on {trained_on['name']}, but the data found are "
            f"{found['name']}{differs}; specify the original data, prepared in the same way"
            + (", with --data-dir or --data" if found["name"] != "data given in Python" else "")
        )

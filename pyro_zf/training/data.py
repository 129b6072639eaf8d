"""Which data: settings, what is refused of them, and how they are loaded."""

from __future__ import annotations

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
from pyro_zf.training.checks import UsageError, check_options

__all__ = ["DATASETS", "DataConfig", "build_data", "check_data", "data_record"]

Dataset = Literal["mnist", "timit", "blizzard", "imdb", "ptb", "wav", "text", "hdf5"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they become sequences."""

    dataset: Dataset = "mnist"
    """Data to train on: those of the papers, or your own: sounds (wav), a text, arrays (hdf5)."""
    data: Path | None = None
    """Your own data: a folder of sounds (wav), a file of UTF-8 (text), an HDF5 file (hdf5)."""
    data_dir: Path | None = None
    """Folder with the data of the papers; it is searched before $PYRO_ZF_DATA and the user cache."""
    protocol: str = "default"
    """How data are split and cut. default avoids leaks between splits; srnn (timit), vrnn (blizzard) and
    sentences (imdb) are the protocols of the published numbers."""
    segment: int | None = None
    """Steps that a sequence is cut to: frames (timit, blizzard, wav), characters (ptb) or symbols (text)."""
    carry_state: bool | None = None
    """Whether a segment of a text begins with the state in which the one before it ended (ptb, text)."""
    frame: Frame | None = None
    """What a step of an image is (mnist)."""
    binarization: Binarization = "fixed"
    """Larochelle's bits (fixed), or bits drawn anew each epoch from grey levels (mnist)."""
    level: Level | None = None
    """What a step of your own text is."""
    vocabulary_size: int | None = None
    """Words (imdb: 16000) or symbols (text) that are kept, by their frequency in training."""
    sample_rate: int | None = None
    """Of your own sounds, in Hz. Default: that of most files."""
    frame_size: int | None = None
    """Samples per step of your own sounds. Default: 200."""
    hdf5_key: str | None = None
    """Name of the array to take from an HDF5 file."""
    kind: Kind | None = None
    """Of the values of your own arrays. Default: inferred, and printed."""
    condition_on: str | None = None
    """What every network is conditioned on: label (mnist, where the digits have labels), speaker (timit), or
    the name of an array in your file (hdf5)."""
    workers: int | None = None
    """Processes that read batches ahead. Default: none; the training process reads them."""


#: Options that only some data sets have.
_ONLY_OF: dict[str, tuple[str, ...]] = {
    "data": ("wav", "text", "hdf5"),
    "data_dir": ("mnist", "timit", "blizzard", "imdb", "ptb"),
    "protocol": ("timit", "blizzard", "imdb"),
    "segment": ("timit", "blizzard", "ptb", "wav", "text"),
    "carry_state": ("ptb", "text"),
    "frame": ("mnist",),
    "binarization": ("mnist",),
    "level": ("text",),
    "vocabulary_size": ("imdb", "text"),
    "sample_rate": ("wav",),
    "frame_size": ("wav",),
    "hdf5_key": ("hdf5",),
    "kind": ("hdf5",),
    "condition_on": ("mnist", "timit", "hdf5"),
}
_HINTS = {"data_dir": "; your own files are named by --data"}
_EXAMPLES = {"wav": "a folder of sounds", "text": "a file of UTF-8", "hdf5": "an HDF5 file"}


def check_data(config: DataConfig) -> None:
    """Refuse options that the data set does not have.

    Raises:
        UsageError: for the first of them.
    """
    shown = f"--dataset {config.dataset}"
    check_options(config, _ONLY_OF, config.dataset, shown, _HINTS)
    if config.dataset in _EXAMPLES and config.data is None:
        raise UsageError(
            f"--dataset {config.dataset} needs --data, {_EXAMPLES[config.dataset]} of yours"
        )
    for option in ("segment", "vocabulary_size", "sample_rate", "frame_size"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be at least 1, it is {value}")
    if config.workers is not None and config.workers < 0:
        raise UsageError(f"--workers must not be negative, it is {config.workers}")


def build_data(config: DataConfig) -> Splits:
    """The data of a resolved configuration.

    Raises:
        DataError: if they are not to be had, or wrong.
    """
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
    """What a model of the data depends on, as plain types: saved with the run and compared."""
    values = splits.values
    return {
        "name": splits.source.name,
        "kind": values.kind,
        "size": values.size,
        "mean": np.asarray(values.mean).tolist(),
        "std": np.asarray(values.std).tolist(),
        "start": values.start,
        "unit": splits.unit,
        "step_unit": splits.step_unit,
        "sample_rate": splits.sample_rate,
        "joiner": splits.joiner,
        "vocabulary": None if splits.vocabulary is None else list(splits.vocabulary),
        "covariates": splits.covariate_size,
        "content": splits.content_key(),
    }


def check_same_data(run: Path, trained_on: Any, found: dict[str, Any]) -> None:
    """Refuse data other than those that a run was trained on, by the records of both.

    Raises:
        DataError: if they are others.
    """
    if not isinstance(trained_on, dict):
        raise DataError(f"{run} is of an older version, which did not note what its data are")
    for name, value in trained_on.items():
        if found.get(name) == value:
            continue
        if name in ("mean", "std") and np.allclose(found[name], value, rtol=1e-9):
            continue
        differs = "" if name == "name" else f" with {'' if name == 'content' else 'an'}other {name}"
        raise DataError(
            f"{run} was trained on {trained_on['name']}, but what is found here is "
            f"{found['name']}{differs}; name its data by --data-dir or --data, prepared in the same way"
        )

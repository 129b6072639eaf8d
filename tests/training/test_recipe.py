"""Tests of the learning rate, averaged weights, weight decay, dropout and early stopping."""

from __future__ import annotations

import dataclasses
import logging
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_zf.batch import SequenceBatch
from pyro_zf.cli.train import parse_train
from pyro_zf.data import ArrayDataset, DataSource, Splits
from pyro_zf.infer import SVI, TraceMeanField_ELBO
from pyro_zf.models import VRNN, ZForcing
from pyro_zf.nn.cells import Cell, State
from pyro_zf.nn.mlp import join
from pyro_zf.training import TrainConfig, UsageError, read_metrics, resolve, train
from pyro_zf.training.config import command_of
from pyro_zf.training.recipe import (
    averaged_weights,
    averages_of,
    rate_factor,
    recurrent_dropout,
    recurrent_weights,
)


def bits(number: int = 40) -> Splits:
    values = np.random.default_rng(0).integers(0, 2, (number, 5, 4)).astype(np.uint8)
    return Splits(
        ArrayDataset(values[:24]), ArrayDataset(values[24:32]), ArrayDataset(values[32:]),
        DataSource("bits", "", False),
    )  # fmt: skip


def trained(run: Path, updates: int = 12, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """Train a small model, or go on with it; return its last checkpoint."""
    torch.manual_seed(0)
    model = VRNN(4, hidden_size=6, latent_size=2, mlp_size=5, dropout=0.3)
    given = settings
    settings = {
        "max_updates": updates, "batch_size": 8, "log_interval": 1, "valid_interval": 3, "num_figures": 0,
        "learning_rate": 0.01, **settings,
    }  # fmt: skip
    config = (
        TrainConfig(resume=run, max_updates=updates, **given)
        if resume
        else TrainConfig(output_dir=run, **settings)
    )
    train(config, model=model, data=bits())
    content: dict[str, Any] = torch.load(run / "checkpoints/last.pt", weights_only=True)
    return content


def rates(run: Path) -> list[float]:
    return [e["learning_rate"] for e in read_metrics(run) if e["event"] == "train"]


@given(
    warmup=st.integers(0, 50), start=st.floats(0, 0.99), total=st.integers(1, 300),
    decay=st.sampled_from(["none", "linear", "cosine", "plateau"]), halvings=st.integers(0, 4),
)  # fmt: skip
def test_the_learning_rate(
    warmup: int, start: float, total: int, decay: Any, halvings: int
) -> None:
    """It rises, stays, and falls as PyTorch's schedulers have it."""
    config = TrainConfig(warmup_updates=warmup, learning_rate_decay=decay, decay_start=start)
    for update in range(total):
        found = rate_factor(config, update, update / total, halvings)
        expected = 0.5**halvings * min(1.0, (update + 1) / warmup if warmup else 1.0)
        past = max(update - start * total, 0) / (total - start * total)
        if decay == "linear":
            expected *= 1 - past
        elif decay == "cosine":
            expected *= (1 + math.cos(math.pi * past)) / 2
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_optimiser_has_the_rate(tmp_path: Path) -> None:
    settings = {"learning_rate_decay": "linear", "decay_start": 0.5, "warmup_updates": 2}
    content = trained(tmp_path / "run", **settings)
    expected = [0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, *(0.01 * k / 6 for k in (5, 4, 3, 2, 1))]
    assert rates(tmp_path / "run") == pytest.approx(expected)
    assert content["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01 / 6)


def test_a_plateau_halves_the_rate_and_patience_ends_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a rate of almost zero no validation is better than the first but by chance."""
    settings = {"learning_rate_decay": "plateau", "decay_patience": 1, "patience": 3}
    content = trained(tmp_path / "run", 300, learning_rate=0.5, **settings)
    progress = content["progress"]
    assert progress["worse_validations"] == 3
    assert content["update"] < 300
    nats = [
        -e["elbo_nats_per_sequence"]
        for e in read_metrics(tmp_path / "run")
        if e["event"] == "valid"
    ]
    better = [x < min(nats[:i], default=math.inf) for i, x in enumerate(nats)]
    assert progress["halvings"] == better.count(False)
    assert better[-3:] == [False] * 3
    assert rates(tmp_path / "run")[-1] == 0.5 * 0.5 ** (progress["halvings"] - 1)
    with caplog.at_level(logging.WARNING):
        same = trained(tmp_path / "run", 400, resume=True)
    assert same["update"] == content["update"]
    assert (
        "3 validations in a row without improvement: a larger --patience continues it"
        in caplog.text
    )
    more = trained(tmp_path / "run", 400, resume=True, patience=5)
    assert content["update"] < more["update"] <= 400


RECIPE: dict[str, Any] = {
    "warmup_updates": 4, "learning_rate_decay": "plateau", "decay_patience": 1, "weight_decay": 0.1,
    "average_decay": 0.8, "learning_rate": 0.4, "recurrent_dropout": 0.3,
}  # fmt: skip


def test_a_resumed_recipe_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", **RECIPE)
    trained(tmp_path / "parts", 6, **RECIPE)
    parts = trained(tmp_path / "parts", resume=True)
    assert whole["progress"]["halvings"] > 0
    assert parts["progress"]["halvings"] == whole["progress"]["halvings"]
    for part in ("model", "averages"):
        assert all(torch.equal(parts[part][k], x) for k, x in whole[part].items())


def test_the_gradient_under_recurrent_dropout() -> None:
    """It is that of the loss with masked weights, with respect to the weights, by finite differences."""
    torch.manual_seed(0)
    # Without the cost whose target is a constant in the gradient, but not in the loss.
    model = ZForcing(4, hidden_size=3, latent_size=2, mlp_size=3, alpha=0.0, beta=0.3).double()
    batch = SequenceBatch.from_targets(torch.randint(0, 2, (3, 5, 4)).double())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)

    def loss() -> torch.Tensor:
        pyro.set_rng_seed(1)
        svi = SVI(
            model.model, model.guide, optimiser, TraceMeanField_ELBO(),
            gradient_context=lambda: recurrent_dropout(model, 0.4, seed=5),
        )  # fmt: skip
        return svi.step(batch)

    weights = recurrent_weights(model)
    assert [x.shape for x in weights] == [(12, 3), (12, 3)]  # the forward and the backward LSTM
    loss()
    for weight in weights:
        gradient = weight.grad
        assert gradient is not None
        exact = gradient.clone()
        assert 0.2 < (exact == 0).double().mean() < 0.6
        for i, j in [(0, 0), (4, 1), (7, 2), (11, 0)]:
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    weight[i, j] += step
                ends.append(loss())
                with torch.no_grad():
                    weight[i, j] -= step
            assert torch.allclose((ends[0] - ends[1]) / 2e-5, exact[i, j], rtol=1e-5, atol=1e-7)


def test_recurrent_dropout_is_for_training_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update has its own masks; validation and checkpoints use the complete weights."""
    seeds = []

    def recorded(model: torch.nn.Module, p: float, seed: int) -> Any:
        seeds.append(seed)
        return recurrent_dropout(model, p, seed)

    monkeypatch.setattr("pyro_zf.training.loop.recurrent_dropout", recorded)
    content = trained(tmp_path / "run", recurrent_dropout=0.5)
    assert len(set(seeds)) == len(seeds) == 12
    assert all((x != 0).all() for name, x in content["model"].items() if "weight_hh" in name)
    without = trained(tmp_path / "without")
    assert any(not torch.equal(without["model"][k], x) for k, x in content["model"].items())
    model, masks = torch.nn.LSTM(3, 8), []
    for seed in (0, 0, 1):
        with recurrent_dropout(model, 0.5, seed):
            masks.append(model.weight_hh_l0 == 0)
    assert torch.equal(masks[0], masks[1])
    assert 0.3 < (masks[0] != masks[2]).double().mean() < 0.7


def test_recurrent_dropout_needs_recurrent_weights(tmp_path: Path) -> None:
    model = VRNN(4, hidden_size=6, latent_size=2, mlp_size=5, cell=lambda u, z: Elman(u, z))
    with pytest.raises(UsageError, match="--recurrent-dropout: the model has no LSTM or GRU"):
        train(
            TrainConfig(output_dir=tmp_path / "run", recurrent_dropout=0.5, max_updates=1),
            model=model, data=bits(),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


class Elman(Cell):
    """A simple recurrent network."""

    def __init__(self, input_size: int, latent_size: int) -> None:
        super().__init__()
        self.state_sizes = (6,)
        self.linear = torch.nn.Linear(input_size + latent_size + 6, 6)

    def after(self, u: torch.Tensor, z: torch.Tensor | None, state: State) -> State:
        assert z is not None
        return (torch.tanh(self.linear(join(u, z, state[0]))),)


def test_averages(tmp_path: Path) -> None:
    """They are those of the formula; validation, best checkpoint and test have them, training has not."""
    model = torch.nn.Linear(2, 2)
    averages = averages_of(model, 0.3)
    assert averages is not None
    expected = None
    for n in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 2))
        averages.update_parameters(model)
        now = model.weight.detach().clone()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    own = model.weight.detach().clone()
    assert expected is not None
    with averaged_weights(model, averages):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)
    with averaged_weights(model, averages_of(model, 0.0)):
        assert torch.equal(model.weight, own)

    content = trained(tmp_path / "run", average_decay=0.9, valid_interval=12)
    best = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["model"]
    average = {k.removeprefix("module."): x for k, x in content["averages"].items()}
    assert all(torch.equal(average[k], x) for k, x in best.items())
    plain = trained(tmp_path / "plain", valid_interval=12)
    assert all(torch.equal(content["model"][k], x) for k, x in plain["model"].items())
    assert not all(torch.equal(best[k], x) for k, x in plain["model"].items())


def test_weight_decay_is_decoupled(tmp_path: Path) -> None:
    """One update shrinks each weight by rate times decay, apart from Adam's step, which is the same."""
    settings = {"updates": 1, "learning_rate": 0.01}
    torch.manual_seed(0)
    start = VRNN(4, hidden_size=6, latent_size=2, mlp_size=5, dropout=0.3).state_dict()
    without = trained(tmp_path / "a", **settings)["model"]
    decayed = trained(tmp_path / "b", weight_decay=0.5, **settings)["model"]
    for name, x in without.items():
        torch.testing.assert_close(decayed[name], x - 0.005 * start[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "paper"},
        {"model": "srnn", "aux": ("b=0.1", "u=0.2"), "valid_latents": ("prior", "prior-mean")},
        {"dataset": "ptb", "carry_state": False, "orthogonal": False, "kl_start": 0.2},
        {"dataset": "wav", "data": Path("a folder"), "max_updates": 7, "frame_size": 80},
        {"alpha": 0.0, "max_minutes": 3.5, "learning_rate": 3e-4},
        {"hidden_size": 512, "alpha": 0.0005},  # what the preset has for 256 units
        {"frame": "pixel", "backward_size": 64},
        {"model": "rnn", "emission": "autoregressive-bernoulli", "dropout": 0.2, "max_epochs": 2},
    ],
    ids=str,
)
def test_the_command_of_a_run_gives_its_settings(settings: dict[str, Any]) -> None:
    config = resolve(TrainConfig.of(**settings, device="cpu"))
    command = command_of(config)
    assert command is not None
    program, script, *arguments = shlex.split(command)
    assert (program, script) == ("python", "scripts/svi_train.py")
    again = resolve(parse_train([*arguments, "--device", "cpu"]))
    assert again == dataclasses.replace(config, data=again.data)
    for value in settings.values():
        assert str(value) in command or isinstance(value, tuple)
    own = dataclasses.replace(config, own_data=True)
    assert command_of(own) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1, got 1.0"),
        ({"average_decay": -0.1}, "--average-decay must be at least 0 and below 1"),
        (
            {"decay_start": 1.5, "learning_rate_decay": "linear"},
            "--decay-start must be at least 0 and below 1",
        ),
        ({"weight_decay": math.nan}, "--weight-decay must be a non-negative finite number"),
        ({"warmup_updates": -1}, "--warmup-updates must be a non-negative finite number"),
        ({"recurrent_dropout": 1.0}, "--recurrent-dropout must be at least 0 and below 1"),
        ({"patience": 0}, "--patience must be a positive finite number"),
        (
            {"learning_rate_decay": "step"},
            "--learning-rate-decay step: must be one of none, linear, cosine",
        ),
        ({"dropout": 0.1, "time_chunk": 4}, "--dropout and --time-chunk exclude each other"),
        (
            {"decay_start": 0.5, "learning_rate_decay": "plateau"},
            "--decay-start requires --learning-rate-decay linear or cosine, not plateau",
        ),
        (
            {"kl_increment": 0.01},
            "--kl-increment requires a --kl-start below 1",
        ),
        (
            {"aux_increment": 0.01, "aux_start": 0.5, "aux_stop": 0.5},
            "--aux-increment requires --aux-start and --aux-stop to differ",
        ),
        (
            {"decay_patience": 3},
            "--decay-patience requires --learning-rate-decay plateau, not none",
        ),
    ],
)
def test_settings_of_a_recipe(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(TrainConfig.of(**settings))


def test_the_learning_rate_of_vrnn_on_speech() -> None:
    """Lower than that of other systems, with which it diverges; settings and other presets are kept."""

    def rate(**settings: Any) -> float | None:
        return resolve(TrainConfig.of(device="cpu", **settings)).learning_rate

    assert rate(dataset="blizzard", model="vrnn") == rate(dataset="timit", model="vrnn-i") == 1e-3
    assert rate(dataset="blizzard", model="srnn") == rate(dataset="mnist", model="vrnn") == 4e-3
    assert rate(dataset="timit", model="vrnn", learning_rate=2e-3) == 2e-3
    assert rate(dataset="blizzard", model="vrnn", preset="paper") == 3e-4

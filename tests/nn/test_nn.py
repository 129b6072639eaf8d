"""Tests of cells, backward networks and Gaussian heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_zf import SequenceBatch
from pyro_zf.nn import (
    ACTIVATIONS,
    CELLS,
    MLP,
    BackwardLSTM,
    Cell,
    GaussianForm,
    GaussianPrior,
    ReadsPreviousLatent,
    StandardNormalPrior,
    cells,
)


@pytest.mark.parametrize("name", [*CELLS, "reads the latent before"])
@pytest.mark.parametrize("layers", [1, 3])
def test_stepping_is_running(name: str, layers: int) -> None:
    """A loop over steps and one call of the PyTorch module give the same states, whole and in parts."""
    cell: Cell = CELLS.get(name, CELLS["lstm"])(3, 2, 5, num_layers=layers)  # type: ignore[call-arg]
    rnn = cell.rnn  # type: ignore[attr-defined]
    if name not in CELLS:
        cell = ReadsPreviousLatent(cell, 2)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn_like(parameter))
    u, z = torch.randn(6, 4, 3), torch.randn(6, 2, 4, 2)
    looped = Cell.run(cell, u, z)
    torch.testing.assert_close(tuple(cell.run(u.unsqueeze(1), z)), tuple(looped))
    half = cell.run(u[:2].unsqueeze(1), z[:2])
    rest = cell.run(u[2:].unsqueeze(1), z[2:], half.last)
    torch.testing.assert_close(torch.cat([half.before, rest.before]), looped.before)
    torch.testing.assert_close((torch.cat([half.after, rest.after]), rest.last), looped[1:])
    read = z[:, 1] if name in CELLS else torch.cat([torch.zeros(1, 4, 2), z[:-1, 1]])
    theirs = rnn(torch.cat([u, read], dim=-1))[0]
    torch.testing.assert_close(looped.after[:, 1], theirs)


def test_the_backward_network_starts_at_each_sequences_own_end() -> None:
    network = BackwardLSTM(3, 5)
    y = torch.randn(2, 6, 3)
    batch = SequenceBatch.from_targets(y, torch.tensor([6, 2]))
    assert batch.targets is not None
    states = network(batch.targets, batch)
    alone = SequenceBatch.from_targets(y[1:, :2])
    assert alone.targets is not None
    torch.testing.assert_close(states[:2, 1:], network(alone.targets, alone))
    cell = network.lstm(y[0].flip(0))[0].flip(0)
    torch.testing.assert_close(states[:, 0], cell)


def test_gaussian_forms() -> None:
    output = torch.tensor([[20.0, 1.0, -30.0, 2.0]])
    mean, log_scale = GaussianForm().split(output)
    assert mean.tolist() == [[20.0, 1.0]]
    assert log_scale.tolist() == [[-7.0, 2.0]]
    released = GaussianForm("log-variance", clamp=8.0, log_scale_limits=None, mean="tanh")
    mean, log_scale = released.split(output)
    assert log_scale.tolist() == [[-4.0, 1.0]]
    torch.testing.assert_close(mean, torch.tensor([[8.0, 1.0]]).tanh())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_mlp(activation: str, depth: int) -> None:
    network = MLP(3, 5, 2, depth, activation)
    assert network(torch.randn(4, 3)).shape == (4, 2)
    assert sum(isinstance(layer, nn.Linear) for layer in network) == depth + 1


def test_priors_have_the_batch_shape_of_the_state() -> None:
    h = torch.randn(4, 5, 3)
    for prior in (GaussianPrior(3, 2, 5), StandardNormalPrior(2)):
        distribution = prior(h)
        assert distribution.batch_shape == (4, 5)
        assert distribution.event_shape == (2,)


def test_networks_run_under_autocast_on_a_processor_without_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An LSTM is then computed in the precision of its weights, forward and backward."""
    monkeypatch.setattr(cells, "cpu_has_bfloat16", lambda: False)
    network = BackwardLSTM(3, 5).float()
    batch = SequenceBatch.from_targets(torch.randn(4, 6, 3, dtype=torch.float32))
    assert batch.targets is not None
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            states = network(batch.targets, batch)
        found.append((states, *torch.autograd.grad(states.sum(), list(network.parameters()))))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_looking_for_bfloat16_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    cells.cpu_has_bfloat16.__wrapped__()
    assert torch.equal(torch.get_rng_state(), state)

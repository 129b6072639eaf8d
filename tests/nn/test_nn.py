"""The parts by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_zf import SequenceBatch
from pyro_zf.nn import (
    ACTIVATIONS,
    MLP,
    BackwardLSTM,
    GaussianForm,
    GaussianPrior,
    LSTMTransition,
    SmoothingPosterior,
    StandardNormalPrior,
    Transition,
)


def test_stepping_is_running() -> None:
    """The loop over steps, the base class's run and one call of nn.LSTM give the same states."""
    transition = LSTMTransition(3, 2, 5)
    u, z = torch.randn(6, 4, 3), torch.randn(6, 2, 4, 2)
    looped, last = Transition.run(transition, u, z)
    torch.testing.assert_close(transition.run(u, z), (looped, last), rtol=1e-12, atol=1e-14)
    half, middle = transition.run(u[:2], z[:2])
    rest, end = transition.run(u[2:], z[2:], middle)
    torch.testing.assert_close((torch.cat([half, rest]), end), (looped, last))
    lstm = nn.LSTM(5, 5)
    lstm.load_state_dict(transition.lstm.state_dict())
    first = lstm(torch.cat([u, z[:, 1]], dim=-1))[0]
    torch.testing.assert_close(first, looped[:, 1], rtol=1e-12, atol=1e-14)


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


def test_the_hoisted_posterior_is_the_plain_one() -> None:
    posterior = SmoothingPosterior(3, 4, 2, mlp_size=5, depth=2)
    h, b = torch.randn(7, 3), torch.randn(7, 4)
    mean, log_scale = posterior.stepper()(h, posterior.project(b))
    plain = posterior(h, b).base_dist
    torch.testing.assert_close(mean, plain.loc)
    torch.testing.assert_close(log_scale.exp(), plain.scale)


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

"""The distribution of a whole sequence follows the interface of distributions."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_zf.distributions import OverTime

T, B, D = 7, 5, 3


@pytest.mark.parametrize("sample_shape", [(), (4,), (T,), (2, 4)])
@pytest.mark.parametrize("batch_shape", [(B,), (4, B), (T, B), (2, 4, B)])
@pytest.mark.parametrize("event_dim", [0, 1])
def test_samples_and_densities(
    sample_shape: tuple[int, ...], batch_shape: tuple[int, ...], event_dim: int
) -> None:
    loc = torch.randn(T, B, D) if event_dim else torch.randn(T, B)
    mask = torch.arange(T) < torch.tensor([[7], [3], [1], [0], [5]])
    sequence = OverTime(dist.Normal(loc, 1.0).to_event(event_dim), mask).expand(batch_shape)
    event = (T, D)[: 1 + event_dim]
    value = sequence.sample(sample_shape)
    assert value.shape == (*sample_shape, *batch_shape, *event)
    density = torch.distributions.Normal(loc.movedim(0, 1), 1.0).log_prob(value)
    density = density.sum(-1) if event_dim else density
    expected = (density * mask).sum(-1)
    torch.testing.assert_close(sequence.log_prob(value), expected)
    assert sequence.rsample(sample_shape).shape == value.shape


def test_a_value_without_particles_is_scored_for_each() -> None:
    loc = torch.randn(T, 4, B, D)
    sequence = OverTime(dist.Normal(loc, 1.0).to_event(1))
    value = torch.randn(B, T, D)
    expected = torch.distributions.Normal(loc.movedim(0, -2), 1.0).log_prob(value).sum((-1, -2))
    torch.testing.assert_close(sequence.log_prob(value), expected)

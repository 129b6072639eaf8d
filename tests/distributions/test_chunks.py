"""Chunked emissions give the same numbers with less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_zf import SequenceBatch
from pyro_zf.distributions import ChunkedEmission, by_chunks
from pyro_zf.infer import Trace_ELBO, TraceIWAE, TraceMeanField_ELBO, batch_bounds
from pyro_zf.models import RNN, LatentSequenceModel, ZForcing
from tests.families import COMBINATIONS, Combination
from tests.helpers import assert_close, attributes, loss_and_gradients, random_batch


@pytest.mark.parametrize(
    "combination",
    COMBINATIONS[::3] + COMBINATIONS[-1:],
    ids="-".join,
)
def test_the_same_loss_and_gradients(combination: Combination) -> None:
    model, batch = combination.build(kl_weight=0.6), combination.batch([5, 1, 3], num_steps=5)
    objectives = [Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)]
    if isinstance(model, LatentSequenceModel):
        objectives.append(TraceMeanField_ELBO(free_bits=0.1))
    for objective in objectives:
        loss, gradients = loss_and_gradients(model, objective, batch)
        with attributes(model, time_chunk=2):
            other_loss, others = loss_and_gradients(model, objective, batch)
        assert_close(other_loss, loss, type(objective).__name__)
        scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
        for name, gradient in gradients.items():
            other = others[name]
            assert (gradient is None) == (other is None), name
            if gradient is not None and other is not None:
                assert (gradient - other).abs().max() <= 1e-10 * scale, name
    bounds = []
    for chunk in (None, 2):
        with attributes(model, time_chunk=chunk):
            torch.manual_seed(0)
            bounds.append(batch_bounds(model.model, model.guide, batch, num_samples=3))
    for field in ("elbo", "iwae", "kl_per_step"):
        assert_close(getattr(bounds[1], field), getattr(bounds[0], field), field)


def bytes_kept(model: Any, batch: SequenceBatch) -> int:
    """Memory that the backward pass needs besides parameters, counting each storage once."""
    storages: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.loss_module(TraceMeanField_ELBO())(batch)
    return sum(storages.values())


@pytest.mark.parametrize("make", [ZForcing, RNN])
def test_it_saves_memory(make: Any) -> None:
    model = make(4, hidden_size=8, mlp_size=64)
    batch = random_batch(num_sequences=4, num_steps=100)
    with attributes(model, time_chunk=10):
        chunked = bytes_kept(model, batch)
    assert chunked < 0.4 * bytes_kept(model, batch)


def test_intermediate_values_are_recomputed() -> None:
    sizes: list[int] = []

    def function(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return (x * torch.rand_like(x)).sum(-1)  # the noise is replayed too

    x = torch.ones(5, 3, requires_grad=True)
    y = by_chunks(function, [x], 2)
    assert sizes == [2, 2, 1]
    y.sum().backward()
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(-1), y.detach())
    with torch.no_grad():
        by_chunks(function, [x], 2)
    assert len(sizes) == 9


def test_a_chunked_emission_behaves_like_any_distribution() -> None:
    model = ZForcing(4, hidden_size=6, latent_size=2, mlp_size=5)
    features = torch.randn(7, 3, 6)
    whole = model.emitted(features, random_batch(num_sequences=3))
    with attributes(model, time_chunk=2):
        chunked = model.emitted(features, random_batch(num_sequences=3))
    assert isinstance(chunked, ChunkedEmission)
    assert (chunked.batch_shape, chunked.event_shape) == (whole.batch_shape, whole.event_shape)
    torch.manual_seed(0)
    y = chunked.sample()
    torch.manual_seed(0)
    assert torch.equal(y, whole.sample())
    torch.testing.assert_close(chunked.log_prob(y), whole.log_prob(y))
    torch.testing.assert_close(chunked.expand((2, 3)).log_prob(y), whole.expand((2, 3)).log_prob(y))
    assert chunked.conditionals(y).batch_shape == (7, 3)
    for number in (2, 7):  # more samples than the distribution is expanded to
        many = chunked.sample((number,))
        torch.testing.assert_close(chunked.log_prob(many), whole.log_prob(many))

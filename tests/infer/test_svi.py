"""Tests of SVI: optimisers, clipping by global norm, gradient accumulation and objectives."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO
from pyro.optim import ClippedAdam

from pyro_zf import SequenceBatch
from pyro_zf.infer import SVI, LinearSchedule, Trace_ELBO, TraceMeanField_ELBO
from tests.helpers import MODELS, assert_close, attributes, random_batch


def halves(batch: SequenceBatch) -> list[SequenceBatch]:
    assert batch.targets is not None
    assert batch.lengths is not None
    return [
        SequenceBatch.from_targets(batch.targets[i], batch.lengths[i])
        for i in (slice(0, 2), slice(2, None))
    ]


@pytest.mark.parametrize("objective", [Trace_ELBO(), RenyiELBO(0.0, num_particles=2)])
def test_accumulated_gradients_are_those_of_the_whole_batch(objective) -> None:  # type: ignore[no-untyped-def]
    batch = random_batch(lengths=[7, 3, 1, 5, 0])  # halves of 2 sequences each, and an empty one
    results = []
    for data in (batch, halves(batch)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = MODELS["paper"]()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        svi = SVI(model.model, model.guide, optimiser, objective)
        # constant noise, so that it does not depend on how the batch is split
        with attributes(torch, randn=lambda shape, **options: torch.full(shape, 0.3)):
            loss = svi.step(data)
        results.append((loss, [p.detach().clone() for p in model.parameters()]))
    (loss, parameters), (other_loss, other_parameters) = results
    if isinstance(objective, Trace_ELBO):
        assert_close(other_loss, loss, "loss")
        for ours, theirs in zip(other_parameters, parameters, strict=True):
            assert_close(ours, theirs, "parameter")
    assert all(p.isfinite().all() for p in other_parameters)


def test_rows_that_are_no_sequences_do_not_count() -> None:
    losses, weights = [], []
    for lengths in ([7, 3], [7, 3, 0, 0]):
        torch.manual_seed(0)
        model = MODELS["paper"]()
        targets = torch.ones(len(lengths), 7, 4)
        batch = SequenceBatch.from_targets(targets, torch.tensor(lengths))
        svi = SVI(model.model, model.guide, torch.optim.SGD(model.parameters(), 0.1), Trace_ELBO())
        with attributes(torch, randn=lambda shape, **options: torch.full(shape, 0.3)):
            losses.append(svi.step(batch))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close(losses[1], losses[0], "loss")
    assert_close(weights[1], weights[0], "parameters")


def test_clips_by_the_global_norm() -> None:
    model = MODELS["paper"]()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    svi = SVI(model.model, model.guide, optimiser, Trace_ELBO(), clip_norm=0.01)
    svi.step(random_batch())
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-4)


def test_renyi_trains() -> None:
    model = MODELS["paper"](alpha=0.0, beta=0.0)
    batch = SequenceBatch.from_targets(torch.ones(8, 5, 4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    renyi = RenyiELBO(0.0, num_particles=3, vectorize_particles=True)
    svi = SVI(model.model, model.guide, optimiser, renyi)
    losses = [svi.step(batch).item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_optimisers_of_pyro_are_refused() -> None:
    model = MODELS["paper"]()
    with pytest.raises(TypeError, match=r"ClippedAdam|PyroOptim"):
        SVI(model.model, model.guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())  # type: ignore[arg-type]


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("kind", ["paper", "released-code", "categorical"])
def test_bfloat16_is_near_single_precision(kind: str) -> None:
    model = MODELS[kind]()
    batch = random_batch(kind, num_sequences=16, num_steps=10)
    batch = batch.to(dtype=torch.float32)
    gradients, losses = [], []
    for context in (None, functools.partial(torch.autocast, "cpu", torch.bfloat16)):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
        svi = SVI(model.model, model.guide, optimiser, TraceMeanField_ELBO(), loss_context=context)
        torch.manual_seed(1)
        losses.append(svi.step(batch))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert losses[-1].dtype == torch.float32
    assert losses[0] != losses[1], "bfloat16 makes a difference"
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_evaluate_loss_is_per_sequence() -> None:
    model, batch = MODELS["paper"](), random_batch()
    svi = SVI(model.model, model.guide, torch.optim.SGD(model.parameters(), lr=0.0), Trace_ELBO())
    torch.manual_seed(1)
    expected = svi.step(batch)
    torch.manual_seed(1)
    assert_close(svi.evaluate_loss(batch), expected, "loss")


def test_linear_schedule() -> None:
    up, down = LinearSchedule(0.2, 1.0, 0.3), LinearSchedule(1.0, 0.0, 0.4)
    assert [round(up(i), 6) for i in range(4)] == [0.2, 0.5, 0.8, 1.0]
    assert [round(down(i), 6) for i in range(4)] == [1.0, 0.6, 0.2, 0.0]
    assert LinearSchedule(1.0, 1.0, 5e-5)(7) == 1.0

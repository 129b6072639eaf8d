"""Free bits, word dropout and annealing for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.optim import ClippedAdam

from pyro_zf import SequenceBatch
from pyro_zf.infer import (
    SVI,
    InputDropout,
    LinearSchedule,
    TraceMeanField_ELBO,
    WordDropout,
    batch_bounds,
)
from pyro_zf.models import MODELS, LatentSequenceModel
from tests.families import LATENT_FAMILIES, Combination
from tests.helpers import assert_close, attributes, loss_and_gradients

LENGTHS = [4, 1, 3]


def family(name: str, prior: str = "gaussian") -> tuple[LatentSequenceModel, SequenceBatch]:
    combination = Combination(name, prior, "smoothing", "bernoulli")
    model = combination.build()
    assert isinstance(model, LatentSequenceModel)
    return model, combination.batch(LENGTHS)


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", LATENT_FAMILIES)
def test_free_bits(name: str, prior: str) -> None:
    """Free bits use max(lambda, KL) at each real step, in both layouts, with or without a closed form."""
    model, batch = family(name, prior)
    model.eval()
    torch.manual_seed(1)
    bounds = batch_bounds(model.model, model.guide, batch)
    kl = bounds.kl_per_step
    assert batch.mask is not None
    # Halfway between two values, so that rounding does not decide the side.
    free = kl[batch.mask].sort().values[-4:-2].mean().item()
    assert free > 0
    for layout in ("steps", "time"):
        with model.using_layout(layout):  # type: ignore[arg-type]
            loss, gradients = loss_and_gradients(model, TraceMeanField_ELBO(free_bits=free), batch)
        expected = (kl.clamp(min=free) * batch.mask).sum(-1) - bounds.log_likelihood - bounds.aux
        assert_close(loss, expected.mean(), "loss")
        if layout == "steps":
            first = gradients
    for parameter, gradient in gradients.items():
        assert_close(gradient, first[parameter], parameter, rtol=1e-8)


def test_within_its_budget_the_kl_has_no_gradient() -> None:
    model, batch = family("vrnn")
    _, gradients = loss_and_gradients(model, TraceMeanField_ELBO(free_bits=1e3), batch)
    prior = [g for name, g in gradients.items() if name.startswith("prior")]
    assert all(g is None or g.abs().max() == 0 for g in prior)


def test_no_free_bits_is_the_plain_objective() -> None:
    model, batch = family("srnn")
    free, _ = loss_and_gradients(model, TraceMeanField_ELBO(free_bits=1e-12), batch)
    plain, _ = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
    assert_close(free, plain, "loss")
    with pytest.raises(ValueError, match="free bits must not be negative, they are -1"):
        TraceMeanField_ELBO(free_bits=-1.0)


def test_word_dropout() -> None:
    torch.manual_seed(0)
    targets = torch.randint(1, 9, (200, 30))
    batch = SequenceBatch.from_targets(targets, torch.randint(1, 31, (200,)))
    assert batch.targets is not None
    assert batch.mask is not None
    dropped = WordDropout(0.3, replacement=9)(batch)
    assert dropped.targets is batch.targets or torch.equal(dropped.targets, batch.targets)  # type: ignore[arg-type]
    assert torch.equal(dropped.inputs[:, 0], batch.inputs[:, 0]), "the start symbol is kept"
    changed = dropped.inputs != batch.inputs
    assert (dropped.inputs[changed] == 9).all()
    assert not changed[~batch.mask].any(), "padding is kept"
    assert abs(changed[:, 1:][batch.mask[:, 1:]].double().mean() - 0.3) < 0.03
    assert torch.equal(dropped.clean_inputs, batch.inputs)
    again = WordDropout(0.3, replacement=8)(dropped)
    assert torch.equal(again.clean_inputs, batch.inputs)
    half = dropped.chunk(2)[1].to("cpu")
    assert torch.equal(half.clean_inputs, batch.inputs[100:])
    assert WordDropout(0.0)(batch) is batch
    with pytest.raises(ValueError, match=r"a probability, not 1\.5"):
        WordDropout(1.5)


def test_input_dropout() -> None:
    torch.manual_seed(0)
    batch = SequenceBatch.from_targets(torch.randn(200, 30, 4), torch.randint(1, 31, (200,)))
    assert batch.mask is not None
    assert batch.targets is not None
    dropped = InputDropout(0.2)(batch)
    assert dropped.targets is not None
    assert torch.equal(dropped.targets, batch.targets)
    kept = dropped.inputs != 0
    assert torch.equal(dropped.inputs[kept], batch.inputs[kept] * (1 / 0.8))
    read = batch.mask[:, 1:]  # the first input is zeros
    assert abs(kept[:, 1:][read].double().mean() - 0.8) < 0.01
    rows = kept[:, 1:][read].double().mean(-1)
    assert 0.3 < (rows == 1).double().mean() < 0.52, "0.8 ** 4 = 0.41 of the steps lose nothing"
    assert torch.equal(dropped.clean_inputs, batch.inputs)
    assert torch.equal(InputDropout(0.5)(dropped).clean_inputs, batch.inputs)
    assert torch.equal(WordDropout(0.5)(dropped).clean_inputs, batch.inputs)
    assert InputDropout(0.0)(batch) is batch
    with pytest.raises(ValueError, match="use WordDropout"):
        InputDropout(0.1)(SequenceBatch.from_targets(torch.ones(2, 3, dtype=torch.long)))
    with pytest.raises(ValueError, match="below 1, not 1"):
        InputDropout(1.0)


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("name", MODELS)
def test_word_dropout_hides_inputs_from_the_model_only(name: str, layout: str) -> None:
    combination = Combination(name, "gaussian", "smoothing", "bernoulli")
    model, batch = combination.build(layout=layout), combination.batch()
    dropped = WordDropout(1.0)(batch)
    with attributes(model, skip_gradient=0.0):
        loss, _ = loss_and_gradients(model, TraceMeanField_ELBO(), dropped)
        whole, _ = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
    assert loss != whole
    if isinstance(model, LatentSequenceModel) and name != "variational-bilstm":
        torch.manual_seed(1)
        for cost in ("b", "h", "activity"):  # keep log p(u | b), which scores the true inputs
            if cost in model.aux:
                model.set_aux_weight(cost, 0.0)
        if name != "srnn":  # in SRNN, b also reads the deterministic states
            ours = batch_bounds(model.model, model.guide, dropped).aux
            assert_close(ours, batch_bounds(model.model, model.guide, batch).aux, "log p(u | b)")


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("name", LATENT_FAMILIES)
def test_aux_weight_annealing(name: str, layout: str) -> None:
    """The schedule scales all auxiliary costs, by a float or a tensor, upwards or downwards."""
    model, batch = family(name)
    schedule = LinearSchedule(1.0, 0.0, 0.25)
    with model.using_layout(layout), attributes(model, skip_gradient=0.0):  # type: ignore[arg-type]
        losses = []
        for update in range(6):
            model.aux_weight = schedule(update)
            losses.append(loss_and_gradients(model, TraceMeanField_ELBO(), batch)[0])
        model.aux_weight = torch.tensor(0.25)
        assert_close(
            loss_and_gradients(model, TraceMeanField_ELBO(), batch)[0], losses[3], "tensor"
        )
        torch.manual_seed(1)
        bounds = batch_bounds(model.model, model.guide, batch)
    steps = [a - b for a, b in zip(losses[1:5], losses[:4], strict=True)]
    for step in steps[1:]:
        assert_close(step, steps[0], "a quarter of the costs each time", rtol=1e-9)
    assert steps[0] != 0
    assert_close(losses[5], losses[4], "past its end")
    assert_close(losses[4], -bounds.elbo.mean(), "without any")


def test_free_bits_are_in_every_form_of_the_loss() -> None:
    """As a number and with gradients, in Pyro's SVI and in that of the package."""
    model, batch = family("zforcing")
    objective = TraceMeanField_ELBO(max_plate_nesting=1, free_bits=50.0)

    def seeded(loss: Callable[[], Any]) -> float:
        torch.manual_seed(1)
        return torch.as_tensor(loss()).detach().item()

    expected = seeded(lambda: objective.differentiable_loss(model.model, model.guide, batch))
    plain = seeded(lambda: TraceMeanField_ELBO().loss(model.model, model.guide, batch))
    assert expected > plain + 100
    assert seeded(lambda: objective.loss(model.model, model.guide, batch)) == expected
    assert seeded(lambda: objective.loss_and_grads(model.model, model.guide, batch)) == expected
    assert all(p.grad is not None for p in model.emission.parameters())
    svi = pyro.infer.SVI(model.model, model.guide, ClippedAdam({"lr": 0.0}), objective)
    assert seeded(lambda: svi.step(batch)) == expected
    ours = SVI(model.model, model.guide, torch.optim.Adam(model.parameters()), objective)
    assert seeded(lambda: ours.evaluate_loss(batch)) == pytest.approx(expected / 3)

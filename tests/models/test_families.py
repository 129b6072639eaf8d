"""The design properties for every system, with combinations that cover every pair of parts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_zf import SequenceBatch
from pyro_zf.distributions import DiagonalNormal
from pyro_zf.infer import Trace_ELBO as TraceELBO
from pyro_zf.infer import (
    TraceIWAE,
    TraceMeanField_ELBO,
    WordDropout,
    batch_bounds,
    particle_filter,
)
from pyro_zf.models import LatentSequenceModel, SequenceModel, VariationalBiLSTM
from pyro_zf.nn import POSTERIORS
from tests.families import COMBINATIONS, DATA, LATENT_FAMILIES, Combination, makes_sense
from tests.helpers import (
    assert_close,
    attributes,
    filter_is_the_iwae,
    generation_is_ancestral,
    layouts_agree,
    loss_and_gradients,
)

LENGTHS = [4, 1, 3]
ids = "-".join


@pytest.mark.parametrize("combination", COMBINATIONS, ids=ids)
def test_laws(combination: Combination) -> None:
    """Properties 1, 2, 3, 5, 6 and 9. Property 12 is tested below, in one fresh process for all."""
    model = combination.build(kl_weight=0.6)
    batch = combination.batch(LENGTHS)
    layouts_agree(model, batch)
    every_parameter_moves(model, combination.batch())
    padding_is_invisible(model, batch)
    bounds_have_no_weights_of_training(model, batch)
    if isinstance(model, LatentSequenceModel):
        aux_target_is_constant(model, batch)
        kl_weight_acts_on_both(model, batch, combination.posterior)


def skipping(model: SequenceModel, probability: float) -> dict[str, float]:
    """The probability of the skip gradient as an option, if the system has it."""
    return {"skip_gradient": probability} if isinstance(model, VariationalBiLSTM) else {}


def every_parameter_moves(model: SequenceModel, batch: SequenceBatch) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    with attributes(model, **skipping(model, 0.0)):
        _, gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert gradients[name] is not None, f"{name} gets no gradient"
        assert not torch.equal(parameter, before[name]), f"{name} does not move"


def padding_is_invisible(model: SequenceModel, batch: SequenceBatch) -> None:
    assert batch.targets is not None
    assert batch.mask is not None
    symbols = not batch.targets.is_floating_point()
    junk = (batch.targets + 1) % DATA if symbols else torch.full_like(batch.targets, torch.nan)
    mask = batch.mask if symbols else batch.mask.unsqueeze(-1)
    padded = {
        "other values": torch.where(mask, batch.targets, junk),
        "more of it": torch.cat([batch.targets, junk], dim=1),
    }
    # At p = 1 the mask draws no random numbers, whose count would depend on the padding.
    with attributes(model, **skipping(model, 1.0)):
        loss, gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
        for what, targets in padded.items():
            other = SequenceBatch.from_targets(targets, batch.lengths)
            with model.using_layout("steps"):
                steps_loss, _ = loss_and_gradients(model, TraceMeanField_ELBO(), other)
            result = loss_and_gradients(model, TraceMeanField_ELBO(), other)
            assert_close(steps_loss, loss, f"loss with {what}, layout steps")
            assert_close(result[0], loss, f"loss with {what}")
            for name, gradient in gradients.items():
                assert_close(result[1][name], gradient, f"{name} with {what}", rtol=1e-9)


def bounds_have_no_weights_of_training(model: SequenceModel, batch: SequenceBatch) -> None:
    def bounds(layout: Any) -> Any:
        torch.manual_seed(3)
        with model.using_layout(layout):
            return batch_bounds(model.model, model.guide, batch, num_samples=2, chunk=2)

    expected = bounds("time")
    for layout, weights in (("steps", {"kl_weight": 0.0}), ("time", {"aux_weight": 9.0})):
        with attributes(model, **weights):
            other = bounds(layout)
        for name in ("elbo", "iwae", "kl", "kl_per_step"):
            assert_close(getattr(other, name), getattr(expected, name), f"{name}, {weights}")
    assert (expected.kl_per_step[~batch.mask] == 0).all()
    with attributes(model, kl_weight=1.0):
        torch.manual_seed(3)
        loss = model.loss_module(TraceIWAE(2))(batch).detach()
    assert_close(loss, -(expected.iwae + expected.aux).mean(), "IWAE loss, aux costs beside it")


def aux_target_is_constant(model: LatentSequenceModel, batch: SequenceBatch) -> None:
    """The cost of b trains the posterior through z; its target gives the backward network no gradient."""
    assert model.backward_network is not None

    def gradients_of_the_cost(condition: bool) -> None:
        torch.manual_seed(1)
        model.zero_grad()
        guide = pyro.poutine.trace(model.guide).get_trace(batch)
        latents = {
            name: guide.nodes[name]["value"].detach() if condition else guide.nodes[name]["value"]
            for name in guide.stochastic_nodes
        }
        program = pyro.poutine.condition(model.model, data=latents)
        trace = pyro.poutine.trace(program).get_trace(batch)
        trace.compute_log_prob()
        trace.nodes["aux_b"]["log_prob"].sum().backward()

    pyro.clear_param_store()
    with attributes(model, **skipping(model, 0.0)):
        gradients_of_the_cost(condition=True)
        assert all(p.grad is None for p in model.backward_network.parameters())
        assert all(p.grad is None for p in model.posterior.parameters())
        gradients_of_the_cost(condition=False)
        assert all(p.grad is not None for p in model.posterior.parameters())


def kl_weight_acts_on_both(
    model: LatentSequenceModel, batch: SequenceBatch, posterior: str
) -> None:
    def loss(weight: float, objective: Any) -> Tensor:
        with attributes(model, kl_weight=weight):
            return loss_and_gradients(model, objective, batch)[0]

    middle = (loss(0.0, TraceELBO()) + loss(1.0, TraceELBO())) / 2
    assert_close(loss(0.5, TraceELBO()), middle, "loss at one half")
    torch.manual_seed(1)
    bounds = batch_bounds(model.model, model.guide, batch)
    expected = -(bounds.log_likelihood + bounds.aux).mean()
    with model.using_layout("steps"):
        assert_close(loss(0.0, TraceMeanField_ELBO()), expected, "loss at zero")
    if posterior != "res_q":  # the prior's mean is part of the res_q posterior
        assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.prior.parameters())


FRESH_PROCESS = """
import sys, torch
from pyro_zf.infer import batch_bounds
from tests.families import Combination
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
for parts, state, y in torch.load(sys.argv[1], weights_only=True):
    combination = Combination(*parts)
    model = combination.build()
    model.load_state_dict(state)
    batch = combination.batch([4, 1, 3])
    object.__setattr__(batch, "targets", y[1])
    object.__setattr__(batch, "inputs", y[0])
    torch.manual_seed(5)
    print(float.hex(batch_bounds(model.model, model.guide, batch, 3).iwae.sum().item()))
"""


def test_12_saved_models_give_the_same_bounds_in_a_fresh_process(tmp_path) -> None:  # type: ignore[no-untyped-def]
    saved, expected = [], []
    for combination in COMBINATIONS:
        model, batch = combination.build(), combination.batch(LENGTHS)
        saved.append((tuple(combination), model.state_dict(), (batch.inputs, batch.targets)))
        torch.manual_seed(5)
        with pyro.poutine.block():
            pyro.clear_param_store()
            expected.append(batch_bounds(model.model, model.guide, batch, 3).iwae.sum().item())
    torch.save(saved, tmp_path / "models.pt")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "models.pt")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [float.fromhex(line) for line in output.split()] == expected


@pytest.mark.parametrize("family", LATENT_FAMILIES)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
def test_the_filter_without_resampling_is_the_iwae(family: str, lengths: list[int] | None) -> None:
    """The loop of the filter is compared with the model and guide programs for every family."""
    for posterior in POSTERIORS:
        if not makes_sense(family, "gaussian", posterior):
            continue
        combination = Combination(family, "gaussian", posterior, "gaussian")
        model = combination.build(kl_weight=0.7)
        batch = combination.batch(lengths)
        corrupted = WordDropout(0.5)(batch)
        # At p = 0 and p = 1 the mask is deterministic. The filter draws random masks once for all particles.
        for skip in (0.0, 1.0) if family == "variational-bilstm" else (0.0,):
            with attributes(model, **skipping(model, skip)):
                filter_is_the_iwae(model, corrupted)


@pytest.mark.parametrize("family", LATENT_FAMILIES)
def test_generation_is_ancestral(family: str) -> None:
    model = Combination(family, "gaussian", "smoothing", "gaussian").build()
    generation_is_ancestral(model, torch.zeros(2, DATA))


@pytest.mark.parametrize("family", LATENT_FAMILIES)
def test_a_resampled_particle_takes_all_its_state_along(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound does not depend on the order of the particles if all of their state is resampled.

    All particles share the noise of a step, so that they differ only in their past.
    """
    combination = Combination(family, "gaussian", "smoothing", "gaussian")
    model, batch = combination.build().eval(), combination.batch()
    assert isinstance(model, LatentSequenceModel)
    steps = iter(range(10**6))
    bounds = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        steps = iter(range(10**6))

        def drawn(self: Any, shape: Any = (), steps: Any = steps) -> Tensor:
            first = next(steps) < len(model.latents)
            noise = torch.arange(4.0).reshape(4, 1, 1) if first else torch.tensor(0.3)
            base = self.base_dist
            return base.loc + base.scale * noise

        def ancestors(log_weight: Tensor, below: float, order: list[int] = order) -> Any:
            index = torch.tensor(order).unsqueeze(-1).expand(log_weight.shape)
            return index, torch.ones(log_weight.shape[1], dtype=torch.bool)

        monkeypatch.setattr(DiagonalNormal, "rsample", drawn)
        monkeypatch.setattr("pyro_zf.infer.fivo._ancestors", ancestors)
        bounds.append(particle_filter(model, batch, 4, resample_below=1.0).bound)
    assert_close(bounds[1], bounds[0], "bound")

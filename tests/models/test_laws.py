"""The design properties for every kind of model, with their numbers in the names of the tests."""

from __future__ import annotations

import subprocess
import sys

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_zf import SequenceBatch
from pyro_zf.infer import Trace_ELBO as TraceELBO
from pyro_zf.infer import TraceIWAE, TraceMeanField_ELBO, batch_bounds
from tests.helpers import (
    MODELS,
    OBJECTIVES,
    assert_close,
    attributes,
    loss_and_gradients,
    random_batch,
)

LENGTHS = [None, [7, 3, 1, 5, 2]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=["full", "masked"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", MODELS)
def test_1_layouts_agree(kind: str, objective: str, lengths: list[int] | None) -> None:
    model = MODELS[kind](kl_weight=0.6)
    batch = random_batch(kind, lengths=lengths)
    results = []
    for layout in ("steps", "time"):
        with model.using_layout(layout):
            results.append(loss_and_gradients(model, OBJECTIVES[objective](), batch))
    (loss, gradients), (other_loss, other_gradients) = results
    assert_close(other_loss, loss, "loss")
    for name, gradient in gradients.items():
        assert_close(other_gradients[name], gradient, name)


@settings(max_examples=25, deadline=None)
@given(
    num_steps=st.integers(1, 9),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    kind=st.sampled_from(["paper", "released-code", "categorical", "plain-posterior"]),
    seed=st.integers(0, 1000),
)
def test_1_layouts_agree_for_any_shape(
    num_steps: int, lengths: list[int], kind: str, seed: int
) -> None:
    torch.manual_seed(seed)
    lengths = [min(n, num_steps) for n in lengths]
    lengths[0] = num_steps
    batch = random_batch(kind, len(lengths), num_steps, lengths)
    model = MODELS[kind]()
    with model.using_layout("steps"):
        loss, gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
    other_loss, other_gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
    assert_close(other_loss, loss, "loss")
    for name, gradient in gradients.items():
        if gradient is not None:
            assert_close(other_gradients[name], gradient, name, rtol=1e-9)


@pytest.mark.parametrize("objective", ["trace", "mean-field", "iwae"])
@pytest.mark.parametrize("kind", MODELS)
def test_2_every_parameter_moves(kind: str, objective: str) -> None:
    model = MODELS[kind]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    _, gradients = loss_and_gradients(model, OBJECTIVES[objective](), random_batch(kind))
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert gradients[name] is not None, f"{name} gets no gradient"
        assert not torch.equal(parameter, before[name]), f"{name} does not move"


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("kind", MODELS)
def test_3_padding_is_invisible(kind: str, layout: str) -> None:
    model = MODELS[kind](layout=layout)
    lengths = [7, 3, 1, 5, 2]
    batch = random_batch(kind, lengths=lengths)
    assert batch.targets is not None
    assert batch.lengths is not None
    assert batch.mask is not None
    junk = torch.randint(1, 4, batch.targets.shape) if kind == "categorical" else (
        torch.full_like(batch.targets, torch.nan)
    )  # fmt: skip
    mask = batch.mask if kind == "categorical" else batch.mask.unsqueeze(-1)
    other_values = SequenceBatch.from_targets(torch.where(mask, batch.targets, junk), batch.lengths)
    longer = SequenceBatch.from_targets(torch.cat([batch.targets, junk], dim=1), batch.lengths)
    loss, gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
    for what, padded in {"other values": other_values, "more of it": longer}.items():
        other_loss, other_gradients = loss_and_gradients(model, TraceMeanField_ELBO(), padded)
        assert_close(other_loss, loss, f"loss with {what}")
        for name, gradient in gradients.items():
            assert_close(other_gradients[name], gradient, f"{name} with {what}")


def test_3_averages_are_over_real_sequences() -> None:
    model = MODELS["paper"]()
    real = random_batch(num_sequences=3)
    assert real.targets is not None
    padded_targets = torch.cat([real.targets, torch.ones(2, 7, 4)])
    padded = SequenceBatch.from_targets(padded_targets, torch.tensor([7, 7, 7, 0, 0]))
    # One sequence at a time, so that its noise does not depend on the batch size.
    with attributes(torch, randn=lambda shape, **options: torch.full(shape, 0.3)):
        loss, _ = loss_and_gradients(model, TraceMeanField_ELBO(), real)
        padded_loss, _ = loss_and_gradients(model, TraceMeanField_ELBO(), padded)
    assert_close(padded_loss, loss, "mean loss")


@pytest.mark.parametrize("kind", ["paper", "released-code", "mixture-prior", "plain-posterior"])
@pytest.mark.parametrize("layout", ["steps", "time"])
def test_5_bounds_have_no_aux_cost_and_no_kl_weight(kind: str, layout: str) -> None:
    model = MODELS[kind](layout=layout)
    batch = random_batch(kind, lengths=[7, 3, 1, 5, 2])

    def bounds() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(3)
        result = batch_bounds(model.model, model.guide, batch, num_samples=4)
        return result.elbo, result.iwae, result.kl

    expected = bounds()
    for weights in ({"alpha": 9.0}, {"beta": 9.0}, {"alpha": 0.0, "beta": 0.0}, {"kl_weight": 0.0}):
        with attributes(model, **weights):
            for name, ours, theirs in zip(("elbo", "iwae", "kl"), bounds(), expected, strict=True):
                assert_close(ours, theirs, f"{name} with {weights}")


def test_5_iwae_weights_have_no_aux_cost() -> None:
    """The auxiliary costs enter the loss as a plain mean, not through the weights."""
    model = MODELS["paper"]()
    batch = random_batch()
    torch.manual_seed(2)
    bounds = batch_bounds(model.model, model.guide, batch, num_samples=6, chunk=6)
    torch.manual_seed(2)
    loss = model.loss_module(TraceIWAE(6))(batch)
    assert_close(loss.detach(), -(bounds.iwae + bounds.aux).mean(), "IWAE loss")
    assert bounds.aux.abs().min() > 1e-3


def test_6_what_the_aux_cost_trains() -> None:
    """With only the auxiliary cost as loss, gradients reach exactly the parts selected by `detach`."""

    def reached(detach: str) -> set[str]:
        pyro.clear_param_store()
        model = MODELS["paper"](detach=detach, beta=0.0)
        torch.manual_seed(1)
        guide = pyro.poutine.trace(model.guide).get_trace(batch)
        trace = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=guide)).get_trace(batch)
        trace.compute_log_prob()
        trace.nodes["aux_b"]["log_prob"].sum().backward()
        return {
            name.split(".")[0]
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }

    batch = random_batch()
    assert reached("target") == {"aux", "posterior", "cell", "backward_network"}
    assert reached("posterior") == {"aux"}
    assert reached("backward") == {"aux", "posterior", "cell"}


def test_6_the_target_gives_the_backward_network_no_gradient() -> None:
    """With z held fixed, the backward network gets no gradient from the auxiliary cost."""
    model = MODELS["paper"](beta=0.0)
    batch = random_batch()
    z = pyro.poutine.trace(model.guide).get_trace(batch).nodes["z"]["value"].detach()
    trace = pyro.poutine.trace(pyro.poutine.condition(model.model, data={"z": z})).get_trace(batch)
    trace.compute_log_prob()
    trace.nodes["aux_b"]["log_prob"].sum().backward()
    assert all(p.grad is None for p in model.backward_network.parameters())
    assert all(p.grad is not None for p in model.aux["b"].parameters())


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("objective", ["trace", "mean-field", "iwae"])
def test_9_kl_weight_acts_on_model_and_guide(objective: str, layout: str) -> None:
    model = MODELS["paper"](layout=layout, alpha=0.0, beta=0.0)
    batch = random_batch(lengths=[7, 3, 1, 5, 2])

    def loss(weight: float) -> Tensor:
        with attributes(model, kl_weight=weight):
            return loss_and_gradients(model, OBJECTIVES[objective](), batch)[0]

    if objective != "iwae":  # reconstruction plus KL is linear in the weight
        assert_close(loss(0.5), (loss(0.0) + loss(1.0)) / 2, "loss at one half")
        torch.manual_seed(1)
        bounds = batch_bounds(model.model, model.guide, batch)
        assert_close(loss(0.0), -bounds.log_likelihood.mean(), "loss at zero")
    tensor_weight = loss_and_gradients_with(model, batch, objective, torch.tensor(0.5))
    assert_close(tensor_weight, loss(0.5), "weight as a tensor")
    with attributes(model, kl_weight=0.0):
        _, gradients = loss_and_gradients(model, OBJECTIVES[objective](), batch)
    assert all(g is None or g.abs().max() == 0 for n, g in gradients.items() if "prior" in n)


def loss_and_gradients_with(model, batch, objective, weight):  # type: ignore[no-untyped-def]
    with attributes(model, kl_weight=weight):
        return loss_and_gradients(model, OBJECTIVES[objective](), batch)[0]


def test_9_stock_objectives_see_the_same_weight() -> None:
    model = MODELS["paper"](kl_weight=0.3)
    batch = random_batch()
    for ours, stock in (
        (TraceELBO(), pyro.infer.Trace_ELBO()),
        (TraceMeanField_ELBO(), pyro.infer.TraceMeanField_ELBO()),
    ):
        loss, gradients = loss_and_gradients(model, ours, batch)
        stock_loss, stock_gradients = loss_and_gradients(model, stock, batch)
        assert_close(loss, stock_loss, "loss")
        for name, gradient in gradients.items():
            assert_close(gradient, stock_gradients[name], name)


FRESH_PROCESS = """
import sys, torch
from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import batch_bounds
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
saved = torch.load(sys.argv[1], weights_only=True)
model = ZForcing(4, hidden_size=6, latent_size=3, mlp_size=5)
model.load_state_dict(saved["model"])
torch.manual_seed(5)
bounds = batch_bounds(model.model, model.guide, SequenceBatch.from_targets(saved["y"]), 3)
print(float.hex(bounds.iwae.sum().item()))
"""


def test_12_a_saved_model_gives_the_same_bound_in_a_fresh_process(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = MODELS["paper"]()
    batch = random_batch()
    torch.save({"model": model.state_dict(), "y": batch.targets}, tmp_path / "model.pt")
    torch.manual_seed(5)
    expected = batch_bounds(model.model, model.guide, batch, 3).iwae.sum().item()
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "model.pt")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float.fromhex(output.strip()) == expected

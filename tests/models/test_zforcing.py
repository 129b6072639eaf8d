"""Tests of Z-Forcing: options, errors, generation and states shared by guide and model."""

from __future__ import annotations

import copy
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from torch.nn import functional as F

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.analysis import reconstruct, sample
from pyro_zf.data import Values
from pyro_zf.infer import Trace_ELBO, batch_bounds
from pyro_zf.models.base import local_parameters
from pyro_zf.nn import BernoulliEmission, CategoricalEmission, GaussianForm
from tests.helpers import MODELS, SIZES, layouts_agree, random_batch


def test_defaults_are_the_papers() -> None:
    zf = ZForcing(1)
    assert zf.cell.lstm.hidden_size == 1024
    assert zf.latent_size == 256
    assert zf.cell.lstm.input_size == 1 + 256
    assert isinstance(zf.embedding, torch.nn.Identity)
    assert zf.aux["b"].condition == "z"
    assert zf.prior.form == GaussianForm()
    weight = zf.cell.lstm.weight_hh_l0
    torch.testing.assert_close(weight.T @ weight, torch.eye(1024), rtol=1e-6, atol=1e-6)


def test_forget_bias() -> None:
    zf = MODELS["paper"]()
    assert all(p.abs().max() == 0 for n, p in zf.cell.named_parameters() if "bias" in n)
    zf = ZForcing(4, **SIZES, forget_bias=1.5)
    for lstm in (zf.cell.lstm, zf.backward_network.lstm):
        bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).reshape(4, -1)
        assert bias[:, 0].tolist() == [0, 1.5, 0, 0]  # gates are in the order i, f, g, o


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emission": "binomial"}, "emission binomial: must be one of"),
        ({"variant": "v2"}, "unknown variant 'v2'"),
        ({"layout": "flat"}, "unknown layout 'flat'"),
        ({"core": "fast"}, "unknown core 'fast'"),
        ({"time_chunk": 0}, "at least 1"),
        ({"detach": "all"}, "unknown detach 'all'"),
        ({"activation": "swish"}, "activation swish: must be one of"),
        ({"alpha": -1.0}, "weight of an auxiliary cost must not be negative, it is -1"),
        ({"aux_condition": "h"}, "reads 'z' or 'zh', not 'h'"),
        ({"mlp_depth": -1}, "depth must not be negative"),
        ({"reverse_emission": "bernouli"}, "emission bernouli: must be one of"),
        ({"reverse_emission": "gaussian"}, "is for real data, .* of the model is for binary data"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZForcing(4, **{**SIZES, **options})


def test_a_negative_kl_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="KL weight must not be negative"):
        MODELS["paper"](kl_weight=-0.1).model(random_batch())


def test_the_guide_needs_targets() -> None:
    with pytest.raises(ValueError, match="reads the targets"):
        MODELS["paper"]().guide(SequenceBatch.to_generate(torch.zeros(2, 4), 3))


@pytest.mark.parametrize("kind", MODELS)
def test_generation_is_ancestral(kind: str) -> None:
    """Generated values have the same density under the teacher-forced program as when sampled."""
    zf = MODELS[kind]()
    start = torch.zeros(3, dtype=torch.long) if kind == "categorical" else torch.zeros(3, 4)
    trace = poutine.trace(zf.model).get_trace(SequenceBatch.to_generate(start, 5))
    y = torch.stack([trace.nodes[f"y_{t}"]["value"] for t in range(1, 6)], dim=1)
    z = torch.stack([trace.nodes[f"z_{t}"]["value"] for t in range(1, 6)], dim=1)
    forced = poutine.trace(poutine.condition(zf.model, data={"z": z})).get_trace(
        SequenceBatch.from_targets(y)
    )
    drawn = trace.log_prob_sum()
    scored = forced.log_prob_sum(lambda name, site: not name.startswith("aux_"))
    torch.testing.assert_close(scored, drawn, rtol=1e-10, atol=0)
    assert zf.generate(start, 5).shape == y.shape


def test_no_backward_network_in_generation() -> None:
    zf = MODELS["paper"]()
    zf.backward_network.forward = None
    assert sample(zf, Values("binary", 4), 3, 5).shape == (3, 5, 4)


def test_reconstruct() -> None:
    zf, batch = MODELS["paper"](), random_batch()
    result = reconstruct(zf, batch)
    assert torch.equal(result.targets, batch.targets)
    assert ((result.teacher_forced > 0) & (result.teacher_forced < 1)).all()
    assert set(result.from_latents.unique().tolist()) <= {0.0, 1.0}
    assert zf.layout == "time"


def test_states_are_computed_once_and_never_stale() -> None:
    zf, batch = MODELS["paper"](), random_batch()
    calls = []
    run = zf.cell.run
    zf.cell.run = lambda *args: calls.append(1) or run(*args)

    def scored(trace: poutine.Trace) -> float:
        model = poutine.trace(poutine.replay(zf.model, trace=trace)).get_trace(batch)
        return model.log_prob_sum().item()

    guide = poutine.trace(zf.guide).get_trace(batch)
    expected = scored(guide)
    assert len(calls) == 1, (
        "by the prior's ordinary density; the program takes what the path carries"
    )
    assert scored(guide) == pytest.approx(expected, rel=1e-12)
    assert len(calls) == 2
    calls.clear()

    guide = poutine.trace(zf.guide).get_trace(batch)
    with torch.no_grad():
        zf.cell.lstm.weight_hh_l0.add_(0.5)
    changed = scored(guide)
    assert len(calls) == 2, "states must be recomputed when the parameters change"
    fresh = guide.copy()
    fresh.nodes["z"]["value"] = guide.nodes["z"]["value"].clone()
    assert scored(fresh) == pytest.approx(changed, rel=1e-12)

    with torch.no_grad():
        guide = poutine.trace(zf.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(zf.model, trace=guide)).get_trace(batch)
    model.log_prob_sum().backward()
    gradient = zf.cell.lstm.weight_hh_l0.grad
    assert gradient is not None, (
        "states computed without a graph must not be reused when one is needed"
    )
    assert gradient.abs().max() > 0

    guide = poutine.trace(zf.guide).get_trace(batch)
    other = random_batch()
    before = len(calls)
    poutine.trace(poutine.replay(zf.model, trace=guide)).get_trace(other)
    assert len(calls) == before + 1, "states must not be shared with another batch"


def test_states_computed_under_other_conditions_are_not_shared() -> None:
    zf, batch = MODELS["paper"](), random_batch()
    calls = []
    run = zf.cell.run
    zf.cell.run = lambda *args: calls.append(1) or run(*args)

    def replay(guide: poutine.Trace) -> int:
        calls.clear()
        poutine.trace(poutine.replay(zf.model, trace=guide)).get_trace(batch)
        return len(calls)

    assert replay(poutine.trace(zf.guide).get_trace(batch)) == 0
    guide = poutine.trace(zf.guide).get_trace(batch)
    with torch.no_grad():
        guide.nodes["z"]["value"].mul_(2)
    assert replay(guide) == 1, "z was changed in place"
    guide = poutine.trace(zf.guide).get_trace(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert replay(guide) == 1, "the precision has changed"
    zf.cell.requires_grad_(False)
    zf.eval()  # otherwise Pyro warns about unregistered parameters
    guide = poutine.trace(zf.guide).get_trace(batch)
    zf.cell.requires_grad_(True)
    assert replay(guide) == 1, "the parameters need a gradient now"


@pytest.mark.parametrize("layout", ["steps", "time"])
def test_the_start_symbol_is_not_predicted_in_reverse(layout: str) -> None:
    zf, batch = MODELS["paper"](layout=layout, alpha=0.0, beta=0.7), random_batch()
    assert batch.targets is not None
    observed = SequenceBatch(batch.inputs, batch.targets, has_start_symbol=False)
    b = zf.backward_network(batch.targets, batch)
    log_prob = zf.aux["u"].emission(b).log_prob(batch.inputs.transpose(0, 1))
    for data, expected in ((batch, log_prob[1:].sum(0)), (observed, log_prob.sum(0))):
        torch.testing.assert_close(
            batch_bounds(zf.model, zf.guide, data).aux, 0.7 * expected.detach()
        )


def test_the_backward_state_predicts_independent_values() -> None:
    emission = {"emission": "convolutional-bernoulli", "emission_mlp_size": 8, "input_window": 2}
    options = {**SIZES, "alpha": 0.0, **emission}
    zf, batch = ZForcing(4, **options, reverse_emission="bernoulli").double(), random_batch()
    layouts_agree(zf, batch)
    assert batch.targets is not None
    logits = zf.aux["u"].emission.network(zf.backward_network(batch.targets, batch))
    u = batch.inputs.transpose(0, 1)
    log_prob = -F.binary_cross_entropy_with_logits(logits, u, reduction="none").sum(-1)
    torch.testing.assert_close(
        batch_bounds(zf.model, zf.guide, batch).aux, 0.7 * log_prob[1:].sum(0).detach()
    )
    default, named = (
        ZForcing(4, **options, reverse_emission=name).state_dict()
        for name in (None, options["emission"])
    )
    assert {k: x.shape for k, x in default.items()} == {k: x.shape for k, x in named.items()}


def test_an_emission_of_ones_own() -> None:
    symbols = ZForcing(4, **{**SIZES, "emission": CategoricalEmission(6, 4, mlp_size=5)})
    assert isinstance(symbols.embedding, torch.nn.Embedding)
    assert symbols.generate(torch.zeros(2, dtype=torch.long), 3).shape == (2, 3)
    with pytest.raises(
        ValueError,
        match="the backward network has 7 units: give one for these, as reverse_emission",
    ):
        ZForcing(4, **SIZES, emission=BernoulliEmission(6, 4), backward_size=7)


def test_weights_are_checked_when_they_are_set() -> None:
    zf = MODELS["paper"]()
    with pytest.raises(ValueError, match="must not be negative, it is -1"):
        zf.alpha = -1.0
    zf.alpha, zf.beta = 0.0, 2.0
    assert zf.aux_weights == {"b": 0.0, "u": 2.0}


def test_copies_and_pickles_leave_the_shared_states_behind() -> None:
    zf, batch = MODELS["paper"](), random_batch()
    zf.guide(batch)
    twin = copy.deepcopy(zf)
    pyro.clear_param_store()
    torch.manual_seed(1)
    loss = zf.loss_module(Trace_ELBO())(batch)
    torch.manual_seed(1)
    assert twin.loss_module(Trace_ELBO())(batch).item() == loss.item()
    with local_parameters():  # parameters in Pyro's store cannot be pickled
        zf = MODELS["paper"]()
        zf.guide(batch)
    assert isinstance(pickle.loads(pickle.dumps(zf)), ZForcing)


def test_print_names_the_parts() -> None:
    text = repr(MODELS["paper"]())
    for part in ("GaussianPrior", "SmoothingPosterior", "LSTMCell", "BernoulliEmission"):
        assert part in text


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("condition", ["z", "zh"])
def test_with_a_detached_posterior_the_cost_of_b_trains_its_own_network_alone(
    layout: str, condition: str
) -> None:
    model = MODELS["detach-posterior"](aux_condition=condition, layout=layout)
    batch = random_batch()
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=guide)).get_trace(batch)
    trace.log_prob_sum(lambda name, _: name.startswith("aux_b")).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("aux.b.")}

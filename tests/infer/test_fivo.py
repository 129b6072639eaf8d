"""Tests of FIVO: resampling, errors, excluded terms. test_exact_likelihood tests its limits."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam

from pyro_zf import RNN, VRNN, SequenceBatch, ZForcing
from pyro_zf.infer import TraceFIVO, TraceIWAE, batch_bounds, evaluate, particle_filter
from pyro_zf.infer.fivo import _ancestors
from pyro_zf.models import MODELS as SYSTEMS
from pyro_zf.nn import StepStates
from tests.helpers import MODELS, SIZES, assert_close, attributes, loss_and_gradients, random_batch


def test_ancestors() -> None:
    """Offspring differ from their expected number by less than one; even weights are not resampled."""
    torch.manual_seed(0)
    weight = torch.softmax(2 * torch.randn(50, 6), dim=0)
    weight[:, 0] = 1 / 50
    ancestors, uneven = _ancestors(weight.log(), 0.5)
    assert uneven.tolist() == [False] + [True] * 5
    assert ancestors[:, 0].tolist() == list(range(50))
    for sequence in range(1, 6):
        offspring = torch.bincount(ancestors[:, sequence], minlength=50)
        assert (offspring - 50 * weight[:, sequence]).abs().max() < 1
    effective = 1 / weight.square().sum(0)
    _, always = _ancestors(weight.log(), 1.0)
    assert always.tolist() == (effective < 50 * (1 - 1e-9)).tolist()


def test_equal_particles_give_the_bound_of_one() -> None:
    model, batch = MODELS["paper"](alpha=0.0, beta=0.0), random_batch()
    with attributes(torch, randn=lambda shape, **options: torch.full(shape, 0.3)):
        one = particle_filter(model, batch, 1).bound
        many = particle_filter(model, batch, 5, resample_below=1.0).bound
    torch.testing.assert_close(many, one)


class OwnGuide(ZForcing):
    def guide_time(self, batch: SequenceBatch) -> None:
        with self.sequences(batch):
            standard = pyro.distributions.Normal(torch.zeros(5, 7, 3), 1.0)
            pyro.sample("z", standard.to_event(2))


def test_a_guide_of_ones_own_is_refused() -> None:
    """The filter would silently use the posterior instead."""
    model = OwnGuide(4, **SIZES)
    with pytest.raises(TypeError, match="without programs of its own"):
        model.loss_module(TraceFIVO(3))(random_batch())


def test_log_weights_have_full_precision_under_autocast() -> None:
    torch.set_default_dtype(torch.float32)
    model = VRNN(4, hidden_size=6, latent_size=3, mlp_size=5)
    batch = SequenceBatch.from_targets(torch.ones(2, 3, 4), torch.tensor([0, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert particle_filter(model, batch, 3).bound.abs().max() < 1e-5


def test_lengths() -> None:
    """Padding changes nothing, whatever is resampled in the meantime."""
    model = MODELS["paper"]()
    batch = random_batch(lengths=[7, 3, 1, 5, 2])
    torch.manual_seed(1)
    whole = particle_filter(model, batch, 6, resample_below=1.0)
    assert batch.targets is not None
    longer = SequenceBatch.from_targets(
        torch.cat([batch.targets, torch.ones(5, 1, 4)], 1), batch.lengths
    )
    torch.manual_seed(1)
    padded = particle_filter(model, longer, 6, resample_below=1.0)
    # The last step of the shorter batch is not resampled, which would draw one more random number.
    assert_close(padded.bound[1:], whole.bound[1:], "bounds")
    assert_close(padded.aux[1:], whole.aux[1:], "auxiliary costs")


def test_aux_and_weights_stay_out_of_the_bound() -> None:
    model, batch = MODELS["paper"](kl_weight=0.2), random_batch()

    def bound() -> torch.Tensor:
        torch.manual_seed(3)
        fivo = batch_bounds(model.model, model.guide, batch, 4, fivo=True).fivo
        assert fivo is not None
        return fivo

    expected = bound()
    for weights in ({"alpha": 9.0}, {"alpha": 0.0, "beta": 0.0}, {"kl_weight": 1.0}):
        with attributes(model, **weights):
            assert_close(bound(), expected, f"bound with {weights}")
    with attributes(model, kl_weight=1.0):
        torch.manual_seed(3)
        loss = loss_and_gradients(model, TraceFIVO(4), batch, seed=3)[0]
    torch.manual_seed(3)
    with torch.no_grad(), attributes(model, kl_weight=1.0):
        result = particle_filter(model, batch, 4)
    assert_close(loss, -(result.bound + result.aux).mean(), "loss")


def test_in_a_data_set() -> None:
    model = MODELS["paper"]()
    batches = [random_batch(), random_batch(lengths=[7, 3, 1, 5, 0])]
    bounds = evaluate(model.model, model.guide, batches, 8, fivo=True)
    assert bounds.per_sequence("fivo").stderr > 0
    assert bounds.per_step("fivo").mean < 0
    assert bounds.num_sequences == 9


def test_plain_svi() -> None:
    model, batch = MODELS["paper"](layout="steps"), random_batch()
    svi = SVI(model.model, model.guide, ClippedAdam({"lr": 0.02}), TraceFIVO(3))  # type: ignore[arg-type]
    before = model.prior.network[0].weight.detach().clone()
    assert svi.step(batch) > 0
    assert not torch.equal(before, model.prior.network[0].weight)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    model, batch = MODELS["paper"](), random_batch()
    with pytest.raises(ValueError, match=r"fraction of K in 0\.\.1, not 2"):
        TraceFIVO(3, resample_below=2.0)
    rnn = RNN(4, hidden_size=3, mlp_size=3)
    with pytest.raises(TypeError, match=r"give it the \.model and \.guide of one"):
        rnn.loss_module(TraceFIVO(3))(batch)
    with pytest.raises(TypeError, match=r"give it the \.model and \.guide of one"):
        TraceFIVO(3).differentiable_loss(model.model, MODELS["paper"]().guide, batch)
    model.posterior = SampledPosterior()
    with pytest.raises(ValueError, match="posterior whose samples are reparametrised"):
        model.loss_module(TraceFIVO(3))(batch)
    with torch.no_grad():
        assert particle_filter(model, batch, 3).bound.isfinite().all()


class SampledPosterior(torch.nn.Module):
    def forward(self, h: torch.Tensor, b: torch.Tensor) -> pyro.distributions.TorchDistribution:
        probs = torch.sigmoid(h[..., :3])
        return pyro.distributions.Bernoulli(probs).to_event(1)


def test_one_particle_is_the_elbo() -> None:
    model, batch = MODELS["paper"](alpha=0.0, beta=0.0), random_batch()
    loss, _ = loss_and_gradients(model, TraceFIVO(1, resample_below=0.0), batch)
    expected, _ = loss_and_gradients(model, TraceIWAE(1), batch)
    assert_close(loss, expected, "loss")


@pytest.mark.parametrize("name", ["zforcing", "vrnn", "srnn", "storn"])
@torch.no_grad()
def test_against_a_filter_written_out(name: str) -> None:
    """Every part of the state of a particle follows its ancestor; costs, masks and KL weight enter once."""
    costs = {"alpha": 0.3, "beta": 0.7} if name == "zforcing" else {"aux": {"b": 0.3, "u": 0.7}}
    model: Any = SYSTEMS[name](4, hidden_size=6, latent_size=3, mlp_size=5, kl_weight=0.4, **costs)
    for parameter in model.parameters():  # uneven weights, so that much is resampled
        parameter.mul_(3)
    batch, particles = random_batch(lengths=[7, 3, 1, 5, 2]), 6
    torch.manual_seed(1)
    result = particle_filter(model, batch, particles, resample_below=0.9)
    torch.manual_seed(1)
    shape = (particles, batch.num_sequences)
    u, b = model.input_features(batch, None)[0], model.backward_states(batch)
    context = model.posterior_context(batch)
    assert batch.targets is not None
    assert batch.mask is not None
    log_weight = torch.full(shape, -math.log(particles))
    bound, aux = torch.zeros(shape[1]), torch.zeros(shape[1])
    state = tuple(x.expand(*shape, -1) for x in model.cell.initial(shape, None))
    resampled = 0
    for t in range(batch.num_steps):
        real = batch.mask[:, t]
        u_t = u[t].expand(*shape, -1)
        state = model.cell.before(u_t, state)
        h = state[0]
        reads = torch.cat([{"state": h, "input": u_t}[k] for k in model.prior_reads], -1)
        p, q = model.prior(reads), model.posterior(reads, context[t].expand(*shape, -1))
        z = q.sample()
        state = model.cell.after(u_t, model.cell_inputs({"z": z}), state)
        y = model.emission(model.emission_inputs(u_t, {"z": z}, state[0]))
        ratio = 0.4 * (p.log_prob(z) - q.log_prob(z))
        log_weight = log_weight + torch.where(real, y.log_prob(batch.targets[:, t]) + ratio, 0.0)
        states = StepStates(batch.inputs[:, t], z, h, state[0], b[t], None)
        for cost, module in model.aux.items():
            if t > 0 or cost != "u":
                value = model.aux_weights[cost] * module(states).expand(shape)
                aux = aux + torch.where(real, value.mean(0), 0.0)
        total = torch.logsumexp(log_weight, 0)
        bound, log_weight = bound + torch.where(real, total, 0.0), log_weight - total
        if t + 1 < batch.num_steps:
            ancestors, uneven = _ancestors(log_weight, 0.9)
            resampled += int(uneven.sum())
            log_weight = torch.where(uneven, -math.log(particles), log_weight)
            state = tuple(
                torch.stack([s[ancestors[:, i], i] for i in range(shape[1])], 1) for s in state
            )
    assert resampled > 5
    assert_close(result.bound, bound, "bound")
    assert_close(result.aux, aux, "auxiliary costs")


def test_behind_the_end_nothing_is_added() -> None:
    torch.set_default_dtype(torch.float32)
    model = VRNN(4, hidden_size=6, latent_size=3, mlp_size=5)
    batch = SequenceBatch.from_targets(torch.ones(2, 5, 4), torch.tensor([2, 5]))
    with torch.no_grad():
        per_step = particle_filter(model, batch, 7).bound_per_step
    assert (per_step[0, 2:] == 0).all()
    assert (per_step[0, :2] != 0).all()


def test_the_noise_of_the_filter_is_its_own() -> None:
    """The ELBO of a seed does not change with the filter, whose noise differs between batches."""
    model, batches = MODELS["paper"](), [random_batch()] * 2
    torch.manual_seed(2)
    plain = evaluate(model.model, model.guide, batches, 3)
    torch.manual_seed(2)
    both = evaluate(model.model, model.guide, batches, 3, fivo=True)
    for name in ("elbo", "iwae", "kl"):
        assert both.per_sequence(name) == plain.per_sequence(name)
    first, second = both._values["fivo"]
    assert not torch.equal(first, second)


def test_one_sequence_has_no_standard_error() -> None:
    model = MODELS["paper"]()
    bounds = evaluate(
        model.model, model.guide, [random_batch(lengths=[7, 3, 3, 2, 2])], 3, fivo=True
    )
    for name in ("fivo", "elbo", "kl"):
        estimates = bounds.at_steps(name)
        assert estimates is not None
        assert [math.isnan(x.stderr) for x in estimates] == [False] * 3 + [True] * 4
        assert all(math.isfinite(x.mean) for x in estimates)

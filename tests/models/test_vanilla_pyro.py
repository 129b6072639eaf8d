"""Models and guides work with all of Pyro's inference algorithms and handlers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from torch import nn

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import TraceIWAE, batch_bounds
from pyro_zf.infer import TraceMeanField_ELBO as MeanField
from pyro_zf.nn import SmoothingPosterior
from tests.helpers import LATENT, MODELS, assert_close, loss_and_gradients, random_batch

LAYOUTS = pytest.mark.parametrize("layout", ["steps", "time"])


def bits() -> SequenceBatch:
    """Sequences of all ones or all zeros, which are easy to learn but not by the marginal."""
    targets = torch.ones(16, 6, 4)
    targets[::2] = 0
    return SequenceBatch.from_targets(targets)


@LAYOUTS
@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True),
        TraceIWAE(num_particles=3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_plain_svi_trains(objective: object, layout: str) -> None:
    zf = MODELS["paper"](layout=layout, alpha=0.01, beta=0.01)
    svi = SVI(zf.model, zf.guide, ClippedAdam({"lr": 0.04}), objective)  # type: ignore[arg-type]
    batch = bits()
    losses = [svi.step(batch) for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]


@LAYOUTS
def test_plain_torch_loop_trains(layout: str) -> None:
    zf = MODELS["paper"](layout=layout, alpha=0.01, beta=0.01)
    loss_module = zf.loss_module(Trace_ELBO())
    optimiser = torch.optim.Adam(loss_module.parameters(), lr=0.04)
    batch, losses = bits(), []
    for _ in range(15):
        optimiser.zero_grad()
        loss = loss_module(batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert len(pyro.get_param_store()) == 0, "a plain loop leaves nothing in the parameter store"


def test_plain_svi_trains_under_local_parameters_too() -> None:
    """With the setting that Pyro recommends, SVI finds only parameters that are registered."""
    zf, batch = MODELS["paper"](), bits()
    before = zf.emission.network[0].weight.detach().clone()
    with pyro.settings.context(module_local_params=True):
        SVI(zf.model, zf.guide, ClippedAdam({"lr": 0.02}), Trace_ELBO()).step(batch)
    assert not torch.equal(before, zf.emission.network[0].weight)


@LAYOUTS
def test_renyi_with_alpha_zero_is_the_iwae(layout: str) -> None:
    zf = MODELS["paper"](layout=layout, alpha=0.0, beta=0.0)
    batch = random_batch(num_sequences=1)
    torch.manual_seed(4)
    renyi = RenyiELBO(0.0, num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    theirs = renyi.loss(zf.model, zf.guide, batch)
    torch.manual_seed(4)
    ours = TraceIWAE(7).loss(zf.model, zf.guide, batch)
    assert ours == pytest.approx(theirs, rel=1e-10)
    torch.manual_seed(4)
    bound = batch_bounds(zf.model, zf.guide, batch, num_samples=7, chunk=7).iwae.sum().item()
    assert -bound == pytest.approx(theirs, rel=1e-10)


@LAYOUTS
def test_predictive(layout: str) -> None:
    zf = MODELS["paper"](layout=layout)
    batch = random_batch()
    from_posterior = Predictive(zf.model, guide=zf.guide, num_samples=3, parallel=True)(batch)
    from_prior = Predictive(zf.model, num_samples=3, parallel=True)(batch)
    z, shape = ("z_2", (3, 5, LATENT)) if layout == "steps" else ("z", (3, 5, 7, LATENT))
    assert from_prior[z].shape == shape
    sites = Predictive(
        zf.model, guide=zf.guide, num_samples=3, parallel=True, return_sites=(z, "y_2", "y")
    )(batch)
    assert sites[z].shape == shape
    assert from_posterior is not None


@LAYOUTS
def test_unconditioned_observations_are_drawn(layout: str) -> None:
    zf = MODELS["paper"](layout=layout)
    batch = random_batch()
    trace = poutine.trace(poutine.uncondition(zf.model)).get_trace(batch)
    site = trace.nodes["y_3" if layout == "steps" else "y"]
    assert not site["is_observed"]
    assert site["value"].shape == ((5, 4) if layout == "steps" else (5, 7, 4))


def test_condition_and_replay_agree_across_layouts() -> None:
    """Both layouts give the same score to a path, whether conditioned or replayed."""
    zf = MODELS["paper"]()
    batch = random_batch(lengths=[7, 3, 1, 5, 2])
    guide = poutine.trace(zf.guide).get_trace(batch)
    z = guide.nodes["z"]["value"]
    replayed = poutine.trace(poutine.replay(zf.model, trace=guide)).get_trace(batch)
    given = poutine.trace(poutine.condition(zf.model, data={"z": z.clone()})).get_trace(batch)
    with zf.using_layout("steps"):
        data = {f"z_{t + 1}": z_t for t, z_t in enumerate(z.unbind(1))}
        steps = poutine.trace(poutine.condition(zf.model, data=data)).get_trace(batch)
        guide_steps = poutine.trace(poutine.condition(zf.guide, data=data)).get_trace(batch)
    assert_close(given.log_prob_sum(), replayed.log_prob_sum(), "given path")
    assert_close(steps.log_prob_sum(), replayed.log_prob_sum(), "given steps")
    assert_close(guide_steps.log_prob_sum(), guide.log_prob_sum(), "guide")
    rescored = poutine.trace(poutine.condition(zf.guide, data={"z": z.clone()})).get_trace(batch)
    assert_close(rescored.log_prob_sum(), guide.log_prob_sum(), "guide at a given path")


def test_a_prefix_can_be_continued() -> None:
    zf = MODELS["paper"]()
    start = SequenceBatch.to_generate(torch.zeros(5, 4), num_steps=6)
    prefix = {"y_1": torch.ones(5, 4), "y_2": torch.zeros(5, 4)}
    trace = poutine.trace(poutine.condition(zf.model, data=prefix)).get_trace(start)
    assert torch.equal(trace.nodes["y_1"]["value"], prefix["y_1"])
    assert trace.nodes["y_6"]["value"].shape == (5, 4)


def test_format_shapes_and_render() -> None:
    zf = MODELS["paper"](layout="steps")
    batch = random_batch(num_steps=2)
    text = poutine.trace(zf.model).get_trace(batch).format_shapes()
    for site in ("z_1", "y_2", "aux_b_1", "aux_u_2"):
        assert site in text
    pytest.importorskip("graphviz")
    graph = pyro.render_model(zf.model, model_args=(batch,))
    assert "z_2" in graph.source
    with zf.using_layout("time"):
        assert "aux_b" in pyro.render_model(zf.model, model_args=(batch,)).source


class Bits(nn.Module):
    """A prior or posterior without reparametrised samples."""

    def __init__(self, in_size: int, latent_size: int = 2) -> None:
        super().__init__()
        self.net = nn.Linear(in_size, latent_size)

    def forward(self, *inputs: torch.Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.net(torch.cat(inputs, dim=-1))).to_event(1)


@pytest.mark.parametrize("lengths", [None, [7, 3, 1, 5, 2]])
def test_binary_latents_get_the_score_function_gradient(lengths: list[int] | None) -> None:
    """Without reparametrisation, both layouts fall back to the same score-function estimate."""
    zf = MODELS["paper"](prior=Bits(6, LATENT), posterior=Bits(12, LATENT))
    batch = random_batch(lengths=lengths)
    results = []
    for layout in ("steps", "time"):
        with zf.using_layout(layout):  # type: ignore[arg-type]
            results.append(loss_and_gradients(zf, Trace_ELBO(), batch))
    (loss, gradients), (other_loss, other_gradients) = results
    assert_close(other_loss, loss, "loss")
    for name, gradient in gradients.items():
        # Pyro does not mask scores, so sites after the end of a sequence add zero-mean noise to the
        # gradient of the posterior and its inputs. A single site for the path has no such noise.
        if lengths is None or name.startswith(("emission", "prior", "aux")):
            assert_close(other_gradients[name], gradient, name)
    assert gradients["posterior.net.weight"].abs().max() > 0
    with pytest.raises(ValueError, match="TraceMeanField_ELBO needs a guide"):
        zf.loss_module(MeanField())(batch)


def test_the_score_function_gradient_is_right() -> None:
    """The gradient agrees with the exact one from enumeration of all paths of two steps of two bits."""
    zf = ZForcing(
        2, hidden_size=6, latent_size=2, mlp_size=5, alpha=0.0, beta=0.0,
        prior=Bits(6), posterior=Bits(12),
    )  # fmt: skip
    batch = random_batch(num_sequences=1, num_steps=2)
    batch = SequenceBatch.from_targets(batch.targets[..., :2])  # type: ignore[index]
    paths = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).reshape(16, 1, 2, 2)
    copies = SequenceBatch.from_targets(batch.targets.expand(16, -1, -1))  # type: ignore[union-attr]
    data = {"z": paths[:, 0]}
    q = poutine.trace(poutine.condition(zf.guide, data=data)).get_trace(copies)
    p = poutine.trace(poutine.condition(zf.model, data=data)).get_trace(copies)
    log_q = q.nodes["z"]["fn"].log_prob(paths[:, 0])
    log_p = p.nodes["z"]["fn"].log_prob(paths[:, 0]) + p.nodes["y"]["fn"].log_prob(copies.targets)
    loss = (log_q.exp() * (log_q - log_p)).sum()
    exact = torch.autograd.grad(loss, zf.posterior.net.bias)[0]
    pyro.clear_param_store()
    many = Trace_ELBO(20_000, vectorize_particles=True, max_plate_nesting=1)
    value, gradients = loss_and_gradients(zf, many, batch)
    torch.testing.assert_close(value, loss.detach(), rtol=0.02, atol=0.0)
    assert (gradients["posterior.net.bias"] - exact).norm() < 0.1 * exact.norm()  # type: ignore[operator]


class LaplacePosterior(SmoothingPosterior):
    """Inherits the step function of a Gaussian, but is not Gaussian."""

    def forward(self, h: torch.Tensor, b: torch.Tensor) -> dist.TorchDistribution:
        normal = super().forward(h, b).base_dist
        return dist.Laplace(normal.loc, normal.scale).to_event(1)


def test_a_forward_of_ones_own_is_used_in_both_layouts() -> None:
    zf = MODELS["paper"](posterior=LaplacePosterior(6, 6, LATENT, 5))
    batch = random_batch()
    results = []
    for layout in ("steps", "time"):
        with zf.using_layout(layout):  # type: ignore[arg-type]
            results.append(loss_and_gradients(zf, Trace_ELBO(), batch))
    assert_close(results[1][0], results[0][0], "loss")
    for name, gradient in results[0][1].items():
        assert_close(results[1][1][name], gradient, name)


@pytest.mark.parametrize("particles", [4, 7])  # 7 is also the number of steps
def test_a_given_path_under_particles(particles: int) -> None:
    zf, batch = MODELS["paper"](), random_batch()
    z = torch.randn(5, 7, LATENT)

    def nothing(batch: SequenceBatch) -> None: ...

    results = []
    for layout in ("steps", "time"):
        data = {"z": z} if layout == "time" else {f"z_{t + 1}": z[:, t] for t in range(7)}
        given = poutine.condition(zf.model, data=data)
        with zf.using_layout(layout):  # type: ignore[arg-type]
            bounds = batch_bounds(given, nothing, batch, particles)
            loss = TraceIWAE(particles).loss(given, nothing, batch)
        results.append((bounds.elbo, bounds.iwae, torch.tensor(loss)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_close(ours, theirs, "given path")


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO(), MeanField()])
def test_a_replayed_guide(objective) -> None:  # type: ignore[no-untyped-def]
    zf, batch = MODELS["paper"](), random_batch()
    trace = poutine.trace(zf.guide).get_trace(batch)
    replayed = poutine.replay(zf.guide, trace=trace)
    first, second = (objective.loss(zf.model, replayed, batch) for _ in range(2))
    assert first == pytest.approx(second, rel=1e-12)


@LAYOUTS
def test_inference_mode(layout: str) -> None:
    zf = MODELS["paper"](layout=layout)
    with torch.inference_mode():
        batch = random_batch()
        assert batch_bounds(zf.model, zf.guide, batch, 2).elbo.isfinite().all()


def test_a_prior_without_its_event_dimension_is_refused() -> None:
    class NoEvent(nn.Module):
        def forward(self, h: torch.Tensor) -> dist.TorchDistribution:
            return dist.Normal(h[..., :LATENT], 1.0)

    zf = MODELS["paper"](prior=NoEvent())
    with (
        pyro.validation_enabled(False),
        pytest.raises(
            ValueError, match=r"the prior NoEvent gives batch shape .* is a \.to_event\(1\) missing"
        ),
    ):
        zf.loss_module(Trace_ELBO())(random_batch(num_sequences=LATENT))


def test_a_guide_of_ones_own() -> None:
    """A plain function with the same site name works with the model of the package."""
    zf = MODELS["paper"]()
    batch = random_batch()

    def guide(batch: SequenceBatch) -> None:
        scale = pyro.param("scale", torch.ones(LATENT), constraint=dist.constraints.positive)
        loc = pyro.param("loc", torch.zeros(batch.num_steps, LATENT))
        with zf.sequences(batch):
            shape = (batch.num_sequences, *loc.shape)
            pyro.sample("z", dist.Normal(loc.expand(shape), scale).to_event(2))

    svi = SVI(zf.model, guide, ClippedAdam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5])
    bounds = batch_bounds(zf.model, guide, batch, num_samples=10)
    assert (bounds.elbo.mean() <= bounds.iwae.mean()).item()


def test_a_prior_in_ten_lines_as_in_the_readme() -> None:
    """As the README says, a prior is a module whose forward maps h to a distribution."""

    class StudentPrior(nn.Module):
        def __init__(self, hidden_size: int, latent_size: int) -> None:
            super().__init__()
            self.loc = nn.Linear(hidden_size, latent_size)

        def forward(self, h: torch.Tensor) -> dist.TorchDistribution:
            return dist.StudentT(4.0, self.loc(h), 1.0).to_event(1)

    zf = ZForcing(4, hidden_size=6, latent_size=3, mlp_size=5, prior=StudentPrior(6, 3))
    svi = SVI(zf.model, zf.guide, ClippedAdam({"lr": 0.02}), TraceMeanField_ELBO())
    batch, before = bits(), zf.prior.loc.weight.detach().clone()
    losses = [svi.step(batch) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert not torch.equal(before, zf.prior.loc.weight)
    assert zf.generate(torch.zeros(2, 4), 6).shape == (2, 6, 4)


def test_a_second_model_under_the_same_name_is_refused() -> None:
    MODELS["paper"]().model(random_batch())
    with pytest.raises(ValueError, match="another module is registered with Pyro as 'zforcing'"):
        MODELS["paper"]().model(random_batch())
    MODELS["paper"](name="other").model(random_batch())

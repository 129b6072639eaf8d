"""Variational Bi-LSTM: its additions to Z-Forcing, and choices that the paper leaves open."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_zf import SequenceBatch, VariationalBiLSTM, ZForcing
from pyro_zf.infer import Trace_ELBO, TraceIWAE, TraceMeanField_ELBO, WordDropout, batch_bounds
from pyro_zf.nn import GaussianForm, SmoothingPosterior
from pyro_zf.sequence import Recurrence
from tests.helpers import assert_close, attributes, loss_and_gradients, random_batch

SIZES: dict[str, Any] = {"hidden_size": 6, "latent_size": 3, "mlp_size": 5}
LENGTHS = [7, 3, 1, 5, 2]


def bilstm(**options: Any) -> VariationalBiLSTM:
    return VariationalBiLSTM(4, **{**SIZES, "alpha": 0.3, "beta": 0.4, **options})


def test_defaults_are_the_papers() -> None:
    model = VariationalBiLSTM(1)
    assert model.aux_weights == {"b": 0.001}
    assert model.cell.lstm.input_size == 1 + 256 + 1024  # u, z, b~
    assert model.emission.network[0].in_features == 1024 + 1024  # h, b~
    assert model.skip_gradient == 0.5


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)])
def test_without_what_it_adds_it_is_z_forcing(
    objective: Any, layout: Any, lengths: list[int] | None
) -> None:
    model = bilstm(
        activation="clipped-leaky-relu", alpha=0.0, beta=0.0, b_tilde_into=(), backward_reads="targets", skip_gradient=0.0,
        layout=layout, kl_weight=0.6,
    )  # fmt: skip
    zf = ZForcing(4, **SIZES, alpha=0.0, beta=0.0, layout=layout, kl_weight=0.6)
    missing, unexpected = zf.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("aux.") for name in missing)
    batch = random_batch(lengths=lengths)
    loss, gradients = loss_and_gradients(model, objective, batch)
    other_loss, other_gradients = loss_and_gradients(zf, objective, batch)
    assert_close(loss, other_loss, "loss")
    for name, gradient in gradients.items():
        assert_close(gradient, other_gradients[name], name)


def gradients_of_the_stochastic_networks(
    model: VariationalBiLSTM, batch: SequenceBatch, layout: Any
) -> dict[str, Tensor | None]:
    """Gradients of the KL and of the two reconstructions, with z held fixed where it is read.

    The remaining terms of the loss reach h and b only through the inputs of prior and posterior.
    """
    with model.using_layout(layout):
        model.zero_grad()
        torch.manual_seed(1)
        guide = poutine.trace(model.guide).get_trace(batch)
        fixed = {name: guide.nodes[name]["value"].detach() for name in guide.stochastic_nodes}
        guide = poutine.trace(poutine.condition(model.guide, data=fixed)).get_trace(batch)
        program = poutine.condition(model.model, data=fixed)
        trace = poutine.trace(program).get_trace(batch)
    densities: Any = 0.0
    for sites in (guide, trace):
        sites.compute_log_prob()
        for name, site in sites.nodes.items():
            if name == "z" or name.startswith("z_"):
                densities = densities + site["log_prob"].sum()
    densities.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", ["steps", "time"])
def test_skip_gradient_cuts_what_prior_and_posterior_read(layout: str) -> None:
    batch = random_batch(lengths=LENGTHS)
    recurrent = ("cell.", "backward_network.")
    model = bilstm()
    with attributes(model, skip_gradient=1.0):
        cut = gradients_of_the_stochastic_networks(model, batch, layout)
    for name, gradient in cut.items():
        if name.startswith(recurrent):
            assert gradient is None or gradient.abs().max() == 0, f"{name} gets a gradient at p = 1"
        elif name.startswith(("prior.", "posterior.")):
            assert gradient is not None, f"{name} gets none"
            assert gradient.abs().max() > 0, f"{name} gets zeros"
    with attributes(model, skip_gradient=0.0):
        whole = gradients_of_the_stochastic_networks(model, batch, layout)
    assert all(
        gradient is not None and gradient.abs().max() > 0
        for name, gradient in whole.items()
        if name.startswith(recurrent)
    )


class SetMask(Messenger):
    """Sets the mask of the skip gradient."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "skip":
            msg["value"], msg["done"] = self.mask, True


def skipping(model: VariationalBiLSTM, batch: SequenceBatch, mask: Tensor) -> Any:
    """Loss and gradients of the whole objective with a given mask."""
    model.zero_grad()
    pyro.clear_param_store()
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(model.model, SetMask(mask)(model.guide), batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", ["steps", "time"])
def test_skip_gradient_of_the_whole_objective(layout: Any) -> None:
    """p = 0 equals no mask; masks change no values; each step of each sequence has its own entry."""
    batch = random_batch()
    model = bilstm(layout=layout)
    shape = (batch.num_sequences, batch.num_steps)
    none, every = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    loss, unmasked = skipping(model, batch, none)
    with attributes(model, skip_gradient=0.0):
        plain_loss, plain = loss_and_gradients(model, Trace_ELBO(), batch)
    assert_close(loss / batch.num_sequences, plain_loss, "loss at p = 0")
    for name, gradient in plain.items():
        assert_close(unmasked[name] / batch.num_sequences, gradient, name)
    for mask in (every, torch.rand(shape) < 0.5):
        masked_loss, _ = skipping(model, batch, mask)
        assert_close(masked_loss, loss, "the value")

    # With one entry at step 3 of sequence 1, the densities at that step give h and b no gradient.
    one = none.clone()
    one[1, 2] = True
    _, with_one = skipping(model, batch, one)
    name = "backward_network.lstm.weight_hh_l0"
    assert not torch.allclose(with_one[name], unmasked[name])
    assert batch.targets is not None
    # The other sequences are not affected: their part of the gradient is that without a mask.
    others = torch.tensor([0, 2, 3, 4])
    difference = with_one[name] - unmasked[name]
    with attributes(torch.Tensor, normal_=lambda self: self.fill_(0.3)):
        rest = SequenceBatch.from_targets(batch.targets[others])
        _, a = skipping(model, rest, one[others])
        _, b = skipping(model, rest, none[others])
    assert_close(a[name], b[name], "other sequences")
    assert difference.abs().max() > 0


def test_masks() -> None:
    model, batch = bilstm(skip_gradient=0.3), random_batch(num_sequences=400, num_steps=50)

    def mask() -> Tensor:
        pyro.clear_param_store()
        trace = poutine.trace(model.guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model.model, trace=trace)).get_trace(batch)
        assert model_trace.nodes["skip"]["value"] is trace.nodes["skip"]["value"]
        value: Tensor = trace.nodes["skip"]["value"]
        return value

    drawn = mask()
    assert drawn.shape == (400, 50)
    assert abs(drawn.double().mean() - 0.3) < 0.02
    assert 0 < drawn[0].sum() < 50
    model.skip_per = "sequence"
    drawn = mask()
    assert set(drawn.sum(1).tolist()) == {0, 50}
    assert abs(drawn.double().mean() - 0.3) < 0.1
    model.eval()
    assert "skip" not in poutine.trace(model.guide).get_trace(batch).nodes, "masks are for training"


@pytest.mark.parametrize("layout", ["steps", "time"])
def test_b_tilde_has_no_kl(layout: str) -> None:
    """Model and guide use the same distribution for b~, so it cancels from the bound and the KL."""
    model = bilstm(layout=layout).eval()
    batch = random_batch(lengths=LENGTHS)
    torch.manual_seed(2)
    guide = poutine.trace(model.guide).get_trace(batch)
    trace = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(batch)
    guide.compute_log_prob()
    trace.compute_log_prob()
    sites = [name for name in guide.nodes if name.startswith("b_tilde")]
    assert len(sites) == (7 if layout == "steps" else 1)
    for name in sites:
        assert_close(trace.nodes[name]["log_prob"], guide.nodes[name]["log_prob"], name)
        assert trace.nodes[name]["log_prob"].abs().max() > 0
    torch.manual_seed(2)
    bounds = batch_bounds(model.model, model.guide, batch)
    assert bounds.kl_per_step.shape == (5, 7)
    # The stock objective agrees.
    torch.manual_seed(2)
    ours = TraceMeanField_ELBO().differentiable_loss(model.model, model.guide, batch)
    torch.manual_seed(2)
    stock = pyro.infer.TraceMeanField_ELBO().differentiable_loss(model.model, model.guide, batch)
    assert_close(ours.detach(), stock.detach(), "loss")


def test_a_guide_of_ones_own_may_propose_b_tilde() -> None:
    """Its density then enters the objective, which remains a bound for any proposal."""
    model, batch = bilstm(layout="steps").eval(), random_batch(num_steps=1)

    def guide(batch: SequenceBatch) -> None:
        with model.sequences(batch):
            normal = pyro.distributions.Normal
            pyro.sample("z_1", normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("b_tilde_1", normal(torch.zeros(6), 1.2).to_event(1))

    torch.manual_seed(0)
    own = batch_bounds(model.model, guide, batch, 20_000, chunk=20_000)
    shared = batch_bounds(model.model, model.guide, batch, 20_000, chunk=20_000)
    torch.testing.assert_close(own.iwae, shared.iwae, rtol=0, atol=0.25)
    # Its KL to the model's distribution is added to that of z.
    of_z = pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1)
    kl_of_z = torch.distributions.kl_divergence(of_z, model.prior(torch.zeros(6)))
    z = of_z.sample((20_000,))
    of_b = pyro.distributions.Normal(torch.zeros(6), 1.2).to_event(1)
    kl_of_b = torch.distributions.kl_divergence(of_b, model.p_psi(z)).mean()
    assert kl_of_b > 0.3
    torch.testing.assert_close(own.kl, (kl_of_z + kl_of_b).expand(5), rtol=0.03, atol=0)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("training", [True, False])
def test_a_guide_of_ones_own_may_leave_b_tilde_to_the_model(layout: Any, training: bool) -> None:
    """A guide that samples only z works as for other systems; b~ and the mask come from the model."""
    model = bilstm(layout=layout, alpha=0.0, beta=0.0).train(training)
    batch = random_batch(num_steps=2)

    def guide(batch: SequenceBatch) -> None:
        standard = pyro.distributions.Normal(torch.zeros(3), 1.0)
        with model.sequences(batch):
            if layout == "time":
                pyro.sample("z", standard.expand((5, 2, 3)).to_event(2))
            else:
                for t in (1, 2):
                    pyro.sample(f"z_{t}", standard.to_event(1))

    torch.manual_seed(0)
    bounds = batch_bounds(model.model, guide, batch, 20_000, chunk=20_000)
    expected = batch_bounds(model.model, model.guide, batch, 20_000, chunk=20_000)
    torch.testing.assert_close(bounds.iwae, expected.iwae, rtol=0, atol=0.3)
    losses = [
        objective.differentiable_loss(model.model, guide, batch).item() / 5
        for objective in (Trace_ELBO(300, max_plate_nesting=1, vectorize_particles=True),
                          TraceMeanField_ELBO(300, max_plate_nesting=1, vectorize_particles=True))
    ]  # fmt: skip
    for loss in losses:
        assert loss == pytest.approx(-bounds.elbo.mean().item(), rel=0.05)
    iwae = TraceIWAE(20_000).differentiable_loss(model.model, guide, batch).item() / 5
    assert iwae == pytest.approx(-bounds.iwae.mean().item(), abs=0.1)


def test_b_tilde_and_z_are_set_together_in_the_time_layout() -> None:
    model, batch = bilstm().eval(), random_batch()
    b_tilde = torch.zeros(5, 7, 6)
    with pytest.raises(ValueError, match="set both or neither, or take layout 'steps'"):
        poutine.condition(model.guide, data={"b_tilde": b_tilde})(batch)
    z = torch.zeros(5, 7, 3)
    data = {"z": z, "b_tilde": b_tilde}
    density = poutine.trace(poutine.condition(model.guide, data=data)).get_trace(batch)
    steps = {f"{name}_{t + 1}": value[:, t] for name, value in data.items() for t in range(7)}
    with model.using_layout("steps"):
        program = poutine.condition(model.guide, data=steps)
        expected = poutine.trace(program).get_trace(batch)
    torch.testing.assert_close(density.log_prob_sum(), expected.log_prob_sum())


class Bits(nn.Module):
    """A posterior that is not reparametrised."""

    def forward(self, h: Tensor, b: Tensor) -> pyro.distributions.TorchDistribution:
        return pyro.distributions.Bernoulli(torch.sigmoid(h[..., :3] + b[..., :3])).to_event(1)


def test_layouts_agree_where_z_is_not_reparametrised_and_b_tilde_is() -> None:
    model, batch = bilstm(posterior=Bits(), prior=BitsPrior(), skip_gradient=0.0), random_batch()
    with model.using_layout("steps"):
        loss, gradients = loss_and_gradients(model, Trace_ELBO(), batch)
    other_loss, others = loss_and_gradients(model, Trace_ELBO(), batch)
    assert_close(other_loss, loss, "loss")
    for name, gradient in gradients.items():
        assert_close(others[name], gradient, name, rtol=1e-9)


class BitsPrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, h: Tensor) -> pyro.distributions.TorchDistribution:
        return pyro.distributions.Bernoulli(torch.sigmoid(self.linear(h))).to_event(1)


class Hot(SmoothingPosterior):
    """Overrides the moments that its forward uses."""

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = super().moments(features)
        return mean, log_scale + 1


def test_a_subclass_that_overrides_moments_is_followed() -> None:
    zf = ZForcing(4, **SIZES, posterior=Hot(6, 6, 3, mlp_size=5))
    batch = random_batch()
    with zf.using_layout("steps"):
        loss, _ = loss_and_gradients(zf, TraceMeanField_ELBO(), batch)
    assert_close(loss_and_gradients(zf, TraceMeanField_ELBO(), batch)[0], loss, "loss")


def test_generation_never_touches_the_backward_network() -> None:
    model = bilstm()
    model.backward_network.forward = None
    assert model.generate(torch.zeros(3, 4), 5).shape == (3, 5, 4)
    with model.drawing_latents_from("prior-mean"):
        assert model.generate(torch.zeros(3, 4), 5).shape == (3, 5, 4)
    # Evaluation without a posterior does not use it either.
    for latents in ("prior", "prior-mean"):
        model.set_aux_weight("b", 0.0)
        with model.drawing_latents_from(latents):
            bounds = batch_bounds(model.model, model.guide, random_batch(), 2)
        assert bounds.elbo.isfinite().all()


@pytest.mark.parametrize("layout", ["steps", "time"])
def test_latents_from_the_prior_or_at_its_mean(layout: Any) -> None:
    model, batch = bilstm(layout=layout).eval(), random_batch(lengths=LENGTHS)
    with model.drawing_latents_from("prior"):
        bounds = batch_bounds(model.model, model.guide, batch, 50, chunk=50)
        assert bounds.kl.abs().max() < 1e-12
        torch.testing.assert_close(bounds.elbo, bounds.log_likelihood)
        assert (bounds.iwae > bounds.elbo).all()
    with model.drawing_latents_from("prior-mean"):
        first = batch_bounds(model.model, model.guide, batch)
        second = batch_bounds(model.model, model.guide, batch, 3)
        for name in ("elbo", "iwae", "log_likelihood"):
            torch.testing.assert_close(getattr(second, name), first.log_likelihood)
        trace = poutine.trace(model.guide).get_trace(batch)
    z = trace.nodes["z_1" if layout == "steps" else "z"]["value"]
    z = z if layout == "steps" else z[:, 0]
    expected = model.prior(torch.zeros(5, 6)).mean
    torch.testing.assert_close(z, expected)
    assert model.latent_source == "posterior"


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_source_of_latents() -> None:
    model: Any = bilstm()
    with pytest.raises(ValueError, match="drawn from one of"), model.drawing_latents_from("mode"):
        pass


@pytest.mark.usefixtures("unchecked")
def test_a_prior_without_a_mean_says_so() -> None:
    model = bilstm(prior="flow")
    with (
        pytest.raises(ValueError, match="the mean of TransformedDistribution is not known"),
        model.drawing_latents_from("prior-mean"),
    ):
        model.generate(torch.zeros(2, 4), 3)


def test_the_backward_network_reads_inputs_and_targets() -> None:
    """b_t reads u_t, y_t, .., y_T, one more than in Z-Forcing, from the end of each sequence."""
    model, batch = bilstm(), random_batch(lengths=LENGTHS)
    b = Recurrence(model, batch).b
    assert batch.targets is not None
    for i, length in enumerate(LENGTHS):
        x = torch.cat([batch.inputs[i, :1], batch.targets[i, :length]])
        states = model.backward_network.lstm(x.flip(0))[0].flip(0)
        torch.testing.assert_close(b[:length, i], states[:-1])


def test_costs() -> None:
    """Costs are both reconstructions, and the activity regularisation that replaces one in the ablation."""
    model, batch = bilstm(gamma=0.2).eval(), random_batch()
    guide = poutine.trace(model.guide).get_trace(batch)
    trace = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(batch)
    trace.compute_log_prob()
    z, b_tilde = (guide.nodes[name]["value"].movedim(1, 0) for name in ("z", "b_tilde"))
    run = Recurrence(model, batch)
    h = model.cell.run(run.u, torch.cat([z, b_tilde], dim=-1)).after
    h_prev = torch.cat([torch.zeros(1, 5, 6), h[:-1]])
    expected = {
        "aux_b": 0.3 * model.aux["b"].head(z).log_prob(run.b),
        "aux_h": 0.4 * model.aux["h"].head(z).log_prob(h_prev),
        "aux_activity": -0.2 * h.square().sum(-1),
    }
    for name, log_prob in expected.items():
        torch.testing.assert_close(trace.nodes[name]["log_prob"], log_prob.sum(0))
    emission = model.emission(torch.cat([h, b_tilde], dim=-1))
    assert batch.targets is not None
    density = emission.log_prob(batch.targets.movedim(1, 0)).sum(0)
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], density)


@pytest.mark.parametrize("detach", [True, False])
def test_targets_are_constants_unless_told_otherwise(detach: bool) -> None:
    model, batch = bilstm(detach_targets=detach, skip_gradient=0.0), random_batch()
    guide = poutine.trace(model.guide).get_trace(batch)
    fixed = {name: guide.nodes[name]["value"].detach() for name in guide.stochastic_nodes}
    trace = poutine.trace(poutine.condition(model.model, data=fixed)).get_trace(batch)
    trace.compute_log_prob()
    (trace.nodes["aux_b"]["log_prob"] + trace.nodes["aux_h"]["log_prob"]).sum().backward()
    for network in (model.backward_network, model.cell):
        assert all((p.grad is None) == detach for p in network.parameters())


def test_b_tilde_at_its_mean() -> None:
    model, batch = bilstm(b_tilde="mean").eval(), random_batch()
    guide = poutine.trace(model.guide).get_trace(batch)
    z, b_tilde = (guide.nodes[name]["value"].movedim(1, 0) for name in ("z", "b_tilde"))
    torch.testing.assert_close(b_tilde, model.aux["b"].head(z).mean)
    for layout in ("steps", "time"):
        with model.using_layout(layout):
            loss, gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
            if layout == "steps":
                expected, expected_gradients = loss, gradients
    assert_close(loss, expected, "loss")
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], name)


@pytest.mark.parametrize("into", [("cell",), ("emission",), ("cell", "emission")])
def test_where_b_tilde_goes(into: tuple[str, ...]) -> None:
    model, batch = bilstm(b_tilde_into=into), random_batch(lengths=LENGTHS)
    assert model.cell.lstm.input_size == 4 + 3 + 6 * ("cell" in into)
    assert model.emission.network[0].in_features == 6 + 6 * ("emission" in into)
    with model.using_layout("steps"):
        expected, _ = loss_and_gradients(model, TraceIWAE(2), batch)
    loss, gradients = loss_and_gradients(model, TraceIWAE(2), batch)
    assert_close(loss, expected, "loss")
    head = [g for name, g in gradients.items() if name.startswith("aux.b.head")]
    assert all(g is not None and g.abs().max() > 0 for g in head)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_gradient": 1.5}, "skip_gradient is a probability, not 1.5"),
        ({"skip_per": "batch"}, "skip_per is 'step' or 'sequence', not 'batch'"),
        ({"b_tilde": "mode"}, "b_tilde is 'sample' or 'mean', not 'mode'"),
        ({"b_tilde_into": ("prior",)}, "b_tilde goes into 'cell' and 'emission', not 'prior'"),
        ({"backward_reads": "both"}, "reads 'inputs' or 'targets', not 'both'"),
        (
            {"posterior": "filtering"},
            "train the backward network: FilteringPosterior does not read b",
        ),
        ({"deterministic": True}, "goes with backward_reads='targets'"),
        ({"aux": {"b": 1.0}}, "the cost 'b' has an option of its own here"),
        ({"alpha": -1.0}, "must not be negative, it is -1"),
        ({"prior": "uniform"}, "prior uniform: must be one of"),
        ({"posterior": "exact"}, "posterior exact: must be one of"),
        ({"aux": {"c": 1.0}}, "auxiliary cost c: must be one of"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bilstm(**options)


def test_reconstruction_form() -> None:
    model = bilstm(reconstruction_form=GaussianForm(mean="tanh"))
    assert model.p_psi(10 * torch.randn(50, 3)).mean.abs().max() < 1


def test_the_backward_network_does_not_read_dropped_words() -> None:
    """Word dropout hides inputs from the forward network alone."""
    model, batch = bilstm(), random_batch(lengths=LENGTHS)
    hidden = WordDropout(1.0, 0)(batch)
    assert not torch.equal(hidden.inputs, batch.inputs)
    torch.testing.assert_close(model.backward_states(hidden), model.backward_states(batch))

"""Tests of the objectives: agreement with those of Pyro, errors and synchronisations."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_zf.infer import OBJECTIVES, SVI, Trace_ELBO, TraceIWAE, TraceMeanField_ELBO
from tests.helpers import MODELS, assert_close, loss_and_gradients, random_batch


class CountSynchronisations(TorchDispatchMode):
    """Counts conversions of tensors to Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("kind", ["paper", "mixture-prior"])
@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (Trace_ELBO, pyro.infer.Trace_ELBO),
        (TraceMeanField_ELBO, pyro.infer.TraceMeanField_ELBO),
    ],
)
@pytest.mark.parametrize("particles", [1, 3])
def test_same_as_stock(ours, stock, kind: str, layout: str, particles: int) -> None:  # type: ignore[no-untyped-def]
    model = MODELS[kind](layout=layout)
    batch = random_batch(lengths=[7, 3, 1, 5, 2])
    for vectorize in {False, particles > 1}:
        options = {"num_particles": particles, "vectorize_particles": vectorize}
        loss, gradients = loss_and_gradients(model, ours(**options, max_plate_nesting=1), batch)
        stock_loss, stock_gradients = loss_and_gradients(
            model, stock(**options, max_plate_nesting=1), batch
        )
        assert_close(loss, stock_loss, "loss")
        for name, gradient in gradients.items():
            assert_close(gradient, stock_gradients[name], name)


def test_a_guide_without_reparametrised_samples_is_left_to_the_stock_class() -> None:
    def model(batch):  # type: ignore[no-untyped-def]
        pyro.sample("z", pyro.distributions.Bernoulli(0.5))

    logit = torch.zeros((), requires_grad=True)

    def guide(batch):  # type: ignore[no-untyped-def]
        pyro.sample("z", pyro.distributions.Bernoulli(logits=logit + 1))

    gradients = []
    for elbo in (Trace_ELBO(), pyro.infer.Trace_ELBO()):
        torch.manual_seed(2)
        loss = elbo.differentiable_loss(model, guide, None)
        gradients.append((loss.item(), torch.autograd.grad(loss, logit)[0].item()))
    assert gradients[0] == gradients[1]
    with pytest.raises(ValueError, match="reparametrised"):
        TraceIWAE(2).differentiable_loss(model, guide, None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_update_never_waits_for_the_device(name: str) -> None:
    model = MODELS["paper"](layout="time")
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    svi = SVI(model.model, model.guide, optimiser, OBJECTIVES[name](3), clip_norm=10.0)
    batch = random_batch()
    with pyro.validation_enabled(False), CountSynchronisations() as counter:
        svi.step(batch)
    assert counter.count == 0
    with CountSynchronisations() as counter:
        torch.ones(()).item()
    assert counter.count == 1, "the counter works"


def test_one_particle_is_the_elbo() -> None:
    model, batch = MODELS["paper"](), random_batch()
    loss, gradients = loss_and_gradients(model, TraceIWAE(1), batch)
    elbo, elbo_gradients = loss_and_gradients(model, Trace_ELBO(), batch)
    assert_close(loss, elbo, "loss")
    for name, gradient in gradients.items():
        assert_close(gradient, elbo_gradients[name], name)


def test_loss_and_grads_is_the_differentiable_loss() -> None:
    model, batch, iwae = MODELS["paper"](), random_batch(), TraceIWAE(3)
    _, expected = loss_and_gradients(model, iwae, batch)
    model.zero_grad()
    torch.manual_seed(1)
    value = iwae.loss_and_grads(model.model, model.guide, batch)
    torch.manual_seed(1)
    assert iwae.loss(model.model, model.guide, batch) == pytest.approx(value, rel=1e-12)
    for name, parameter in model.named_parameters():
        gradient = expected[name]
        assert gradient is not None
        assert_close(parameter.grad, gradient * batch.num_sequences, name)


def test_gradients_by_finite_differences() -> None:
    """In float64, along a random direction in the space of all parameters."""
    model, batch = MODELS["paper"](), random_batch(lengths=[7, 3, 1, 5, 2])
    parameters = [p for n, p in model.named_parameters() if not n.startswith("aux.b")]
    direction = [torch.randn_like(p) for p in parameters]
    model.alpha = 0.0  # its target is detached, so its gradient is not that of a function
    for objective in (Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)):
        _, gradients = loss_and_gradients(model, objective, batch)
        slope = sum(
            (gradients[n] * d).sum()
            for (n, _), d in zip(
                ((n, p) for n, p in model.named_parameters() if not n.startswith("aux.b")),
                direction,
                strict=True,
            )
            if gradients[n] is not None
        )
        losses = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=sign * 1e-6)
            losses.append(loss_and_gradients(model, objective, batch)[0])
        assert slope == pytest.approx((losses[0] - losses[1]).item() / 2e-6, rel=1e-5)


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        TraceIWAE(0)
    with pytest.raises(TypeError, match="RenyiELBO has no differentiable_loss"):
        MODELS["paper"]().loss_module(RenyiELBO(0.0, num_particles=2))


def test_particles_are_differentiated_one_by_one() -> None:
    """As in the stock class. A graph is retained if requested."""
    model, batch = MODELS["paper"](layout="time"), random_batch()
    results = []
    for objective in (TraceMeanField_ELBO(3), pyro.infer.TraceMeanField_ELBO(3)):
        model.zero_grad()
        torch.manual_seed(0)
        loss = objective.loss_and_grads(model.model, model.guide, batch)
        results.append((loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for ours, stock in zip(results[0][1], results[1][1], strict=True):
        assert_close(ours, stock, "gradient")
    anchor = torch.ones((), requires_grad=True)
    shared = anchor.exp()  # differentiated once for each particle, so the graph must be retained

    def program(given):  # type: ignore[no-untyped-def]
        pyro.sample("y", pyro.distributions.Normal(shared, 1.0), obs=torch.zeros(()))

    def nothing(given):  # type: ignore[no-untyped-def]
        pass

    TraceMeanField_ELBO(2, retain_graph=True).loss_and_grads(program, nothing, batch)
    assert anchor.grad == pytest.approx(float(shared.detach() ** 2))


def test_unneeded_densities_of_latents_are_not_computed() -> None:
    model, batch = MODELS["paper"](layout="time"), random_batch()
    objective = TraceMeanField_ELBO(max_plate_nesting=1)
    for validate in (False, True):
        with pyro.validation_enabled(validate):
            traces = next(objective._get_traces(model.model, model.guide, (batch,), {}))
        assert all(("log_prob" in trace.nodes["z"]) == validate for trace in traces)
        assert "log_prob" in traces[0].nodes["y"]

"""Tests of the objectives: agreement with those of Pyro, errors and synchronisations."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_zf import SRNN, SequenceBatch
from pyro_zf.infer import (
    OBJECTIVES,
    SVI,
    Trace_ELBO,
    TraceIWAE,
    TraceMeanField_ELBO,
    batch_bounds,
)
from tests.helpers import MODELS, assert_close, attributes, loss_and_gradients, random_batch


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


def test_the_iwae_is_the_sum_over_particles() -> None:
    """Each particle is scored by itself, by the programs without a plate of particles."""
    model, batch = MODELS["paper"](kl_weight=0.6), random_batch(lengths=[7, 3, 1, 5, 2])
    k = 4
    torch.manual_seed(1)
    loss = TraceIWAE(k).differentiable_loss(model.model, model.guide, batch)
    torch.manual_seed(1)
    with pyro.plate("num_particles_vectorized", k, dim=-2):
        paths = pyro.poutine.trace(model.guide).get_trace(batch).nodes["z"]["value"]
    log_weights, costs = [], []
    for z in paths:
        q, p = (
            pyro.poutine.trace(pyro.poutine.condition(program, data={"z": z})).get_trace(batch)
            for program in (model.guide, model.model)
        )
        for trace in (q, p):
            trace.compute_log_prob()
        terms = {name: p.nodes[name]["log_prob"] for name in ("z", "y", "aux_b", "aux_u")}
        log_weights.append(terms["z"] + terms["y"] - q.nodes["z"]["log_prob"])
        costs.append(terms["aux_b"] + terms["aux_u"])
    bound = torch.logsumexp(torch.stack(log_weights), 0) - torch.tensor(float(k)).log()
    assert_close(loss, -(bound + torch.stack(costs).mean(0)).sum(), "loss")


def site_per_step(model: Any) -> Any:
    def guide(batch: SequenceBatch) -> None:
        with model.using_layout("steps"):
            model.guide(batch)

    return guide


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)])
def test_a_guide_in_the_other_layout_is_refused(objective: Any) -> None:
    model, batch = MODELS["paper"](), random_batch()
    message = "the guide has the site z_1 and the model z, so the model would ignore the guide"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pyro, which goes on
        with pytest.raises(ValueError, match=message):
            objective.differentiable_loss(model.model, site_per_step(model), batch)
        with pytest.raises(ValueError, match=message):
            batch_bounds(model.model, site_per_step(model), batch)
        with (
            model.using_layout("steps"),
            pytest.raises(ValueError, match="has the site z and the model z_1"),
        ):
            objective.differentiable_loss(model.model, model.guide_time, batch)


@pytest.mark.usefixtures("unchecked")  # under tracing a size is a tensor
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("jit", "plain"),
    [
        (pyro.infer.JitTrace_ELBO, pyro.infer.Trace_ELBO),
        (pyro.infer.JitTraceMeanField_ELBO, pyro.infer.TraceMeanField_ELBO),
    ],
)
def test_jit_objectives_of_pyro(jit: Any, plain: Any) -> None:
    """The eager recurrence is traced; gradients are those of the objective that is not traced.

    The noise is a constant, since a traced program draws other noise from the same seed.
    """
    model, targets = MODELS["paper"](), random_batch().targets
    assert targets is not None

    def of(model: Any) -> tuple[Any, Any]:
        return (
            lambda x: model.model(SequenceBatch.from_targets(x)),
            lambda x: model.guide(SequenceBatch.from_targets(x)),
        )

    results = []
    noise = {"randn": lambda shape, **_: torch.full(tuple(map(int, shape)), 0.3)}
    with attributes(torch, **noise):
        for objective, core in ((plain(), "eager"), (jit(), "auto")):
            model.core = core  # type: ignore[assignment]
            model.zero_grad()
            loss = objective.loss_and_grads(*of(model), targets)
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append((loss, gradients))
    (loss, gradients), (of_jit, gradients_of_jit) = results
    assert of_jit == pytest.approx(loss, rel=1e-10)
    for a, b in zip(gradients, gradients_of_jit, strict=True):
        torch.testing.assert_close(a, b)
    pyro.clear_param_store()
    fused = MODELS["paper"](core="fused")
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.jit"):
        jit().loss_and_grads(*of(fused), targets)


def test_a_model_is_pickled_after_svi() -> None:
    model, batch = MODELS["paper"](), random_batch()
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({}), pyro.infer.Trace_ELBO())  # type: ignore[attr-defined]
    svi.step(batch)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    copied = copy.deepcopy(model)
    expected = loss_and_gradients(model, Trace_ELBO(), batch)[0]
    for other in (again, copied):
        assert_close(loss_and_gradients(other, Trace_ELBO(), batch)[0], expected, "loss")
    assert svi.step(batch) > 0, "training goes on"


def test_without_auxiliary_costs() -> None:
    """Pyro's own inference sees the density of data and latents alone, in both layouts."""
    batch = random_batch()
    for layout in ("time", "steps"):
        model = MODELS["paper"](kl_weight=0.2, layout=layout)
        expected = MODELS["paper"](kl_weight=1.0, alpha=0.0, beta=0.0, layout=layout)
        expected.load_state_dict(model.state_dict())

        def importance(model: Any) -> float:
            torch.manual_seed(4)
            pyro.clear_param_store()
            run = pyro.infer.Importance(model.model, model.guide, num_samples=5).run(batch)
            return float(run.get_log_normalizer())

        with model.without_auxiliary_costs():
            found = importance(model)
        assert found == pytest.approx(importance(expected), rel=1e-12)
        assert importance(model) != pytest.approx(found, rel=1e-6), "the weights are back"


@pytest.mark.usefixtures("unchecked")
def test_jit_of_a_chain_of_latents_is_refused() -> None:
    """PyTorch's tracer computes wrong gradients for it."""
    model = SRNN(4, hidden_size=5, latent_size=3, mlp_size=4)
    targets = random_batch().targets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            ValueError, match="wrong gradients for a chain of latents in layout 'time'"
        ):
            pyro.infer.JitTrace_ELBO().loss_and_grads(  # type: ignore[no-untyped-call]
                lambda x: model.model(SequenceBatch.from_targets(x)),
                lambda x: model.guide(SequenceBatch.from_targets(x)),
                targets,
            )

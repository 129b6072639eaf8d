"""Tests of the fused recurrence against the eager one and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from pyro_zf import SequenceBatch
from pyro_zf.infer import SVI, Trace_ELBO, TraceIWAE, TraceMeanField_ELBO, batch_bounds
from pyro_zf.models import MODELS, SRNN, VRNN, LatentSequenceModel, VariationalBiLSTM, ZForcing
from pyro_zf.nn import ACTIVATIONS, GaussianForm, SmoothingPosterior
from pyro_zf.sequence import fused, products, recurrence_in_use
from pyro_zf.sequence.products import Product
from tests.helpers import assert_close, attributes, loss_and_gradients

DATA = 3
SIZES: dict[str, Any] = {"hidden_size": 5, "mlp_size": 4, "latent_size": 3}
FAMILIES = ("zforcing", "variational-bilstm", "srnn", "vrnn", "storn")
RELEASED = GaussianForm("log-variance", clamp=0.4, log_scale_limits=None, mean="tanh")


def skipping(system: Any, **options: Any) -> LatentSequenceModel:
    """A model with the skip gradient, which only Variational Bi-LSTM has as an option."""
    model: LatentSequenceModel = system(DATA, **options)
    model.skip_gradient = 0.5
    return model


#: Models by their special property.
VARIANTS: dict[str, Any] = {
    **{f"{name}": partial(MODELS[name], DATA, posterior="smoothing") for name in FAMILIES},
    **{
        f"{name}, res_q": partial(MODELS[name], DATA, prior="gaussian", posterior="res_q")
        for name in FAMILIES
    },
    "vrnn, filtering": partial(VRNN, DATA),
    "b~, no gradient skipped": partial(VariationalBiLSTM, DATA, skip_gradient=0.0),
    "b~, one mask for a sequence": partial(VariationalBiLSTM, DATA, skip_per="sequence"),
    "b~, read by the emission": partial(VariationalBiLSTM, DATA, b_tilde_into=("emission",)),
    "b~, read by the cell": partial(VariationalBiLSTM, DATA, b_tilde_into=("cell",)),
    "b~, embedded latents": partial(
        VariationalBiLSTM, DATA, latent_embedding_size=4, feature_activation="tanh"
    ),
    "b~, squashed": partial(VariationalBiLSTM, DATA, reconstruction_form=RELEASED),
    "skip, no b~": partial(VariationalBiLSTM, DATA, b_tilde_into=()),
    "skip, previous latent": partial(skipping, VRNN),
    "skip, chain": partial(skipping, SRNN),
    "covariates": partial(ZForcing, DATA, covariate_size=2),
    "covariates, chain": partial(SRNN, DATA, covariate_size=2),
    "covariates, previous latent": partial(VRNN, DATA, covariate_size=2),
    "chain, embedded latents": partial(
        SRNN, DATA, latent_embedding_size=4, feature_activation="softplus"
    ),
    "chain, linear layer": partial(SRNN, DATA, latent_embedding_size=4, posterior="smoothing"),
    "linear layer": partial(ZForcing, DATA, latent_embedding_size=4),
    "embedded latents": partial(
        ZForcing, DATA, latent_embedding_size=4, feature_activation="gelu", backward_size=7
    ),
    "released code": partial(ZForcing, DATA, variant="released-code", embedding_size=4),
    "squashed": partial(ZForcing, DATA, form=RELEASED),
    "bound scales": partial(ZForcing, DATA, form=GaussianForm(log_scale_limits=(-0.05, 0.1))),
}
OBJECTIVES = (TraceMeanField_ELBO(), TraceIWAE(3))


def batch_of(lengths: list[int] | None, steps: int = 4, data: int = DATA) -> SequenceBatch:
    rows = 3 if lengths is None else len(lengths)
    targets = (torch.rand(rows, steps, data) > 0.5).to(torch.get_default_dtype())
    return SequenceBatch.from_targets(targets, None if lengths is None else torch.tensor(lengths))


def assert_same_gradients(model: LatentSequenceModel, batch: SequenceBatch) -> None:
    if model.covariate_size:
        batch = replace(batch, covariates=torch.randn(batch.num_sequences, model.covariate_size))
    for objective in OBJECTIVES:
        with attributes(model, core="eager"):
            loss, gradients = loss_and_gradients(model, objective, batch)
        with attributes(model, core="fused"):
            other_loss, others = loss_and_gradients(model, objective, batch)
        what = type(objective).__name__
        assert_close(other_loss, loss, what)
        scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
        for name, gradient in gradients.items():
            other = others[name]
            assert (gradient is None) == (other is None), f"{name}, {what}"
            if gradient is not None and other is not None:
                assert (gradient - other).abs().max() <= 1e-10 * scale, f"{name}, {what}"


@pytest.mark.parametrize("piece", [1, 2**24], ids=["piece by piece", "whole"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_the_eager_core(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fused.PIECE, "cpu", piece)  # with 1, each step is prepared on its own
    model = VARIANTS[name](**SIZES)
    assert recurrence_in_use(model) == "fused"
    assert_same_gradients(model, batch_of([4, 1, 3]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    options = {"activation": activation, "posterior": "smoothing", **SIZES}
    model = MODELS["variational-bilstm"](DATA, **options)
    with torch.no_grad():  # large weights reach every branch of every activation
        for p in model.posterior.parameters():
            p.mul_(8)
    assert_same_gradients(model, batch_of([4, 2, 3]))


@given(
    st.sampled_from(sorted(VARIANTS)),
    st.integers(1, 9),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(0, 2**16),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_and_lengths(name: str, steps: int, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    lengths = [min(n, steps) for n in lengths]
    if not any(lengths):
        lengths[0] = 1
    assert_same_gradients(VARIANTS[name](**SIZES), batch_of(lengths, steps))


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_state_that_is_carried_over(family: str) -> None:
    model = MODELS[family](DATA, posterior="smoothing", **SIZES)
    batch = batch_of(None)
    assert batch.targets is not None
    ends = {}
    for core in ("eager", "fused"):
        with attributes(model, core=core):
            torch.manual_seed(0)
            with pyro.plate_stack("none", ()):
                guide = pyro.poutine.trace(model.guide).get_trace(batch)
                ends[core] = pyro.poutine.replay(model.model, trace=guide)(batch)
    for ours, theirs in zip(ends["fused"], ends["eager"], strict=True):
        assert_close(ours, theirs, "the state at the end")
    following = SequenceBatch(batch.inputs, batch.targets, continues=True, carried=ends["eager"])
    assert_same_gradients(model, following)


@pytest.mark.parametrize("name", ["zforcing", "variational-bilstm", "srnn", "vrnn"])
def test_one_seed_one_path(name: str) -> None:
    """A seed gives the same path in both layouts, with both cores, with and without a graph."""
    model, batch = VARIANTS[name](**SIZES), batch_of([4, 2, 3])
    model.eval()
    values = {}
    for what, layout, core, mode in (
        ("fused", "time", "fused", torch.enable_grad()),
        ("without a graph", "time", "fused", torch.no_grad()),
        ("inference mode", "time", "fused", torch.inference_mode()),
        ("eager", "time", "eager", torch.enable_grad()),
        ("steps", "steps", "eager", torch.enable_grad()),
    ):
        pyro.clear_param_store()
        with mode, attributes(model, layout=layout, core=core):
            torch.manual_seed(5)
            nodes = pyro.poutine.trace(model.guide).get_trace(batch).nodes
        steps = [nodes[f"z_{t}"]["value"] for t in range(1, 5) if f"z_{t}" in nodes]
        values[what] = torch.stack(steps, 1) if steps else nodes["z"]["value"]
    for what, value in values.items():
        assert_close(value.detach(), values["steps"].detach(), what, rtol=1e-13)


def test_bounds_are_those_of_the_eager_core() -> None:
    model, batch = VARIANTS["variational-bilstm"](**SIZES).eval(), batch_of([4, 2, 3])
    bounds = []
    for core in ("eager", "fused"):
        with attributes(model, core=core):
            torch.manual_seed(2)
            bounds.append(batch_bounds(model.model, model.guide, batch, num_samples=4, chunk=3))
    for field in ("elbo", "iwae", "kl", "kl_per_step", "aux"):
        assert_close(getattr(bounds[1], field), getattr(bounds[0], field), field)


@pytest.mark.parametrize("name", VARIANTS)
def test_finite_differences(name: str) -> None:
    """Gradients match the change of the loss along a random direction of all parameters."""
    model, batch = VARIANTS[name](**SIZES), batch_of([4, 1, 3])
    # With the skip gradient or detached targets, gradients are not those of the loss as a function.
    model.skip_gradient = 0.0
    for weight in ("b", "h"):
        if weight in model.aux:
            model.set_aux_weight(weight, 0.0)
    batch = replace(batch, covariates=torch.randn(3, 2) if model.covariate_size else None)
    _, gradients = loss_and_gradients(model, TraceIWAE(2), batch)
    direction = {
        k: torch.randn_like(p) for k, p in model.named_parameters() if gradients[k] is not None
    }
    expected = sum((gradients[k] * d).sum() for k, d in direction.items())  # type: ignore[operator]
    values, step = [], 1e-5
    for sign in (1, -2):
        with torch.no_grad():
            for k, p in model.named_parameters():
                if k in direction:
                    p.add_(sign * step * direction[k])
        values.append(loss_and_gradients(model, TraceIWAE(2), batch)[0])
    assert recurrence_in_use(model) in ("fused", "all steps at once")
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), expected, rtol=1e-6, atol=1e-8)


def test_a_graph_is_differentiated_once() -> None:
    """The backward pass overwrites its buffers, so a second one raises an error."""
    _, z = drawn(VARIANTS["zforcing"](**SIZES))
    z.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once; take core='eager'"):
        z.sum().backward()
    model = VARIANTS["zforcing"](**SIZES, core="eager", name="eager")
    _, z = drawn(model)
    z.sum().backward(retain_graph=True)
    z.sum().backward()


@pytest.mark.parametrize("name", ["zforcing", "variational-bilstm", "vrnn", "srnn", "storn"])
@pytest.mark.parametrize("lengths", [None, [4, 1, 3]], ids=["full", "masked"])
def test_the_gradient_of_a_density_does_not_depend_on_who_sampled_the_path(
    name: str, lengths: list[int] | None
) -> None:
    """d log q(z) / dz and d log p(z) / dz of the sampled path or a copy: eager, fused, and per step."""
    batch, found = batch_of(lengths), {}
    model = VARIANTS[name](**SIZES).eval()
    for core in ("eager", "auto"):
        model.core = core
        torch.manual_seed(0)
        guide = pyro.poutine.trace(model.guide).get_trace(batch)
        program = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=guide)).get_trace(batch)
        z = guide.nodes["z"]["value"]
        for kind, value in (
            ("drawn", z),
            ("copy", z.clone()),
            ("leaf", z.detach().requires_grad_()),
        ):
            for what, trace in (("q", guide), ("p", program)):
                log_prob = trace.nodes["z"]["fn"].log_prob(value)
                assert log_prob.shape == (3,)
                found[what, core, kind] = torch.autograd.grad(
                    log_prob.sum(), value, retain_graph=True
                )[0]
    for (what, core, kind), gradient in found.items():
        assert_close(gradient, found[what, "eager", "leaf"], f"{what}, {core}, {kind}", rtol=1e-10)
    # An independent computation uses one site per step.
    leaf = z.detach().requires_grad_()
    data = {f"z_{t + 1}": x for t, x in enumerate(leaf.unbind(1))}
    if "b_tilde" in guide.nodes:
        b_tilde = guide.nodes["b_tilde"]["value"].detach()
        data |= {f"b_tilde_{t + 1}": x for t, x in enumerate(b_tilde.unbind(1))}
    with model.using_layout("steps"):
        steps = pyro.poutine.trace(pyro.poutine.condition(model.guide, data=data)).get_trace(batch)
    total = steps.log_prob_sum(lambda site, _: site.startswith("z_"))
    assert_close(
        torch.autograd.grad(total, leaf)[0], found["q", "auto", "drawn"], "by steps", rtol=1e-10
    )


def drawn(model: LatentSequenceModel) -> tuple[Any, Tensor]:
    q = pyro.poutine.trace(model.guide).get_trace(batch_of(None)).nodes["z"]
    return q["fn"], q["value"]


def test_a_path_changed_in_place_is_not_differentiated() -> None:
    _, z = drawn(VARIANTS["zforcing"](**SIZES))
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("name", ["zforcing", "embedded latents", "variational-bilstm", "srnn"])
def test_weights_changed_in_place_before_the_backward_are_an_error(name: str) -> None:
    """As everywhere in PyTorch. An optimiser update between loss and backward would cause it."""
    model = VARIANTS[name](**SIZES)
    _, z = drawn(model)
    with torch.no_grad():
        model.posterior.network[2].weight.mul_(3)
    with pytest.raises(RuntimeError, match="inplace operation"):
        z.sum().backward()


def test_gradients_have_no_gradients() -> None:
    model = VARIANTS["zforcing"](**SIZES)
    _, z = drawn(model)
    weight = model.posterior.network[0].weight
    (gradient,) = torch.autograd.grad(z.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["zforcing", "srnn"])
def test_the_density_of_a_drawn_path_from_its_noise(name: str) -> None:
    q, z = drawn(VARIANTS[name](**SIZES))
    cheap = q.with_carried_states().log_prob(z)
    assert_close(cheap.detach(), q.log_prob(z).detach(), "log q")


class OwnPosterior(SmoothingPosterior):
    """A posterior that overrides the forward of its parent."""

    def forward(self, h: Tensor, b: Tensor) -> Any:  # type: ignore[override]
        return super().forward(0.5 * h, b)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"posterior": "flow"}, "FlowPosterior"),
        ({"mlp_depth": 2}, "hidden layers"),
        ({"mlp_depth": 0}, "hidden layers"),
        ({"posterior": lambda: OwnPosterior(5, 5, 3, 4)}, "OwnPosterior"),
        ({"posterior": "res_q", "prior": "standard-normal"}, "StandardNormalPrior"),
        ({"posterior": lambda: SmoothingPosterior(4, 5, 3, 4)}, "a part of the state"),
    ],
)
def test_unsupported_parts_use_the_eager_core(options: dict[str, Any], reason: str) -> None:
    if callable(make := options.get("posterior")):  # constructed here, in double precision
        options = {"posterior": make()}
    model = ZForcing(DATA, **SIZES | options)
    assert recurrence_in_use(model).startswith("eager, since")
    assert reason in recurrence_in_use(model)
    assert model.loss_module(Trace_ELBO())(batch_of(None)).isfinite()
    model.core = "fused"
    with pytest.raises(ValueError, match="take core='auto'"):
        model.loss_module(Trace_ELBO())(batch_of(None))
    with pytest.raises(ValueError, match=reason):
        recurrence_in_use(model)


def test_custom_layers_use_the_eager_core() -> None:
    class Doubled(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 2 * z

    model = ZForcing(DATA, **SIZES)
    model.latent_embedding = Doubled()
    assert "is a Doubled" in recurrence_in_use(model)
    assert "b_tilde is of another form" in recurrence_in_use(
        VariationalBiLSTM(DATA, **SIZES, b_tilde="mean")
    )
    assert "GRUCell" in recurrence_in_use(ZForcing(DATA, **SIZES, cell="gru"))
    assert "LSTMCell of 2 layers" in recurrence_in_use(ZForcing(DATA, **SIZES, num_layers=2))


def test_hooks_and_layers_without_bias_use_the_eager_core() -> None:
    batch, ran = batch_of(None), []
    pruned = ZForcing(DATA, **SIZES)
    prune.l1_unstructured(pruned.posterior.network[2], "weight", 0.5)  # with a forward pre-hook
    hooked = ZForcing(DATA, **SIZES, latent_embedding_size=4)
    hooked.latent_embedding.register_forward_hook(lambda *_: ran.append(1))
    bare = ZForcing(DATA, **SIZES)
    bare.posterior.network[2] = nn.Linear(4, 6, bias=False)
    for model in (pruned, hooked, bare):
        assert recurrence_in_use(model).startswith("eager, since")
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        svi = SVI(model.model, model.guide, optimiser, Trace_ELBO())
        for _ in range(3):
            assert svi.step(batch).isfinite()
    assert ran


def test_the_prior_is_sampled_whatever_core_is_asked_for() -> None:
    model, batch = ZForcing(DATA, **SIZES, core="fused").eval(), batch_of(None)
    values = []
    for core in ("fused", "eager"):
        with attributes(model, core=core):
            torch.manual_seed(0)
            trace = pyro.poutine.trace(model.model).get_trace(batch)
            values.append(trace.nodes["z"]["value"])
            for latents in ("prior", "prior-mean"):
                with model.drawing_latents_from(latents):
                    assert batch_bounds(model.model, model.guide, batch).elbo.isfinite().all()
    assert torch.equal(*values)


def test_a_path_drawn_without_a_graph_is_scored_with_one() -> None:
    model = VARIANTS["zforcing"](**SIZES)
    q = pyro.poutine.trace(model.guide).get_trace(batch_of(None)).nodes["z"]["fn"]
    z = q.sample()
    assert not z.requires_grad
    weight = model.posterior.network[0].weight
    forward = model.cell.lstm.weight_hh_l0
    for gradient in torch.autograd.grad(q.log_prob(z).sum(), (weight, forward)):
        assert gradient.abs().sum() > 0


@pytest.mark.usefixtures("single_precision")
def test_products_by_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_mkl_is_fast", lambda: False)  # as on an AMD processor
    monkeypatch.setattr(products, "_onednn_linear", products._onednn_linear.__wrapped__)
    if products._onednn_linear() is None:
        pytest.skip("PyTorch was built without oneDNN")
    weight, x, g = torch.randn(200, 300), torch.randn(7, 300), torch.randn(7, 200)
    product = Product(weight)
    assert not product._in_place, "weights of this size use oneDNN"
    exact = Product(weight.double())
    out, expected = torch.ones(7, 200), torch.ones(7, 200).double()
    product.add(x, out)
    exact.add(x.double(), expected)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-4)
    back = product.back(g, torch.empty(7, 300))
    torch.testing.assert_close(back, g @ weight, rtol=1e-5, atol=1e-4)
    gradient = product.gradient(g.unsqueeze(0), x.unsqueeze(0))
    torch.testing.assert_close(gradient, g.t() @ x, rtol=1e-5, atol=1e-4)


def cosine(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> float:
    flat = [torch.cat([g.flatten() for g in x.values() if g is not None]) for x in (a, b)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("family", ["variational-bilstm", "srnn"])
def test_half_precision_products_at_the_start_and_later(family: str) -> None:
    """Only operands of products are in bf16, and gradients keep the direction of float32 gradients."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "latent_size": 16, "mlp_size": 96}  # weights above the threshold
    model = MODELS[family](28, posterior="smoothing", **sizes)
    model.set_aux_weight("b", 5e-4) if "b" in model.aux else None
    low = partial(torch.autocast, "cpu", torch.bfloat16)
    svi = SVI(
        model.model, model.guide, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True),
        TraceMeanField_ELBO(), clip_norm=100.0, loss_context=low,
    )  # fmt: skip
    digits = (torch.rand(1, 14, 28) > 0.7).float()  # data with structure to learn
    for updates in (0, 40):
        for _ in range(updates):
            svi.step(
                SequenceBatch.from_targets((torch.rand(16, 14, 28) < 0.1 + 0.8 * digits).float())
            )
        batch = SequenceBatch.from_targets((torch.rand(16, 14, 28) < 0.1 + 0.8 * digits).float())
        loss, gradients = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
        with low():
            trace = pyro.poutine.trace(model.guide).get_trace(batch)
            assert trace.nodes["z"]["value"].dtype == torch.float32
            other, others = loss_and_gradients(model, TraceMeanField_ELBO(), batch)
        pyro.clear_param_store()
        assert other.dtype == torch.float32
        assert abs(float(other - loss)) < 1e-2 * abs(float(loss))
        assert cosine(gradients, others) >= 0.999, f"after {updates} updates"

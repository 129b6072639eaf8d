"""The fused recurrence against the eager one, and against finite differences."""

from __future__ import annotations

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
from pyro_zf.cores import recurrence_in_use, step
from pyro_zf.cores.fused_chain import run_chain
from pyro_zf.cores.fused_lstm import run_lstm
from pyro_zf.cores.products import Product, _onednn_linear
from pyro_zf.cores.stages import Activation, activation_of
from pyro_zf.cores.step import Layout, Weights
from pyro_zf.infer import SVI, Trace_ELBO, TraceIWAE, TraceMeanField_ELBO, batch_bounds
from pyro_zf.models import MODELS, SRNN, VRNN, LatentSequenceModel, VariationalBiLSTM, ZForcing
from pyro_zf.nn import ACTIVATIONS, GaussianForm, SmoothingPosterior
from tests.helpers import assert_close, attributes, loss_and_gradients

DATA = 3
SIZES: dict[str, Any] = {"hidden_size": 5, "mlp_size": 4, "latent_size": 3}
FAMILIES = ("zforcing", "variational-bilstm", "srnn", "vrnn", "storn")
RELEASED = GaussianForm("log-variance", clamp=0.4, log_scale_limits=None, mean="tanh")
#: Models by what is special about them.
VARIANTS: dict[str, Any] = {
    **{f"{name}": partial(MODELS[name], DATA, posterior="smoothing") for name in FAMILIES},
    **{
        f"{name}, res_q": partial(MODELS[name], DATA, prior="gaussian", posterior="res_q")
        for name in FAMILIES
    },
    "vrnn, filtering": partial(VRNN, DATA),
    "echo, no gradient skipped": partial(VariationalBiLSTM, DATA, skip_gradient=0.0),
    "echo, one coin a sequence": partial(VariationalBiLSTM, DATA, skip_per="sequence"),
    "echo, read by the emission": partial(VariationalBiLSTM, DATA, b_tilde_into=("emission",)),
    "echo, read by the transition": partial(VariationalBiLSTM, DATA, b_tilde_into=("transition",)),
    "echo, embedded latents": partial(
        VariationalBiLSTM, DATA, latent_embedding_size=4, feature_activation="tanh"
    ),
    "echo, squashed": partial(VariationalBiLSTM, DATA, reconstruction_form=RELEASED),
    "skip, no echo": partial(VariationalBiLSTM, DATA, b_tilde_into=()),
    "skip, lag": partial(VRNN, DATA, skip_gradient=0.5),
    "skip, chain": partial(SRNN, DATA, skip_gradient=0.5),
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
OBJECTIVES = (Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3))


def batch_of(lengths: list[int] | None, steps: int = 4, data: int = DATA) -> SequenceBatch:
    rows = 3 if lengths is None else len(lengths)
    targets = (torch.rand(rows, steps, data) > 0.5).to(torch.get_default_dtype())
    return SequenceBatch.from_targets(targets, None if lengths is None else torch.tensor(lengths))


def assert_same_gradients(model: LatentSequenceModel, batch: SequenceBatch) -> None:
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


@pytest.mark.parametrize("lengths", [None, [4, 1, 3]], ids=["full", "masked"])
@pytest.mark.parametrize("piece", [1, 2**24], ids=["piece by piece", "whole"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_the_eager_core(
    name: str, piece: int, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(step.PIECE, "cpu", piece)  # 1: each step is prepared on its own
    model = VARIANTS[name](**SIZES)
    assert recurrence_in_use(model) == "fused"
    assert_same_gradients(model, batch_of(lengths))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, family: str) -> None:
    options = {"activation": activation, "posterior": "smoothing", **SIZES}
    model = MODELS[family](DATA, **options)
    with torch.no_grad():  # far enough for every branch of every activation
        for p in model.posterior.parameters():
            p.mul_(8)
    assert_same_gradients(model, batch_of([4, 2, 3]))


@given(
    st.sampled_from(sorted(VARIANTS)),
    st.integers(1, 9),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
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
    """In both layouts, by both cores, with a graph and without one."""
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


def random_weights(layout: Layout, hidden: int, mlp: int, latent: int, cell: bool) -> list[Tensor]:
    def of(*shape: int) -> Tensor:
        return (0.5 * torch.randn(*shape)).requires_grad_()

    width = mlp + (4 * hidden if cell else 0)
    read = latent if layout.embedding is None else hidden
    weights: dict[str, Tensor] = {
        "hidden": of(width, hidden), "moments": of(2 * latent, mlp), "moments_bias": of(2 * latent)
    }  # fmt: skip
    if cell:
        weights["latent"] = of(4 * hidden, read)
    if layout.embedding is not None:
        weights |= {"embedding": of(read, latent), "embedding_bias": of(read)}
    if layout.echo_activation is not None:
        weights |= {
            "echo": of(4 * hidden, 2), "echo_hidden": of(mlp, latent), "echo_hidden_bias": of(mlp),
            "echo_moments": of(4, mlp), "echo_moments_bias": of(4),
        }  # fmt: skip
    return [weights.get(name) for name in Weights._fields]  # type: ignore[misc]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("embedding", [None, Activation("softplus", (1.0, 20.0))])
@pytest.mark.parametrize("cells", [3, 4])
def test_finite_differences_lstm(cells: int, embedding: Any, echo: bool, keep: bool) -> None:
    """The derivative of everything that is given out, but c, by everything that goes in."""
    torch.manual_seed(0)
    form = GaussianForm(scale="log-variance", mean="tanh")
    tanh = Activation("tanh")
    layout = Layout(
        tanh, form, embedding, tanh if echo else None, form if echo else None, None, kept=True
    )
    rows, hidden, mlp, latent = (2, 2), 3, 4, 2
    weights = random_weights(layout, hidden, mlp, latent, cell=True)
    inputs = [
        torch.randn(4, *rows, mlp, requires_grad=True),
        torch.randn(cells, *rows, 4 * hidden, requires_grad=True),
        torch.randn(*rows, hidden, requires_grad=True),
        torch.randn(*rows, hidden, requires_grad=True),
    ]
    noise = torch.randn(4, *rows, latent)
    echo_noise = torch.randn(4, *rows, 2) if echo else None
    mask = (torch.rand(4, *rows, 1) > 0.5).double() if keep else None
    if keep:  # a mask makes a gradient that is none of the function: the posterior must not see h
        assert weights[0] is not None
        weights[0] = torch.cat([torch.zeros(mlp, hidden), weights[0][mlp:].detach()])
        weights[0].requires_grad_(False)

    def run(context: Tensor, gates: Tensor, h: Tensor, c: Tensor, *others: Any) -> Any:
        given = run_lstm(layout, context, gates, (h, c), noise, echo_noise, mask, Weights(*others))
        return tuple(x for x in given if x.requires_grad)

    assert torch.autograd.gradcheck(run, (*inputs, *weights))


@pytest.mark.parametrize("embedding", [None, Activation("gelu")])
def test_finite_differences_chain(embedding: Any) -> None:
    torch.manual_seed(0)
    layout = Layout(
        Activation("leaky-relu", (0.1,)), GaussianForm(), embedding, None, None, None, kept=True
    )
    rows, mlp, latent = (2, 2), 4, 2
    hidden = latent if embedding is None else 3
    weights = random_weights(layout, hidden, mlp, latent, cell=False)
    context = torch.randn(4, *rows, mlp, requires_grad=True)
    state = torch.randn(*rows, hidden, requires_grad=True)
    noise = torch.randn(4, *rows, latent)

    def run(context: Tensor, state: Tensor, *others: Any) -> Any:
        return run_chain(layout, context, state, noise, None, Weights(*others))

    assert torch.autograd.gradcheck(run, (context, state, *weights))


@pytest.mark.parametrize("name", ["variational-bilstm", "embedded latents", "srnn", "vrnn"])
def test_a_graph_that_is_kept_is_differentiated_again(name: str) -> None:
    model, batch = VARIANTS[name](**SIZES), batch_of([4, 2, 3])
    loss = model.loss_module(TraceMeanField_ELBO())(batch)
    parameters = list(model.parameters())
    first, second = (
        torch.autograd.grad(loss, parameters, retain_graph=again, allow_unused=True)
        for again in (True, False)
    )
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def drawn(model: LatentSequenceModel) -> tuple[Any, Tensor]:
    q = pyro.poutine.trace(model.guide).get_trace(batch_of(None)).nodes["z"]
    return q["fn"], q["value"]


def test_a_path_changed_in_place_is_not_differentiated() -> None:
    _, z = drawn(VARIANTS["zforcing"](**SIZES))
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.sum().backward()


@pytest.mark.parametrize("name", ["zforcing", "embedded latents", "variational-bilstm", "srnn"])
def test_weights_changed_in_place_before_the_backward_are_an_error(name: str) -> None:
    """As everywhere in PyTorch; an optimiser's step between two losses would do it."""
    model = VARIANTS[name](**SIZES)
    _, z = drawn(model)
    with torch.no_grad():
        model.posterior.network[2].weight.mul_(3)
    with pytest.raises(RuntimeError, match="inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("what", ["loc", "hidden"])
def test_what_else_is_not_to_be_changed(what: str) -> None:
    q, z = drawn(VARIANTS["zforcing"](**SIZES))
    changed = q.conditionals(z).base_dist.loc if what == "loc" else q.recurrence.states(z)
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
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
    scored = q.log_prob(z.clone())  # another tensor: by the posterior, along the path
    assert_close(q.log_prob(z).detach(), scored.detach(), "log q")


class OwnPosterior(SmoothingPosterior):
    """One whose forward is not that of its parent."""

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
def test_what_it_does_not_know_is_left_to_the_eager_core(
    options: dict[str, Any], reason: str
) -> None:
    if callable(make := options.get("posterior")):  # made here, in double precision
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


def test_embeddings_of_ones_own_are_left_to_the_eager_core() -> None:
    class Own(ZForcing):
        def embed_latent(self, z: Tensor, b_tilde: Tensor | None = None) -> Tensor:
            return 2 * z

    assert "a way of its own" in recurrence_in_use(Own(DATA, **SIZES))
    mean = VariationalBiLSTM(DATA, **SIZES, b_tilde="mean")
    assert "a way of its own" in recurrence_in_use(mean)


def test_hooks_and_layers_without_bias_are_left_to_the_eager_core() -> None:
    batch, ran = batch_of(None), []
    pruned = ZForcing(DATA, **SIZES)
    prune.l1_unstructured(
        pruned.posterior.network[2], "weight", 0.5
    )  # by a hook before the forward
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


def test_a_model_saved_before_there_was_a_choice() -> None:
    model = ZForcing(DATA, **SIZES)
    del model.__dict__["core"], model.__dict__["time_chunk"]
    assert model.loss_module(Trace_ELBO())(batch_of(None)).isfinite()
    assert recurrence_in_use(model) == "fused"


def test_a_path_drawn_without_a_graph_is_scored_with_one() -> None:
    model = VARIANTS["zforcing"](**SIZES)
    q = pyro.poutine.trace(model.guide).get_trace(batch_of(None)).nodes["z"]["fn"]
    z = q.sample()
    assert not z.requires_grad
    weight = model.posterior.network[0].weight
    forward = model.transition.lstm.weight_hh_l0
    for gradient in torch.autograd.grad(q.log_prob(z).sum(), (weight, forward)):
        assert gradient.abs().sum() > 0


def test_activations_by_module() -> None:
    assert all(activation_of(make()) is not None for make in ACTIVATIONS.values())
    for other in (nn.SiLU(), nn.LeakyReLU(-0.1), nn.GELU("tanh")):
        assert activation_of(other) is None


@pytest.mark.usefixtures("single_precision")
def test_products_by_another_library() -> None:
    if _onednn_linear() is None:
        pytest.skip("PyTorch was built without oneDNN")
    weight, x, g = torch.randn(200, 300), torch.randn(7, 300), torch.randn(7, 200)
    product = Product(weight)
    assert not product._in_place, "a weight of this size is for oneDNN"
    exact = Product(weight.double())
    out, expected = torch.ones(7, 200), torch.ones(7, 200).double()
    product.add(x, out)
    exact.add(x.double(), expected)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-4)
    back = product.back(g, torch.empty(7, 300))
    torch.testing.assert_close(back, g @ weight, rtol=1e-5, atol=1e-4)
    gradient = product.gradient(g.unsqueeze(0), x.unsqueeze(0))
    torch.testing.assert_close(gradient, g.t() @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("single_precision")
def test_the_other_library_is_never_given_a_part_of_a_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would compute it, a thousand times slower."""
    if (operator := getattr(torch.ops.mkldnn, "_linear_pointwise", None)) is None:
        pytest.skip("PyTorch was built without oneDNN")
    calls = []

    def checked(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
        calls.append(weight.is_contiguous() or weight.t().is_contiguous())
        return operator(x, weight, *others)

    _onednn_linear.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", checked)
    sizes = {"hidden_size": 96, "latent_size": 40, "mlp_size": 96}  # weights above the threshold
    for name, options in (("variational-bilstm", {}), ("srnn", {}), ("vrnn", {})):
        model = MODELS[name](DATA, **sizes, **options)
        assert recurrence_in_use(model) == "fused"
        model.loss_module(TraceMeanField_ELBO())(batch_of(None).to(dtype=torch.float32)).backward()
    _onednn_linear.cache_clear()
    assert len(calls) > 20
    assert all(calls)


def cosine(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> float:
    flat = [torch.cat([g.flatten() for g in x.values() if g is not None]) for x in (a, b)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("family", ["zforcing", "variational-bilstm", "vrnn", "srnn"])
def test_half_precision_products_at_the_start_and_later(family: str) -> None:
    """Operands of products alone are in bf16: gradients point where those of float32 do."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "latent_size": 16, "mlp_size": 96}  # weights above the threshold
    model = MODELS[family](28, posterior="smoothing", **sizes)
    model.set_aux_weight("b", 5e-4) if "b" in model.aux else None
    low = partial(torch.autocast, "cpu", torch.bfloat16)
    svi = SVI(
        model.model, model.guide, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True),
        TraceMeanField_ELBO(), clip_norm=100.0, loss_context=low,
    )  # fmt: skip
    digits = (torch.rand(1, 14, 28) > 0.7).float()  # something to be learnt
    for updates in (0, 200):
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

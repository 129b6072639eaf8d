"""Carried states: a sequence in parts gives the same results as the whole sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine

from pyro_zf import SequenceBatch
from pyro_zf.infer import (
    SVI,
    CarriedState,
    Trace_ELBO,
    TraceFIVO,
    TraceIWAE,
    TraceMeanField_ELBO,
    batch_bounds,
    evaluate,
)
from pyro_zf.models import MODELS, LatentSequenceModel
from pyro_zf.models.base import LAYOUTS, local_parameters
from tests.helpers import layouts_agree, loss_and_gradients
from tests.models.test_exact_likelihood import FAMILIES, copies, instance

T, FIRST = 7, 3


def parts(batch: SequenceBatch) -> tuple[SequenceBatch, SequenceBatch]:
    """Split a batch into its first steps and their continuation."""
    assert batch.targets is not None
    lengths = batch.lengths
    first = SequenceBatch(
        batch.inputs[:, :FIRST], batch.targets[:, :FIRST],
        None if lengths is None else lengths.clamp(max=FIRST), batch.has_start_symbol,
    )  # fmt: skip
    second = SequenceBatch(
        batch.inputs[:, FIRST:], batch.targets[:, FIRST:],
        None if lengths is None else (lengths - FIRST).clamp(min=0), False, continues=True,
    )  # fmt: skip
    return first, second


def make(name: str, layout: str, **options: Any) -> Any:
    if name != "rnn":
        options = {"latent_size": 2, "layout": layout, **options}
    else:
        options["layout"] = layout
    return MODELS[name](3, hidden_size=5, mlp_size=4, **options)


def real_batch(ragged: bool = False) -> SequenceBatch:
    targets = torch.randint(0, 2, (4, T, 3)).double()
    lengths = torch.tensor([T, FIRST + 1, T, FIRST]) if ragged else None
    return SequenceBatch.from_targets(targets, lengths)


def log_joint(
    model: Any, batch: SequenceBatch, latents: dict[str, Any]
) -> tuple[torch.Tensor, Any]:
    """log p(y, z) for given latents, without auxiliary costs and masks, and the last state."""
    with local_parameters(), poutine.block():
        trace = poutine.trace(poutine.condition(model.model, data=latents)).get_trace(batch)
    trace.compute_log_prob()
    total = sum(
        site["log_prob_sum"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name != "sequences" and not name.startswith("aux_")
    )
    return total, trace.nodes["_RETURN"]["value"]  # type: ignore[return-value]


def named(latents: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """Values by site name in a layout, from whole paths (batch, time, size)."""
    if layout == "time":
        return latents
    return {f"{k}_{t + 1}": v[:, t] for k, v in latents.items() for t in range(v.shape[1])}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_parts_have_the_joint_density_of_the_whole(name: str, layout: str, ragged: bool) -> None:
    parts_add_up(make(name, layout).eval(), ragged)


def parts_add_up(model: Any, ragged: bool) -> None:
    """Check that the joint densities of a first part and of what continues it add up to that of the whole."""
    batch, layout = real_batch(ragged), model.layout
    paths: dict[str, torch.Tensor] = {}
    if isinstance(model, LatentSequenceModel):
        paths = {name: torch.randn(4, T, latent.size) for name, latent in model.latents.items()}
    first, second = parts(batch)
    whole, end = log_joint(model, batch, named(paths, layout))
    one, middle = log_joint(
        model, first, named({k: v[:, :FIRST] for k, v in paths.items()}, layout)
    )
    rest = named({k: v[:, FIRST:] for k, v in paths.items()}, layout)
    other, last = log_joint(model, replace(second, carried=middle), rest)
    torch.testing.assert_close(one + other, whole, rtol=1e-10, atol=1e-10)
    full = slice(None) if not ragged else torch.tensor([0, 2])
    for a, b in zip(last, end, strict=True):
        torch.testing.assert_close(a[full], b[full], rtol=1e-10, atol=1e-10)
        assert not a.requires_grad
    without, _ = log_joint(model, second, rest)
    assert abs(without - other) > 1e-6, "the state matters"
    assert sum(x.shape[-1] for x in last) == sum(x.shape[-1] for x in middle)


@pytest.mark.parametrize("name", MODELS)
def test_layouts_agree_on_what_continues(name: str) -> None:
    """Layouts agree on loss, gradients and last states, with the same noise."""
    _, second = parts(real_batch(ragged=True))
    results = []
    for layout in LAYOUTS:
        torch.manual_seed(1)
        model = make(name, layout)
        state = CarriedState(model.model)
        first = parts(real_batch())[0]
        batch_bounds(state.model, model.guide, first)
        state.keep([first])
        assert state.state is not None
        torch.manual_seed(2)
        filled = tuple(torch.randn_like(x) for x in state.state)
        objective: Any
        for objective in (Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)):
            model.zero_grad()
            pyro.clear_param_store()
            torch.manual_seed(3)
            loss = model.loss_module(objective)(replace(second, carried=filled))
            loss.backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append((layout, loss.detach(), gradients))
    half = len(results) // 2
    for (_, a, grads_a), (_, b, grads_b) in zip(results[:half], results[half:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        for x, y in zip(grads_a, grads_b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_bounds_of_parts_add_up_to_a_bound_of_the_whole(family: str) -> None:
    """The bound is unbiased for the likelihood of the whole, as the state is resampled by the weights."""
    model, batch, exact = instance(family)
    cut = batch.num_steps // 2
    many = copies(batch, 6000)
    assert many.targets is not None
    first = SequenceBatch(many.inputs[:, :cut], many.targets[:, :cut], None, many.has_start_symbol)
    second = SequenceBatch(many.inputs[:, cut:], many.targets[:, cut:], None, False, continues=True)
    for k, chunk in ((8, 8), (8, 3)):
        one = batch_bounds(model.model, model.guide, first, k, chunk, carry=True)
        two = batch_bounds(model.model, model.guide, replace(second, carried=one.end), k, chunk)
        total = one.iwae + two.iwae
        ratio = torch.exp(total - exact)
        error = 5 * ratio.std().item() / len(ratio) ** 0.5
        assert abs(ratio.mean().item() - 1) < error, (k, chunk, ratio.mean())
        assert total.mean() < exact
        assert (one.elbo + two.elbo).mean() < total.mean()
        summed = evaluate(model.model, model.guide, [first, second], k, chunk)
        assert summed.per_sequence("iwae").mean * 2 == pytest.approx(total.mean().item(), abs=0.2)


def test_training_carries_and_gradients_end_at_the_border() -> None:
    model = make("zforcing", "time")
    carried = CarriedState(model.model)
    svi = SVI(carried.model, model.guide, torch.optim.SGD(model.parameters(), lr=0.0), TraceIWAE(4))
    first, second = parts(real_batch())
    for batch in (first, second):
        chunks = carried.given_to(batch).chunk(2)
        svi.step(chunks)
        carried.keep(chunks)
        assert carried.state is not None
        assert [x.shape for x in carried.state] == [(4, 5), (4, 5)]
        assert all(x.grad_fn is None for x in carried.state)
    assert carried.given_to(first).carried is None, "a new text starts with zero states"


def test_errors() -> None:
    model = make("zforcing", "time")
    _, second = parts(real_batch())
    with pytest.raises(ValueError, match="the model returned no state to start it from"):
        evaluate(model.model, model.guide, [second])
    with pytest.raises(ValueError, match="the batch carries 1 states; ZForcing leaves 2"):
        model.model(replace(second, carried=(torch.zeros(4, 5),)))
    with pytest.raises(ValueError, match="cannot start from the state"):
        batch_bounds(
            model.model, model.guide, replace(second, carried=(torch.zeros(4, 5),) * 2), fivo=True
        )
    state = tuple(torch.randn(4, 5) for _ in range(2))
    filtered = model.loss_module(TraceFIVO(3))(replace(second, carried=state))
    assert filtered.isfinite()


@pytest.mark.parametrize("posterior", ["recognition", "filtering", "smoothing"])
@pytest.mark.parametrize("name", ["vrnn", "storn", "srnn"])
def test_layouts_agree_on_what_continues_with_other_posteriors(name: str, posterior: str) -> None:
    """A posterior that ignores the state is drawn for all steps at once, along a state that is carried."""
    _, second = parts(real_batch(ragged=True))
    model = make(name, "time", posterior=posterior)
    sizes = [
        *model.cell.state_sizes,
        *(model.deterministic.state_sizes if model.deterministic else ()),
    ]
    carried = tuple(torch.randn(4, size) for size in sizes)
    batch = replace(second, carried=carried)
    layouts_agree(model, batch)
    loss, _ = loss_and_gradients(model, Trace_ELBO(), batch)
    other, _ = loss_and_gradients(model, Trace_ELBO(), second)
    assert abs(loss - other) > 1e-6, "the state matters"

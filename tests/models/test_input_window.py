"""Inputs of several preceding steps, and an emission that reads them, for every system."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pyro_zf import SequenceBatch
from pyro_zf.infer import Trace_ELBO
from pyro_zf.models import MODELS, RNN, ZForcing
from pyro_zf.models.base import LAYOUTS
from pyro_zf.nn import EMISSIONS, ConvolutionalBernoulliEmission, InputWindow, make_emission
from tests.helpers import (
    attributes,
    filter_is_the_iwae,
    generation_is_ancestral,
    layouts_agree,
)
from tests.models.test_carried import FIRST, T, make, parts_add_up, real_batch
from tests.models.test_covariates import COVARIATES, DATA, LENGTHS, build, conditioned

K = 3
WITH_WINDOW = [name for name in MODELS if name != "srnn"]
CONVOLUTIONAL: dict[str, Any] = {"emission": "convolutional-bernoulli", "emission_depth": 2}


def test_a_window_holds_the_last_inputs() -> None:
    window, inputs = InputWindow(2, K), torch.randn(T, 4, 2)
    states = window.run(inputs, None)
    for t in range(T):
        for k in range(K):
            expected = inputs[t - k] if t >= k else torch.zeros(4, 2)
            assert torch.equal(states.after[t, :, 2 * k : 2 * k + 2], expected)
    first = window.run(inputs[:FIRST], None)
    rest = window.run(inputs[FIRST:], None, first.last)
    assert torch.equal(torch.cat([first.after, rest.after]), states.after)


@pytest.mark.parametrize("per_step", [False, True], ids=["sequence", "step"])
@pytest.mark.parametrize("emission", [{}, CONVOLUTIONAL], ids=["bernoulli", "convolutional"])
@pytest.mark.parametrize("system", WITH_WINDOW)
def test_1_layouts_agree(system: str, emission: dict[str, Any], per_step: bool) -> None:
    layouts_agree(build(system, input_window=K, kl_weight=0.6, **emission), conditioned(per_step))


@pytest.mark.parametrize("system", [name for name in WITH_WINDOW if name != "rnn"])
def test_the_filter_without_resampling_is_the_iwae(system: str) -> None:
    model = build(system, input_window=K, **CONVOLUTIONAL)
    skip = {"skip_gradient": 0.0} if system == "variational-bilstm" else {}
    with attributes(model, **skip):
        filter_is_the_iwae(model, conditioned(True, LENGTHS))


@pytest.mark.parametrize("system", WITH_WINDOW)
def test_generation_is_ancestral(system: str) -> None:
    model = build(system, input_window=K, **CONVOLUTIONAL)
    generation_is_ancestral(model, torch.zeros(4, DATA), torch.randn(4, 5, COVARIATES))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WITH_WINDOW)
def test_parts_have_the_joint_density_of_the_whole(name: str, layout: Any) -> None:
    parts_add_up(make(name, layout, input_window=K, **CONVOLUTIONAL).eval(), ragged=False)


@pytest.mark.parametrize("system", ["zforcing", "variational-bilstm", "storn"])
def test_the_backward_network_does_not_read_the_window(system: str) -> None:
    """Its last state depends on the same data as without a window."""
    batch, patterns = conditioned(per_step=True, lengths=None), []
    for length in (1, K):
        model: Any = build(system, input_window=length)
        inputs, targets = (x.clone().requires_grad_() for x in (batch.inputs, batch.targets))  # type: ignore[union-attr]
        b = model.backward_states(replace(batch, inputs=inputs, targets=targets))
        of = torch.autograd.grad(b[-1].sum(), (inputs, targets), allow_unused=True)
        patterns.append([None if g is None else (g != 0).tolist() for g in of])
    assert patterns[0] == patterns[1]


def test_srnn_has_no_window() -> None:
    with pytest.raises(ValueError, match="SRNN has no input_window: a recurrent network"):
        build("srnn", input_window=2)


@pytest.mark.parametrize("length", [0, 2.0])
@pytest.mark.parametrize("system", ["rnn", "zforcing"])
def test_the_length_of_a_window(system: str, length: Any) -> None:
    with pytest.raises(ValueError, match=f"a whole number of at least 1, not {length}"):
        build(system, input_window=length)
    if length == 0:
        with pytest.raises(ValueError, match="at least one step, not 0"):
            InputWindow(2, length)


def convolutional(in_size: int, input_size: int) -> ConvolutionalBernoulliEmission:
    return ConvolutionalBernoulliEmission(in_size, DATA, 4, input_size=input_size)


@pytest.mark.parametrize("system", ["rnn", "storn"])
def test_an_emission_of_ones_own_reads_the_window(system: str) -> None:
    sizes: Any = {"hidden_size": 5, "mlp_size": 4, "input_window": 2}
    model = MODELS[system](DATA, emission=convolutional(2 * DATA + 5, 2 * DATA), **sizes)
    layouts_agree(model, real_batch())
    for input_size in (0, DATA):
        with pytest.raises(ValueError, match=f"input_size={input_size}, but .* input_size=6"):
            MODELS[system](DATA, emission=convolutional(2 * DATA + 5, input_size), **sizes)


def test_an_emission_that_reads_the_window_is_not_copied_for_the_backward_network() -> None:
    sizes: Any = {"hidden_size": 5, "mlp_size": 4, "latent_size": 2, "backward_size": DATA + 5}
    emission = convolutional(DATA + 5, DATA)
    with pytest.raises(ValueError, match="an emission module of your own reads 8 values"):
        ZForcing(DATA, emission=emission, **sizes)
    model = ZForcing(
        DATA, emission=emission, reverse_emission=convolutional(DATA + 5, 0), beta=0.5, **sizes
    )
    layouts_agree(model, real_batch())


@pytest.mark.parametrize("reads", [("state", "input"), ("input", "state")])
def test_inputs_that_are_named_are_read_once(reads: tuple[str, ...]) -> None:
    for emission in ({}, CONVOLUTIONAL):
        model: Any = build("zforcing", emission_reads=reads, **emission)
        assert sorted(model.emission_reads) == ["input", "state"]
        layouts_agree(model, conditioned(per_step=True))


@pytest.mark.parametrize("system", ["rnn", "zforcing"])
def test_states_that_are_missing(system: str) -> None:
    model = build(system, input_window=K)
    batch = conditioned(per_step=True)
    states = tuple(torch.zeros(4, size) for size in model.cell.state_sizes)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"the batch carries 2 states; \w+ leaves 3"):
        model.model(replace(batch, carried=states, continues=True))
    with pytest.raises(ValueError, match="needs the state that it returned at the step before"):
        model.input_at(batch, 1, None)


@pytest.mark.parametrize("name", ["categorical", "poisson"])
def test_an_emission_that_is_registered_as_a_function(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding of an RNN suits the module that the function returns."""
    monkeypatch.setitem(EMISSIONS, "mine", lambda *sizes, **options: make_emission(name, *sizes))
    ours, theirs = (
        RNN(4, hidden_size=5, mlp_size=4, emission=emission) for emission in ("mine", name)
    )
    assert str(ours.embedding) == str(theirs.embedding)


def test_seeds_give_the_weights_that_they_gave() -> None:
    """An RNN draws the weights of the emission before those of the embedding."""
    torch.manual_seed(0)
    expected = make_emission("categorical", 5, 4, mlp_size=4)
    torch.manual_seed(0)
    model = RNN(4, emission="categorical", hidden_size=5, mlp_size=4)
    for ours, theirs in zip(model.emission.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("system", ["srnn", "vrnn"])
def test_features_that_are_not_rows_of_values_are_read_like_the_state(system: str) -> None:
    """SRNN has a network over the inputs, and VRNN a layer."""
    model: Any = build(system, **CONVOLUTIONAL)
    assert model.emission.input_size == 0
    layouts_agree(model, conditioned(per_step=True))


def test_the_convolutional_emission_sees_the_rows_of_the_window() -> None:
    """With a state that is always zero, a step depends on the rows of the window and on no other."""
    model = RNN(DATA, hidden_size=4, mlp_size=4, input_window=2, **CONVOLUTIONAL)
    with torch.no_grad():
        for parameter in model.cell.parameters():
            parameter.zero_()
    batch = SequenceBatch.from_targets((torch.rand(1, T, DATA) > 0.5).double())
    batch.inputs.requires_grad_()
    loss = model.loss_module(Trace_ELBO())
    for t in range(2, T):
        cut = replace(batch, inputs=batch.inputs[:, : t + 1], targets=batch.targets[:, : t + 1])
        before = replace(batch, inputs=batch.inputs[:, :t], targets=batch.targets[:, :t])
        of_step = loss(cut) - loss(before)
        (gradient,) = torch.autograd.grad(of_step, batch.inputs)
        read = gradient[0].abs().amax(-1) > 0
        assert read.tolist() == [k in (t - 1, t) for k in range(T)]

"""Replayed updates against ordinary ones. On a CPU the recorder takes the place of CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch

from pyro_zf import SequenceBatch
from pyro_zf.infer import (
    OBJECTIVES,
    SVI,
    CarriedState,
    GraphedSVI,
    TraceMeanField_ELBO,
    WordDropout,
)
from pyro_zf.models import MODELS, SequenceModel, VariationalBiLSTM, ZForcing
from tests.helpers import assert_close
from tests.recorder import record_with

SIZES: dict[str, Any] = {"hidden_size": 5, "latent_size": 3, "mlp_size": 4}


class Pair:
    """Two copies of a model, trained by ordinary and by replayed updates."""

    def __init__(self, model: SequenceModel, objective: Any, carry: bool = False, **options: Any):
        self.models = (model, copy.deepcopy(model))
        self.carried = [CarriedState(m.model) for m in self.models]
        programs = [c.model for c in self.carried] if carry else [m.model for m in self.models]
        self.engines = [
            SVI(
                program, m.guide, torch.optim.Adam(m.parameters(), lr=1e-2, fused=True),
                objective, clip_norm=1.0,
            )
            for program, m in zip(programs, self.models, strict=True)
        ]  # fmt: skip
        for m in self.models:
            m.kl_weight, m.aux_weight = torch.ones(()), torch.ones(())
        self.recorded = 0
        keeper = self.carried[1] if carry else None
        record = record_with(self.keep, options.pop("may_read", False))

        def counted(update: Callable[[], Any]) -> Any:
            self.recorded += 1
            return record(update)

        self.graphed = GraphedSVI(self.engines[1], keeper, record=counted, **options)

    def keep(self) -> Callable[[], None]:
        optimiser = self.engines[1].optim
        random = torch.get_rng_state()
        values = [p.detach().clone() for p in self.models[1].parameters()]
        states = [
            {k: v.clone() for k, v in optimiser.state[p].items()}
            for p in self.models[1].parameters()
        ]

        def bring_back() -> None:
            torch.set_rng_state(random)
            with torch.no_grad():
                for p, value, state in zip(
                    self.models[1].parameters(), values, states, strict=True
                ):
                    p.copy_(value)
                    for name, x in state.items():
                        optimiser.state[p][name].copy_(x)

        return bring_back

    def step(self, batch: SequenceBatch, seed: int, kl_weight: float = 1.0) -> None:
        losses = []
        for m, engine in zip(self.models, (self.engines[0], self.graphed), strict=True):
            m.kl_weight.fill_(kl_weight)  # type: ignore[union-attr]
            m.aux_weight.fill_(1 / (seed + 1))  # type: ignore[union-attr]
            torch.manual_seed(seed)
            losses.append(engine.step(batch))
        assert_close(losses[1], losses[0], f"loss of update {seed}")
        for (name, p), q in zip(
            self.models[0].named_parameters(), self.models[1].parameters(), strict=True
        ):
            assert_close(q.detach(), p.detach(), f"{name} after update {seed}")


def bits(*shape: int, lengths: list[int] | None = None) -> SequenceBatch:
    targets = (torch.rand(*shape) > 0.5).double()
    return SequenceBatch.from_targets(targets, None if lengths is None else torch.tensor(lengths))


@pytest.mark.parametrize(
    ("family", "objective"),
    [
        (family, objective)
        for family in ("zforcing", "variational-bilstm", "srnn", "vrnn", "rnn")
        for objective in OBJECTIVES
        if (family, objective) != ("rnn", "fivo")  # it has no latents
    ],
)
def test_replayed_updates_are_ordinary_ones(family: str, objective: str) -> None:
    options = {} if family == "rnn" else {"latent_size": 3}
    model = MODELS[family](4, hidden_size=5, mlp_size=4, **options)
    with pyro.validation_enabled(False):
        pair = Pair(model, OBJECTIVES[objective](3))
        for seed in range(7):
            pair.step(bits(3, 4, 4), seed, kl_weight=0.2 + 0.1 * seed)
    assert pair.recorded == 1


def test_each_shape_has_its_own_graph_and_rare_ones_have_none() -> None:
    with pyro.validation_enabled(False):
        pair = Pair(ZForcing(4, **SIZES), TraceMeanField_ELBO(), warmup=1, max_graphs=2)
        for seed, rows in enumerate([3, 2, 3, 2, 5, 3, 5, 5, 2]):
            pair.step(bits(rows, 4, 4), seed)
    assert pair.recorded == 2  # 3 and 2; 5 is beyond the limit


def test_losses_and_batches_are_not_overwritten() -> None:
    with pyro.validation_enabled(False):
        pair = Pair(ZForcing(4, **SIZES), TraceMeanField_ELBO(), warmup=1)
        batches = [bits(3, 4, 4) for _ in range(4)]
        before = [b.inputs.clone() for b in batches]
        losses = [pair.graphed.step(batch) for batch in batches]
    assert len({float(loss) for loss in losses}) == 4, "each update returns its own loss"
    for batch, inputs in zip(batches, before, strict=True):
        assert torch.equal(batch.inputs, inputs)


def test_a_graph_is_for_one_program() -> None:
    """Changes of the program, as opposed to its values, lead to a new recording."""
    with pyro.validation_enabled(False):
        pair = Pair(ZForcing(4, **SIZES), TraceMeanField_ELBO(), warmup=0)
        for engine in pair.engines:  # an update creates the state of the optimiser
            torch.manual_seed(0)
            engine.step(bits(2, 4, 4))
        batch = bits(3, 4, 4)
        other = SequenceBatch(batch.inputs, batch.targets, has_start_symbol=False)
        single = SequenceBatch(batch.inputs, batch.targets, uncorrupted=batch.inputs.flip(0))
        for seed, given in enumerate((batch, other, single, batch, other, single), start=1):
            pair.step(given, seed)
    assert pair.recorded == 3


def test_lengths_and_dropped_inputs_are_updated() -> None:
    dropout = WordDropout(0.5)
    with pyro.validation_enabled(False):
        # A batch reads its lengths to check them, but only on a CPU.
        pair = Pair(ZForcing(4, **SIZES), TraceMeanField_ELBO(), warmup=1, may_read=True)
        for seed, lengths in enumerate([[4, 2, 1], [1, 4, 3], [4, 0, 2], [2, 2, 4]]):
            pair.step(dropout(bits(3, 4, 4, lengths=lengths)), seed)
    assert pair.recorded == 1


def test_states_are_carried_through_replays() -> None:
    model = VariationalBiLSTM(4, **SIZES)
    with pyro.validation_enabled(False):
        pair = Pair(model, TraceMeanField_ELBO(), carry=True, warmup=1)
        for seed in range(5):
            batch = replace(bits(3, 4, 4), continues=seed > 0)
            given = [c.given_to(batch) for c in pair.carried]
            for a, b in zip(given[0].carried or (), given[1].carried or (), strict=True):
                assert_close(a, b, f"state before update {seed}")
            losses = []
            for engine, own in zip((pair.engines[0], pair.graphed), given, strict=True):
                torch.manual_seed(seed)
                losses.append(engine.step(own))
            assert_close(losses[1], losses[0], f"loss of update {seed}")
            for c, own in zip(pair.carried, given, strict=True):
                assert len(c._left) == 1  # states of deleted batches are released
                c.keep([own])
    assert pair.recorded == 1


def test_a_replay_keeps_the_value_of_a_number() -> None:
    """A replay repeats the recorded value of a Python number, which is why the trainer uses tensors."""
    with pyro.validation_enabled(False):
        pair = Pair(ZForcing(4, **SIZES), TraceMeanField_ELBO(), warmup=1)
        for seed in range(3):
            pair.step(bits(3, 4, 4), seed)
        pair.models[0].kl_weight = pair.models[1].kl_weight = 0.5
        torch.manual_seed(0)
        batch = bits(3, 4, 4)
        losses = []
        for engine in (pair.engines[0], pair.graphed):
            torch.manual_seed(0)
            losses.append(engine.step(batch))
    assert abs(losses[0] - losses[1]) > 1e-6


def test_an_update_that_reads_a_number_cannot_be_recorded() -> None:
    class Reads(TraceMeanField_ELBO):
        def differentiable_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().differentiable_loss(*args, **kwargs)
            return loss + 0.0 * loss.item()

    with pyro.validation_enabled(False):
        pair = Pair(ZForcing(4, **SIZES), Reads(), warmup=1)
        pair.step(bits(3, 4, 4), 0)
        with pytest.raises(RuntimeError, match="no graph can do"):
            pair.step(bits(3, 4, 4), 1)
        lenient = Pair(ZForcing(4, **SIZES), Reads(), warmup=1, strict=False)
        lenient.step(bits(3, 4, 4), 0)
        with pytest.warns(UserWarning, match="not replayed from graphs: a number was read"):
            lenient.step(bits(3, 4, 4), 1)
        for seed in (2, 3):
            lenient.step(bits(3, 4, 4), seed)


def test_the_optimiser_must_be_capturable() -> None:
    model = ZForcing(4, **SIZES)
    svi = SVI(model.model, model.guide, torch.optim.Adam(model.parameters()), TraceMeanField_ELBO())
    with pytest.raises(ValueError, match="capturable=True"):
        GraphedSVI(svi)

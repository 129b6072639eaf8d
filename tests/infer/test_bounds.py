"""Tests of bounds over a data set: chunks, units and standard errors."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_zf import SequenceBatch
from pyro_zf.infer import BatchBounds, Bounds, batch_bounds, evaluate
from tests.helpers import MODELS, attributes, random_batch


def test_chunks_change_nothing_but_the_noise() -> None:
    model, batch = MODELS["paper"](), random_batch()
    whole = batch_bounds(model.model, model.guide, batch, num_samples=6, chunk=6)
    for chunk in (1, 4):
        parts = batch_bounds(model.model, model.guide, batch, num_samples=6, chunk=chunk)
        assert parts.iwae.shape == whole.iwae.shape
        # ELBO <= IWAE holds for the Monte-Carlo KL on the same samples; allow for the analytic one
        assert ((parts.iwae - parts.elbo) > -1.0).all()
    # with constant noise all samples are equal, and so are all bounds
    with attributes(torch, randn=lambda shape, **options: torch.full(shape, 0.2)):
        one = batch_bounds(model.model, model.guide, batch, 1)
        many = batch_bounds(model.model, model.guide, batch, 7, chunk=3)
    torch.testing.assert_close(many.iwae, one.iwae)
    torch.testing.assert_close(many.elbo, one.elbo)
    torch.testing.assert_close(many.kl_per_step, one.kl_per_step)


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("kind", ["paper", "mixture-prior"])
def test_kl_per_step_adds_up(kind: str, layout: str) -> None:
    model = MODELS[kind](layout=layout)
    batch = random_batch(lengths=[7, 3, 1, 5, 2])
    bounds = batch_bounds(model.model, model.guide, batch, num_samples=3)
    assert batch.mask is not None
    assert (bounds.kl_per_step[~batch.mask] == 0).all()
    torch.testing.assert_close(bounds.kl_per_step.sum(-1), bounds.kl)
    torch.testing.assert_close(bounds.log_likelihood - bounds.kl, bounds.elbo)


def test_units_and_standard_errors() -> None:
    bounds = Bounds(num_samples=1)
    for elbos, lengths in (([-4.0, -8.0], [2, 4]), ([-6.0, 99.0], [3, 0])):
        elbo = torch.tensor(elbos)
        batch = SequenceBatch.from_targets(torch.zeros(2, 4, 1), torch.tensor(lengths))
        steps = torch.arange(1.0, 5.0) * batch.mask
        bounds.add(batch, BatchBounds(elbo, elbo, elbo, steps.sum(-1), steps, elbo))
    assert bounds.num_sequences == 3
    assert bounds.num_steps == 9
    per_sequence, per_step = bounds.per_sequence("elbo"), bounds.per_step("elbo")
    assert per_sequence.mean == pytest.approx(-6.0)
    assert per_sequence.stderr == pytest.approx(2 / math.sqrt(3))
    assert per_step.mean == pytest.approx(-2.0)
    assert per_step.stderr == pytest.approx(0.0, abs=1e-12), "every sequence has -2 nats per step"
    kl_per_step = bounds.per_step("kl")
    kl = torch.tensor([3.0, 10.0, 6.0])  # sums of 1..2, 1..4 and 1..3
    ratio = 19 / 9
    residual = kl - ratio * torch.tensor([2.0, 4.0, 3.0])
    assert kl_per_step.mean == pytest.approx(ratio)
    assert kl_per_step.stderr == pytest.approx((residual.std() / math.sqrt(3) / 3).item())
    assert bounds.kl_at_steps() == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_evaluate_weighs_sequences_alike_whatever_the_batches() -> None:
    model = MODELS["paper"]()
    big, small = random_batch(num_sequences=5), random_batch(num_sequences=1)
    bounds = evaluate(model.model, model.guide, [big, small], num_samples=2)
    assert bounds.num_sequences == 6
    torch.manual_seed(3)
    whole = evaluate(model.model, model.guide, [big, small])
    torch.manual_seed(3)
    parts = [evaluate(model.model, model.guide, [big, small], part=(0, 2))]
    torch.manual_seed(3)
    parts.append(evaluate(model.model, model.guide, [big, small], part=(1, 2)))
    assert [part.num_sequences for part in parts] == [5, 1]
    joined = Bounds.joined(parts)
    for name in ("elbo", "iwae", "kl"):
        assert joined.per_sequence(name) == whole.per_sequence(name)
    means = [part.per_sequence("elbo").mean for part in parts]
    assert whole.per_sequence("elbo").mean == pytest.approx((5 * means[0] + means[1]) / 6)


def test_no_graph_is_kept() -> None:
    model, batch = MODELS["paper"](), random_batch()
    bounds = batch_bounds(model.model, model.guide, batch)
    assert not any(getattr(bounds, name).requires_grad for name in ("elbo", "iwae", "kl"))
    whole = evaluate(model.model, model.guide, [batch])
    assert not any(x.requires_grad for values in whole._values.values() for x in values)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.numel())
        return result


def test_no_tensor_grows_with_the_number_of_samples() -> None:
    model, batch = MODELS["paper"](), random_batch()

    def largest(num_samples: int, chunk: int) -> int:
        with LargestTensor() as recorder:
            batch_bounds(model.model, model.guide, batch, num_samples, chunk)
        return recorder.size

    assert largest(60, chunk=5) == largest(5, chunk=5)
    assert largest(60, chunk=60) > largest(60, chunk=5), "the recorder works"


_PEAK = """
import resource, sys, torch
from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import batch_bounds
torch.manual_seed(0)
model = ZForcing(1, hidden_size=32, latent_size=8, mlp_size=32).eval()
batch = SequenceBatch.from_targets((torch.rand(8, 100, 1) > 0.5).float())
bounds = batch_bounds(model.model, model.guide, batch, int(sys.argv[1]), chunk=20)
assert bounds.iwae.isfinite().all() and (bounds.iwae >= bounds.elbo).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_the_memory_of_thousands_of_samples_is_that_of_a_few() -> None:
    peaks = [
        float(
            subprocess.run(
                [sys.executable, "-c", _PEAK, str(k)], capture_output=True, text=True, check=True
            ).stdout
        )
        for k in (40, 1500)
    ]
    assert peaks[1] < peaks[0] + 20  # MB; all samples at once would need 1,200


def test_errors() -> None:
    model, batch = MODELS["paper"](), random_batch()
    with pytest.raises(ValueError, match="must be at least 1"):
        batch_bounds(model.model, model.guide, batch, num_samples=0)
    with pytest.raises(ValueError, match="no sequences"):
        Bounds(1).per_sequence("elbo")

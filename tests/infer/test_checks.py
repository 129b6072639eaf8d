"""Programs with mistakes that would make a bound wrong are refused."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.distributions import OverTime
from pyro_zf.infer import Trace_ELBO, TraceIWAE, TraceMeanField_ELBO, batch_bounds, evaluate
from tests.helpers import DATA, LATENT, SIZES, random_batch


class Guided(ZForcing):
    """A guide of standard normals, in ways that forget something."""

    way = "masked"

    def guide_time(self, batch: SequenceBatch) -> None:
        shape = (batch.num_steps, batch.num_sequences, LATENT)
        q = dist.Normal(torch.zeros(shape), 1.0).to_event(1)
        with self.sequences(batch):
            if self.way == "plain":
                pyro.sample("z", dist.Normal(torch.zeros(shape).transpose(0, 1), 1.0).to_event(2))
            else:
                mask = None if self.way == "no mask" else batch.mask
                pyro.sample("zz" if self.way == "misspelt" else "z", OverTime(q, mask))

    def guide_steps(self, batch: SequenceBatch) -> None:
        with self.sequences(batch):
            for t in range(batch.num_steps):
                q = dist.Normal(torch.zeros(batch.num_sequences, LATENT), 1.0).to_event(1)
                if self.way == "no mask":
                    pyro.sample(f"z_{t + 1}", q)
                else:
                    with self.real_steps(batch, t):
                        pyro.sample(f"z_{t + (self.way != 'misspelt')}", q)


class UnmaskedModel(ZForcing):
    """A model whose emission has a probability at every step."""

    def model_time(self, batch: SequenceBatch) -> Any:
        state = super().model_time(batch)
        probs = torch.full((batch.num_steps, batch.num_sequences, DATA), 0.3)
        with pyro.plate("again", batch.num_sequences, dim=-1):
            y = OverTime(dist.Bernoulli(probs).to_event(1))
            pyro.sample("y_again", y, obs=batch.targets)
        return state


@pytest.mark.parametrize(
    ("layout", "way"), [("time", "no mask"), ("time", "plain"), ("steps", "no mask")]
)
def test_a_guide_that_counts_steps_past_the_end_is_refused(layout: Any, way: str) -> None:
    model, batch = Guided(DATA, layout=layout, **SIZES), random_batch(lengths=[7, 3, 1, 5, 2])
    whole = random_batch()
    model.way = "masked"
    right = batch_bounds(model.model, model.guide, batch, 2)
    assert right.elbo.isfinite().all()
    model.way = way
    site = "z" if layout == "time" else "z_2"
    for bounds in (
        lambda: batch_bounds(model.model, model.guide, batch),
        lambda: evaluate(model.model, model.guide, [whole, batch]),
    ):
        with pytest.raises(
            ValueError, match=f"log-probability of site {site} in the guide includes steps past"
        ):
            bounds()
    batch_bounds(model.model, model.guide, whole)  # without padding there is nothing to forget


def test_a_model_that_counts_steps_past_the_end_is_refused() -> None:
    model = UnmaskedModel(DATA, **SIZES)
    with pytest.raises(
        ValueError, match="log-probability of site y_again in the model includes steps past"
    ):
        batch_bounds(model.model, model.guide, random_batch(lengths=[7, 3, 1, 5, 2]))


def test_dropout_is_not_mistaken_for_padding() -> None:
    """In training mode densities are random, also where every step past the end is masked."""
    model = ZForcing(DATA, emission="autoregressive-bernoulli", dropout=0.5, **SIZES).train()
    for _ in range(5):
        batch_bounds(model.model, model.guide, random_batch(lengths=[7, 3, 1, 5, 2]))


def test_the_check_leaves_the_noise_as_it_is() -> None:
    model, batch = ZForcing(DATA, **SIZES), random_batch(lengths=[7, 3, 1, 5, 2])
    torch.manual_seed(3)
    whole = batch_bounds(model.model, model.guide, batch)
    after = torch.rand(2)
    torch.manual_seed(3)
    batch_bounds(model.model, model.guide, SequenceBatch(batch.inputs, batch.targets))  # no check
    torch.testing.assert_close(torch.rand(2), after)
    assert whole.elbo.isfinite().all()


@pytest.mark.filterwarnings("ignore:Found :UserWarning")  # Pyro's, which come first
@pytest.mark.parametrize("layout", ["time", "steps"])
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, TraceIWAE])
def test_a_guide_without_a_latent_of_the_model_is_refused(layout: Any, objective: Any) -> None:
    model, batch = Guided(DATA, layout=layout, **SIZES), random_batch()
    model.way = "misspelt"
    # In layout "steps" the indices are one too small, so the last latent has no site.
    message = (
        "has no site z, .* its sites: zz" if layout == "time" else "has no site z_7, .* z_0, z_1"
    )
    with pytest.raises(ValueError, match=message):
        objective(max_plate_nesting=1).loss(model.model, model.guide, batch)
    with pytest.raises(ValueError, match=message):
        batch_bounds(model.model, model.guide, batch)


class Wrong(nn.Module):
    """A prior whose distribution is given."""

    def __init__(self, distribution: Any) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, h: torch.Tensor) -> Any:
        return self.distribution(torch.zeros(*h.shape[:-1], LATENT))


WRONG_PRIORS: list[tuple[Any, str]] = [
    (lambda x: torch.distributions.Independent(torch.distributions.Normal(x, 1.0), 1), "of type Independent, not"),
    (lambda x: x, "of type Tensor, not a distribution of pyro.distributions"),
    (lambda x: dist.Normal(x, 1.0), r"and event shape \(\).*; is a \.to_event\(1\) missing\?"),
    (lambda x: dist.Normal(x[..., 1:], 1.0).to_event(1), r"not \(.*\) and \(3,\)$"),
]  # fmt: skip


@pytest.mark.parametrize(("distribution", "message"), WRONG_PRIORS)
def test_a_prior_of_the_wrong_kind_is_named(distribution: Any, message: str) -> None:
    model = ZForcing(DATA, prior=Wrong(distribution), **SIZES)
    with pytest.raises((TypeError, ValueError), match=f"the prior Wrong .*{message}"):
        batch_bounds(model.model, model.guide, random_batch())


def test_an_iwae_draws_its_particles_together() -> None:
    assert TraceIWAE(num_particles=3, vectorize_particles=True).num_particles == 3
    with pytest.raises(ValueError, match="draws its particles together"):
        TraceIWAE(vectorize_particles=False)

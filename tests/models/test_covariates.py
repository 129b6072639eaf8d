"""Covariates and additional latents: design properties and network inputs for every system."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import batch_bounds
from pyro_zf.models import MODELS, SequenceModel
from pyro_zf.nn import GaussianPrior, SmoothingPosterior, StandardNormalPrior
from pyro_zf.sequence import Latent
from tests.helpers import (
    attributes,
    filter_is_the_iwae,
    generation_is_ancestral,
    layouts_agree,
)

DATA, COVARIATES = 3, 2
LENGTHS = torch.tensor([5, 1, 4, 5])
SIZES: dict[str, Any] = {"hidden_size": 6, "mlp_size": 5, "covariate_size": COVARIATES}
COSTS = {"aux": {"b": 0.3, "u": 0.7, "h": 0.2, "activity": 0.1}}
OPTIONS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "srnn": {"latent_size": 4, "aux": {"b": 0.3, "u": 0.7}},
    "zforcing": {"latent_size": 4, "alpha": 0.3, "beta": 0.7, "aux": {"h": 0.2}},
    "variational-bilstm": {"latent_size": 4, "alpha": 0.3, "beta": 0.4, "aux": {"u": 0.7}},
}


class TwoLayersAndStyle(ZForcing):
    """A model with a latent per sequence, z, and a second latent per step that reads z."""

    cell_reads = ("z", "w")

    def __init__(self, data_size: int, **options: Any) -> None:
        super().__init__(data_size, latent_sizes={"w": 4}, sequence_latent_size=4, **options)
        c, size = self.covariate_size, self.prior_size + self.latent_size
        self.style_prior = StandardNormalPrior(4)
        self.style_posterior = SmoothingPosterior(c, self.backward_size, 4, mlp_size=5)
        self.w_prior = GaussianPrior(size, 4, mlp_size=5)
        self.w_posterior = SmoothingPosterior(size, self.backward_size, 4, mlp_size=5)

    @property
    def latents(self) -> dict[str, Latent]:
        return {
            "style": Latent(self.style_prior, self.style_posterior, 4, per="sequence"),
            **super().latents,
            "w": Latent(self.w_prior, self.w_posterior, 4, reads=("state", "z")),
        }


def build(system: str, **options: Any) -> SequenceModel:
    options = {**SIZES, **options}
    if system == "two-layers":
        return TwoLayersAndStyle(DATA, latent_size=4, alpha=0.3, beta=0.7, **options)
    model: Any = MODELS[system]
    chosen = OPTIONS.get(system, {"latent_size": 4, **COSTS})
    return model(DATA, **chosen, **options)


def conditioned(per_step: bool, lengths: Tensor | None = LENGTHS) -> SequenceBatch:
    torch.manual_seed(2)
    targets = (torch.rand(4, 5, DATA) > 0.5).double()
    covariates = torch.randn(4, 5, COVARIATES) if per_step else torch.randn(4, COVARIATES)
    return SequenceBatch.from_targets(targets, lengths, covariates=covariates)


SYSTEMS = [*MODELS, "two-layers"]


@pytest.mark.parametrize("per_step", [False, True], ids=["sequence", "step"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_1_layouts_agree(system: str, per_step: bool) -> None:
    layouts_agree(build(system, kl_weight=0.6), conditioned(per_step))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_network_reads_covariates_but_not_those_of_padding(system: str) -> None:
    """Tested by the gradient of each site of model and guide with respect to the covariates."""
    model = build(system)
    model.eval()
    batch = conditioned(per_step=True)
    assert batch.covariates is not None
    batch.covariates.requires_grad_()
    with model.using_layout("steps"):
        guide = pyro.poutine.trace(model.guide).get_trace(batch)
        values = {
            name: s["value"].detach() for name, s in guide.nodes.items() if s["type"] == "sample"
        }
        for program in (model.model, model.guide):
            given = {k: x for k, x in values.items() if k != "sequences"}
            trace = pyro.poutine.trace(pyro.poutine.condition(program, data=given)).get_trace(batch)
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or name == "sequences" or not name.endswith("_2"):
                    continue
                if name.startswith("aux_activity") or not site["log_prob_sum"].requires_grad:
                    continue
                (g,) = torch.autograd.grad(
                    site["log_prob_sum"], batch.covariates, retain_graph=True
                )
                fixed = (
                    name.startswith("z")
                    and system in ("storn", "vrnn-i")
                    and program == model.model
                )
                assert fixed or g[0, 1].abs().min() > 0, name
                assert g[1, 1:].abs().max() == g[2, 4:].abs().max() == 0, f"{name} reads padding"


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "masked"])
@pytest.mark.parametrize("system", [s for s in SYSTEMS if s != "rnn"])
def test_the_filter_without_resampling_is_the_iwae(system: str, lengths: Tensor | None) -> None:
    model = build(system, kl_weight=0.7)
    skip = {"skip_gradient": 0.0} if system == "variational-bilstm" else {}
    with attributes(model, **skip):
        filter_is_the_iwae(model, conditioned(True, lengths))


@pytest.mark.parametrize("system", SYSTEMS)
def test_generation_is_ancestral(system: str) -> None:
    generation_is_ancestral(build(system), torch.zeros(4, DATA), torch.randn(4, 5, COVARIATES))


def test_covariates_that_do_not_fit_are_refused() -> None:
    model = build("zforcing")
    batch = SequenceBatch.from_targets(torch.zeros(4, 5, DATA))
    for program in (model.model, model.guide):
        with pytest.raises(ValueError, match="conditioned on 2 covariates, and the batch has 0"):
            program(batch)
    with pytest.raises(ValueError, match="conditioned on 2 covariates, and the batch has 0"):
        model.generate(torch.zeros(4, DATA), 5)


def test_kl_of_all_latents() -> None:
    """The KL of a bound sums those of all latents; latents per sequence are not part of any step."""
    model = build("two-layers").eval()
    batch = conditioned(True, None)
    torch.manual_seed(3)
    bounds = batch_bounds(model.model, model.guide, batch)
    torch.manual_seed(3)
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=guide)).get_trace(batch)
    kl = torch.zeros(4)
    for name in ("style", "z", "w"):
        q, p, z = guide.nodes[name]["fn"], trace.nodes[name]["fn"], guide.nodes[name]["value"]
        try:
            kl = kl + torch.distributions.kl_divergence(q, p)
        except NotImplementedError:
            kl = kl + q.log_prob(z) - p.log_prob(z)
    torch.testing.assert_close(bounds.kl, kl, rtol=1e-9, atol=0)
    assert (bounds.kl_per_step.sum(1) < bounds.kl).all()

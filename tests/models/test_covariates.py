"""Covariates and additional latents: design properties and network inputs for every system."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import Trace_ELBO, TraceFIVO, TraceIWAE, TraceMeanField_ELBO, batch_bounds
from pyro_zf.models import MODELS, SequenceModel
from pyro_zf.nn import GaussianPrior, SmoothingPosterior, StandardNormalPrior
from pyro_zf.sequence import Latent
from tests.helpers import assert_close, attributes, loss_and_gradients

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
    model = build(system, kl_weight=0.6)
    batch = conditioned(per_step)
    for objective in (Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)):
        with model.using_layout("steps"):
            loss, gradients = loss_and_gradients(model, objective, batch)
        other_loss, other_gradients = loss_and_gradients(model, objective, batch)
        assert_close(other_loss, loss, "loss")
        scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
        for name, gradient in gradients.items():
            assert (gradient is None) == (other_gradients[name] is None), name
            if gradient is not None:
                difference = (gradient - other_gradients[name]).abs().max()  # type: ignore[operator]
                assert difference <= 1e-10 * scale, name


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
    batch = conditioned(True, lengths)
    skip = {"skip_gradient": 0.0} if system == "variational-bilstm" else {}
    with attributes(model, **skip):
        loss, gradients = loss_and_gradients(model, TraceIWAE(4), batch)
        filtered = loss_and_gradients(model, TraceFIVO(4, resample_below=0.0), batch)
    assert_close(filtered[0], loss, "loss")
    for name, gradient in gradients.items():
        assert_close(filtered[1][name], gradient, name, rtol=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_generation_is_ancestral(system: str) -> None:
    """Generated values have the same density under the teacher-forced program as when sampled."""
    model = build(system)
    c = torch.randn(4, 5, COVARIATES)
    start = SequenceBatch.to_generate(torch.zeros(4, DATA), 5, covariates=c)
    drawn = pyro.poutine.trace(model.model).get_trace(start)
    y = torch.stack([drawn.nodes[f"y_{t}"]["value"] for t in range(1, 6)], dim=1)
    latents = {
        name: torch.stack([drawn.nodes[f"{name}_{t}"]["value"] for t in range(1, 6)], dim=1)
        for name in ("z", "b_tilde", "w")
        if f"{name}_1" in drawn.nodes
    }
    if "style" in drawn.nodes:
        latents["style"] = drawn.nodes["style"]["value"]
    program = pyro.poutine.condition(model.model, data=latents)
    scored = pyro.poutine.trace(program).get_trace(SequenceBatch.from_targets(y, covariates=c))
    density = scored.log_prob_sum(lambda name, site: not name.startswith("aux_"))
    torch.testing.assert_close(density, drawn.log_prob_sum(), rtol=1e-10, atol=0)


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

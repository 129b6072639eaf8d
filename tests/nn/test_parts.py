"""Tests of priors and posteriors, and of their registry."""

from __future__ import annotations

import functools

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_zf import SRNN, STORN, VRNN, SequenceBatch, ZForcing
from pyro_zf.infer import TraceMeanField_ELBO
from pyro_zf.models import LatentSequenceModel
from pyro_zf.nn import (
    EMISSIONS,
    POSTERIORS,
    BernoulliEmission,
    CategoricalEmission,
    FilteringPosterior,
    FlowPrior,
    GaussianMixturePrior,
    GaussianPrior,
    RecognitionPosterior,
    ResidualPosterior,
    ReversePrediction,
    build_prior,
)
from tests.helpers import assert_close, loss_and_gradients

H, Z = 4, 3
SIZES = {"hidden_size": 6, "latent_size": Z, "mlp_size": 5}


def test_the_residual_posterior_corrects_the_mean_of_the_prior() -> None:
    prior = GaussianPrior(H, Z, mlp_size=5)
    posterior = ResidualPosterior(prior, H, 2, Z, mlp_size=5)
    h, b = torch.randn(7, H), torch.randn(7, 2)
    correction, log_scale = posterior.moments(torch.cat([h, b], -1))
    q = posterior(h, b)
    torch.testing.assert_close(q.mean, prior(h).mean + correction)
    torch.testing.assert_close(q.base_dist.scale, log_scale.exp())
    q.mean.sum().backward()
    assert all(p.grad is not None for p in prior.parameters())
    assert not any("prior" in name for name, _ in posterior.named_parameters())


@pytest.mark.parametrize("name", ["standard-normal", "mixture"])
def test_the_residual_posterior_takes_any_prior_with_a_mean(name: str) -> None:
    prior = build_prior(name, H, Z, mlp_size=5)
    posterior = ResidualPosterior(prior, H, 2, Z, mlp_size=5)
    h, b = torch.randn(7, H), torch.randn(7, 2)
    correction, _ = posterior.moments(torch.cat([h, b], -1))
    torch.testing.assert_close(posterior(h, b).mean, prior(h).mean + correction)


def test_another_prior_is_followed() -> None:
    srnn = SRNN(4, **SIZES)
    srnn.prior = build_prior("gaussian", srnn.prior_size, Z, mlp_size=5)
    assert srnn.posterior._prior[0] is srnn.prior
    batch = SequenceBatch.from_targets(torch.ones(2, 5, 4))
    _, gradients = loss_and_gradients(srnn, TraceMeanField_ELBO(), batch)
    assert all(gradient is not None for gradient in gradients.values())


@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_flow_moves_every_value_and_inverts(size: int) -> None:
    prior = FlowPrior(H, size, mlp_size=8)
    q = prior(torch.randn(5, H))
    x = q.base_dist.sample()
    z = x
    for transform in q.transforms:
        z = transform(z)
    moved = z.unsqueeze(-1) - x.unsqueeze(-2)
    assert (moved.abs() > 1e-12).all(), "a value was not changed"
    base = q.base_dist.log_prob(x)
    total = base
    y = x
    for transform in q.transforms:
        y_next = transform(y)
        log_det = transform.log_abs_det_jacobian(y, y_next)
        total = total - (log_det.sum(-1) if log_det.dim() > total.dim() else log_det)
        y = y_next
    torch.testing.assert_close(q.log_prob(z.detach().clone()), total)


@pytest.mark.parametrize("name", ["gaussian", "standard-normal", "mixture", "flow"])
def test_priors_integrate_to_one(name: str) -> None:
    prior = build_prior(name, H, 2, mlp_size=5)
    p = prior(torch.randn(H))
    samples = p.sample((3000,))
    low, high = samples.amin(0) - 5, samples.amax(0) + 5
    axes = [torch.linspace(a, b, 500) for a, b in zip(low, high, strict=True)]
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    with torch.no_grad():
        total = p.log_prob(torch.cartesian_prod(*axes)).exp().sum() * cell
    assert total.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.usefixtures("unchecked")
def test_incompatible_parts() -> None:
    with pytest.raises(ValueError, match="that of a flow is not known"):
        ZForcing(4, **SIZES, prior="flow", posterior="res_q")
    with pytest.raises(ValueError, match="latent of size 2 or more, not 1"):
        ZForcing(4, hidden_size=6, latent_size=1, mlp_size=5, prior="flow")
    with pytest.raises(ValueError, match="prior uniform: must be one of"):
        build_prior("uniform", 4, 2)
    with pytest.raises(ValueError, match="at least one component, not 0"):
        GaussianMixturePrior(H, Z, components=0)
    for model in (VRNN, STORN):
        with pytest.raises(ValueError, match="nothing would train the backward network"):
            model(4, **SIZES, aux={"b": 1.0})
    with pytest.raises(ValueError, match="nothing would train the backward network"):
        ZForcing(4, **SIZES, posterior="filtering", beta=0.0)
    for cost in ("h", "activity"):
        with pytest.raises(
            ValueError, match=f"the cost '{cost}' is for a forward state that reads z"
        ):
            SRNN(4, **SIZES, aux={cost: 1.0})
    with pytest.raises(ValueError, match="has an option of its own here"):
        ZForcing(4, **SIZES, aux={"b": 1.0})
    vrnn_emission = BernoulliEmission(6 + 5, 4, mlp_size=5)
    with pytest.raises(ValueError, match=r"the cost \(ReversePrediction\(emission\), weight\)"):
        VRNN(4, **SIZES, emission=vrnn_emission, aux={"u": 1.0})
    cost = ReversePrediction(BernoulliEmission(6, 4, mlp_size=5))
    assert VRNN(4, **SIZES, emission=vrnn_emission, aux={"u": (cost, 1.0)}).aux_weights == {
        "u": 1.0
    }

    class Sideways(FilteringPosterior):
        reads = "sideways"  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Sideways reads 'sideways'; there are"):
        ZForcing(4, **SIZES, posterior=Sideways(6, 4, Z))


def test_a_partial_can_replace_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSTERIORS, "mine", functools.partial(FilteringPosterior))
    monkeypatch.setitem(EMISSIONS, "symbols", functools.partial(CategoricalEmission))
    zf = ZForcing(4, **SIZES, posterior="mine", emission="symbols")
    assert isinstance(zf.embedding, torch.nn.Embedding)
    batch = SequenceBatch.from_targets(torch.randint(4, (2, 5)))
    assert zf.loss_module(TraceMeanField_ELBO())(batch).isfinite()


def test_a_function_must_declare_that_it_gives_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMISSIONS, "symbols", lambda *a, **k: CategoricalEmission(*a, **_plain(k)))
    with pytest.raises(ValueError, match=r"the attribute kinds = \('categorical',\)"):
        ZForcing(4, **SIZES, emission="symbols")


def _plain(options: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name != "form"}


class Triple(RecognitionPosterior):
    """Overrides its forward, which sampling all steps at once must respect."""

    def forward(self, h: Tensor, g: Tensor) -> dist.TorchDistribution:
        q = super().forward(h, g).base_dist
        return dist.Normal(q.loc, 3 * q.scale).to_event(1)


class Heavy(RecognitionPosterior):
    def forward(self, h: Tensor, g: Tensor) -> dist.TorchDistribution:
        q = super().forward(h, g).base_dist
        return dist.StudentT(5.0, q.loc, q.scale).to_event(1)


@pytest.mark.parametrize("kind", [Triple, Heavy])
def test_a_subclass_that_overrides_forward_is_followed(kind: type[RecognitionPosterior]) -> None:
    storn: LatentSequenceModel = STORN(4, **SIZES, posterior=kind(6, 6, Z, mlp_size=5))
    batch = SequenceBatch.from_targets(torch.ones(2, 5, 4))
    with storn.using_layout("steps"):
        loss, _ = loss_and_gradients(storn, TraceMeanField_ELBO(), batch)
    assert_close(loss_and_gradients(storn, TraceMeanField_ELBO(), batch)[0], loss, "loss")

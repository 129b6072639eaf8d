"""Property 4 for every family: ELBO <= IWAE <= log p, and IWAE and FIVO converge to log p.

Each family is tested on a linear-Gaussian instance. Given the inputs, its targets are jointly Gaussian.
Their density is computed here independently of the package: the equations of the paper are written out as
a simulation, which is affine in the noise of the latents, and its matrix is computed column by column.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_zf import SRNN, STORN, VRNN, SequenceBatch, VariationalBiLSTM, ZForcing
from pyro_zf.infer import TraceFIVO, batch_bounds, particle_filter
from pyro_zf.models import LatentSequenceModel
from pyro_zf.nn import GaussianHead
from pyro_zf.nn.cells import Cell, ReadsPreviousLatent, State
from tests.helpers import loss_and_gradients
from tests.models.test_kalman import LinearGaussian as Linear

H, Z, D, T = 2, 1, 1, 4
PRIOR_SCALE, EMISSION_SCALE, B_TILDE_SCALE = 0.8, 0.7, 0.5


class LinearCell(Cell):
    """h_t = A h_{t-1} + B r_t + C u_t, where r are the latents read by the cell."""

    state_sizes = (H,)

    def __init__(self, read_size: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.5 * torch.randn(H, H))
        self.B = nn.Parameter(torch.randn(H, read_size))
        self.C = nn.Parameter(0.5 * torch.randn(H, D))

    def after(self, u: Tensor, z: Tensor | None, state: State) -> State:
        assert z is not None
        return (state[0] @ self.A.T + z @ self.B.T + u @ self.C.T,)


class WidePosterior(nn.Module):
    """A posterior that depends weakly on y_t and is wide enough to bound the importance weights."""

    def __init__(self, state_size: int, context_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(state_size + context_size, Z)
        with torch.no_grad():
            self.linear.weight.mul_(0.3)

    @torch.no_grad()
    def start_near(self, prior: nn.Module) -> None:
        """Copy the prior's mean, so that importance sampling converges with few particles."""
        self.linear.weight[:, : prior.linear.in_features] = prior.linear.weight
        self.linear.bias.copy_(prior.linear.bias)

    def forward(self, h: Tensor, b: Tensor) -> TorchDistributionMixin:
        x = torch.cat([h, b.expand(*h.shape[:-1], -1)], dim=-1)
        return dist.Normal(self.linear(x), 1.2 * PRIOR_SCALE).to_event(1)


SIZES = {"hidden_size": H, "latent_size": Z, "mlp_size": 3, "name": "exact"}


def linear_zforcing() -> LatentSequenceModel:
    return ZForcing(
        D, cell=LinearCell(Z), emission=Linear(H, D, EMISSION_SCALE),
        prior=Linear(H, Z, PRIOR_SCALE), posterior=WidePosterior(H, H), alpha=0.0, beta=0.0, **SIZES,
    )  # fmt: skip


def linear_bilstm() -> LatentSequenceModel:
    model = VariationalBiLSTM(
        D, cell=LinearCell(Z + H), emission=Linear(2 * H, D, EMISSION_SCALE),
        prior=Linear(H, Z, PRIOR_SCALE), posterior=WidePosterior(H, H), alpha=0.0, **SIZES,
    )  # fmt: skip
    model.aux["b"].head = ConstantScale(H)
    return model


class ConstantScale(GaussianHead):
    """p(b~ | z) with a linear mean and a constant scale."""

    def __init__(self, size: int) -> None:
        super().__init__(nn.Linear(Z, 2 * size))
        with torch.no_grad():
            self.network.weight[size:] = 0
            self.network.bias[size:] = torch.tensor(B_TILDE_SCALE).log()


def linear_storn() -> LatentSequenceModel:
    return STORN(
        D, cell=LinearCell(Z), emission=Linear(H, D, EMISSION_SCALE),
        posterior="recognition", **SIZES,
    )  # fmt: skip


def linear_vrnn() -> LatentSequenceModel:
    model = VRNN(
        D, cell=ReadsPreviousLatent(LinearCell(Z), Z), emission=Linear(H + Z, D, EMISSION_SCALE),
        prior=Linear(H, Z, PRIOR_SCALE), posterior=WidePosterior(H, H), **SIZES,
    )  # fmt: skip
    model.embedding, model.latent_embedding = nn.Identity(), nn.Identity()
    model.backward_network = model._make_backward.func(D, H)
    return model


def linear_srnn() -> LatentSequenceModel:
    return SRNN(
        D, emission=Linear(Z + H, D, EMISSION_SCALE), prior=Linear(Z + H, Z, PRIOR_SCALE),
        posterior=WidePosterior(Z + H, H), **SIZES,
    )  # fmt: skip


def affine(module: nn.Module) -> Callable[..., Tensor]:
    return lambda *inputs: module.linear(torch.cat(inputs))  # type: ignore[operator]


def simulate_zforcing(m: LatentSequenceModel, u: Tensor, noise: Tensor) -> Tensor:
    f_p, f_o, t = affine(m.prior), affine(m.emission), m.cell
    h, means = torch.zeros(H), []
    for u_t, e in zip(u, noise, strict=True):
        z = f_p(h) + PRIOR_SCALE * e[:Z]
        h = t.A @ h + t.B @ z + t.C @ u_t
        means.append(f_o(h))
    return torch.cat(means)


def simulate_bilstm(m: LatentSequenceModel, u: Tensor, noise: Tensor) -> Tensor:
    f_p, f_o, t, psi = affine(m.prior), affine(m.emission), m.cell, m.aux["b"].head.network
    h, means = torch.zeros(H), []
    for u_t, e in zip(u, noise, strict=True):
        z = f_p(h) + PRIOR_SCALE * e[:Z]
        b_tilde = psi(z)[:H] + B_TILDE_SCALE * e[Z:]
        h = t.A @ h + t.B @ torch.cat([z, b_tilde]) + t.C @ u_t
        means.append(f_o(h, b_tilde))
    return torch.cat(means)


def simulate_storn(m: LatentSequenceModel, u: Tensor, noise: Tensor) -> Tensor:
    f_o, t = affine(m.emission), m.cell
    h, means = torch.zeros(H), []
    for u_t, e in zip(u, noise, strict=True):
        h = t.A @ h + t.B @ e[:Z] + t.C @ u_t
        means.append(f_o(h))
    return torch.cat(means)


def simulate_vrnn(m: LatentSequenceModel, u: Tensor, noise: Tensor) -> Tensor:
    f_p, f_o, t = affine(m.prior), affine(m.emission), m.cell.cell
    h, z, means = torch.zeros(H), torch.zeros(Z), []
    for u_t, e in zip(u, noise, strict=True):
        h = t.A @ h + t.B @ z + t.C @ u_t
        z = f_p(h) + PRIOR_SCALE * e[:Z]
        means.append(f_o(h, z))
    return torch.cat(means)


def simulate_srnn(m: LatentSequenceModel, u: Tensor, noise: Tensor) -> Tensor:
    f_p, f_o = affine(m.prior), affine(m.emission)
    d = m.deterministic.lstm(u)[0]
    z, means = torch.zeros(Z), []
    for d_t, e in zip(d, noise, strict=True):
        z = f_p(z, d_t) + PRIOR_SCALE * e[:Z]
        means.append(f_o(z, d_t))
    return torch.cat(means)


FAMILIES: dict[str, tuple[Callable[[], LatentSequenceModel], Callable[..., Tensor], int]] = {
    "zforcing": (linear_zforcing, simulate_zforcing, Z),
    "variational-bilstm": (linear_bilstm, simulate_bilstm, Z + H),
    "storn": (linear_storn, simulate_storn, Z),
    "vrnn": (linear_vrnn, simulate_vrnn, Z),
    "srnn": (linear_srnn, simulate_srnn, Z),
}


@torch.no_grad()
def exact_log_likelihood(family: str, model: LatentSequenceModel, u: Tensor, y: Tensor) -> Tensor:
    _, simulate, size = FAMILIES[family]
    num_steps = len(y)
    mean = simulate(model, u, torch.zeros(num_steps, size))
    units = torch.eye(num_steps * size).reshape(-1, num_steps, size)
    matrix = torch.stack([simulate(model, u, unit) - mean for unit in units], dim=1)
    covariance = matrix @ matrix.T + EMISSION_SCALE**2 * torch.eye(num_steps * D)
    return MultivariateNormal(mean, covariance).log_prob(y.reshape(-1))


def instance(family: str) -> tuple[LatentSequenceModel, SequenceBatch, float]:
    torch.manual_seed(7)
    model = FAMILIES[family][0]().eval()
    if isinstance(model.posterior, WidePosterior):
        model.posterior.start_near(model.prior)
    batch = SequenceBatch.from_targets(1.2 * torch.randn(1, T, D))
    assert batch.targets is not None
    exact = exact_log_likelihood(family, model, batch.inputs[0], batch.targets[0])
    return model, batch, exact.item()


def copies(batch: SequenceBatch, number: int) -> SequenceBatch:
    assert batch.targets is not None
    shape = (number, T, D)
    return SequenceBatch(batch.inputs.expand(shape), batch.targets.expand(shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_iwae_and_fivo_rise_to_the_exact_likelihood(family: str) -> None:
    model, batch, exact = instance(family)
    iwae_gaps, fivo_gaps = [], []
    for k in (1, 8, 64, 512):
        many = copies(batch, 40_000 // k)
        bounds = batch_bounds(model.model, model.guide, many, k, chunk=k)
        fivo = particle_filter_without_gradient(model, many, k)
        iwae_gaps.append(exact - bounds.iwae.mean().item())
        fivo_gaps.append(exact - fivo.mean().item())
        if k > 1:
            assert bounds.elbo.mean() <= bounds.iwae.mean()
        for estimate in (bounds.iwae, fivo):  # unbiased for the likelihood itself, for any k
            ratio = torch.exp(estimate - exact)
            error = 5 * ratio.std().item() / len(ratio) ** 0.5
            assert abs(ratio.mean().item() - 1) < max(error, 1e-3), (k, ratio.mean())
    for gaps in (iwae_gaps, fivo_gaps):
        assert all(a > b for a, b in itertools.pairwise(gaps)), gaps
        assert gaps[0] > 0.1, "the posterior is too good to test convergence"
        assert abs(gaps[-1]) < 0.02, gaps


@torch.no_grad()
def particle_filter_without_gradient(
    model: LatentSequenceModel, batch: SequenceBatch, k: int
) -> Tensor:
    return particle_filter(model, batch, k).bound


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_sees_another_model(family: str) -> None:
    """With other weights, bounds and oracle disagree, so the test above can fail."""
    model, batch, exact = instance(family)
    with torch.no_grad():
        model.emission.linear.weight.add_(0.7)
    bounds = batch_bounds(model.model, model.guide, copies(batch, 50), 512, chunk=512)
    assert abs(exact - bounds.iwae.mean().item()) > 0.1


def test_filtering_beats_importance_sampling_on_long_sequences() -> None:
    """For long sequences, FIVO is tighter than IWAE with the same number of particles."""
    torch.manual_seed(2)  # a seed with stable dynamics
    model = linear_zforcing().eval()
    long = SequenceBatch.from_targets(1.2 * torch.randn(20, 60, D))
    assert long.targets is not None
    exact = torch.stack(
        [
            exact_log_likelihood("zforcing", model, u, y)
            for u, y in zip(long.inputs, long.targets, strict=True)
        ]
    ).mean()
    iwae = batch_bounds(model.model, model.guide, long, 16, chunk=16).iwae.mean()
    fivo = particle_filter_without_gradient(model, long, 16).mean()
    assert iwae + 3.0 < fivo < exact


def test_fivo_trains() -> None:
    """Following its gradient, without the term of the ancestors, increases the bound."""
    torch.manual_seed(3)
    model = linear_zforcing()
    batch = SequenceBatch.from_targets(torch.randn(30, 6, D).cumsum(1))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for update in range(60):
        loss, _ = loss_and_gradients(model, TraceFIVO(8), batch, seed=update)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.0

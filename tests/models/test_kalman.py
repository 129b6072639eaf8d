"""Property 4: bounds against the exact likelihood of a linear-Gaussian model by a Kalman filter."""

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import batch_bounds
from pyro_zf.nn.cells import Cell, State

H, Z, D, T = 3, 2, 2, 5


class LinearCell(Cell):
    """h_t = A h_{t-1} + B z_t + C u_t."""

    state_sizes = (H,)

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(0.4 * torch.randn(H, H))
        self.B = nn.Parameter(torch.randn(H, Z))
        self.C = nn.Parameter(0.5 * torch.randn(H, D))

    def after(self, u: Tensor, z: Tensor | None, state: State) -> State:
        assert z is not None
        return (state[0] @ self.A.T + z @ self.B.T + u @ self.C.T,)


class LinearGaussian(nn.Module):
    """N(W x, diag s^2) of its (concatenated) inputs."""

    def __init__(self, in_size: int, out_size: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, out_size)
        self.scale = scale

    def forward(self, *inputs: Tensor) -> TorchDistributionMixin:
        return dist.Normal(self.linear(torch.cat(inputs, dim=-1)), self.scale).to_event(1)


def linear_gaussian_model() -> ZForcing:
    return ZForcing(
        D, emission=LinearGaussian(H, D, 0.7), prior=LinearGaussian(H, Z, 0.9),
        cell=LinearCell(), reverse_emission=LinearGaussian(4, D, 1.0),
        hidden_size=H, backward_size=4, latent_size=Z, alpha=0.0, beta=0.0,
    )  # fmt: skip


def kalman_log_likelihood(model: ZForcing, u: Tensor, y: Tensor) -> Tensor:
    """log p(y_{1:T}) of one sequence. The state is h, and its noise is that of z multiplied by B."""
    A, B, C = model.cell.A, model.cell.B, model.cell.C
    F, f, q = model.prior.linear.weight, model.prior.linear.bias, model.prior.scale**2
    W, w, r = model.emission.linear.weight, model.emission.linear.bias, model.emission.scale**2
    mean, cov = torch.zeros(H), torch.zeros(H, H)
    total = torch.zeros(())
    drift = A + B @ F
    for u_t, y_t in zip(u, y, strict=True):
        mean, cov = drift @ mean + B @ f + C @ u_t, drift @ cov @ drift.T + q * B @ B.T
        innovation = W @ cov @ W.T + r * torch.eye(D)
        error = y_t - W @ mean - w
        total = total + torch.distributions.MultivariateNormal(torch.zeros(D), innovation).log_prob(
            error
        )
        gain = cov @ W.T @ torch.linalg.inv(innovation)
        mean, cov = mean + gain @ error, (torch.eye(H) - gain @ W) @ cov
    return total.detach()


def exact_posterior(model: ZForcing, u: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """p(z_t | h_{t-1}, y_{t:T}) = N(G_t h_{t-1} + g_t, S_t), by a backward information filter.

    lambda_t(h) = log p(y_{t:T} | h_{t-1} = h) is a quadratic -h'Ph/2 + p'h + const.
    """
    A, B, C = model.cell.A, model.cell.B, model.cell.C
    F, f, q = model.prior.linear.weight, model.prior.linear.bias, model.prior.scale**2
    W, w, r = model.emission.linear.weight, model.emission.linear.bias, model.emission.scale**2
    P, p = torch.zeros(H, H), torch.zeros(H)
    steps = []
    for u_t, y_t in zip(u.flip(0), y.flip(0), strict=True):
        # quadratic form in h_t: the emission and the later steps
        Q, k = P + W.T @ W / r, p + W.T @ (y_t - w) / r
        # h_t = A h + B z + c;  z ~ N(F h + f, q)
        c = C @ u_t
        precision = torch.eye(Z) / q + B.T @ Q @ B
        covariance = torch.linalg.inv(precision)
        G = covariance @ (F / q - B.T @ Q @ A)
        g = covariance @ (f / q + B.T @ (k - Q @ c))
        steps.append((G.detach(), g.detach(), covariance.detach()))
        # integrate z out
        P = A.T @ Q @ A + F.T @ F / q - G.T @ precision @ G
        p = A.T @ (k - Q @ c) - F.T @ f / q + G.T @ precision @ g
    return steps[::-1]


class ExactPosterior(nn.Module):
    """The exact posterior of one given sequence; the first entry of b_t is t."""

    def __init__(self, steps: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.gains, self.offsets, covariances = (torch.stack(x) for x in zip(*steps, strict=True))
        self.cholesky = torch.linalg.cholesky(covariances)

    def forward(self, h: Tensor, b: Tensor) -> TorchDistributionMixin:
        t = b[..., 0].long()
        mean = (self.gains[t] @ h.unsqueeze(-1)).squeeze(-1) + self.offsets[t]
        return dist.MultivariateNormal(mean, scale_tril=self.cholesky[t])


class Clock(nn.Module):
    """A backward network whose state is the index of the step."""

    def forward(self, targets: Tensor, batch: SequenceBatch) -> Tensor:
        steps = torch.arange(batch.num_steps, dtype=targets.dtype)
        return steps.reshape(-1, 1, 1).expand(-1, batch.num_sequences, 4)


def sequences(number: int) -> SequenceBatch:
    return SequenceBatch.from_targets(1.5 * torch.randn(number, T, D))


def test_bounds_rise_to_the_exact_likelihood() -> None:
    model, batch = linear_gaussian_model(), sequences(1)
    assert batch.targets is not None
    u, y = batch.inputs[0], batch.targets[0]
    # Close enough to the exact posterior for importance sampling to converge, but wider.
    near = [(G, g + 0.4, 1.5 * S) for G, g, S in exact_posterior(model, u, y)]
    model.posterior, model.backward_network = ExactPosterior(near), Clock()
    exact = kalman_log_likelihood(model, u, y)
    gaps = []
    for k in (1, 5, 25, 125, 625):
        repetitions = 20_000 // k  # repetitions of the estimate, as copies of the sequence
        many = SequenceBatch(
            batch.inputs.expand(repetitions, -1, -1), batch.targets.expand(repetitions, -1, -1)
        )
        bounds = batch_bounds(model.model, model.guide, many, k, chunk=125)
        gaps.append((exact - bounds.iwae.mean()).item())
        assert (bounds.elbo.mean() - bounds.iwae.mean()).item() <= 1e-9 or k == 1
    assert all(a > b for a, b in itertools.pairwise(gaps)), gaps
    assert gaps[0] > 1.0, "the posterior is too good to test convergence"
    assert abs(gaps[-1]) < 0.02, gaps


def test_the_exact_posterior_makes_every_bound_exact() -> None:
    model, batch = linear_gaussian_model(), sequences(1)
    assert batch.targets is not None
    u, y = batch.inputs[0], batch.targets[0]
    model.posterior = ExactPosterior(exact_posterior(model, u, y))
    model.backward_network = Clock()
    exact = kalman_log_likelihood(model, u, y)
    for layout in ("time", "steps"):
        with model.using_layout(layout):
            for k in (1, 7):
                bounds = batch_bounds(model.model, model.guide, batch, k)
                torch.testing.assert_close(bounds.iwae[0], exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("wrong", ["A", "B", "C"])
def test_the_oracle_sees_every_part(wrong: str) -> None:
    """The exact posterior of another model gives a bound below the likelihood, so the test can fail."""
    model, batch = linear_gaussian_model(), sequences(1)
    assert batch.targets is not None
    u, y = batch.inputs[0], batch.targets[0]
    posterior = ExactPosterior(exact_posterior(model, u, y))
    with torch.no_grad():
        getattr(model.cell, wrong).add_(0.3)
    model.posterior, model.backward_network = posterior, Clock()
    exact = kalman_log_likelihood(model, u, y)
    gap = exact - batch_bounds(model.model, model.guide, batch, 500, chunk=500).elbo[0]
    assert gap > 1e-3

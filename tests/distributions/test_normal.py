"""The diagonal Gaussian parametrised by log scales against that of Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_zf.distributions import DiagonalNormal


def pair(*shape: int) -> tuple[DiagonalNormal, dist.Independent]:
    mean, log_scale = torch.randn(*shape), torch.randn(*shape)
    return DiagonalNormal(mean, log_scale), dist.Normal(mean, log_scale.exp()).to_event(1)


def test_the_same_distribution_as_the_stock_one() -> None:
    ours, stock = pair(3, 2, 4)
    other, other_stock = pair(3, 2, 4)
    value = torch.randn(5, 3, 2, 4)
    for a, b in (
        (ours.log_prob(value), stock.log_prob(value)),
        (ours.log_prob(value[0, 0, 0]), stock.log_prob(value[0, 0, 0])),
        (ours.expand((5, 3, 2)).log_prob(value), stock.expand((5, 3, 2)).log_prob(value)),
        (ours.mean, stock.mean),
        (ours.entropy(), stock.entropy()),
        (kl_divergence(ours, other), kl_divergence(stock, other_stock)),
        (kl_divergence(ours, other_stock), kl_divergence(stock, other_stock)),
        (ours.mask(torch.zeros(3, 2).bool()).log_prob(value), torch.zeros(5, 3, 2)),
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (ours.batch_shape, ours.event_shape) == (stock.batch_shape, stock.event_shape)
    assert isinstance(ours.expand((5, 3, 2)), DiagonalNormal)
    torch.manual_seed(0)
    sample = ours.rsample()
    torch.manual_seed(0)
    torch.testing.assert_close(sample, stock.rsample(), rtol=0, atol=0)


def test_a_value_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"event dim|right-most"):
        DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2), validate_args=True).log_prob(
            torch.zeros(3, 5)
        )


def test_it_goes_through_transforms_of_functions() -> None:
    pyro.enable_validation(False)  # PyTorch 2.6 cannot validate inside vmap
    ours, stock = pair(3, 2)
    values, tangent = torch.randn(5, 3, 2), torch.randn(3, 2)
    both = (ours.log_prob, stock.log_prob)
    for transform in (
        lambda f: torch.func.vmap(f)(values),
        lambda f: torch.func.grad(lambda x: f(x).sum())(values[0]),
        lambda f: torch.func.jvp(f, (values[0],), (tangent,))[1],
        lambda f: torch.autograd.functional.jvp(f, values[0], tangent)[1],
        lambda f: torch.func.hessian(lambda x: f(x).sum())(values[0]),
    ):
        a, b = (transform(f) for f in both)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_those_of_the_stock_one() -> None:
    mean, log_scale, value = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    gradients = [
        torch.autograd.grad(f(value).square().sum(), (value, mean, log_scale), create_graph=True)
        for f in (
            DiagonalNormal(mean, log_scale).log_prob,
            dist.Normal(mean, log_scale.exp()).to_event(1).log_prob,
        )
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (4,), (1, 4)])
def test_its_density_by_finite_differences(shape: tuple[int, ...]) -> None:
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    inputs[0] = torch.randn(3, 4, requires_grad=True)

    def density(value, mean, log_scale):  # type: ignore[no-untyped-def]
        return DiagonalNormal(mean, log_scale).log_prob(value)

    assert torch.autograd.gradcheck(density, inputs)
    assert torch.autograd.gradgradcheck(density, inputs)
    # each argument alone, while the others need no gradient
    for i in range(3):
        some = [x if i == j else x.detach() for j, x in enumerate(inputs)]
        assert torch.autograd.gradcheck(density, some)

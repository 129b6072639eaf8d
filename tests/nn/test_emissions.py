"""Emission densities integrate to one and agree with scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as td

from pyro_zf.analysis.decoding import mean_of, mode_of, tempered
from pyro_zf.distributions import Autoregressive, DiscretizedLogisticMixture
from pyro_zf.nn import (
    EMISSIONS,
    MLP,
    AutoregressiveBernoulliEmission,
    AutoregressiveGaussianEmission,
    ConvolutionalBernoulliEmission,
    Dropout,
    GaussianMixtureEmission,
    LogisticMixtureEmission,
    make_emission,
)
from pyro_zf.nn.emissions import emits_symbols
from pyro_zf.training import TrainConfig, UsageError
from pyro_zf.training.setup import build_model

H = 3


def all_values(name: str, data_size: int) -> Tensor:
    """All possible values of a discrete emission."""
    if name == "categorical":
        return torch.arange(data_size)
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * data_size).reshape(-1, data_size)


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "autoregressive-bernoulli",
        "convolutional-bernoulli",
        "categorical",
        "logistic-mixture",
    ],
)
@pytest.mark.parametrize("data_size", [1, 4, 10])
def test_probabilities_sum_to_one(name: str, data_size: int) -> None:
    emission = make_emission(name, H, data_size, mlp_size=5)
    values = all_values(name, data_size)
    log_prob = emission(3 * torch.randn(7, 1, H)).log_prob(values)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(7))


@pytest.mark.parametrize("name", ["gaussian", "gaussian-mixture", "autoregressive-gaussian"])
@pytest.mark.parametrize("data_size", [1, 2])
def test_densities_integrate_to_one(name: str, data_size: int) -> None:
    emission = make_emission(name, H, data_size, mlp_size=5)
    y = emission(torch.randn(H))

    @torch.no_grad()
    def density(*values: float) -> float:
        return y.log_prob(torch.tensor(values)).exp().item()

    samples = y.sample((2000,))
    low, high = samples.amin(0) - 6, samples.amax(0) + 6
    if data_size == 1:
        total, _ = scipy.integrate.quad(density, low.item(), high.item(), limit=200)
        assert total == pytest.approx(1, abs=1e-4)
        return
    axes = [torch.linspace(a, b, 600) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    cell = np.prod([(axis[1] - axis[0]).item() for axis in axes])
    total = y.log_prob(grid).exp().sum().item() * float(cell)
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", EMISSIONS)
def test_samples_have_the_density(name: str) -> None:
    """E[p~(y)/p(y)] = 1 under samples from p, where p~ is another emission of the same kind."""
    data_size = 2
    emission, other = (make_emission(name, H, data_size, mlp_size=5, max_count=4) for _ in range(2))
    h = 0.5 * torch.randn(H)
    p, q = emission(h), other(h)
    with torch.no_grad():
        y = p.sample((40_000,))
        ratio = torch.exp((q.log_prob(y) - p.log_prob(y)).clamp(max=8))
    assert y.shape == ((40_000,) if name == "categorical" else (40_000, data_size))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(y) ** 0.5 + 0.02


def test_bernoulli_and_categorical_against_scipy() -> None:
    h = torch.randn(H)
    bernoulli = make_emission("bernoulli", H, 4, mlp_size=5)
    y = torch.tensor([1.0, 0.0, 0.0, 1.0])
    p = torch.sigmoid(bernoulli.logits(h)).detach().numpy()
    expected = scipy.stats.bernoulli.logpmf(y.numpy(), p).sum()
    assert bernoulli(h).log_prob(y).item() == pytest.approx(expected, rel=1e-10)
    categorical = make_emission("categorical", H, 4, mlp_size=5)
    p = torch.softmax(categorical.logits(h), -1).detach().numpy()
    expected = scipy.stats.multinomial.logpmf([0, 0, 1, 0], 1, p / p.sum())
    assert categorical(h).log_prob(torch.tensor(2)).item() == pytest.approx(expected, rel=1e-10)


def test_gaussian_against_scipy() -> None:
    emission, h, y = make_emission("gaussian", H, 4, mlp_size=5), torch.randn(H), torch.randn(4)
    mean, log_scale = (x.detach().numpy() for x in emission.moments(h))
    expected = scipy.stats.norm.logpdf(y.numpy(), mean, np.exp(log_scale)).sum()
    assert emission(h).log_prob(y).item() == pytest.approx(expected, rel=1e-10)


def test_gaussian_mixture_against_scipy() -> None:
    emission = GaussianMixtureEmission(H, 3, mlp_size=5, components=4)
    h, y = torch.randn(H), torch.randn(3)
    output = emission.network(h).detach().numpy()
    logits, rest = output[:4], output[4:].reshape(4, 6)
    weights = np.exp(logits - scipy.special.logsumexp(logits))
    density = sum(
        w * scipy.stats.multivariate_normal.pdf(y.numpy(), r[:3], np.diag(np.exp(2 * r[3:])))
        for w, r in zip(weights, rest, strict=True)
    )
    assert emission(h).log_prob(y).item() == pytest.approx(np.log(density), rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    levels=st.sampled_from([2, 3, 16, 256]),
    seed=st.integers(0, 10_000),
    spread=st.floats(0.001, 3.0),
    low=st.floats(-2.0, 0.5),
    width=st.floats(0.1, 4.0),
)
def test_discretized_logistic_mixture(
    levels: int, seed: int, spread: float, low: float, width: float
) -> None:
    """Probabilities sum to one over the levels and are differences of scipy's distribution functions."""
    torch.manual_seed(seed)
    logits, mean = torch.randn(3), low + width * torch.rand(3)
    scale = spread * torch.rand(3) + 1e-3
    mixture = DiscretizedLogisticMixture(logits, mean, scale, levels, low, low + width)
    grid = torch.linspace(low, low + width, levels)
    log_prob = mixture.log_prob(grid)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    weights, half = torch.softmax(logits, 0).numpy(), width / (levels - 1) / 2
    edges = np.concatenate([[-np.inf], grid[:-1].numpy() + half, [np.inf]])
    cdf = sum(
        w * scipy.stats.logistic.cdf(edges, m, s)
        for w, m, s in zip(weights, mean.numpy(), scale.numpy(), strict=True)
    )
    np.testing.assert_allclose(log_prob.exp().numpy(), np.diff(cdf), atol=1e-9)
    samples = mixture.sample((500,))
    nearest = (samples.unsqueeze(-1) - grid).abs().amin(-1)
    assert nearest.max() < 1e-9
    expected = (grid * log_prob.exp()).sum()
    torch.testing.assert_close(mixture.mean, expected)
    # Use the exact variance, since rare levels may not occur in the samples.
    variance = ((grid - expected).square() * log_prob.exp()).sum()
    assert abs(samples.mean() - expected) < 6 * (variance / 500).sqrt() + 0.02 * width


def test_a_logistic_far_from_the_data_has_gradients() -> None:
    """In the tails, a difference of sigmoids underflows to zero, but log-density and gradient are finite."""
    mean = torch.tensor([-400.0], requires_grad=True)
    mixture = DiscretizedLogisticMixture(torch.zeros(1), mean, torch.ones(1), levels=256)
    log_prob = mixture.log_prob(torch.tensor(0.5))
    log_prob.backward()
    assert log_prob.isfinite()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones(1), rtol=1e-6, atol=0)


def test_a_grid_of_bits_is_for_bits() -> None:
    """Real values are normalised, so only a module with a grid of its own is for them."""
    data = {"kind": "real", "name": "x", "size": 2, "covariates": 0}
    with pytest.raises(
        UsageError, match=r"logistic-mixture is for binary data, .* real; use gaussian or"
    ):
        build_model(TrainConfig.of(model="rnn", emission="logistic-mixture"), data)
    assert LogisticMixtureEmission(H, 2, levels=256, low=-1.0).kinds == ("real",)


def test_a_grid_needs_two_levels() -> None:
    with pytest.raises(ValueError, match=r"no grid of 1 levels from 0\.0 to 1\.0"):
        LogisticMixtureEmission(H, 2, levels=1)(torch.zeros(H))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("data_size", [2, 5])
@pytest.mark.parametrize("kind", [AutoregressiveBernoulliEmission, AutoregressiveGaussianEmission])
def test_autoregressive_parameters(kind: Any, data_size: int, depth: int) -> None:
    """Those of each value depend on the state and on all values before it, and on no other."""
    emission = kind(H, data_size, mlp_size=12, depth=depth)
    h, y = torch.randn(H, requires_grad=True), torch.randn(data_size, requires_grad=True)
    parameters = emission.parameters_at(emission.features(h), y).reshape(-1, data_size)
    for of_kind in parameters:
        for d in range(data_size):
            of_state, of_values = torch.autograd.grad(of_kind[d], (h, y), retain_graph=True)
            assert of_state.abs().min() > 0
            assert (of_values[d:] == 0).all()
            assert (of_values[:d] != 0).all()


def one_bit_after_the_other(distribution: Any, y: Tensor) -> Tensor:
    """The log-probability of bits, each given those before it and anything in place of the others."""
    total = torch.zeros(len(y))
    for d in range(y.shape[1]):
        seen = torch.cat([y[:, :d], torch.randn(len(y), y.shape[1] - d)], dim=1)
        p = distribution.conditionals(seen).probs[:, d]
        total += torch.where(y[:, d] == 1, p, 1 - p).log()
    return total


@settings(max_examples=20, deadline=None)
@given(
    data_size=st.integers(1, 7), depth=st.integers(1, 3), batch=st.integers(1, 3), seed=st.integers(0, 99)
)  # fmt: skip
def test_autoregressive_bits_one_after_the_other(
    data_size: int, depth: int, batch: int, seed: int
) -> None:
    """A loop over bits, each from a network that has not seen those after it, gives the same density."""
    torch.manual_seed(seed)
    emission = AutoregressiveBernoulliEmission(H, data_size, mlp_size=9, depth=depth)
    h, y = torch.randn(batch, H), torch.randint(0, 2, (batch, data_size)).double()
    torch.testing.assert_close(emission(h).log_prob(y), one_bit_after_the_other(emission(h), y))


@pytest.mark.parametrize(
    "name", ["autoregressive-bernoulli", "convolutional-bernoulli", "autoregressive-gaussian"]
)
def test_gradients_of_autoregressive_densities(name: str) -> None:
    """They are those of finite differences, for the state and for every weight."""
    rows = {"input_size": 4} if name.startswith("convolutional") else {}
    size = H + sum(rows.values())
    emission = make_emission(name, size, 4, mlp_size=5, depth=2, activation="tanh", **rows)
    h, y = torch.randn(3, size, requires_grad=True), torch.randint(0, 2, (3, 4)).double()
    names, weights = zip(*emission.named_parameters(), strict=True)

    class Density(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emission = emission

        def forward(self, h: Tensor) -> Tensor:
            return self.emission(h).log_prob(y)

    density = Density()
    named = [f"emission.{name}" for name in names]

    def of(h: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(density, dict(zip(named, values, strict=True)), (h,))

    assert torch.autograd.gradcheck(of, (h, *weights))


@settings(max_examples=20, deadline=None)
@given(
    data_size=st.integers(1, 20), depth=st.integers(0, 3), rows=st.integers(0, 2), seed=st.integers(0, 99)
)  # fmt: skip
def test_convolutional_bits_one_after_the_other(
    data_size: int, depth: int, rows: int, seed: int
) -> None:
    """A loop over bits, each from a network that has not seen those after it, gives the same density."""
    torch.manual_seed(seed)
    size = rows * data_size
    emission = ConvolutionalBernoulliEmission(H + size, data_size, 6, depth, input_size=size)
    x, y = torch.randn(3, H + size), torch.randint(0, 2, (3, data_size)).double()
    torch.testing.assert_close(emission(x).log_prob(y), one_bit_after_the_other(emission(x), y))


def test_what_a_convolutional_bit_reads() -> None:
    """The nearest bits of the same row, the nearest of the rows before it on both sides, and the state."""
    size, d = 40, 30
    emission = ConvolutionalBernoulliEmission(H + 2 * size, size, 8, 2, "tanh", input_size=2 * size)
    x, y = torch.randn(H + 2 * size, requires_grad=True), torch.randn(size, requires_grad=True)
    logit = emission(x).conditionals(y).logits[d]
    of_features, of_bits = torch.autograd.grad(logit, (x, y))
    # Each of the two blocks reaches two bits further back.
    assert of_bits.nonzero().flatten().tolist() == list(range(d - 14 - 4, d))
    for row in of_features[: 2 * size].split(size):
        assert row.nonzero().flatten().tolist() == list(range(d - 4 - 4, d + 5))
    assert of_features[2 * size :].abs().min() > 0


def test_a_convolutional_emission_reads_whole_rows() -> None:
    for in_size, input_size in ((H + 6, 6), (H, 4), (H, -4)):
        with pytest.raises(
            ValueError, match=f"rows of 4 values among {in_size} features.* {input_size}"
        ):
            ConvolutionalBernoulliEmission(in_size, 4, 5, input_size=input_size)
    with pytest.raises(ValueError, match="depth must not be negative, it is -1"):
        ConvolutionalBernoulliEmission(H, 4, 5, depth=-1)


def test_an_autoregressive_emission_has_hidden_layers() -> None:
    with pytest.raises(ValueError, match="at least one hidden layer, not 0"):
        AutoregressiveBernoulliEmission(H, 4, mlp_size=5, depth=0)


def test_decoding_of_autoregressive_bits() -> None:
    """The mode is greedy; a low temperature approaches it, and a high one gives fair coins."""
    torch.manual_seed(0)
    emission = AutoregressiveBernoulliEmission(H, 6, mlp_size=9)
    y = emission(3 * torch.randn(50, H))
    greedy = torch.zeros(50, 6)
    for d in range(6):
        greedy[:, d] = (y.conditionals(greedy).logits[:, d] > 0).double()
    torch.testing.assert_close(mode_of(y), greedy)
    torch.testing.assert_close(tempered(y, 1e-6).sample(), greedy)
    values = torch.randint(0, 2, (50, 6)).double()
    torch.testing.assert_close(
        tempered(y, 1e9).log_prob(values), torch.full((50,), 6 * np.log(0.5))
    )
    logits = y.conditionals(values).logits
    expected = td.Bernoulli(logits=logits / 2).log_prob(values).sum(-1)
    torch.testing.assert_close(tempered(y, 2.0).log_prob(values), expected)


def test_samples_of_autoregressive_gaussians_have_gradients() -> None:
    emission = AutoregressiveGaussianEmission(H, 3, mlp_size=9)
    h = torch.randn(H, requires_grad=True)
    y = emission(h)
    assert y.has_rsample
    assert torch.autograd.grad(y.rsample().sum(), h)[0].abs().min() > 0
    assert not AutoregressiveBernoulliEmission(H, 3, mlp_size=9)(h).has_rsample


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (lambda p: MLP(40, 30, 8, 2, dropout=p), [40, 30, 30]),
        (lambda p: AutoregressiveBernoulliEmission(40, 3, 30, 2, dropout=p), [40, 30, 30, 30]),
    ],
)
def test_dropout(make: Any, widths: list[int]) -> None:
    """It acts in training alone, on the input and on each hidden layer, and keeps the mean of what it acts on."""
    torch.manual_seed(0)
    network = make(0.4)
    dropped_inputs = []
    for module in network.modules():
        if isinstance(module, Dropout):
            module.register_forward_pre_hook(lambda _, x: dropped_inputs.append(x[0].shape[-1]))
    x = torch.randn(2, widths[0])

    def output() -> Tensor:
        found = network(x)
        return found.log_prob(torch.ones(3)) if isinstance(found, Autoregressive) else found

    assert not torch.equal(output(), output())
    assert dropped_inputs == 2 * widths, "the input and the hidden layers"
    network.eval()
    assert torch.equal(output(), output())
    drop = Dropout(0.25)
    dropped = drop(torch.ones(20_000, 4))
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(dropped.mean() - 1) < 0.02
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            Dropout(p)


def test_dropout_needs_an_emission_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMISSIONS, "mine", lambda in_size, data_size, mlp_size: MLP(1, 1, 1))
    make_emission("mine", H, 2, mlp_size=3, dropout=0.0)
    with pytest.raises(ValueError, match="the emission 'mine' has no dropout"):
        make_emission("mine", H, 2, mlp_size=3, dropout=0.1)


def test_autoregressive_gaussian_with_correlation_beats_a_factorised_one() -> None:
    """The autoregressive emission models dependence between the values of a frame."""
    torch.manual_seed(0)
    data = torch.randn(400, 1) + 0.05 * torch.randn(400, 4)
    nats = {}
    for name in ("gaussian", "autoregressive-gaussian"):
        emission = make_emission(name, H, 4, mlp_size=16)
        optimiser = torch.optim.Adam(emission.parameters(), lr=0.02)
        for _ in range(150):
            optimiser.zero_grad()
            loss = -emission(torch.ones(400, H)).log_prob(data).mean()
            loss.backward()
            optimiser.step()
        nats[name] = loss.item()
    assert nats["autoregressive-gaussian"] < nats["gaussian"] - 3


@pytest.mark.parametrize("name", EMISSIONS)
def test_shapes(name: str) -> None:
    emission = make_emission(name, H, 4, mlp_size=5, max_count=7)
    y = emission(torch.randn(6, 2, H))
    assert y.batch_shape == (6, 2)
    event: Any = () if name == "categorical" else (4,)
    assert y.event_shape == event
    assert y.expand((3, 6, 2)).sample((5,)).shape == (5, 3, 6, 2, *event)
    assert y.log_prob(y.sample()).shape == (6, 2)
    assert emits_symbols(emission) == (name == "categorical")
    assert mode_of(y).shape == (6, 2, *event)
    if name.startswith(
        ("autoregressive", "convolutional")
    ):  # only those of each value given those before it are known
        with pytest.raises(ValueError, match="the mean of Autoregressive is not known"):
            mean_of(y)
    else:
        assert mean_of(y).shape == (6, 2, *event)


@pytest.mark.parametrize("name", ["poisson", "negative-binomial", "beta-binomial"])
def test_counts(name: str) -> None:
    """Probabilities add up to one; mean and mode are theirs; gradients are those of finite differences."""
    emission = make_emission(name, H, 1, mlp_size=5, max_count=9)
    h = torch.randn(4, H)
    values = torch.arange(10.0 if name == "beta-binomial" else 4000.0)
    p = emission(h.unsqueeze(1)).log_prob(values.unsqueeze(-1)).exp()  # (state, count)
    torch.testing.assert_close(p.sum(1), torch.ones(4))
    torch.testing.assert_close((p * values).sum(1), mean_of(emission(h)).squeeze(-1))
    torch.testing.assert_close(values[p.argmax(1)], mode_of(emission(h)).squeeze(-1))
    y = emission(h).sample()
    h.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: emission(h).log_prob(y), (h,))


def test_a_beta_binomial_needs_its_total() -> None:
    with pytest.raises(ValueError, match="needs max_count, at least 1, not None"):
        make_emission("beta-binomial", H, 2)


def test_the_mode_of_a_logistic_mixture_is_a_level() -> None:
    y = LogisticMixtureEmission(H, 3, mlp_size=5, levels=5)(torch.randn(6, H))
    levels = torch.linspace(0, 1, 5)
    log_prob = torch.stack([y.base_dist.log_prob(torch.full((6, 3), float(v))) for v in levels])
    torch.testing.assert_close(mode_of(y), levels[log_prob.argmax(0)])


def test_an_unknown_emission() -> None:
    with pytest.raises(ValueError, match="emission binomial: must be one of autoregressive"):
        make_emission("binomial", H, 4)


def test_autoregressive_takes_any_conditionals() -> None:
    normal = Autoregressive(
        lambda y: td.Normal(torch.zeros_like(y), 1.0), torch.Size((2,)), 3, torch.zeros(1)
    )
    y = torch.randn(2, 3)
    torch.testing.assert_close(normal.log_prob(y), td.Normal(0.0, 1.0).log_prob(y).sum(-1))


def test_sixteen_bits_in_single_precision() -> None:
    """Bins are narrow relative to the scale, so subtracting their ends would lose precision."""
    exact = {}
    for dtype in (torch.float32, torch.float64):
        parameters = (torch.tensor([x], dtype=dtype) for x in (0.0, 0.1, 0.3))
        mixture = DiscretizedLogisticMixture(*parameters, 65536, -1.0, 1.0)
        exact[dtype] = mixture.log_prob(torch.linspace(-1, 1, 101, dtype=dtype)).double()
    assert (exact[torch.float32] - exact[torch.float64]).abs().max() < 1e-4


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize(
    ("name", "options"),
    [("poisson", {}), ("negative-binomial", {}), ("beta-binomial", {"max_count": 9})],
)
def test_parameters_of_counts_are_bounded(name: str, options: dict[str, int], sign: float) -> None:
    emission = make_emission(name, 2, 3, mlp_size=4, **options)
    h = torch.ones(1, 2)
    for parameter in emission.parameters():
        torch.nn.init.constant_(parameter, 1e3)
    last = [module for module in emission.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.constant_(last.weight, sign * 1e3)
    torch.nn.init.constant_(last.bias, sign * 1e3)
    distribution = emission(h)
    assert torch.isfinite(distribution.log_prob(torch.full((1, 3), 4.0))).all()
    if name != "beta-binomial":
        assert torch.allclose(distribution.mean.log(), torch.full((1, 3), sign * 15.0))

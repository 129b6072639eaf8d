"""Tests of generation, decoding, interpolation and free-running scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import constraints

from pyro_zf import RNN, VRNN, SequenceBatch, VariationalBiLSTM, ZForcing
from pyro_zf.analysis import (
    Decoding,
    continue_prefix,
    free_running,
    generation,
    interpolate,
    mean_of,
    mode_of,
    posterior_path,
    reconstruct,
    resample_latents,
    sample,
    tempered,
)
from pyro_zf.data import Values
from pyro_zf.distributions import Autoregressive, DiscretizedLogisticMixture
from pyro_zf.infer import batch_bounds
from tests.analysis.test_diagnostics import SCALE, K, copying
from tests.families import COMBINATIONS, Combination
from tests.helpers import DATA, MODELS, SIZES, random_batch

BARE = {k: v for k, v in SIZES.items() if k != "alpha"}


def emissions() -> dict[str, Any]:
    logits, mean = torch.randn(5, 3), torch.randn(5, 3)
    components = dist.Normal(torch.randn(5, 2, 3), torch.rand(5, 2, 3) + 0.5).to_event(1)
    return {
        "bernoulli": dist.Bernoulli(logits=logits).to_event(1),
        "categorical": dist.Categorical(logits=logits),
        "normal": dist.Normal(mean, 0.7).to_event(1),
        "mixture": dist.MixtureSameFamily(
            dist.Categorical(logits=torch.randn(5, 2)), components
        ),
        "logistic": DiscretizedLogisticMixture(
            torch.randn(5, 3, 2), torch.randn(5, 3, 2), torch.ones(5, 3, 2), levels=4
        ).to_event(1),
        "autoregressive": Autoregressive(
            lambda y: dist.Normal(mean + 0.5 * y.cumsum(-1).roll(1, -1) * torch.tensor([0.0, 1.0, 1.0]), 1.0),
            torch.Size((5,)), 3, mean,
        ),
        "autoregressive bits": Autoregressive(
            lambda y: dist.Bernoulli(logits=logits + y.cumsum(-1).roll(1, -1) * torch.tensor([0.0, 1.0, 1.0])),
            torch.Size((5,)), 3, mean, constraints.boolean,
        ),
        "flow": dist.TransformedDistribution(
            dist.Normal(mean, 1.0).to_event(1), [dist.transforms.AffineTransform(1.0, 2.0)]
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(emissions()))
def test_temperature(name: str) -> None:
    distribution = emissions()[name]
    value = distribution.sample()
    same = tempered(distribution, 1.0)
    assert same.batch_shape == distribution.batch_shape
    assert same.event_shape == distribution.event_shape
    torch.testing.assert_close(same.log_prob(value), distribution.log_prob(value))
    torch.manual_seed(0)
    cold = tempered(distribution, 1e-6).sample()
    if name == "logistic":  # the most probable level differs from the mean
        torch.testing.assert_close(tempered(distribution, 1e-6).sample(), cold)
    elif name != "flow":
        torch.testing.assert_close(cold, mode_of(distribution), atol=1e-4, rtol=0)
    spread = [tempered(distribution, t).sample((300,)).double().var(0).sum() for t in (0.2, 3.0)]
    assert spread[0] < spread[1]
    masked = distribution.mask(torch.tensor([True, False, True, True, False]))
    torch.testing.assert_close(tempered(masked, 1.0).log_prob(value), same.log_prob(value))


def test_modes_and_means() -> None:
    all_of_them = emissions()
    bits = mode_of(all_of_them["bernoulli"])
    assert set(bits.unique().tolist()) <= {0.0, 1.0}
    mixture = all_of_them["mixture"]
    best = mixture.mixture_distribution.logits.argmax(-1)
    means = mixture.component_distribution.mean
    torch.testing.assert_close(mode_of(mixture), means[torch.arange(5), best])
    symbols = all_of_them["categorical"]
    assert (mean_of(symbols) == symbols.logits.argmax(-1)).all()
    with pytest.raises(ValueError, match="no temperature is known for Poisson"):
        tempered(dist.Poisson(1.0), 2.0)


@pytest.mark.parametrize(("temperature", "latent"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.5)])
def test_a_temperature_has_a_range(temperature: float, latent: float) -> None:
    with pytest.raises(ValueError, match="temperature must"):
        Decoding(temperature, latent_temperature=latent)


def values_of(combination: Combination) -> Values:
    emission = combination.emission
    binary = emission.endswith("bernoulli")
    kind: Any = "categorical" if emission == "categorical" else "binary" if binary else "real"
    return Values(kind, 3)


@pytest.mark.parametrize(
    "combination",
    COMBINATIONS[::2],
    ids="-".join,
)
def test_every_system_generates_continues_and_interpolates(combination: Combination) -> None:
    model = combination.build().eval()
    batch = combination.batch(num_sequences=2, num_steps=3)
    counts = combination.emission in ("poisson", "negative-binomial", "beta-binomial")
    sharper = Decoding(1.0 if counts else 0.5, latent_temperature=0.5)
    if counts:
        with pytest.raises(ValueError, match="no temperature is known for"):
            sample(model, values_of(combination), 2, 4, Decoding(0.5))
    for decoding in (None, sharper, Decoding(argmax=True)):
        y = sample(model, values_of(combination), 2, 4, decoding)
        assert y.shape[:2] == (2, 4)
        longer = continue_prefix(model, batch, 2, decoding)
        assert longer.shape[1] == 5
        torch.testing.assert_close(longer[:, :3], batch.targets)
    scores = free_running(model, batch)
    assert all(x.shape == (2,) and x.isfinite().all() for x in scores)
    if combination.family == "rnn":
        with pytest.raises(ValueError, match="RNN has no latents"):
            interpolate(model, batch, torch.linspace(0, 1, 3))
        return
    if flow := combination.posterior == "flow":
        with pytest.raises(ValueError, match="the mean of TransformedDistribution is not known"):
            interpolate(model, batch, torch.linspace(0, 1, 3))
    between = interpolate(model, batch, torch.linspace(0, 1, 3), at_mean=not flow)
    assert between.shape[:2] == (3, 3)
    assert reconstruct(model, batch).from_latents.shape == batch.targets.shape  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [MODELS["paper"], lambda: VariationalBiLSTM(DATA, **BARE)])
def test_decoding_at_the_mode_is_deterministic(make: Any) -> None:
    model = make().eval()
    certain = Decoding(argmax=True, latent_temperature=0.0)
    values = Values("binary", DATA)
    first = sample(model, values, 3, 5, certain)
    torch.testing.assert_close(first, sample(model, values, 3, 5, certain))
    assert (first == first[:1]).all()


class Watching(Decoding):
    """Records the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, torch.Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        self.seen[msg["name"]] = msg["value"]


def test_a_beginning_keeps_the_latents_of_its_posterior() -> None:
    """Latents of the beginning come from the guide, far from the prior; later ones from the prior."""
    model, prefix = OwnGuide(DATA, **SIZES).eval(), random_batch(num_sequences=2, num_steps=3)
    watching = Watching()
    continue_prefix(model, prefix, 2, watching)
    far = [bool((watching.seen[f"z_{t}"] > 49).all()) for t in range(1, 6)]
    assert far == [True, True, True, False, False]


def copies(y: torch.Tensor, lengths: torch.Tensor | None = None) -> SequenceBatch:
    return SequenceBatch.from_targets(y, lengths)


def test_latents_that_hold_the_sequence_reconstruct_it() -> None:
    model, y = copying("standard-normal"), torch.randint(K, (4, 6))
    certain = Decoding(argmax=True)
    found = reconstruct(model, copies(y), certain)
    assert (found.from_latents == y).all()
    assert (found.teacher_forced == y).all()
    # The latents of two steps are resampled; the other steps are still reconstructed.
    anew = resample_latents(model, copies(y), [2, 5], certain)
    kept = [0, 2, 3, 5]
    assert (anew[:, kept] == y[:, kept]).all()
    many = torch.stack([resample_latents(model, copies(y), [2, 5], certain) for _ in range(20)])
    assert (many[:, :, [1, 4]] != y[:, [1, 4]]).any()
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=f"no step {wrong}; steps run from 1 to 6"):
            resample_latents(model, copies(y), [wrong])


def test_the_path_between_two_sequences() -> None:
    model = copying("standard-normal")
    y = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    path = posterior_path(model, copies(y))
    torch.testing.assert_close(path, torch.eye(K)[y])
    drawn = posterior_path(model, copies(y), at_mean=False)
    assert 0 < (drawn - path).abs().max() < 10 * SCALE
    between = interpolate(
        model, copies(y), torch.tensor([0.0, 0.4, 0.6, 1.0]), Decoding(argmax=True)
    )
    assert between.tolist() == [y[0].tolist()] * 2 + [y[1].tolist()] * 2
    with pytest.raises(ValueError, match="needs 2 sequences, not 3"):
        interpolate(model, copies(torch.zeros(3, 2, dtype=torch.long)), torch.zeros(1))


class LastCorner(torch.nn.Module):
    """A prior centred on the corner of the last symbol."""

    def forward(self, h: torch.Tensor) -> Any:
        return dist.Normal(torch.eye(K)[-1].expand(*h.shape[:-1], K), 1.0).to_event(1)


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(0, 2))
def test_the_prior_replaces_a_sequence_that_has_ended(lengths: tuple[int, int], more: int) -> None:
    """At a = 0 the first sequence is decoded up to its end, at a = 1 the second."""
    torch.manual_seed(sum(lengths))
    model = copying(LastCorner())
    y = torch.randint(0, K - 1, (2, max(lengths)))
    batch = copies(y, torch.tensor(lengths))
    steps = max(lengths) + more
    between = interpolate(
        model, batch, torch.tensor([0.0, 1.0]), Decoding(argmax=True, latent_temperature=0.0), steps
    )
    assert between.shape == (2, steps)
    for row, sequence, length in zip(between, y, lengths, strict=True):
        assert (row[:length] == sequence[:length]).all()
        assert (row[length:] == K - 1).all(), "the mean of the prior is the last symbol"


def test_generation_mode_is_scored_against_the_truth() -> None:
    """A decoder that reads only z loses nothing without the true past; one that reads the past does."""
    y = torch.randint(K, (6, 5))
    scores = free_running(copying("standard-normal"), copies(y))
    torch.testing.assert_close(scores.from_posterior, scores.teacher_forced, atol=0.05, rtol=0)
    assert (scores.from_prior < scores.teacher_forced - 1).all()
    lengths = torch.tensor([5, 1, 3, 2, 5, 4])
    model = copying("standard-normal")
    short = free_running(model, copies(y, lengths)).teacher_forced
    per_step = scores.teacher_forced[0] / 5
    torch.testing.assert_close(short, per_step * lengths, atol=0.05, rtol=0)


def test_generation_mode_by_hand() -> None:
    """With a deterministic network, its samples and the score of the truth after them are known."""
    rnn = RNN(DATA, hidden_size=6, mlp_size=5).eval()
    batch = random_batch(num_sequences=3, num_steps=4)
    torch.manual_seed(5)
    scores = free_running(rnn, batch)
    torch.manual_seed(5)
    drawn = rnn.generate(batch.inputs[:, 0], 4)
    own = SequenceBatch(torch.cat([batch.inputs[:, :1], drawn[:, :-1]], 1), batch.targets)
    h = rnn.cell.run(own.inputs.transpose(0, 1), None).after
    expected = rnn.emission(h).log_prob(batch.targets.transpose(0, 1)).sum(0)  # type: ignore[union-attr]
    torch.testing.assert_close(scores.from_posterior, expected)


class OwnGuide(ZForcing):
    """A guide with one site for the whole path, far from the prior."""

    def guide_time(self, batch: SequenceBatch) -> None:
        import pyro

        shape = (batch.num_sequences, batch.num_steps, self.latent_size)
        with self.sequences(batch):
            pyro.sample("z", dist.Normal(torch.full(shape, 50.0), 0.01).to_event(2))

    guide_steps = guide_time


class NoLatents(ZForcing):
    def guide_steps(self, batch: SequenceBatch) -> None: ...


def test_the_latents_of_a_guide_of_ones_own() -> None:
    model, batch = OwnGuide(DATA, **SIZES).eval(), random_batch(num_sequences=2)
    path = posterior_path(model, batch, at_mean=False)
    assert path.shape == (2, 7, model.latent_size)
    assert (path - 50).abs().max() < 1
    scores = free_running(model, batch)
    near = batch_bounds(model.model, model.guide, batch).log_likelihood
    torch.testing.assert_close(scores.teacher_forced, near, rtol=0.02, atol=0.1)
    assert (scores.teacher_forced - scores.from_prior).abs().max() > 0.1
    assert interpolate(model, batch, torch.linspace(0, 1, 3)).shape == (3, 7, DATA)
    with pytest.raises(ValueError, match="the guide of NoLatents has no site z"):
        reconstruct(NoLatents(DATA, **SIZES), batch)


def test_a_temperature_leaves_the_mean_of_the_prior() -> None:
    model = VRNN(DATA, hidden_size=6, latent_size=2, mlp_size=5).eval()
    with model.drawing_latents_from("prior-mean"):
        first, second = (
            model.generate(torch.zeros(1, DATA), 4, Decoding(argmax=True, latent_temperature=0.5))
            for _ in range(2)
        )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_latents_of_the_whole_sequence_are_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"g": torch.zeros(2, 3), "z_1": torch.zeros(2, 3), "z_2": torch.zeros(2, 3)}
    kept: list[set[str]] = []
    monkeypatch.setattr(generation, "_latents", lambda *_: names)
    monkeypatch.setattr(generation, "_decoded", lambda *given: kept.append(set(given[3])))
    batch = random_batch(num_sequences=2, num_steps=2)
    resample_latents(VRNN(DATA, hidden_size=6, latent_size=2, mlp_size=5), batch, [1])
    resample_latents(VRNN(DATA, hidden_size=6, latent_size=2, mlp_size=5), batch, [2])
    assert kept == [{"g", "z_2"}, {"g", "z_1"}]


def test_prefixes_of_several_lengths_are_continued_from_their_own_end() -> None:
    """Each row is what it would be alone, with the latents of the posterior up to its end."""
    model = OwnGuide(DATA, **SIZES).eval()
    batch = random_batch(num_sequences=3, num_steps=7, lengths=[7, 3, 5])
    watching = Watching()
    longer = continue_prefix(model, batch, 2, watching)
    assert longer.shape == (3, 9, DATA)
    for i, n in enumerate([7, 3, 5]):
        torch.testing.assert_close(longer[i, :n], batch.targets[i, :n])  # type: ignore[index]
        assert set(longer[i, n:].unique().tolist()) <= {0.0, 1.0}
        far = torch.stack([watching.seen[f"z_{t + 1}"][i].mean() for t in range(9)]) > 40
        assert far.tolist() == [True] * n + [False] * (9 - n)
    with pytest.raises(ValueError, match="one of them has length 0"):
        continue_prefix(model, random_batch(num_sequences=2, lengths=[3, 0]), 2)


def test_a_prefix_with_covariates_that_change_in_time() -> None:
    """Constant covariates give what covariates of the sequence give; later ones change later steps alone."""
    model = ZForcing(DATA, covariate_size=2, **SIZES).eval()
    prefix = random_batch(num_sequences=3, num_steps=4, lengths=[4, 2, 3])
    c = torch.randn(3, 2)

    def continued(covariates: Any, later: Any = None) -> Any:
        torch.manual_seed(1)
        batch = dataclasses.replace(prefix, covariates=covariates)
        return continue_prefix(model, batch, 3, covariates=later)

    steady = c.unsqueeze(1).expand(-1, 7, -1)
    expected = continued(c)
    torch.testing.assert_close(continued(steady[:, :4], steady), expected)
    changed = steady.clone()
    changed[:, 5:] = 100.0
    other = continued(steady[:, :4], changed)
    torch.testing.assert_close(other[:, :5], expected[:, :5])
    assert (other[:, 5:] != expected[:, 5:]).any()
    with pytest.raises(
        ValueError, match=r"those of all 7 steps are needed: .* shape \(batch, 7, 2\)"
    ):
        continued(steady[:, :4])


def test_handlers_around_a_call_see_no_sites() -> None:
    import pyro

    model = VariationalBiLSTM(DATA, **BARE).eval()
    with pyro.poutine.trace() as tracer:
        reconstruct(model, random_batch())
        interpolate(model, random_batch(num_sequences=2), torch.zeros(2))
        ZForcing(DATA, **SIZES).generate(torch.zeros(1, DATA), 2)
    assert not list(tracer.trace.stochastic_nodes)


class NoMode(torch.nn.Module):
    """An emission that declares neither mean nor mode."""

    def forward(self, h: torch.Tensor) -> Any:
        class Unknown(dist.Normal):
            mean = mode = property(lambda _: (_ for _ in ()).throw(NotImplementedError))  # type: ignore[assignment]

            def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
                return Unknown(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

        return Unknown(h[..., :DATA], 1.0).to_event(1)


class WithMode(NoMode):
    """An emission that declares its mode."""

    def forward(self, h: torch.Tensor) -> Any:
        class Known(dist.Gumbel):
            mode = property(lambda self: self.loc)  # type: ignore[assignment]

        return Known(h[..., :DATA], 1.0).to_event(1)


def test_the_most_probable_value_is_not_a_sample() -> None:
    model = ZForcing(DATA, emission=NoMode(), reverse_emission=NoMode(), **SIZES).eval()
    for decoding in (Decoding(argmax=True), Decoding(argmax=True, latent_temperature=0.0)):
        with pytest.raises(
            ValueError, match="the most probable value of Unknown is not known: sample"
        ):
            model.generate(torch.zeros(2, DATA), 3, decoding)
    with pytest.raises(ValueError, match="the most probable value of Unknown is not known"):
        reconstruct(model, random_batch("gaussian"))
    model = ZForcing(DATA, emission=WithMode(), reverse_emission=NoMode(), **SIZES).eval()
    certain = Decoding(argmax=True, latent_temperature=0.0)
    first = model.generate(torch.zeros(2, DATA), 3, certain)
    torch.testing.assert_close(first, model.generate(torch.zeros(2, DATA), 3, certain))
    flow = ZForcing(DATA, prior="flow", **SIZES).eval()
    with pytest.raises(ValueError, match="the mean of TransformedDistribution is not known"):
        flow.generate(torch.zeros(2, DATA), 3, certain)


def test_a_mean_that_is_not_a_number_is_not_known() -> None:
    cauchy = dist.Cauchy(torch.zeros(3), 1.0).to_event(1)
    with pytest.raises(ValueError, match="the mean of Cauchy is not known"):
        mean_of(cauchy)
    assert (mode_of(cauchy) == 0).all()
    uniform = dist.Uniform(torch.zeros(3), 1.0)  # PyTorch says that its mode is NaN
    assert (mode_of(uniform) == 0.5).all()

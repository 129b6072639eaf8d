"""Diagnostics of models with known answers, and checks against independent computations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_zf import SequenceBatch, VariationalBiLSTM, ZForcing
from pyro_zf.analysis import Diagnostics, diagnose, mutual_information, posterior_path
from pyro_zf.analysis.decoding import mean_of, unmasked
from pyro_zf.analysis.diagnostics import _Moments, _units
from pyro_zf.infer import batch_bounds
from pyro_zf.models import SRNN, VRNN, LatentSequenceModel
from pyro_zf.models.base import local_parameters
from pyro_zf.nn.cells import Cell, State
from pyro_zf.sequence import Recurrence
from tests.families import COMBINATIONS, Combination
from tests.helpers import DATA, MODELS, SIZES, random_batch

K, MARGIN, SCALE = 4, 9.0, 1e-3


class Copying(Cell):
    """A cell whose state is the latent."""

    state_sizes = (K,)

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def initial(self, batch_shape: Any, carried: Any = None) -> State:
        return (torch.zeros(*batch_shape, K),)

    def after(self, u: Tensor, z: Tensor | None, state: State) -> State:
        assert z is not None
        return (z,)


class Sender(nn.Module):
    """A posterior that puts z almost exactly at the corner of the symbol."""

    reads: ClassVar[str] = "target"

    def forward(self, h: Tensor, y: Tensor) -> Any:
        return dist.Normal(y.expand(*h.shape[:-1], K), SCALE).to_event(1)


class Receiver(nn.Module):
    kinds: ClassVar[tuple[str, ...]] = ("categorical",)

    def forward(self, h: Tensor) -> Any:
        return dist.Categorical(logits=MARGIN * h)


class Corners(nn.Module):
    """A prior that is the aggregate posterior of :class:`Sender` for equally frequent symbols."""

    def forward(self, h: Tensor) -> Any:
        corners = torch.eye(K).expand(*h.shape[:-1], K, K)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros(*h.shape[:-1], K)),
            dist.Normal(corners, SCALE).to_event(1),
        )


def copying(prior: Any) -> LatentSequenceModel:
    model = LatentSequenceModel(
        K, emission=Receiver(), latent_size=K, hidden_size=K, embedding_size=K, prior=prior,
        posterior=Sender(), cell=Copying(),
    )  # fmt: skip
    model.embedding.weight.data = torch.eye(K)
    return model.eval()


def symbols(num_steps: int, repeats: int = 3) -> SequenceBatch:
    """Sequences in which each symbol is equally frequent at each step."""
    return SequenceBatch.from_targets(
        torch.arange(K).repeat(repeats).unsqueeze(1).repeat(1, num_steps)
    )


def test_a_model_that_copies_through_z_carries_log_k() -> None:
    batch = symbols(num_steps=1)
    found = diagnose(copying(Corners()), [batch])
    assert found.kl == pytest.approx(math.log(K), abs=1e-6)
    assert found.mutual_information is None, "the prior is a mixture"
    found = diagnose(copying("standard-normal"), [batch])
    assert found.mutual_information == pytest.approx(math.log(K), abs=1e-6)
    assert found.mutual_information_limit == pytest.approx(math.log(3 * K))
    assert found.active_units == K
    # There are K different paths of three steps too.
    found = diagnose(copying("standard-normal"), [symbols(num_steps=3)])
    assert found.mutual_information == pytest.approx(math.log(K), abs=1e-6)
    different = SequenceBatch.from_targets(torch.cartesian_prod(torch.arange(K), torch.arange(K)))
    found = diagnose(copying("standard-normal"), [different])
    assert found.mutual_information == pytest.approx(2 * math.log(K), abs=1e-6)


def test_the_loss_by_shuffling_is_that_of_the_wrong_symbol() -> None:
    torch.manual_seed(1)
    y = torch.randint(K, (50, 6))
    found = diagnose(copying("standard-normal"), [SequenceBatch.from_targets(y)])
    wrong = (y != y.roll(1, 0)).double().sum(1)
    assert found.shuffled_loss == pytest.approx(MARGIN * wrong.mean().item(), rel=1e-3)
    assert found.shuffled_loss_stderr == pytest.approx(
        MARGIN * (wrong.std() / math.sqrt(50)).item(), rel=1e-3
    )
    lengths = torch.randint(1, 7, (50,))
    found = diagnose(copying("standard-normal"), [SequenceBatch.from_targets(y, lengths)])
    alive = torch.arange(6) < torch.minimum(lengths, lengths.roll(1)).unsqueeze(-1)
    wrong = ((y != y.roll(1, 0)) & alive).double().sum(1)
    assert found.shuffled_loss == pytest.approx(MARGIN * wrong.mean().item(), rel=1e-3)


def ignoring(model: LatentSequenceModel) -> LatentSequenceModel:
    """Make the decoder ignore z and the posterior equal to the prior."""
    for network in (model.cell.lstm,):  # type: ignore[union-attr]
        network.weight_ih_l0.data[:, -model.latent_size :] = 0
    model.latent_source = "prior"
    return model.eval()


@pytest.mark.parametrize("prior", ["gaussian", "standard-normal"])
@pytest.mark.parametrize("lengths", [None, [7, 3, 1, 5, 2]])
def test_a_decoder_that_ignores_z(prior: str, lengths: list[int] | None) -> None:
    model = ignoring(ZForcing(DATA, prior=prior, **SIZES))
    found = diagnose(model, [random_batch(lengths=lengths)])
    assert found.kl == 0.0
    assert found.active_units == 0
    assert found.mutual_information == pytest.approx(0.0, abs=1e-12)
    assert found.shuffled_loss == 0.0
    assert found.overlap == pytest.approx(1.0)
    assert found.kl_by_unit == [0.0] * model.latent_size
    assert found.collapsed
    assert found.verdict("image").startswith(
        "the latents have collapsed: z carries about 0.0 nats per image; 0 of 3 units active; the "
        "decoder loses 0.0 nats when z is shuffled"
    )


def test_a_prior_that_reads_the_past_does_not_count_as_information() -> None:
    """The latents differ between sequences but add no information; estimates from z itself say they do."""
    model = ignoring(ZForcing(DATA, **SIZES))
    with torch.no_grad():  # a prior that depends strongly on the past
        model.prior.network[-1].weight.mul_(50)  # type: ignore[index, operator]
    found = diagnose(model, [random_batch(num_sequences=20)])
    assert found.active_units == 0
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)


def test_noise_of_a_path_does_not_count_as_activity() -> None:
    """Identical sequences have no active units, however noisy their latents are."""
    torch.manual_seed(0)
    model = ZForcing(DATA, **SIZES).eval()
    with torch.no_grad():
        for parameter in (*model.posterior.parameters(), *model.cell.parameters()):
            parameter.mul_(3)
    one = random_batch(num_sequences=1, num_steps=12).targets
    assert one is not None
    copies = SequenceBatch.from_targets(one.expand(1500, -1, -1))
    different = SequenceBatch.from_targets(torch.rand(1500, 12, DATA).round())
    paths = posterior_path(model, copies, at_mean=False)
    assert paths.var(0).mean() > 0.1, "the latents differ"
    assert diagnose(model, [copies]).active_units == 0
    assert diagnose(model, [different]).active_units == model.latent_size


class Followed(Messenger):
    """Sets each z by a given deviation from the prior and b~ to its mean; records latents and scales."""

    def __init__(self, deviations: Tensor) -> None:
        super().__init__()
        self.deviations = deviations
        self.latents: dict[str, Tensor] = {}
        self.log_scales: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        name, _, step = msg["name"].rpartition("_")
        if name == "z":
            p = unmasked(msg["fn"]).base_dist
            msg["value"] = p.loc + p.scale * self.deviations[int(step) - 1]
            self.log_scales.append(p.scale.log().sum(-1))
        elif name == "b_tilde":
            msg["value"] = mean_of(msg["fn"])
        if name in ("z", "b_tilde"):
            self.latents[msg["name"]] = msg["value"]


@pytest.mark.parametrize("lengths", [None, [4, 2, 3, 1, 4, 2]])
@pytest.mark.parametrize("prior", ["gaussian", "standard-normal"])
@pytest.mark.parametrize("make", [ZForcing, VRNN, SRNN, VariationalBiLSTM])
def test_information_by_the_density_of_the_guide(
    make: Any, prior: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apply each deviation to the prior of the model, and score it under the guide of each sequence."""
    options = {k: v for k, v in SIZES.items() if k not in ("alpha", "beta")}
    model = make(DATA, prior=prior, **options).eval()
    with torch.no_grad():
        for parameter in (*model.posterior.parameters(), *model.prior.parameters()):
            parameter.mul_(3)
    batch = random_batch(num_sequences=6, num_steps=4, lengths=lengths)
    number = batch.num_sequences
    noise, behind = torch.randn(2, 4, number, model.latent_size)

    def drawing() -> None:
        drawn, more = iter(noise), iter(behind)
        monkeypatch.setattr(torch, "randn", lambda shape, **_: next(drawn).reshape(shape))
        monkeypatch.setattr(torch, "randn_like", lambda x: next(more))

    drawing()
    ours = mutual_information(model, batch)
    monkeypatch.undo()
    mask = torch.ones(number, 4, dtype=torch.bool) if batch.mask is None else batch.mask
    # Sample step by step, since the posterior at a step depends on the path so far.
    deviations = torch.zeros(4, number, model.latent_size)
    scores = torch.zeros(number, number)
    with poutine.block(), local_parameters(), model.using_layout("steps"):
        for t in range(4):
            followed = Followed(deviations)
            with followed:
                model.model(batch)
            guide = poutine.trace(poutine.condition(model.guide, data=followed.latents))
            q = unmasked(guide.get_trace(batch).nodes[f"z_{t + 1}"]["fn"]).base_dist
            with poutine.trace() as tracer:
                poutine.condition(model.model, data=followed.latents)(batch)
            p = unmasked(tracer.trace.nodes[f"z_{t + 1}"]["fn"]).base_dist
            own = (q.loc + q.scale * noise[t] - p.loc) / p.scale
            deviations[t] = torch.where(mask[:, t, None], own, behind[t])
        for i in range(number):
            path = deviations[:, i : i + 1].expand(-1, number, -1)
            followed = Followed(path)
            with followed:
                model.model(batch)
            guide = poutine.trace(poutine.condition(model.guide, data=followed.latents))
            trace = guide.get_trace(batch)
            for t in range(4):
                z = followed.latents[f"z_{t + 1}"]
                log_q = unmasked(trace.nodes[f"z_{t + 1}"]["fn"]).log_prob(z)
                log_q = log_q + followed.log_scales[t]
                standard = torch.distributions.Normal(0.0, 1.0).log_prob(path[t]).sum(-1)
                scores[i] += torch.where(mask[:, t], log_q, standard)
    theirs = (scores.diagonal() - scores.logsumexp(1)).mean() + math.log(number)
    assert ours == pytest.approx(theirs.item(), rel=1e-9)
    assert ours != 0


@contextmanager
def constant_noise() -> Iterator[None]:
    """Constant noise for all shapes and all draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", lambda self, *_: self.fill_(0.3))
        patch.setattr(torch, "randn", lambda shape, **_: torch.full(tuple(shape), 0.3))
        yield


def closed(combination: Combination) -> bool:
    gaussian = ("gaussian", "standard-normal")
    return combination.prior in gaussian and combination.posterior != "flow"


@pytest.mark.parametrize(
    "combination",
    [c for c in COMBINATIONS if c.family != "rnn"][::2],
    ids="-".join,
)
def test_every_system(combination: Combination) -> None:
    model = combination.build().eval()
    assert isinstance(model, LatentSequenceModel)
    batch = combination.batch([4, 2, 3])
    found = diagnose(model, [batch, batch])
    assert found.num_sequences == 6
    with constant_noise():
        one = diagnose(model, [batch]).kl
        assert one == pytest.approx(batch_bounds(model.model, model.guide, batch).kl.mean().item())
    assert (found.overlap is not None) == closed(combination)
    if found.kl_by_unit is not None:
        assert sum(found.kl_by_unit) == pytest.approx(found.kl)
        assert 0 < found.overlap <= 1  # type: ignore[operator]
    gaussian_prior = combination.prior in ("gaussian", "standard-normal")
    assert (found.mutual_information is not None) == gaussian_prior
    if found.mutual_information is not None:
        assert found.mutual_information <= math.log(3) + 1e-9
    known = combination.prior != "flow" and combination.posterior != "flow"
    assert (found.active_units is not None) == known
    assert set(found.aux) == ({"b", "h"} if combination.family != "srnn" else {"b"}) - (
        {"h"} if combination.family == "zforcing" else set()
    ) or combination.family in ("storn", "vrnn", "srnn")
    assert all(isinstance(v, (int, float, list, type(None))) for v in found.numbers().values())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(0, 3))
def test_padding_is_invisible(lengths: list[int], more: int) -> None:
    torch.manual_seed(0)
    model = MODELS["paper"]().eval()
    width = max(lengths)
    y = torch.rand(len(lengths), width, DATA).round()
    longer = torch.cat([y, torch.rand(len(lengths), more, DATA)], dim=1)
    found: list[Diagnostics] = []
    with constant_noise():
        for targets in (y, longer):
            batch = SequenceBatch.from_targets(targets, torch.tensor(lengths))
            found.append(diagnose(model, [batch], num_pairs=1))
    short, long = (d.numbers() for d in found)
    for name, value in short.items():
        assert long[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert found[1].kl_at_steps[:width] == pytest.approx(found[0].kl_at_steps)


def test_how_much_z_improves_the_prediction_of_b() -> None:
    """The best Gaussian without z gains nothing; a network trained on z does."""
    model = ZForcing(DATA, **SIZES).eval()
    batch = random_batch(num_sequences=30)
    cost: Any = model.aux["b"]
    with torch.no_grad():
        b = Recurrence(model, batch).b.flatten(0, 1)
        last = cost.head.network[-1]
        last.weight.zero_()
        last.bias.copy_(torch.cat([b.mean(0), b.std(0, correction=0).log()]))
    gain = diagnose(model, [batch]).aux["b"]
    assert gain.gain == pytest.approx(0.0, abs=1e-9)
    normal = torch.distributions.Normal(b.mean(0), b.std(0, correction=0))
    assert gain.nats == pytest.approx(-normal.log_prob(b).sum(-1).mean().item())
    model.alpha = 5.0
    trained = [*model.posterior.parameters(), *model.prior.parameters(), *cost.parameters()]
    optimiser = torch.optim.Adam(trained, 0.05)
    for _ in range(100):
        optimiser.zero_grad()
        model.loss_module(pyro.infer.Trace_ELBO())(batch).backward()
        optimiser.step()
    assert diagnose(model, [batch]).aux["b"].gain > 1.0
    model.set_aux_weight("b", 0.0)
    assert diagnose(model, [batch]).aux == {}, "an inactive cost is not reported"


def test_overlap_and_kl_by_integration() -> None:
    q_mean, p_mean, q_scale, p_scale = torch.tensor(
        [[0.3, -1.0], [-0.2, 0.5], [0.5, 1.5], [1.2, 0.4]]
    )
    moments = _Moments(q_mean, q_scale, p_mean, p_scale, True)
    found = _units(moments, moments)
    assert found is not None
    x = torch.linspace(-30, 30, 200_001).unsqueeze(-1)
    q = torch.distributions.Normal(q_mean, q_scale).log_prob(x)
    p = torch.distributions.Normal(p_mean, p_scale).log_prob(x)
    width = 60 / 200_000
    torch.testing.assert_close(found.overlap, torch.exp((p + q) / 2).sum(0) * width)
    torch.testing.assert_close(found.kl, (q.exp() * (q - p)).sum(0) * width)


def test_batches_of_different_lengths() -> None:
    model = MODELS["paper"]().eval()
    short, long = (
        random_batch(num_sequences=2, num_steps=3),
        random_batch(num_sequences=3, lengths=[7, 4, 6]),
    )
    with constant_noise():
        both = diagnose(model, [short, long])
        one, other = diagnose(model, [short]), diagnose(model, [long])
    assert both.num_sequences == 5
    assert both.kl == pytest.approx((2 * one.kl + 3 * other.kl) / 5)
    assert both.kl_at_steps[3:] == pytest.approx(other.kl_at_steps[3:])
    first = [(2 * a + 3 * b) / 5 for a, b in zip(one.kl_at_steps, other.kl_at_steps, strict=False)]
    assert both.kl_at_steps[:3] == pytest.approx(first)


class Apart(ZForcing):
    """A custom guide: one distribution for the whole path, with independent steps."""

    form: Any = staticmethod(lambda mean: dist.Normal(mean, 0.5).to_event(2))

    def guide_time(self, batch: SequenceBatch) -> None:
        shown = batch.targets[..., : self.latent_size]  # type: ignore[index]
        with self.sequences(batch):
            pyro.sample("z", self.form(4 * shown))


@pytest.mark.parametrize("lengths", [None, [7, 3, 1, 5, 2]])
def test_a_guide_that_gives_the_path_at_once(lengths: list[int] | None) -> None:
    model, batch = (
        Apart(DATA, prior="standard-normal", **SIZES).eval(),
        random_batch(lengths=lengths),
    )
    found = diagnose(model, [batch])
    mask = torch.ones(5, 7) if batch.mask is None else batch.mask
    y = batch.targets[..., : model.latent_size]  # type: ignore[index]
    kl = 0.5 * (0.25 - 1 + (4 * y).square()) - math.log(0.5)
    at_steps = kl.sum(-1) * mask
    assert found.kl == pytest.approx(at_steps.sum(1).mean().item())
    assert found.kl_at_steps == pytest.approx((at_steps.sum(0) / mask.sum(0)).tolist())
    assert found.active_units == model.latent_size
    assert found.mutual_information is None
    model.form = lambda mean: dist.Laplace(mean, 0.5).to_event(2)
    found = diagnose(model, [random_batch()])
    assert found.overlap is None
    assert found.kl_at_steps == pytest.approx([found.kl, *[0.0] * 6])


def test_there_must_be_sequences() -> None:
    with pytest.raises(ValueError, match="no sequences"):
        diagnose(MODELS["paper"](), [])

"""Small models of every kind, random batches and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import Trace_ELBO, TraceFIVO, TraceIWAE, TraceMeanField_ELBO
from pyro_zf.models import SequenceModel

DATA, LATENT = 4, 3
SIZES: dict[str, Any] = {
    "hidden_size": 6, "latent_size": LATENT, "mlp_size": 5, "alpha": 0.3, "beta": 0.7
}  # fmt: skip


class MixturePrior(nn.Module):
    """A prior without a closed-form KL."""

    def __init__(self, components: int = 2) -> None:
        super().__init__()
        self.shape = (components, LATENT)
        self.net = nn.Linear(SIZES["hidden_size"], components * (1 + LATENT))

    def forward(self, h: Tensor) -> TorchDistributionMixin:
        logits, means = self.net(h).split([self.shape[0], self.shape[0] * LATENT], dim=-1)
        components = dist.Normal(means.reshape(*h.shape[:-1], *self.shape), 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


class PlainPosterior(nn.Module):
    """A posterior that defines only ``forward``, without hoisting and with its own means and scales."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2 * SIZES["hidden_size"], LATENT)
        self.log_scale = nn.Parameter(torch.zeros(LATENT))

    def forward(self, h: Tensor, b: Tensor) -> TorchDistributionMixin:
        loc = self.net(torch.cat([h, b], dim=-1))
        return dist.Normal(loc, self.log_scale.exp().expand_as(loc)).to_event(1)


#: Constructors of models by their special property, and whether their data are symbols.
MODELS: dict[str, Callable[..., ZForcing]] = {
    "paper": lambda **k: ZForcing(DATA, **{**SIZES, **k}),
    "released-code": lambda **k: ZForcing(
        DATA, variant="released-code", **{**SIZES, "embedding_size": 5, **k}
    ),
    "gaussian": lambda **k: ZForcing(DATA, emission="gaussian", **{**SIZES, **k}),
    "categorical": lambda **k: ZForcing(DATA, emission="categorical", **{**SIZES, **k}),
    "deep": lambda **k: ZForcing(
        DATA, mlp_depth=2, emission_depth=0, activation="tanh", forget_bias=1.0, backward_size=7,
        orthogonal=False, embedding_size=3, latent_embedding_size=4, aux_condition="zh",
        **{**SIZES, **k},
    ),
    "mixture-prior": lambda **k: ZForcing(DATA, prior=MixturePrior(), **{**SIZES, **k}),
    "plain-posterior": lambda **k: ZForcing(DATA, posterior=PlainPosterior(), **{**SIZES, **k}),
    "detach-posterior": lambda **k: ZForcing(DATA, detach="posterior", **{**SIZES, **k}),
    "detach-backward": lambda **k: ZForcing(DATA, detach="backward", **{**SIZES, **k}),
}  # fmt: skip

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "trace": Trace_ELBO,
    "mean-field": TraceMeanField_ELBO,
    "iwae": lambda: TraceIWAE(num_particles=4),
    "trace-particles": lambda: Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True),
}


def random_batch(
    model: str = "paper",
    num_sequences: int = 5,
    num_steps: int = 7,
    lengths: list[int] | None = None,
) -> SequenceBatch:
    size = (num_sequences, num_steps)
    if model == "categorical":
        targets = torch.randint(DATA, size)
    elif model == "gaussian":
        targets = torch.randn(*size, DATA)
    else:
        targets = (torch.rand(*size, DATA) > 0.5).double()
    return SequenceBatch.from_targets(targets, None if lengths is None else torch.tensor(lengths))


def loss_and_gradients(
    model: SequenceModel, objective: Any, batch: SequenceBatch, seed: int = 1
) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model.loss_module(objective)(batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_close(ours: Any, theirs: Any, what: str, rtol: float = 1e-10) -> None:
    """Assert equality up to ``rtol`` relative to the largest entry."""
    if ours is None or theirs is None:
        assert ours is theirs, f"{what}: only one of the two is None"
        return
    difference, scale = (ours - theirs).abs().max(), theirs.abs().max()
    assert difference <= rtol * scale, f"{what}: differs by {difference:.3g} at {scale:.3g}"


@contextmanager
def attributes(target: object, **values: Any) -> Iterator[None]:
    """Temporarily set attributes."""
    before = {name: getattr(target, name, None) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def layouts_agree(model: SequenceModel, batch: SequenceBatch, *objectives: Any) -> None:
    """Loss and all gradients are the same in both layouts, from the same seed."""
    for objective in objectives or (Trace_ELBO(), TraceMeanField_ELBO(), TraceIWAE(3)):
        with model.using_layout("steps"):
            loss, gradients = loss_and_gradients(model, objective, batch)
        other_loss, other_gradients = loss_and_gradients(model, objective, batch)
        what = type(objective).__name__
        assert_close(other_loss, loss, f"loss of {what}")
        scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
        for name, gradient in gradients.items():
            other = other_gradients[name]
            assert (gradient is None) == (other is None), name
            if gradient is not None and other is not None:
                assert (gradient - other).abs().max() <= 1e-10 * scale, f"{name}, {what}"


def filter_is_the_iwae(model: SequenceModel, batch: SequenceBatch) -> None:
    """A particle filter that never resamples gives the importance-weighted bound and its gradients."""
    loss, gradients = loss_and_gradients(model, TraceIWAE(4), batch)
    filtered = loss_and_gradients(model, TraceFIVO(4, resample_below=0.0), batch)
    assert_close(filtered[0], loss, "loss")
    for name, gradient in gradients.items():
        assert_close(filtered[1][name], gradient, name, rtol=1e-9)


def generation_is_ancestral(
    model: SequenceModel, start: Tensor, covariates: Tensor | None = None
) -> None:
    """Generated values have the same density under the teacher-forced program as when sampled."""
    batch = SequenceBatch.to_generate(start, 5, covariates=covariates)
    drawn = pyro.poutine.trace(model.model).get_trace(batch)
    paths = {
        name: torch.stack([drawn.nodes[f"{name}_{t}"]["value"] for t in range(1, 6)], dim=1)
        for name in ("y", "z", "b_tilde", "w")
        if f"{name}_1" in drawn.nodes
    }
    if "style" in drawn.nodes:
        paths["style"] = drawn.nodes["style"]["value"]
    given = SequenceBatch.from_targets(paths.pop("y"), covariates=covariates)
    scored = pyro.poutine.trace(pyro.poutine.condition(model.model, data=paths)).get_trace(given)
    density = scored.log_prob_sum(lambda name, site: not name.startswith("aux_"))
    torch.testing.assert_close(density, drawn.log_prob_sum(), rtol=1e-10, atol=0)

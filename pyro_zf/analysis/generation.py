"""What a model generates, and what its latents carry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_zf.analysis.decoding import AtMean, Decoding, mean_of
from pyro_zf.batch import SequenceBatch, masked
from pyro_zf.data import Values
from pyro_zf.infer.sites import step_of_site
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.models.base import local_parameters

__all__ = [
    "FreeRunning",
    "Reconstruction",
    "continue_prefix",
    "free_running",
    "posterior_path",
    "reconstruct",
    "resample_latents",
    "sample",
]


class Reconstruction(NamedTuple):
    """Data beside what the latents of their posterior say of them.

    ``teacher_forced`` are the means of :math:`p(y_t \\mid h_t)` where each step has seen the true
    past. ``from_latents`` are drawn with the same z, but each step sees what the model itself drew
    before: it shows how much of a sequence z alone carries.
    """

    targets: Shaped[Tensor, "batch time ..."]
    teacher_forced: Shaped[Tensor, "batch time ..."]
    from_latents: Shaped[Tensor, "batch time ..."]


class FreeRunning(NamedTuple):
    r"""Log-likelihood of true sequences where the model reads its own draws, in nats per sequence.

    ``teacher_forced`` is :math:`\sum_t \log p(y_t \mid y_{<t}, z)`, what bounds are made of;
    ``from_posterior`` is :math:`\sum_t \log p(y_t \mid \hat y_{<t}, z)` with :math:`\hat y` drawn by the
    model and the same z; ``from_prior`` is that with z from the prior too: how well the model, which
    has seen nothing of the sequence, foresees it step by step. The gap between the first and the
    second is what the true past gives away, which a teacher-forced score hides.
    """

    teacher_forced: Float[Tensor, " batch"]
    from_posterior: Float[Tensor, " batch"]
    from_prior: Float[Tensor, " batch"]


def sample(
    model: SequenceModel,
    values: Values,
    num_sequences: int,
    num_steps: int,
    decoding: Decoding | None = None,
    covariates: Tensor | None = None,
) -> Shaped[Tensor, "batch time ..."]:
    """Sequences from the prior, after the start symbol of the data, given covariates if there are any."""
    start = values.start_symbol(num_sequences, next(model.parameters()))
    return model.generate(start, num_steps, decoding or Decoding(), covariates=covariates)


@torch.no_grad()
def continue_prefix(
    model: SequenceModel,
    prefix: SequenceBatch,
    num_steps: int,
    decoding: Decoding | None = None,
) -> Shaped[Tensor, "batch time ..."]:
    """Sequences that begin as given and that the model goes on with.

    The latents of the prefix are drawn from the posterior of the prefix alone; those that follow, from
    the prior.

    Args:
        model: the model.
        prefix: the beginnings, all of one length.
        num_steps: steps to add.
        decoding: how they are drawn.

    Returns:
        Tensor: prefix and continuation. Covariates of the prefix must be per sequence.

    Raises:
        ValueError: if the beginnings differ in length.
    """
    assert prefix.targets is not None
    if prefix.lengths is not None and bool((prefix.lengths != prefix.num_steps).any()):
        raise ValueError("beginnings that are continued together must have one length")
    known: dict[str, Tensor] = _latents(model, _posterior(model, prefix))
    known |= {f"y_{t + 1}": y for t, y in enumerate(prefix.targets.unbind(1))}
    return _decoded(model, prefix, prefix.num_steps + num_steps, known, decoding)


@torch.no_grad()
def reconstruct(
    model: SequenceModel, batch: SequenceBatch, decoding: Decoding | None = None
) -> Reconstruction:
    """Draw z from the posterior of each sequence and decode it in both ways.

    The mean of a distribution over symbols is the most probable one. ``decoding`` is of
    ``from_latents``.
    """
    assert batch.targets is not None
    latents = _latents(model, _posterior(model, batch))
    with model.using_layout("steps"):
        forced = _trace(model, batch, latents)
    means = [mean_of(forced.nodes[f"y_{t}"]["fn"]) for t in range(1, batch.num_steps + 1)]
    drawn = _decoded(model, batch, batch.num_steps, latents, decoding)
    return Reconstruction(batch.targets, torch.stack(means, dim=1), drawn)


@torch.no_grad()
def resample_latents(
    model: SequenceModel,
    batch: SequenceBatch,
    steps: Collection[int],
    decoding: Decoding | None = None,
) -> Shaped[Tensor, "batch time ..."]:
    """Decode the latents of the posterior with those of some steps drawn anew from the prior.

    Args:
        model: the model.
        batch: the sequences.
        steps: whose latents are drawn anew, the first step being 1.
        decoding: how each step is drawn; it sees what was drawn before.

    Raises:
        ValueError: if there is no such step.
    """
    if wrong := [t for t in steps if not 1 <= t <= batch.num_steps]:
        raise ValueError(f"there is no step {wrong[0]}; they run from 1 to {batch.num_steps}")
    latents = _latents(model, _posterior(model, batch))
    kept = {k: x for k, x in latents.items() if (step_of_site(k) or 0) + 1 not in set(steps)}
    return _decoded(model, batch, batch.num_steps, kept, decoding)


@torch.no_grad()
def free_running(model: SequenceModel, batch: SequenceBatch) -> FreeRunning:
    """Score sequences under teacher forcing, and in generation mode; see :class:`FreeRunning`."""
    assert batch.targets is not None
    latents = _latents(model, _posterior(model, batch))
    with model.using_layout("steps"):
        forced = _trace(model, batch, latents)
    start = SequenceBatch.to_generate(
        batch.inputs[:, 0], batch.num_steps, covariates=batch.covariates
    )
    traces = [forced, _trace(model, start, latents), _trace(model, start, {})]
    mask = None if batch.mask is None else batch.mask.T

    def score(trace: Trace) -> Tensor:
        scored = []
        for t, y in enumerate(batch.targets.unbind(1)):  # type: ignore[union-attr]
            fn: Any = trace.nodes[f"y_{t + 1}"]["fn"]
            scored.append(fn.log_prob(y))
        return masked(torch.stack(scored), mask).sum(0)

    return FreeRunning(*map(score, traces))


@torch.no_grad()
def posterior_path(
    model: SequenceModel, batch: SequenceBatch, at_mean: bool = True
) -> Float[Tensor, "batch time latent"]:
    """The latents of each sequence, step by step at the posterior's mean, or drawn from it."""
    latents = _latents(model, _posterior(model, batch, AtMean() if at_mean else None))
    return torch.stack([latents[f"z_{t}"] for t in range(1, batch.num_steps + 1)], dim=1)


def _posterior(
    model: SequenceModel, batch: SequenceBatch, handler: Messenger | None = None
) -> Trace:
    with (
        poutine.block(),
        local_parameters(),
        model.using_layout("steps"),
        handler or nullcontext(),
    ):
        trace = poutine.trace(model.guide).get_trace(batch)
    if isinstance(model, LatentSequenceModel):
        for name in (k for k, x in model.latents.items() if x.posterior is not None):
            if not any(k == name or k.startswith(f"{name}_") for k in trace.stochastic_nodes):
                raise ValueError(
                    f"the guide of {type(model).__name__} has no site {name}, nor {name}_1, {name}_2, .."
                )
    return trace


def _latents(model: SequenceModel, trace: Trace) -> dict[str, Tensor]:
    """The latents of a trace by name of the site in layout "steps"; the path of a guide of your own is cut."""
    latents: dict[str, Tensor] = {}
    declared: Any = getattr(model, "latents", {})
    for name in trace.stochastic_nodes:
        value: Any = trace.nodes[name]["value"]
        if name in declared and declared[name].per == "step":
            latents |= {f"{name}_{t + 1}": z for t, z in enumerate(value.unbind(-2))}
        elif name in declared or name.rpartition("_")[0] in declared:
            latents[name] = value
    return latents


def _trace(model: SequenceModel, batch: SequenceBatch, known: Mapping[str, Tensor]) -> Trace:
    with poutine.block(), local_parameters():
        return poutine.trace(poutine.condition(model.model, data=dict(known))).get_trace(batch)


def _decoded(
    model: SequenceModel,
    batch: SequenceBatch,
    num_steps: int,
    known: Mapping[str, Tensor],
    decoding: Decoding | None,
) -> Tensor:
    """Run freely from the first input of a batch, with what is known of latents and values."""
    return model.generate(
        batch.inputs[:, 0], num_steps, decoding or Decoding(), poutine.condition(data=dict(known)),
        covariates=batch.covariates,
    )  # fmt: skip

r"""Programs that are derived from a declaration.

:func:`model_time` and :func:`guide_time` have one site for the path of each latent (layout ``"time"``). Every
system uses them, and none writes its own. :func:`model_steps` and :func:`guide_steps` have one site for each
step. Each published system writes out its own instead, alongside its equations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyro
from pyro import poutine
from torch import Tensor

from pyro_zf.batch import SequenceBatch, masked
from pyro_zf.distributions import by_chunks
from pyro_zf.models.base import AUX_PREFIX
from pyro_zf.nn.auxiliary import StepStates
from pyro_zf.nn.cells import State
from pyro_zf.nn.mlp import join
from pyro_zf.sequence.paths import PosteriorPath, PriorPath
from pyro_zf.sequence.recurrence import Recurrence, path_of
from pyro_zf.sequence.system import Latent, detach_where
from pyro_zf.sequence.unroll import at_steps, unroll

if TYPE_CHECKING:
    from pyro_zf.models.latent import LatentSequenceModel

__all__ = ["guide_steps", "guide_time", "model_steps", "model_time", "sequence_latents"]


def sequence_latents(
    model: LatentSequenceModel, batch: SequenceBatch, run: Recurrence | None = None
) -> dict[str, Tensor]:
    """Sample the latents that have one value for a whole sequence from their priors.

    If the recurrence of the guide is given, they are sampled from their posteriors, whose context is
    :math:`b_1`.
    """
    values: dict[str, Tensor] = {}
    for name, latent in model.latents.items():
        if latent.per != "sequence":
            continue
        features = model.sequence_features(batch)
        if run is None or latent.posterior is None:
            distribution = latent.prior(features)
        else:
            distribution = latent.posterior(features, run.b[0])
        mask = None if batch.lengths is None else batch.lengths > 0
        with _weight(model, latent), nullcontext() if mask is None else poutine.mask(mask=mask):  # type: ignore[no-untyped-call, call-overload]
            values[name] = pyro.sample(name, distribution, infer=latent.infer)
    return values


def _weight(model: LatentSequenceModel, latent: Latent) -> Any:
    return model.latent_weight() if latent.posterior is not None else nullcontext()


# One site for a whole path


def _run(model: LatentSequenceModel, batch: SequenceBatch, by_posterior: bool) -> Recurrence:
    run = Recurrence(model, batch)
    run.given = sequence_latents(model, batch, run if by_posterior else None)
    run.mask_gradients(model.gradient_mask(batch))
    return run


def _sample_path(
    model: LatentSequenceModel, run: Recurrence, name: str, by_posterior: bool
) -> None:
    latent = run.step_latents[name]
    kind = PosteriorPath if by_posterior and latent.posterior is not None else PriorPath
    with _weight(model, latent):
        value = pyro.sample(name, kind(run, name), infer=latent.infer)
    for other, z in run.latents.items():
        path = path_of(z)
        if path is not None and path is run.drawn and path_of(value) is not path:
            raise ValueError(
                f"in layout 'time', {other} and {name} are drawn together: set both or neither, or take "
                "layout 'steps'"
            )
    run.latents[name] = value


def model_time(model: LatentSequenceModel, batch: SequenceBatch) -> State:
    """The generative program with one site for each path. All networks are batched over time."""
    with model.sequences(batch):
        run = _run(model, batch, by_posterior=False)
        for name in run.step_latents:
            _sample_path(model, run, name, by_posterior=False)
        pyro.sample("y", model.emitted(run.emission_input(), batch), obs=batch.targets)
        if costs := model.active_aux():
            states = run.step_states()
            known = {k: x for k, x in states._asdict().items() if x is not None}
            for name, cost in costs.items():

                def scored(*tensors: Tensor, name: str = name) -> Tensor:
                    parts = dict(zip(known, tensors, strict=True))
                    return model.weighted_aux(name, states._replace(**parts))

                per_step = masked(
                    by_chunks(scored, list(known.values()), model.time_chunk), run.step_mask
                )
                if cost.skips_start_symbol and batch.has_start_symbol:
                    per_step = per_step[1:]
                pyro.factor(f"{AUX_PREFIX}{name}", per_step.sum(0))
        return run.end()


def guide_time(model: LatentSequenceModel, batch: SequenceBatch) -> None:
    """The approximate posterior with one site for each path."""
    with model.sequences(batch):
        run = _run(model, batch, by_posterior=True)
        for name in run.step_latents:
            _sample_path(model, run, name, by_posterior=True)


# One site for each step


def _step_latents(
    model: LatentSequenceModel,
    batch: SequenceBatch,
    t: int,
    known: dict[str, Tensor],
    c_t: Tensor | None,
    context: Tensor | None,
) -> dict[str, Tensor]:
    """Sample the latents of a step, given the state and the input."""
    values: dict[str, Tensor] = {}
    for name, latent in model.latents.items():
        if latent.per != "step":
            continue
        x = latent.features({**values, **known}, c_t)
        with _weight(model, latent):
            if context is None or latent.posterior is None:
                distribution = latent.prior(x)
            else:
                distribution = latent.posterior(x, context.expand(*x.shape[:-1], -1))
            values[name] = pyro.sample(f"{name}_{t + 1}", distribution, infer=latent.infer)
    return values


def model_steps(model: LatentSequenceModel, batch: SequenceBatch) -> State:
    """The generative program with one site for each step, also for ancestral generation."""
    cell_start, carried = model.start(batch)
    b = model.backward_states(batch) if model.scores_backward_states(batch) else None
    last: dict[str, Tensor] = {}
    with model.sequences(batch):
        given = sequence_latents(model, batch)
        skip = model.gradient_mask(batch)
        us: list[Tensor] = []
        cs = [join(model.covariates_at(batch, t), *given.values()) if given
              else model.covariates_at(batch, t) for t in range(batch.num_steps)]  # fmt: skip

        def inputs() -> Iterator[Tensor]:
            nonlocal carried
            for t in pyro.markov(range(batch.num_steps)):
                u_t, carried = model.input_at(batch, t, last.get("y"), carried)
                us.append(u_t)
                yield join(u_t, cs[t])

        def choose(t: int, h: Tensor) -> Tensor:
            with model.real_steps(batch, t):
                mask = None if skip is None else skip[..., t, None]
                known = {"state": detach_where(mask, h), "input": detach_where(mask, us[t])}
                values = _step_latents(model, batch, t, known, cs[t], None)
            last.update(values)
            return model.cell_inputs(values)

        def then(t: int, h_prev: Tensor, state: State) -> State:
            with model.real_steps(batch, t):
                features = join(model.emission_inputs(us[t], last, state[0]), cs[t])
                last["y"] = pyro.sample(
                    f"y_{t + 1}", model.emission(features), obs=model.target_at(batch, t)
                )
                if batch.targets is not None:
                    states = StepStates(
                        batch.clean_inputs[:, t], last["z"], h_prev, state[0],
                        None if b is None else b[t], cs[t],
                    )  # fmt: skip
                    model.aux_factors(batch, t, states)
            return state

        start = model.cell.initial((batch.num_sequences,), cell_start)
        *_, state = unroll(model.cell, inputs(), start, choose, then)
    return tuple(x.detach() for x in (*state, *carried))


def guide_steps(model: LatentSequenceModel, batch: SequenceBatch) -> None:
    """The approximate posterior with one site for each step."""
    with model.sequences(batch):
        run = _run(model, batch, by_posterior=True)
        contexts, us = run.context.unbind(0), run.u.unbind(0)
        skip, cs = (at_steps(x, batch.num_steps) for x in (run.gradient_mask, run.c))

        def choose(t: int, h: Tensor) -> Tensor:
            known = {"state": detach_where(skip[t], h), "input": detach_where(skip[t], us[t])}
            with model.real_steps(batch, t):
                context = detach_where(skip[t], contexts[t])
                values = _step_latents(model, batch, t, known, cs[t], context)
            return model.cell_inputs(values)

        start = model.cell.initial((batch.num_sequences,), run.cell_start)
        steps = pyro.markov(range(batch.num_steps))
        u = run.cell_u.unbind(0)
        unroll(model.cell, (u[t] for t in steps), start, choose)

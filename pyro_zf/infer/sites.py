"""Traces of a guide and a model, and functions of their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.base import local_parameters
from pyro_zf.sequence import with_carried_states

__all__ = [
    "CarriedStates",
    "Program",
    "cancels",
    "check_padding",
    "check_sites",
    "is_free_of_kl",
    "latent_sites",
    "log_prob_of_data",
    "log_prob_of_site",
    "sample_sites",
    "step_of_site",
    "trace_programs",
]

Program = Callable[[SequenceBatch], Any]


class CarriedStates(Messenger):
    """Context in which densities of paths use the states that the paths carry from when they were drawn.

    This avoids recomputing the states from the values;
    :meth:`~pyro_zf.sequence.LatentPath.with_carried_states` describes the differences.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = with_carried_states(msg["fn"])


def is_free_of_kl(site: Any) -> bool:
    """Whether a site declares that model and guide draw it from the same distribution."""
    return bool(site["infer"].get("free_of_kl"))


def cancels(name: str, model_site: Any, guide_trace: Trace) -> bool:
    """Whether a latent site does not contribute to a bound.

    This is the case if the guide draws it from the model's own distribution, or leaves it to the model.
    If a custom guide proposes it from another distribution, its KL enters the bound.
    """
    return is_free_of_kl(guide_trace.nodes.get(name, model_site))


def trace_programs(
    model: Program,
    guide: Program,
    batch: SequenceBatch,
    latents: Mapping[str, Tensor] | None = None,
    within: AbstractContextManager[Any] | None = None,
) -> tuple[Trace, Trace]:
    """Trace the guide, and the model with the latents of the guide or with given latents.

    Handlers around the call do not see the sites, and no parameter is added to Pyro's store. Densities use
    the states that paths carry (:class:`CarriedStates`).

    Args:
        model, guide: the programs.
        batch: the sequences.
        latents: values by site name.
        within: a handler in which both programs run, such as a plate of particles.
    """
    with poutine.block(), local_parameters(), CarriedStates(), within or nullcontext():
        guide_trace = poutine.trace(guide).get_trace(batch)
        program = poutine.replay(model, trace=guide_trace)
        if latents is not None:
            program = poutine.condition(model, data=dict(latents))
        model_trace = poutine.trace(program).get_trace(batch)
    check_sites(model_trace, guide_trace)
    return guide_trace, model_trace


def check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Reject a guide that lacks a latent of the model, or has it in the other layout.

    Pyro would draw such a latent from its prior, and warn.

    Raises:
        ValueError: for the first latent of the model that the guide lacks.
    """
    for name, site in sample_sites(model_trace):
        if site["is_observed"] or name in guide_trace.nodes:
            continue
        whole, _, number = name.rpartition("_")
        if not number.isdecimal():
            whole = ""
        for other, layout in ((f"{name}_1", "steps"), (whole, "time")):
            if other in guide_trace.nodes:
                raise ValueError(
                    f"the guide has the site {other} and the model {name}, so the model would ignore the "
                    f'guide: use both in one layout, as by model.using_layout("{layout}")'
                )
        if not is_free_of_kl(site):
            has = ", ".join(other for other, _ in sample_sites(guide_trace)) or "none"
            raise ValueError(
                f"the guide has no site {name}, which is a latent of the model; its sites: {has}"
            )


def check_padding(model: Program, guide: Program, batch: SequenceBatch) -> None:
    """Reject programs whose log-probability includes steps past the end of a sequence.

    A bound would then contain terms of steps that do not exist, and could exceed the log-likelihood. Both
    programs are run once, unless the batch has no padding. The state of the random number generators is
    restored.

    Raises:
        ValueError: for the first such site; or as in :func:`check_sites`.
    """
    real = batch.mask
    if real is None or bool(real.all()):
        return
    device = batch.inputs.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        guide_trace, model_trace = trace_programs(model, guide, batch)
        for program, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in sample_sites(trace):
                if way := _counts_padding(name, site, real):
                    raise ValueError(
                        f"the log-probability of site {name} in the {program} includes steps past the end of "
                        f"a sequence: {way}"
                    )


def _counts_padding(name: str, site: Any, real: Bool[Tensor, "batch time"]) -> str | None:
    """What to do if the log-probability of a site depends on steps past the end, or None."""
    log_prob, event_shape = log_prob_of_site(site), site["fn"].event_shape
    if log_prob.shape[-1:] != real.shape[:1]:
        return None
    step = step_of_site(name)
    if step is not None and step < real.shape[1]:
        if ((log_prob != 0) & ~real[:, step]).any():
            return "enter the context model.real_steps(batch, t) around the site"
    # A vector of one value per step, other than y, may as well be a latent of the whole sequence.
    elif event_shape[:1] == real.shape[1:] and (len(event_shape) > 1 or name == "y"):
        value = site["value"]
        kept = real.reshape(real.shape + (1,) * (len(event_shape) - 1))
        changed = torch.where(kept, value, value.flip(-len(event_shape)))
        # Of a copy, so that both are computed from the values and not from states that a path carries.
        same, other = (_log_prob_of(site, v) for v in (value.clone(), changed))
        if not torch.isclose(same, other, rtol=1e-4, equal_nan=True).all():
            return "give the mask to its distribution, as in OverTime(distribution, batch.mask)"
    return None


def _log_prob_of(site: Any, value: Tensor) -> Tensor:
    """Log-probability of a value at a site, with the same dropout at each call."""
    torch.manual_seed(0)
    return log_prob_of_site({**site, "value": value})


def sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace, except plates."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(
            site["fn"], pyro.poutine.subsample_messenger._Subsample
        ):
            yield name, site


def latent_sites(
    guide_trace: Trace, model_trace: Trace, free_of_kl: bool = False
) -> Iterator[tuple[str, Any, Any, Tensor]]:
    """Name, posterior, prior and value of each latent site of the model.

    Args:
        guide_trace, model_trace: traces of one run, see :func:`trace_programs`.
        free_of_kl: whether to include sites whose two densities cancel but which the model reads.
    """
    for name, site in sample_sites(model_trace):
        if site["is_observed"] or name == "skip":
            continue
        if free_of_kl or not cancels(name, site, guide_trace):
            guide_site = guide_trace.nodes.get(name, site)
            yield name, guide_site["fn"], site["fn"], site["value"]


def step_of_site(name: str) -> int | None:
    """The step of a site of layout "steps", counted from 0: 2 for ``z_3``. None for other sites."""
    _, _, number = name.rpartition("_")
    return int(number) - 1 if number.isdecimal() else None


def log_prob_of_site(site: Any) -> Tensor:
    """Log-probability in nats, with masks applied but not scales, which are training weights."""
    log_prob: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return log_prob


def log_prob_of_data(trace: Trace, batch: SequenceBatch) -> Float[Tensor, " batch"]:
    """Log-likelihood of each sequence given the latents of the run, in nats."""
    total = torch.zeros(batch.num_sequences, device=batch.inputs.device)
    for name, site in sample_sites(trace):
        if name == "y" or name.startswith("y_"):
            total = total + log_prob_of_site(site)
    return total

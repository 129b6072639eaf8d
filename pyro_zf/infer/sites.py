"""Guide and model run once, and what is on their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from jaxtyping import Float
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
    """Inside it, densities of paths take the states that the paths carry from when they were drawn.

    That saves computing them from the values; :class:`~pyro_zf.sequence.LatentPath` says what differs.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = with_carried_states(msg["fn"])


def is_free_of_kl(site: Any) -> bool:
    """Whether a site says that model and guide draw it from one distribution."""
    return bool(site["infer"].get("free_of_kl"))


def cancels(name: str, model_site: Any, guide_trace: Trace) -> bool:
    """Whether a latent site has no part in a bound.

    The guide draws it from the model's own distribution, or leaves it to the model. A guide of your own
    that proposes it from another one has a KL to pay.
    """
    return is_free_of_kl(guide_trace.nodes.get(name, model_site))


def trace_programs(
    model: Program,
    guide: Program,
    batch: SequenceBatch,
    latents: Mapping[str, Tensor] | None = None,
    within: AbstractContextManager[Any] | None = None,
) -> tuple[Trace, Trace]:
    """Traces of the guide, and of the model with the guide's latents, or with those that are given.

    Handlers around the call do not see them, and no parameter is put into Pyro's store. Densities take the
    states that paths carry (:class:`CarriedStates`).

    Args:
        model, guide: the programs.
        batch: the sequences.
        latents: values by name of a site.
        within: a handler that both run in, such as a plate of particles.
    """
    with poutine.block(), local_parameters(), CarriedStates(), within or nullcontext():
        guide_trace = poutine.trace(guide).get_trace(batch)
        program = poutine.replay(model, trace=guide_trace)
        if latents is not None:
            program = poutine.condition(model, data=dict(latents))
        return guide_trace, poutine.trace(program).get_trace(batch)


def sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace, plates left out."""
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
        guide_trace, model_trace: of one run, see :func:`trace_programs`.
        free_of_kl: whether those too whose two densities cancel but which the model reads.
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
    """In nats; masks apply, and scales, which are weights of training, do not."""
    log_prob: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return log_prob


def log_prob_of_data(trace: Trace, batch: SequenceBatch) -> Float[Tensor, " batch"]:
    """Log-likelihood of each sequence given the latents of the run, in nats."""
    total = torch.zeros(batch.num_sequences, device=batch.inputs.device)
    for name, site in sample_sites(trace):
        if name == "y" or name.startswith("y_"):
            total = total + log_prob_of_site(site)
    return total

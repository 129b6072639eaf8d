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
from torch import Tensor

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.base import local_parameters
from pyro_zf.shared_sites import cancels

__all__ = [
    "Program",
    "latent_sites",
    "log_prob_of_data",
    "log_prob_of_site",
    "sample_sites",
    "trace_programs",
]

Program = Callable[[SequenceBatch], Any]


def trace_programs(
    model: Program,
    guide: Program,
    batch: SequenceBatch,
    latents: Mapping[str, Tensor] | None = None,
    within: AbstractContextManager[Any] | None = None,
) -> tuple[Trace, Trace]:
    """Traces of the guide, and of the model with the guide's latents, or with those that are given.

    Handlers around the call do not see them, and no parameter is put into Pyro's store.

    Args:
        model, guide: the programs.
        batch: the sequences.
        latents: values by name of a site.
        within: a handler that both run in, such as a plate of particles.
    """
    with poutine.block(), local_parameters(), within or nullcontext():
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
    guide_trace: Trace, model_trace: Trace, echoes: bool = False
) -> Iterator[tuple[str, Any, Any, Tensor]]:
    """Name, posterior, prior and value of each latent site of the model.

    Args:
        guide_trace, model_trace: of one run, see :func:`trace_programs`.
        echoes: whether those too whose two densities cancel but which the model reads.
    """
    for name, site in sample_sites(model_trace):
        if site["is_observed"] or name == "skip":
            continue
        if echoes or not cancels(name, site, guide_trace):
            guide_site = guide_trace.nodes.get(name, site)
            yield name, guide_site["fn"], site["fn"], site["value"]


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

"""Bounds for reporting: never an auxiliary cost, never a KL weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_zf.batch import SequenceBatch, with_particles
from pyro_zf.infer.fivo import owner_of, particle_filter
from pyro_zf.models.base import AUX_PREFIX, local_parameters
from pyro_zf.paths import kl_per_step
from pyro_zf.shared_sites import cancels

__all__ = ["BatchBounds", "Bounds", "Estimate", "batch_bounds", "evaluate"]

Program = Callable[[SequenceBatch], Any]


@dataclass(frozen=True)
class BatchBounds:
    """Bounds of the sequences of one batch, in nats of log-likelihood per sequence.

    ``elbo`` is ``log_likelihood - kl``; with a closed form for the KL that is the estimate of the
    papers, averaged over the samples. ``aux`` is the weighted sum of the auxiliary costs, of which
    nothing is in the bounds.
    """

    elbo: Float[Tensor, " batch"]
    iwae: Float[Tensor, " batch"]
    log_likelihood: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]
    kl_per_step: Float[Tensor, "batch time"]
    aux: Float[Tensor, " batch"]
    fivo: Float[Tensor, " batch"] | None = None


@torch.no_grad()
def batch_bounds(
    model: Program,
    guide: Program,
    batch: SequenceBatch,
    num_samples: int = 1,
    chunk: int = 25,
    fivo: bool = False,
) -> BatchBounds:
    """ELBO and IWAE of each sequence from the same ``num_samples`` latent paths.

    Args:
        model, guide: Pyro programs with sites ``z`` and ``y``, or ``z_t`` and ``y_t``.
        batch: the sequences.
        num_samples: K of the IWAE, and samples that the ELBO averages over.
        chunk: samples at a time; memory grows with it, not with ``num_samples``.
        fivo: whether to run a particle filter with as many particles too, all at a time.

    Raises:
        ValueError: if a number is below one.
        TypeError: if a filter is asked for and the programs are not those of one model; see
            :class:`~pyro_zf.infer.TraceFIVO`.
    """
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1: {num_samples}, {chunk}")
    log_sum = None
    sums: list[Tensor] = []
    for first in range(0, num_samples, chunk):
        size = min(chunk, num_samples - first)
        log_weight, parts = _particles(model, guide, batch, size)
        part = torch.logsumexp(log_weight, dim=0)
        log_sum = part if log_sum is None else torch.logaddexp(log_sum, part)
        parts = [p.sum(0) for p in parts]
        sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
    assert log_sum is not None
    log_likelihood, kl_per_step, aux = (s / num_samples for s in sums)
    kl = kl_per_step.sum(-1)
    return BatchBounds(
        elbo=log_likelihood - kl,
        iwae=log_sum - math.log(num_samples),
        log_likelihood=log_likelihood,
        kl=kl,
        kl_per_step=kl_per_step,
        aux=aux,
        fivo=particle_filter(owner_of(model, guide), batch, num_samples, weighted=False).bound
        if fivo
        else None,
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences and its standard error."""

    mean: float
    stderr: float


@dataclass
class Bounds:
    """Bounds over a data set, gathered batch by batch.

    All are nats of log-likelihood (higher is better); minus an ELBO is an upper bound of the
    negative log-likelihood. Means over sequences; the standard errors are of those means.
    """

    num_samples: int
    _values: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, batch: SequenceBatch, bounds: BatchBounds) -> None:
        """Gather the real sequences of a batch."""
        lengths = batch.lengths
        if lengths is None:
            lengths = torch.full((batch.num_sequences,), batch.num_steps)
        real = (lengths > 0).to(bounds.elbo.device)
        for name in ("elbo", "iwae", "log_likelihood", "kl", "aux", "kl_per_step", "fivo"):
            if (values := getattr(bounds, name)) is None:
                continue
            value = values[real].double().cpu()
            self._values.setdefault(name, []).append(value)
        self._values.setdefault("lengths", []).append(lengths.cpu()[lengths.cpu() > 0].double())

    @property
    def num_sequences(self) -> int:
        return sum(len(x) for x in self._values.get("lengths", []))

    @property
    def num_steps(self) -> int:
        return int(self._all("lengths").sum())

    def per_sequence(self, name: str) -> Estimate:
        """Of ``elbo``, ``iwae``, ``fivo``, ``log_likelihood``, ``kl`` or ``aux``, in nats per sequence."""
        values = self._all(name)
        spread = values.std().item() if len(values) > 1 else math.nan
        return Estimate(values.mean().item(), spread / math.sqrt(len(values)))

    def per_step(self, name: str) -> Estimate:
        """The same in nats per step: total nats over total steps (a ratio estimate)."""
        values, lengths = self._all(name), self._all("lengths")
        ratio = (values.sum() / lengths.sum()).item()
        residual = values - ratio * lengths
        spread = residual.std().item() if len(values) > 1 else math.nan
        return Estimate(ratio, spread / math.sqrt(len(values)) / lengths.mean().item())

    def kl_at_steps(self) -> list[float]:
        """KL at step 1, 2, .., averaged over the sequences that reach the step."""
        lengths = self._all("lengths")
        width = max(x.shape[1] for x in self._values["kl_per_step"])
        padded = [
            torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in self._values["kl_per_step"]
        ]
        reached = (lengths.unsqueeze(-1) > torch.arange(width)).sum(0)
        return (torch.cat(padded).sum(0) / reached.clamp(min=1)).tolist()

    def _all(self, name: str) -> Tensor:
        if not self._values:
            raise ValueError("no sequences have been evaluated")
        return torch.cat(self._values[name])


def evaluate(
    model: Program,
    guide: Program,
    batches: Iterable[SequenceBatch],
    num_samples: int = 1,
    chunk: int = 25,
    fivo: bool = False,
) -> Bounds:
    """Bounds over all sequences of ``batches``; see :func:`batch_bounds`."""
    bounds = Bounds(num_samples)
    for batch in batches:
        bounds.add(batch, batch_bounds(model, guide, batch, num_samples, chunk, fivo))
    return bounds


def _particles(
    model: Program, guide: Program, batch: SequenceBatch, size: int
) -> tuple[Tensor, list[Tensor]]:
    """Log weights (size, batch) and [log likelihood, KL of each step, auxiliary costs]."""
    plate = pyro.plate("num_particles_vectorized", size, dim=-2)
    with poutine.block(), local_parameters(), plate:
        guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
    shape = (size, batch.num_sequences)
    zero = batch.inputs.new_zeros(shape, dtype=torch.get_default_dtype())
    log_likelihood: Tensor = zero
    log_ratio: Tensor = zero
    aux: Tensor = zero
    kl_steps: list[Tensor] = []
    for name, site in _sample_sites(model_trace):
        fn, value = site["fn"], site["value"]
        # Masks apply; scales do not: that is where weights of training are.
        log_prob = scale_and_mask(fn.log_prob(value), mask=site["mask"])
        if name.startswith(AUX_PREFIX):
            aux = aux + log_prob
        elif site["is_observed"]:
            log_likelihood = log_likelihood + log_prob
        elif not cancels(name, site, guide_trace):
            guide_site = guide_trace.nodes[name]
            q: Any = guide_site["fn"]
            ratio = scale_and_mask(q.log_prob(value), mask=guide_site["mask"]) - log_prob
            log_ratio = log_ratio + ratio
            steps = scale_and_mask(kl_per_step(q, fn, value), mask=guide_site["mask"])
            steps = with_particles(steps, len(shape) + 1 - steps.dim())
            kl_steps.append(steps.expand(-1, *shape))
    kl = torch.cat(kl_steps) if kl_steps else zero.expand(batch.num_steps, *shape)
    return log_likelihood - log_ratio, [log_likelihood, kl.movedim(0, -1), aux]


def _sample_sites(trace: Trace) -> Iterable[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(
            site["fn"], pyro.poutine.subsample_messenger._Subsample
        ):
            yield name, site

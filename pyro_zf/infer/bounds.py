"""Bounds for reporting, without auxiliary costs or KL weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_zf.batch import SequenceBatch, with_particles
from pyro_zf.infer.carried import continued
from pyro_zf.infer.fivo import owner_of, particle_filter
from pyro_zf.infer.sites import (
    Program,
    cancels,
    check_padding,
    log_prob_of_site,
    sample_sites,
    step_of_site,
    trace_programs,
)
from pyro_zf.models.base import AUX_PREFIX
from pyro_zf.sequence import kl_per_step

__all__ = ["BatchBounds", "Bounds", "Estimate", "batch_bounds", "evaluate"]


@dataclass(frozen=True)
class BatchBounds:
    """Bounds on the log-likelihood of each sequence of a batch, in nats per sequence.

    ``elbo`` is ``log_likelihood - kl``; if the KL has a closed form, this is the estimate of the
    papers, averaged over the samples. ``aux`` is the weighted sum of the auxiliary costs, which the
    bounds do not include. ``end`` is the state after the last step, from which a batch that continues
    this one starts. It is the state of one sample, drawn in proportion to the importance weights, so that
    the bounds of the parts of a sequence add up to a bound on the whole. Per step, the FIVO bound is
    :math:`\\log \\hat p(y_t \\mid y_{<t})`; the IWAE bound does not decompose into steps.
    """

    elbo: Float[Tensor, " batch"]
    iwae: Float[Tensor, " batch"]
    log_likelihood: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]
    kl_per_step: Float[Tensor, "batch time"]
    aux: Float[Tensor, " batch"]
    fivo: Float[Tensor, " batch"] | None = None
    log_likelihood_per_step: Float[Tensor, "batch time"] | None = None
    fivo_per_step: Float[Tensor, "batch time"] | None = None
    end: tuple[Tensor, ...] | None = None


@torch.no_grad()
def batch_bounds(
    model: Program,
    guide: Program,
    batch: SequenceBatch,
    num_samples: int = 1,
    chunk: int = 25,
    fivo: bool = False,
    carry: bool = False,
) -> BatchBounds:
    """Compute ELBO and IWAE of each sequence from the same ``num_samples`` latent paths.

    Args:
        model, guide: Pyro programs with sites ``z`` and ``y``, or ``z_t`` and ``y_t``.
        batch: the sequences.
        num_samples: K of the IWAE, and the number of samples over which the ELBO is averaged.
        chunk: number of samples at a time; memory grows with it, not with ``num_samples``.
        fivo: whether to run a particle filter as well, with ``num_samples`` particles, all at once.
        carry: whether to return the state after the last step, for a batch that continues this one.

    Raises:
        ValueError: if a number is below one, if ``fivo`` is set and the batch has a carried state, or if a
            latent is missing in the guide or counts steps past the end of a sequence.
        TypeError: if ``fivo`` is set and the programs are not those of one model; see
            :class:`~pyro_zf.infer.TraceFIVO`.
    """
    check_padding(model, guide, batch)
    return unchecked_bounds(model, guide, batch, num_samples, chunk, fivo, carry)


@torch.no_grad()
def unchecked_bounds(
    model: Program,
    guide: Program,
    batch: SequenceBatch,
    num_samples: int = 1,
    chunk: int = 25,
    fivo: bool = False,
    carry: bool = False,
) -> BatchBounds:
    """:func:`batch_bounds` of programs that were checked on another batch."""
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1: {num_samples}, {chunk}")
    if fivo and batch.carried is not None:
        raise ValueError(
            "a particle filter cannot start from the state that another bound carried over"
        )
    log_sum = None
    sums: list[Tensor] = []
    end = None
    for first in range(0, num_samples, chunk):
        size = min(chunk, num_samples - first)
        log_weight, parts, ends = _particles(model, guide, batch, size)
        part = torch.logsumexp(log_weight, dim=0)
        if carry:
            end = _chosen_end(end, log_sum, ends, log_weight, part)
        log_sum = part if log_sum is None else torch.logaddexp(log_sum, part)
        parts = [p.sum(0) for p in parts]
        sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
    assert log_sum is not None
    at_steps, kl_per_step, kl, aux = (s / num_samples for s in sums)
    log_likelihood = at_steps.sum(-1)
    filtered = None
    if fivo:
        with _noise_of_its_own(batch.inputs.device):
            filtered = particle_filter(owner_of(model, guide), batch, num_samples, weighted=False)
    return BatchBounds(
        elbo=log_likelihood - kl,
        iwae=log_sum - math.log(num_samples),
        log_likelihood=log_likelihood,
        kl=kl,
        kl_per_step=kl_per_step,
        aux=aux,
        fivo=None if filtered is None else filtered.bound,
        log_likelihood_per_step=at_steps if at_steps.shape == kl_per_step.shape else None,
        fivo_per_step=None if filtered is None else filtered.bound_per_step,
        end=end,
    )


@contextmanager
def _noise_of_its_own(device: torch.device) -> Iterator[None]:
    """Context whose random numbers depend on the state of the generators, which is left unchanged."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, ())))
        yield


def _chosen_end(
    kept: tuple[Tensor, ...] | None,
    kept_weight: Tensor | None,
    ends: tuple[Tensor, ...] | None,
    log_weight: Float[Tensor, "samples batch"],
    total: Float[Tensor, " batch"],
) -> tuple[Tensor, ...] | None:
    """Draw one state per sequence, from this chunk or the previous ones, in proportion to the weights."""
    if ends is None or not ends:
        return ends
    size = len(log_weight)
    pick = torch.zeros_like(total, dtype=torch.long)
    if size > 1:
        pick = torch.multinomial((log_weight - total).exp().T.contiguous(), 1).squeeze(-1)
    row = torch.arange(len(total), device=total.device)
    chosen = tuple(x.expand(size, *x.shape[-2:])[pick, row] for x in ends)
    if kept is None or kept_weight is None:
        return chosen
    share = torch.exp(total - torch.logaddexp(total, kept_weight))
    new = (torch.rand_like(share) < share).unsqueeze(-1)
    return tuple(torch.where(new, c, k) for c, k in zip(chosen, kept, strict=True))


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences and its standard error, which is NaN for a single sequence."""

    mean: float
    stderr: float


@dataclass
class Bounds:
    """Bounds over a data set, accumulated batch by batch.

    All are in nats of log-likelihood (higher is better); minus an ELBO is an upper bound on the
    negative log-likelihood. Estimates are means over sequences, with their standard errors.
    """

    num_samples: int
    _values: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, batch: SequenceBatch, bounds: BatchBounds) -> None:
        """Accumulate the nonempty sequences of a batch."""
        lengths = batch.lengths
        if lengths is None:
            lengths = torch.full((batch.num_sequences,), batch.num_steps)
        real = (lengths > 0).to(bounds.elbo.device)
        for name in BatchBounds.__dataclass_fields__:
            if name == "end" or (values := getattr(bounds, name)) is None:
                continue
            value = values[real].double().cpu()
            self._values.setdefault(name, []).append(value)
        self._values.setdefault("lengths", []).append(lengths.cpu()[lengths.cpu() > 0].double())

    @staticmethod
    def joined(parts: Sequence[Bounds]) -> Bounds:
        """Combine the bounds of the parts of :func:`evaluate`, in their order, into those of all batches."""
        whole = Bounds(parts[0].num_samples)
        for name in {name: None for part in parts for name in part._values}:
            lists = [part._values.get(name, []) for part in parts]
            of_batches = itertools.chain.from_iterable(itertools.zip_longest(*lists))
            whole._values[name] = [x for x in of_batches if x is not None]
        return whole

    @property
    def num_sequences(self) -> int:
        """Number of sequences that were evaluated."""
        return sum(len(x) for x in self._values.get("lengths", []))

    @property
    def num_steps(self) -> int:
        """Number of steps of all sequences, without padding."""
        return int(self._all("lengths").sum())

    def per_sequence(self, name: str) -> Estimate:
        """Mean ``elbo``, ``iwae``, ``fivo``, ``log_likelihood``, ``kl`` or ``aux``, in nats per sequence."""
        values = self._all(name)
        spread = values.std().item() if len(values) > 1 else math.nan
        return Estimate(values.mean().item(), spread / math.sqrt(len(values)))

    def per_step(self, name: str) -> Estimate:
        """The same mean in nats per step: total nats divided by total steps (a ratio estimate)."""
        values, lengths = self._all(name), self._all("lengths")
        ratio = (values.sum() / lengths.sum()).item()
        residual = values - ratio * lengths
        spread = residual.std().item() if len(values) > 1 else math.nan
        return Estimate(ratio, spread / math.sqrt(len(values)) / lengths.mean().item())

    def at_steps(self, name: str) -> list[Estimate] | None:
        """Mean ``elbo``, ``log_likelihood``, ``kl`` or ``fivo`` at each of steps 1, 2, ..., in nats.

        Each mean is over the sequences that reach the step. None if there are no values per step.
        """
        if name == "elbo":
            if "log_likelihood_per_step" not in self._values:
                return None
            pairs = (self._values[f"{part}_per_step"] for part in ("log_likelihood", "kl"))
            values = [likelihood - kl for likelihood, kl in zip(*pairs, strict=True)]
        elif f"{name}_per_step" not in self._values:
            return None
        else:
            values = self._values[f"{name}_per_step"]
        lengths = self._all("lengths")
        width = max(x.shape[1] for x in values)
        padded = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in values])
        reached = lengths.unsqueeze(-1) > torch.arange(width)
        number = reached.sum(0)
        mean = padded.sum(0) / number.clamp(min=1)
        squares = ((padded - mean).square() * reached).sum(0)
        stderr = (squares / (number - 1) / number).sqrt()
        stderr = torch.where(number > 1, stderr, torch.nan)  # one sequence alone has no spread
        return [Estimate(*pair) for pair in zip(mean.tolist(), stderr.tolist(), strict=True)]

    def kl_at_steps(self) -> list[float]:
        """Mean KL at each of steps 1, 2, ..., over the sequences that reach the step."""
        return [estimate.mean for estimate in self.at_steps("kl") or ()]

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
    part: tuple[int, int] = (0, 1),
) -> Bounds:
    """Compute bounds over all sequences of ``batches``; see :func:`batch_bounds`.

    A batch that continues the previous one (:attr:`SequenceBatch.continues`) starts from the final
    state of the model on that batch. The noise of a batch depends on its position and on the state of
    PyTorch's generator at the start, so several processes compute the same parts as a single process.

    Args:
        model, guide, num_samples, chunk, fivo: see :func:`batch_bounds`.
        batches: the batches.
        part: (i, n) to evaluate only batches i, i + n, ..., which must not continue each other.
            :meth:`Bounds.joined` combines the results of all parts.

    Raises:
        ValueError: if a batch continues the previous one and the model returned no state.
        TypeError: if ``batches`` is a single batch.
    """
    if isinstance(batches, SequenceBatch):
        raise TypeError("batches are a list or an iterator of SequenceBatch, not one: give [batch]")
    bounds = Bounds(num_samples)
    end, checked = None, False
    seed = int(torch.randint(2**62, ()))
    for i, (batch, following) in enumerate(itertools.pairwise(itertools.chain(batches, [None]))):
        if i % part[1] != part[0]:
            continue
        assert batch is not None
        batch = continued(batch, end)
        carry = following is not None and following.continues
        device = batch.inputs.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed + i)
            if batch.lengths is not None and not checked:
                with torch.no_grad():
                    check_padding(model, guide, batch)
                checked = True
            result = unchecked_bounds(model, guide, batch, num_samples, chunk, fivo, carry)
        bounds.add(batch, result)
        end = result.end
    return bounds


def _particles(
    model: Program, guide: Program, batch: SequenceBatch, size: int
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...] | None]:
    """Log weights (size, batch), [log-likelihood and KL of each step, KL, auxiliary costs], last states."""
    plate = pyro.plate("num_particles_vectorized", size, dim=-2)
    guide_trace, model_trace = trace_programs(model, guide, batch, within=plate)
    shape = (size, batch.num_sequences)
    zero = batch.inputs.new_zeros(shape, dtype=torch.get_default_dtype())

    def expanded(steps: Tensor, mask: Any) -> Tensor:
        """Expand to (time, size, batch), with zeros where masked."""
        steps = scale_and_mask(steps, mask=mask)
        return with_particles(steps, len(shape) + 1 - steps.dim()).expand(-1, *shape)

    likelihood_steps: list[Tensor] = []
    log_ratio: Tensor = zero
    aux: Tensor = zero
    kl: Tensor = zero
    kl_steps = zero.expand(batch.num_steps, *shape)
    for name, site in sample_sites(model_trace):
        fn, value = site["fn"], site["value"]
        if site["is_observed"] and not name.startswith(AUX_PREFIX):
            steps = (
                fn.log_prob_per_step(value)
                if hasattr(fn, "log_prob_per_step")
                else fn.log_prob(value).unsqueeze(0)
            )
            likelihood_steps.append(expanded(steps, site["mask"]))
            continue
        log_prob = log_prob_of_site(site)
        if name.startswith(AUX_PREFIX):
            aux = aux + log_prob
        elif not cancels(name, site, guide_trace):
            guide_site = guide_trace.nodes[name]
            q: Any = guide_site["fn"]
            log_ratio = log_ratio + (log_prob_of_site(guide_site) - log_prob)
            of_site = expanded(kl_per_step(q, fn, value), guide_site["mask"])
            kl = kl + of_site.sum(0)
            if len(of_site) == batch.num_steps and (batch.num_steps > 1 or step_of_site(name) != 0):
                kl_steps = kl_steps + of_site
            elif (t := step_of_site(name)) is not None:
                # A latent of a single step; a latent of the whole sequence has no step.
                at_step = torch.zeros_like(kl_steps)
                at_step[t] = of_site[0]
                kl_steps = kl_steps + at_step
    likelihood = torch.cat(likelihood_steps) if likelihood_steps else zero.unsqueeze(0)
    parts = [likelihood.movedim(0, -1), kl_steps.movedim(0, -1), kl, aux]
    return likelihood.sum(0) - log_ratio, parts, model_trace.nodes["_RETURN"]["value"]

r"""Diagnostics of whether a model uses its latents or whether they have collapsed.

The prior of a recurrent model is conditioned on the past, so a latent can differ between sequences
without adding any information. What z *adds* to the past is its standardised deviation from the prior,

.. math::
    \epsilon_t = (z_t - \mu^{(p)}_t) / \sigma^{(p)}_t,

which is :math:`\mathcal N(0, I)` under the prior and independent of everything before it. Active units
and mutual information are computed for :math:`\epsilon`. Under a standard normal prior
:math:`\epsilon = z`, and they are the quantities of Burda et al. 2016 and of Hoffman and Johnson 2016.
A model that ignores its latents has no active units and no mutual information, whatever its prior is
conditioned on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pyro_zf.analysis.decoding import unmasked
from pyro_zf.analysis.information import mutual_information
from pyro_zf.batch import SequenceBatch, masked
from pyro_zf.infer.sites import latent_sites, log_prob_of_data, step_of_site, trace_programs
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.nn.auxiliary import StateReconstruction
from pyro_zf.sequence import PriorPath, kl_per_step

__all__ = ["ACTIVE_ABOVE", "AuxiliaryGain", "Diagnostics", "diagnose"]

#: Variance of the mean deviation above which a unit is active (Burda et al. 2016, section 5.2).
ACTIVE_ABOVE = 0.01


@dataclass(frozen=True)
class AuxiliaryGain:
    """How well z predicts a state, in nats per step.

    Args:
        nats: negative log-density of the state given z under the network of the auxiliary cost.
        marginal_nats: negative log-density under a single Gaussian for all steps, fitted to the states
            of the same sequences. It measures what is known without z.
    """

    nats: float
    marginal_nats: float

    @property
    def gain(self) -> float:
        """Information that z gives about the state; zero or less if it gives none."""
        return self.marginal_nats - self.nats


@dataclass(frozen=True, repr=False)
class Diagnostics:
    r"""Information carried by z, from one posterior sample per sequence. Unknown values are None.

    Args:
        num_sequences: number of sequences that were diagnosed.
        latent_size: number of units of z.
        kl: KL divergence in nats per sequence.
        kl_at_steps: KL in nats at step 1, 2, .., averaged over the sequences that reach the step. If a
            custom guide samples the whole path from one non-Gaussian distribution, all of the KL is
            reported at step 1.
        kl_by_unit: KL of each unit in nats per sequence. Known for Gaussian priors and posteriors.
        active_units: number of units whose mean deviation varies between sequences, with a variance
            (within steps, pooled over steps) above :data:`ACTIVE_ABOVE`. The variance is estimated as the
            covariance of the means along two independent paths, in which the noise of the paths cancels.
            Known for priors and posteriors with moments.
        mutual_information: :func:`~pyro_zf.analysis.mutual_information` in nats.
        mutual_information_limit: upper bound of that estimate.
        aux: gain for each active auxiliary cost that reconstructs a state.
        shuffled_loss: log-likelihood, in nats per sequence, that the model loses when it is given the z
            of another sequence.
        shuffled_loss_stderr: standard error of ``shuffled_loss``.
        overlap: Bhattacharyya coefficient of posterior and prior, averaged over units and steps: 1 if
            they are equal, 0 if they are disjoint. Known for Gaussians.
    """

    num_sequences: int
    latent_size: int
    kl: float
    kl_at_steps: list[float]
    shuffled_loss: float
    shuffled_loss_stderr: float
    kl_by_unit: list[float] | None = None
    active_units: int | None = None
    mutual_information: float | None = None
    mutual_information_limit: float | None = None
    aux: dict[str, AuxiliaryGain] = field(default_factory=dict)
    overlap: float | None = None

    def __repr__(self) -> str:
        lines = [f"diagnosis of {self.num_sequences} sequences: {self.verdict()}"]
        for name, value in self.numbers().items():
            if isinstance(value, (int, float)):
                lines.append(
                    f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}"
                )
        return "\n".join(lines)

    @property
    def collapsed(self) -> bool:
        """Whether both the KL and the shuffled loss are below a tenth of a nat."""
        return self.kl < 0.1 and self.shuffled_loss < 0.1

    def numbers(self) -> dict[str, Any]:
        """Values as plain types, under names that include the unit. Unknown values are None."""
        numbers: dict[str, Any] = {
            "diagnosed_sequences": self.num_sequences,
            "latent_units": self.latent_size,
            "active_units": self.active_units,
            "mutual_information_nats": self.mutual_information,
            "mutual_information_nats_at_most": self.mutual_information_limit,
            "shuffled_loss_nats_per_sequence": self.shuffled_loss,
            "shuffled_loss_nats_per_sequence_stderr": self.shuffled_loss_stderr,
            "posterior_prior_overlap": self.overlap,
        }
        for name, gain in self.aux.items():
            numbers[f"{name}_given_z_nats_per_step"] = gain.nats
            numbers[f"{name}_marginal_nats_per_step"] = gain.marginal_nats
        if self.kl_by_unit is not None:
            numbers["kl_nats_by_unit"] = [round(x, 5) for x in self.kl_by_unit]
        return numbers

    def verdict(self, unit: str = "sequence") -> str:
        """One-line summary."""
        active = ""
        if self.active_units is not None:
            active = f"; {self.active_units} of {self.latent_size} units active"
        verb = "gains" if self.shuffled_loss <= -0.05 else "loses"
        gains = "".join(
            f"; z improves the prediction of {name} by {max(gain.gain, 0.0):.1f} nats per step"
            for name, gain in self.aux.items()
        )
        return (
            f"{'the latents have collapsed: ' if self.collapsed else ''}z carries about "
            f"{max(self.kl, 0.0):.1f} nats per {unit}{active}; the decoder {verb} "
            f"{abs(self.shuffled_loss):.1f} nats when z is shuffled{gains}"
        )


@torch.no_grad()
def diagnose(
    model: LatentSequenceModel, batches: Iterable[SequenceBatch], num_pairs: int = 32
) -> Diagnostics:
    """Diagnose the latents of a model on given sequences.

    Args:
        model: the model, in evaluation mode. A custom guide is diagnosed as it is.
        batches: the sequences, at least two per batch, each from its first step.
        num_pairs: number of sequences used for the mutual information, which compares all pairs.

    Raises:
        ValueError: if there are no sequences.
    """
    statistics: list[_BatchStatistics] = []
    information, limit = None, None
    for batch in batches:
        if not statistics:
            few = batch.first(num_pairs)
            information, limit = mutual_information(model, few), math.log(few.num_sequences)
        statistics.append(_statistics_of(model, batch))
    if not statistics:
        raise ValueError("there are no sequences to diagnose")
    steps = max(len(one_batch.kl) for one_batch in statistics)

    def joined(values: Iterable[Tensor]) -> Tensor:
        return torch.cat([_padded(x, steps) for x in values], dim=1)

    reached = joined(one_batch.reached for one_batch in statistics)
    real = reached.any(0)
    number = int(real.sum())
    kl = joined(one_batch.kl for one_batch in statistics)
    whole = torch.cat([one_batch.kl_of_sequence for one_batch in statistics])
    lost = torch.cat([one_batch.lost for one_batch in statistics])[real]
    known = [one_batch.units for one_batch in statistics if one_batch.units is not None]
    active, by_unit, overlap = None, None, None
    if len(known) == len(statistics):
        one, another = (joined(getattr(u, n) for u in known) for n in ("deviation", "another"))
        active = int((_covariance_within_steps(one, another, reached) > ACTIVE_ABOVE).sum())
        kl_of_units = [units.kl for units in known if units.kl is not None]
        overlaps = [units.overlap for units in known if units.overlap is not None]
        if kl_of_units and overlaps:
            by_unit = (joined(kl_of_units)[reached].sum(0) / number).tolist()
            overlap = joined(overlaps)[reached].mean().item()
    aux: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for one_batch in statistics:
        for name, part in one_batch.states.items():
            aux.setdefault(name, []).append(part)
    return Diagnostics(
        num_sequences=number,
        latent_size=sum(
            x.size for x in model.latents.values() if x.per == "step" and x.posterior is not None
        ),
        kl=(kl.sum() + whole.sum()).item() / number,
        kl_at_steps=(kl.sum(1) / reached.sum(1).clamp(min=1)).tolist(),
        shuffled_loss=lost.mean().item(),
        shuffled_loss_stderr=lost.std().item() / math.sqrt(number) if number > 1 else math.nan,
        kl_by_unit=by_unit,
        active_units=active,
        mutual_information=information,
        mutual_information_limit=None if information is None else limit,
        aux={name: _gain(parts) for name, parts in aux.items()},
        overlap=overlap,
    )


class _Units(NamedTuple):
    """Statistics of each unit at each step, (time, batch, latent); None without a closed form.

    ``another`` holds the mean deviations along a second path.
    """

    deviation: Tensor
    another: Tensor
    kl: Tensor | None
    overlap: Tensor | None


class _BatchStatistics(NamedTuple):
    """Statistics of a batch: (time, batch, ..) per step, and (batch,) per sequence."""

    kl: Tensor
    kl_of_sequence: Tensor
    reached: Tensor
    lost: Tensor
    units: _Units | None
    states: dict[str, tuple[Tensor, Tensor]]


def _statistics_of(model: LatentSequenceModel, batch: SequenceBatch) -> _BatchStatistics:
    """Run guide and model, and run the model again with the latents of other sequences."""
    reached = batch.inputs.new_ones((batch.num_steps, batch.num_sequences), dtype=torch.bool)
    if batch.mask is not None:
        reached = batch.mask.T
    with model.using_layout("time"):
        guide_trace, model_trace = trace_programs(model.model, model.guide, batch)
        values = {
            name: z for name, _, _, z in latent_sites(guide_trace, model_trace, free_of_kl=True)
        }
        data = {name: _of_others(model, name, z, reached) for name, z in values.items()}
        _, shuffled = trace_programs(model.model, model.guide, batch, data)
        again = trace_programs(model.model, model.guide, batch)
    kl = torch.zeros(reached.shape, device=reached.device)
    of_sequence = torch.zeros(reached.shape[1], device=reached.device)
    units: list[_Units | None] = []
    states: dict[str, tuple[Tensor, Tensor]] = {}
    sites, others = latent_sites(guide_trace, model_trace), latent_sites(*again)
    for (name, q, p, z), (_, *other) in zip(sites, others, strict=True):
        of_site = kl_per_step(q, p, z)
        if name in model.latents and model.latents[name].per == "sequence":
            of_sequence = of_sequence + of_site[0] * reached.any(0)
            continue
        found = _units(_moments(q, p, z), _moments(*other))
        units.append(found)
        if len(of_site) < len(reached):  # a custom guide gives one value for the whole path
            closed = None if found is None else found.kl
            of_site = _padded(of_site, len(reached)) if closed is None else closed.sum(-1)
        kl = kl + masked(of_site, reached)
        if isinstance(p, PriorPath):
            states = dict(_reconstructions(model, p, reached))
    lost = log_prob_of_data(model_trace, batch) - log_prob_of_data(shuffled, batch)
    return _BatchStatistics(kl, of_sequence, reached, lost, _joined(units), states)


def _of_others(
    model: LatentSequenceModel, name: str, z: Tensor, reached: Bool[Tensor, "time batch"]
) -> Tensor:
    """Replace each sequence's latent by that of the previous sequence in the batch, until that ends."""
    step = step_of_site(name)
    if name in model.latents and model.latents[name].per == "sequence":
        alive = reached.any(0)
    else:
        alive = reached.T if step is None else reached[step]
    return torch.where((alive & alive.roll(1, 0)).unsqueeze(-1), z.roll(1, 0), z)


class _Moments(NamedTuple):
    """Means and scales of posterior and prior, (time, batch, latent); whether both are Gaussian."""

    q_mean: Tensor
    q_scale: Tensor
    p_mean: Tensor
    p_scale: Tensor
    gaussian: bool

    @property
    def deviation(self) -> Tensor:
        """Mean of the standardised deviation from the prior."""
        return (self.q_mean - self.p_mean) / self.p_scale


def _moments(q: Any, p: Any, z: Tensor) -> _Moments | None:
    """Moments of posterior and prior; None if either has no moments."""
    of_q, of_p = _mean_and_scale(q, z), _mean_and_scale(p, z)
    if of_q is None or of_p is None:
        return None
    return _Moments(*of_q[:2], *of_p[:2], of_q[2] and of_p[2])


def _mean_and_scale(distribution: Any, z: Tensor) -> tuple[Tensor, Tensor, bool] | None:
    """Mean and scale, (time, batch, latent), and whether it is Gaussian; None without moments."""
    whole = hasattr(distribution, "conditionals")  # covers all steps, not one
    steps = unmasked(distribution.conditionals(z) if whole else distribution)
    try:
        mean, scale = steps.mean, steps.stddev
    except NotImplementedError:
        return None
    gaussian = isinstance(steps, Independent) and isinstance(steps.base_dist, Normal)
    if whole:
        return mean, scale, gaussian
    if len(steps.event_shape) == 2:  # a custom guide whose steps are independent of each other
        return mean.movedim(-2, 0), scale.movedim(-2, 0), gaussian
    return mean.unsqueeze(0), scale.unsqueeze(0), gaussian


def _units(along: _Moments | None, another: _Moments | None) -> _Units | None:
    """Unit statistics from the moments along two paths."""
    if along is None or another is None:
        return None
    deviations = along.deviation, another.deviation
    if not along.gaussian:
        return _Units(*deviations, None, None)
    q_mean, q_scale, p_mean, p_scale, _ = along
    kl = kl_divergence(Normal(q_mean, q_scale), Normal(p_mean, p_scale))
    variances = q_scale.square() + p_scale.square()
    coefficient = torch.sqrt(2 * q_scale * p_scale / variances)
    overlap = coefficient * torch.exp(-0.25 * (q_mean - p_mean).square() / variances)
    return _Units(*deviations, kl, overlap)


def _joined(units: list[_Units | None]) -> _Units | None:
    """Concatenate the units of several latents."""
    known = [u for u in units if u is not None]
    if not known or len(known) < len(units):
        return None
    closed = all(u.kl is not None for u in known)
    return _Units(
        torch.cat([u.deviation for u in known], -1),
        torch.cat([u.another for u in known], -1),
        torch.cat([u.kl for u in known if u.kl is not None], -1) if closed else None,
        torch.cat([u.overlap for u in known if u.overlap is not None], -1) if closed else None,
    )


def _covariance_within_steps(
    values: Float[Tensor, "time batch latent"],
    others: Float[Tensor, "time batch latent"],
    reached: Bool[Tensor, "time batch"],
) -> Float[Tensor, " latent"]:
    """Covariance over the sequences that reach each step, pooled over steps."""
    weight = reached.unsqueeze(-1).to(values.dtype)
    count = weight.sum(1, keepdim=True)

    def centred(x: Tensor) -> Tensor:
        return (x - (x * weight).sum(1, keepdim=True) / count.clamp(min=1)) * weight

    products = (centred(values) * centred(others)).sum((0, 1))
    return products / (count - 1).clamp(min=0).sum().clamp(min=1)


def _reconstructions(
    model: LatentSequenceModel, prior: PriorPath, reached: Bool[Tensor, "time batch"]
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Log-density and target at the real steps for each cost that reconstructs a state."""
    costs = {
        name: cost
        for name, cost in model.active_aux().items()
        if isinstance(cost, StateReconstruction)
    }
    if costs:
        states = prior.run.step_states()
        for name, cost in costs.items():
            yield name, (cost(states)[reached], cost.target(states)[reached])


def _gain(parts: list[tuple[Tensor, Tensor]]) -> AuxiliaryGain:
    log_prob = torch.cat([part[0] for part in parts])
    target = torch.cat([part[1] for part in parts])
    # Entropy of the best-fitting Gaussian. Its scale has the same lower bound as that of the networks.
    scale = target.std(0, correction=0).clamp(min=math.exp(-7.0))
    marginal = Normal(target.mean(0), scale).log_prob(target).sum(-1)
    return AuxiliaryGain(-log_prob.mean().item(), -marginal.mean().item())


def _padded(values: Tensor, steps: int) -> Tensor:
    """Pad the time dimension, which comes first, with zeros up to ``steps``."""
    rest = values.new_zeros(steps - len(values), *values.shape[1:])
    return torch.cat([values, rest]) if len(rest) else values

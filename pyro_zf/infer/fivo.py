"""The filtering bound, computed by a particle filter with resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor

from pyro_zf.batch import SequenceBatch, masked
from pyro_zf.distributions.noise import uniform
from pyro_zf.infer.objectives import TraceIWAE
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.nn import join
from pyro_zf.nn.auxiliary import StepStates
from pyro_zf.nn.cells import State
from pyro_zf.sequence import Latent, Recurrence, at_steps, detach_where, unroll

__all__ = ["FilterResult", "TraceFIVO", "owner_of", "particle_filter"]


class FilterResult(NamedTuple):
    """Result of a particle filter, in nats per sequence; ``aux`` is not part of the bound."""

    bound: Float[Tensor, " batch"]
    aux: Float[Tensor, " batch"]
    bound_per_step: Float[Tensor, "batch time"]


class TraceFIVO(TraceIWAE):
    r"""The filtering variational objective (Maddison et al. 2017, https://arxiv.org/abs/1705.09279)

    .. math::
        \sum_t \log \sum_k w_{t-1}^k \,
        \frac{p(y_t \mid h_t^k)\, p(z_t^k \mid h_{t-1}^k)}{q(z_t^k \mid h_{t-1}^k, b_t)}

    with normalised weights w and K particles, which are resampled when the weights of a sequence
    become uneven. For long sequences the bound approaches :math:`\log p(y)` faster with K than the
    importance-weighted bound, which needs K exponential in T. The gradient omits the choice of
    ancestors, as in the paper. Auxiliary costs are averaged over the particles of each step and are not
    part of the bound.

    The objective advances model and guide together, one step at a time, so it requires the programs of
    one :class:`~pyro_zf.models.LatentSequenceModel`. Either layout works, since only the declaration of
    the system is used. To use a custom guide, pass it to the model as the posterior.

    Args:
        num_particles: K.
        max_plate_nesting: as for :class:`TraceIWAE`.
        resample_below: effective sample size, as a fraction of K, below which the particles of a
            sequence are resampled (systematically). With 0 they never are, and the bound is that of
            the IWAE.

    Raises:
        TypeError: if the programs are not those of one such model.
        ValueError: if a number is out of range, or the posterior is not reparametrised.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch, VRNN
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> loss = vrnn.loss_module(TraceFIVO(num_particles=5))
        >>> loss(SequenceBatch.from_targets(torch.ones(3, 5, 4))).shape
        torch.Size([])
    """

    def __init__(
        self, num_particles: int = 4, max_plate_nesting: int = 1, resample_below: float = 0.5
    ) -> None:
        super().__init__(num_particles, max_plate_nesting)
        if not 0 <= resample_below <= 1:
            raise ValueError(f"resample_below is a fraction of K in 0..1, not {resample_below}")
        self.resample_below = resample_below

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Negative bound minus the auxiliary costs, summed over sequences, in nats."""
        owner = owner_of(model, guide)
        (batch,) = args
        owner.check(batch)
        result = particle_filter(owner, batch, self.num_particles, self.resample_below)
        return -(result.bound + result.aux).sum()


def owner_of(model: Callable, guide: Callable) -> LatentSequenceModel:
    """The model to which both programs belong.

    Raises:
        TypeError: if there is no such model.
    """
    owner = getattr(model, "__self__", None)
    if (
        not isinstance(owner, LatentSequenceModel)
        or guide != owner.guide
        or not owner.programs_are_derived
    ):
        raise TypeError(
            "FIVO moves model and guide forward together, as the system declares them: give it the "
            ".model and .guide of one LatentSequenceModel without programs of its own for layout 'time' "
            "(a posterior of your own is an option of its constructor)"
        )
    return owner


def particle_filter(
    model: LatentSequenceModel,
    batch: SequenceBatch,
    num_particles: int,
    resample_below: float = 0.5,
    weighted: bool = True,
) -> FilterResult:
    """Run a particle filter on each sequence, with the posterior of the model as the proposal.

    Args:
        model: the model.
        batch: sequences with targets.
        num_particles: K.
        resample_below: see :class:`TraceFIVO`.
        weighted: whether to apply the KL weight of training; without it, the result bounds the
            log-likelihood.

    Raises:
        ValueError: if gradients are enabled and the posterior is not reparametrised, or if latents are
            not drawn from the posterior.
    """
    assert batch.targets is not None, "a filter needs observations"
    if model.latent_source != "posterior":
        raise ValueError("a particle filter draws from the posterior, not from the prior")
    kl_weight = model.kl_weight if weighted else 1.0
    shape = (num_particles, batch.num_sequences)
    like = next(model.parameters())  # in full precision, also under autocast
    ratios: list[Tensor] = []  # kl_weight * log(p / q) of each latent of a step

    def drawn(latent: Latent, *inputs: Tensor) -> Tensor:
        """Draw a latent from its posterior, or from its prior if it has no posterior."""
        x, *context = inputs
        if latent.posterior is None:
            value: Tensor = latent.prior(x)()
            return value
        q = latent.posterior(x, context[0].expand(*x.shape[:-1], -1))
        if torch.is_grad_enabled() and not q.has_rsample:
            raise ValueError("FIVO needs a posterior whose samples are reparametrised")
        value = q()
        ratios.append(kl_weight * (latent.prior(x).log_prob(value) - q.log_prob(value)))
        return value

    # Latents of the whole sequence are drawn first and determine the initial weights of the particles.
    run = Recurrence(model, batch)
    given: dict[str, Tensor] = {}
    for name, latent in model.latents.items():
        if latent.per == "sequence":
            x = model.sequence_features(batch).expand(*shape, -1)
            given[name] = drawn(latent, x, run.b[0])
    log_weight = like.new_full(shape, -math.log(num_particles))
    if ratios:
        real = None if batch.lengths is None else batch.lengths > 0
        log_weight = log_weight + _where(real, sum(ratios, like.new_zeros(shape)))
    carried_over: Any = torch.logsumexp(log_weight, dim=0)  # log of the sum of the initial weights
    log_weight = log_weight - carried_over

    with poutine.block(), model.sequences(batch):
        run.mask_gradients(model.gradient_mask(batch))
    skip, cov = (
        at_steps(x, batch.num_steps) for x in (run.gradient_mask, batch.covariates_over_time)
    )
    context = run.context.unbind(0)
    b = at_steps(run.b if model.reads_backward_states else None, batch.num_steps)
    steps_mask = at_steps(run.step_mask, batch.num_steps)
    u, y = run.u.unbind(0), batch.targets.unbind(1)
    costs = model.active_aux()
    bounds: list[Tensor] = []
    aux: Any = like.new_zeros(batch.num_sequences)
    values: dict[str, Tensor] = {}

    def conditioned(x: Tensor, t: int) -> Tensor:
        """Concatenate features with the covariates and the sequence latents of each particle."""
        return join(x, cov[t], *given.values())

    def choose(t: int, h: Tensor) -> Tensor:
        ratios.clear()
        values.clear()
        known = {"state": detach_where(skip[t], h), "input": detach_where(skip[t], u[t])}
        for name, latent in run.step_latents.items():
            x = conditioned(latent.features({**values, **known}, None), t)
            values[name] = drawn(latent, x, detach_where(skip[t], context[t]))
        return model.cell_inputs(values)

    def then(t: int, h_before: Tensor, state: State) -> State:
        nonlocal log_weight, aux
        emission = model.emission(conditioned(model.emission_inputs(u[t], values, state[0]), t))
        increment = emission.log_prob(y[t]) + sum(ratios)
        for name, cost in costs.items():
            if t > 0 or not (cost.skips_start_symbol and batch.has_start_symbol):
                c_t = join(cov[t], *given.values()) if given else cov[t]
                states = StepStates(
                    batch.clean_inputs[:, t], values["z"], h_before, state[0], b[t], c_t
                )
                log_prob = model.weighted_aux(name, states)
                aux = aux + _where(steps_mask[t], log_prob.expand(shape)).mean(0)
        log_weight = log_weight + _where(steps_mask[t], increment)
        total = torch.logsumexp(log_weight, dim=0)
        # Past the end of a sequence nothing is added; the weights sum to one up to rounding.
        bounds.append(_where(steps_mask[t], total.unsqueeze(0))[0])
        log_weight = log_weight - total
        if resample_below <= 0 or t + 1 == batch.num_steps:
            return state
        ancestors, uneven = _ancestors(log_weight.detach(), resample_below)
        log_weight = torch.where(uneven, -math.log(num_particles), log_weight)
        given.update({k: _chosen(x, ancestors) for k, x in given.items()})
        return tuple(_chosen(s, ancestors) for s in state)

    start = model.cell.initial(shape, run.cell_start)
    inputs = (conditioned(u_t, t) for t, u_t in enumerate(u))
    unroll(model.cell, inputs, start, choose, then)
    per_step = torch.stack(bounds, dim=1)
    first = torch.zeros_like(per_step)
    first[:, 0] = carried_over
    per_step = per_step + first
    return FilterResult(per_step.sum(1), aux, per_step)


def _where(mask: Tensor | None, values: Tensor) -> Tensor:
    return values if mask is None else masked(values.unsqueeze(0), mask.unsqueeze(0))[0]


def _ancestors(
    log_weight: Float[Tensor, "particles batch"], resample_below: float
) -> tuple[Int[Tensor, "particles batch"], Tensor]:
    """Ancestor of each particle (itself if the weights are even enough), and a mask of uneven sequences."""
    number = len(log_weight)
    weight = log_weight.exp()
    uneven = 1.0 / weight.square().sum(0) < resample_below * number * (1 - 1e-9)
    points = uniform((log_weight.shape[1], 1), weight)
    points = (points + torch.arange(number, device=weight.device, dtype=weight.dtype)) / number
    edges = weight.T.cumsum(-1).contiguous()
    drawn = torch.searchsorted(edges, points, right=True).clamp(max=number - 1).T
    own = torch.arange(number, device=weight.device).unsqueeze(-1)
    return torch.where(uneven, drawn, own), uneven


def _chosen(values: Tensor, ancestors: Int[Tensor, "particles batch"]) -> Tensor:
    index = ancestors.unsqueeze(-1).expand(*ancestors.shape, values.shape[-1])
    return values.expand(*ancestors.shape, -1).gather(0, index)

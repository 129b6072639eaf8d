"""The filtering bound: a particle filter whose particles are resampled along the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_zf.batch import SequenceBatch, masked
from pyro_zf.cores import shielded
from pyro_zf.infer.objectives import TraceIWAE
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.nn.auxiliary import StepStates

__all__ = ["FilterResult", "TraceFIVO", "owner_of", "particle_filter"]


class FilterResult(NamedTuple):
    """What a particle filter gives, in nats per sequence; ``aux`` is no part of the bound."""

    bound: Float[Tensor, " batch"]
    aux: Float[Tensor, " batch"]
    bound_per_step: Float[Tensor, "batch time"]


class TraceFIVO(TraceIWAE):
    r"""The filtering variational objective (Maddison et al. 2017, https://arxiv.org/abs/1705.09279)

    .. math::
        \sum_t \log \sum_k w_{t-1}^k \,
        \frac{p(y_t \mid h_t^k)\, p(z_t^k \mid h_{t-1}^k)}{q(z_t^k \mid h_{t-1}^k, b_t)}

    with normalised weights w, and K particles that are resampled where the weights of a sequence
    have become uneven. It rises to :math:`\log p(y)` with K faster than the importance-weighted
    bound where sequences are long: that one needs K exponential in T. The gradient leaves out the
    choice of ancestors, as in the paper. Auxiliary costs are averaged over the
    particles of each step, beside the bound.

    It moves model and guide forward together, one step at a time, so it takes the programs of a
    :class:`~pyro_zf.models.LatentSequenceModel`, in whatever layout, and not other ones. A guide of
    your own goes in as its posterior.

    Args:
        num_particles: K.
        max_plate_nesting: as for :class:`TraceIWAE`.
        resample_below: effective number of particles, as a fraction of K, below which those of a
            sequence are resampled (systematically). 0 is never: then the bound is the IWAE's.

    Raises:
        TypeError: for other programs.
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
        """Minus the bound and minus the auxiliary costs, summed over sequences, in nats."""
        owner = owner_of(model, guide)
        owner._register()
        (batch,) = args
        result = particle_filter(owner, batch, self.num_particles, self.resample_below)
        return -(result.bound + result.aux).sum()


def owner_of(model: Callable, guide: Callable) -> LatentSequenceModel:
    """The model that both programs are of.

    Raises:
        TypeError: if there is none.
    """
    owner = getattr(model, "__self__", None)
    if (
        not isinstance(owner, LatentSequenceModel)
        or guide != owner.guide
        or any(getattr(type(owner), name) is not program for name, program in _PROGRAMS.items())
    ):
        raise TypeError(
            "FIVO moves model and guide forward together: give it the .model and .guide of one "
            "LatentSequenceModel with programs of the package (a posterior of your own is an option "
            "of its constructor)"
        )
    return owner


#: The filter below is another writing of these; it knows nothing of what overrides them.
_PROGRAMS: dict[str, Any] = {
    name: getattr(LatentSequenceModel, name)
    for name in (
        "model", "guide", "_model_steps", "_model_time", "_guide_steps", "_guide_time"
    )
}  # fmt: skip


def particle_filter(
    model: LatentSequenceModel,
    batch: SequenceBatch,
    num_particles: int,
    resample_below: float = 0.5,
    weighted: bool = True,
) -> FilterResult:
    """Filter each sequence with particles that are proposed by the model's posterior.

    Args:
        model: the model.
        batch: sequences with targets.
        num_particles: K.
        resample_below: see :class:`TraceFIVO`.
        weighted: whether the KL weight of training applies; without it the bound is one of the
            log-likelihood.

    Raises:
        ValueError: if the posterior is to be differentiated and is not reparametrised.
    """
    assert batch.targets is not None, "a filter needs observations"
    kl_weight = model.kl_weight if weighted else 1.0
    recurrence = model._recurrence(batch)
    posterior, contexts = model._posterior(recurrence)
    prior, transition, costs = model._prior(), model.transition, model._active_aux()
    skips: Any = [None] * batch.num_steps
    if (coins := model.skip_mask(batch)) is not None:
        skips = coins.expand((batch.num_sequences,))().movedim(-1, 0).unsqueeze(-1).unbind(0)
    b: Any = [None] * batch.num_steps
    if any(cost.reads_backward for cost in costs.values()):
        b = recurrence.b.unbind(0)
    mask: Any = [None] * batch.num_steps if batch.mask is None else batch.mask.unbind(1)
    u, y = batch.clean_inputs.unbind(1), batch.targets.unbind(1)

    shape = (num_particles, batch.num_sequences)
    step, start = transition.stepper(), recurrence.start
    state = transition.initial(shape, start.state)
    read = None if start.read is None else start.read.expand(*shape, -1)
    like = next(model.parameters())  # of full precision, under autocast too
    log_weight = like.new_full(shape, -math.log(num_particles))  # normalised over particles
    bounds: list[Tensor] = []
    aux: Any = like.new_zeros(batch.num_sequences)
    steps = zip(model._stepwise(recurrence.inputs), contexts.unbind(0), strict=True)
    for t, ((u_t, projected), context) in enumerate(steps):
        if transition.lag:
            state = step(projected, model._read_before(read, state), state)
        h_prev = state[0]
        x = shielded(transition.seen(u_t, h_prev), skips[t])
        q = posterior(x, shielded(context, skips[t]).expand(*x.shape[:-1], -1))
        if torch.is_grad_enabled() and not q.has_rsample:
            raise ValueError("FIVO needs a posterior whose samples are reparametrised")
        z = q()
        ratio = prior(x).log_prob(z) - q.log_prob(z)
        b_tilde = None if model.echo is None else model.echo(z)()
        read = model.embed_latent(z, b_tilde)
        if not transition.lag:
            state = step(projected, read, state)
        emission = model.emission(transition.output(u_t, read, state[0]))
        increment = emission.log_prob(y[t]) + kl_weight * ratio
        for name, cost in costs.items():
            if t > 0 or not (cost.skips_start_symbol and batch.has_start_symbol):
                log_prob = model._aux_cost(name, StepStates(u[t], z, h_prev, state[0], b[t]))
                aux = aux + _where(mask[t], log_prob.expand(shape)).mean(0)
        log_weight = log_weight + _where(mask[t], increment)
        total = torch.logsumexp(log_weight, dim=0)
        bounds.append(total)
        log_weight = log_weight - total
        if resample_below > 0 and t + 1 < batch.num_steps:
            ancestors, uneven = _ancestors(log_weight.detach(), resample_below)
            log_weight = torch.where(uneven, -math.log(num_particles), log_weight)
            state = tuple(_chosen(s, ancestors) for s in state)
            read = _chosen(read, ancestors)
    per_step = torch.stack(bounds, dim=1)
    return FilterResult(per_step.sum(1), aux, per_step)


def _where(mask: Tensor | None, values: Tensor) -> Tensor:
    return values if mask is None else masked(values.unsqueeze(0), mask.unsqueeze(0))[0]


def _ancestors(
    log_weight: Float[Tensor, "particles batch"], resample_below: float
) -> tuple[Int[Tensor, "particles batch"], Tensor]:
    """Each particle's ancestor, itself where the weights are even enough; and where they are not."""
    number = len(log_weight)
    weight = log_weight.exp()
    uneven = 1.0 / weight.square().sum(0) < resample_below * number * (1 - 1e-9)
    points = torch.rand(log_weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
    points = (points + torch.arange(number, device=weight.device, dtype=weight.dtype)) / number
    edges = weight.T.cumsum(-1).contiguous()
    drawn = torch.searchsorted(edges, points, right=True).clamp(max=number - 1).T
    own = torch.arange(number, device=weight.device).unsqueeze(-1)
    return torch.where(uneven, drawn, own), uneven


def _chosen(values: Tensor, ancestors: Int[Tensor, "particles batch"]) -> Tensor:
    index = ancestors.unsqueeze(-1).expand(*ancestors.shape, values.shape[-1])
    return values.expand(*ancestors.shape, -1).gather(0, index)

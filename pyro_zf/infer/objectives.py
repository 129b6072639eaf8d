"""Objectives: Pyro's evidence lower bounds without host synchronisation, and an IWAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_zf.batch import masked
from pyro_zf.infer.sites import CarriedStates, cancels, check_sites, is_free_of_kl
from pyro_zf.models.base import AUX_PREFIX
from pyro_zf.sequence import LatentPath, kl_per_step

__all__ = ["TraceIWAE", "TraceMeanField_ELBO", "Trace_ELBO"]


class Trace_ELBO(pyro.infer.Trace_ELBO):
    """:class:`pyro.infer.Trace_ELBO` with a differentiable loss that never waits for the device.

    The base class reads one number per site (``.item()``) and recomputes the states along a path from its
    values instead of using the states that the path carries. The value and the gradient are the same. A
    guide with sites that are not reparametrised is handled by the base class.
    """

    def _get_trace(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        with CarriedStates():
            traces = super()._get_trace(model, guide, args, kwargs)
        check_sites(*traces)
        return traces

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        loss: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            if _reparametrised(guide_trace):
                unmatched = partial(_counts, guide_trace)
                particle = guide_trace.log_prob_sum() - model_trace.log_prob_sum(unmatched)
            else:
                value, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
                particle = value + (surrogate - surrogate.detach())
            loss = loss + particle / self.num_particles
        return loss


class TraceMeanField_ELBO(pyro.infer.TraceMeanField_ELBO):
    r""":class:`pyro.infer.TraceMeanField_ELBO` with a differentiable loss that never waits for the device.

    Its requirement holds for the models of this package: model and guide draw the latents in the same
    order. In the time layout, the analytic KL is that between the conditionals along the path. If there
    is no closed form, the KL of a step is estimated by sampling.

    Args:
        num_particles: number of latent samples.
        max_plate_nesting: number of plates of the model; one, over sequences, for the models here.
        free_bits: free nats :math:`\lambda` of KL for each step of each sequence: the KL of a step counts
            as :math:`\max(\lambda, \mathrm{KL}_t)` (Kingma et al. 2016,
            https://arxiv.org/abs/1606.04934, with a step of a sequence as the group, and without their
            average over the batch, so that the parts of a batch add up to the whole). The loss is then
            not a bound; reported bounds are unaffected.
        **options: options of :class:`pyro.infer.TraceMeanField_ELBO`.

    Raises:
        ValueError: if a latent site of the guide is not reparametrised, or ``free_bits`` is negative.
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: int | float = math.inf,
        free_bits: float = 0.0,
        **options: Any,
    ) -> None:
        if not free_bits >= 0:
            raise ValueError(f"free bits must not be negative, they are {free_bits}")
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting, **options)
        self.free_bits = free_bits

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        loss: Any = 0.0
        for traces in self._get_traces(model, guide, args, kwargs):
            loss = loss + self._particle(*traces)
        return loss

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a float."""
        return _loss(self, model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a float, and accumulate its gradient in the parameters."""
        loss = 0.0
        for traces in self._get_traces(model, guide, args, kwargs):
            particle = self._particle(*traces)
            if particle.requires_grad:
                particle.backward(retain_graph=self.retain_graph)
            loss += particle.item()
        warn_if_nan(loss, "loss")  # type: ignore[call-overload]
        return loss

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """The contribution of one particle to the loss."""
        if not _reparametrised(guide_trace):
            raise ValueError(
                "TraceMeanField_ELBO needs a guide whose latent sites are reparametrised; "
                "Trace_ELBO (objective elbo-mc) does not"
            )
        # The same sum over sites as in the base class, which cannot be used since it calls .item() on
        # the total.
        elbo: Any = 0.0
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                elbo = elbo + site["log_prob_sum"]
            elif not cancels(name, site, guide_trace):
                elbo = elbo - self._site_kl(name, model_trace, guide_trace)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and name not in model_trace.nodes:
                elbo = elbo - _log_prob_sum(guide_trace, name)
        return -torch.as_tensor(elbo) / self.num_particles

    def _get_trace(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        unwrapped = poutine.unwrap(guide)  # type: ignore[no-untyped-call]
        with CarriedStates():
            if is_validation_enabled() or isinstance(unwrapped, Messenger):
                traces = super()._get_trace(model, guide, args, kwargs)
                check_sites(*traces)
                return traces
            # As in the base class, but without the densities of latents, which the KL does not need.
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        check_sites(model_trace, guide_trace)
        model_trace.compute_log_prob(lambda _, site: site["is_observed"])
        return model_trace, prune_subsample_sites(guide_trace)

    def _site_kl(self, name: str, model_trace: Trace, guide_trace: Trace) -> Tensor:
        guide_site: Any = guide_trace.nodes[name]
        model_site: Any = model_trace.nodes[name]
        scale, mask = guide_site["scale"], guide_site["mask"]
        q, p = guide_site["fn"], model_site["fn"]
        if not self.free_bits:
            try:
                if isinstance(p, LatentPath):
                    kl = kl_per_step(q, p, guide_site["value"]).sum(0)
                else:
                    kl = torch.distributions.kl_divergence(q, p)
            except NotImplementedError:
                return _log_prob_sum(guide_trace, name) - _log_prob_sum(model_trace, name)
            return pyro.distributions.util.scale_and_mask(kl, scale=scale, mask=mask).sum()
        kl = kl_per_step(q, p, guide_site["value"]).clamp(min=self.free_bits)
        real = getattr(q, "step_mask", None)
        if isinstance(real, Tensor):  # steps past the end have no free bits
            kl = masked(kl, real if real.dim() > 1 else real.unsqueeze(0))
        return pyro.distributions.util.scale_and_mask(kl.sum(0), scale=scale, mask=mask).sum()


class TraceIWAE(ELBO):
    r"""The importance-weighted bound (Burda et al. 2016, https://arxiv.org/abs/1509.00519)

    .. math::
        \log \frac1K \sum_{k=1}^K \frac{p(y, z^k)}{q(z^k \mid y)}

    for each sequence, summed over sequences. The K particles form one dimension to the left of the
    plate over sequences. Auxiliary costs, sites whose names begin with ``aux_``, are averaged over
    the particles separately from the bound; they never enter a weight.

    The objective works with :class:`pyro.infer.SVI`, :class:`pyro_zf.infer.SVI` and
    :meth:`~pyro_zf.models.SequenceModel.loss_module`. The guide must be reparametrised.
    (:class:`pyro.infer.RenyiELBO` includes the auxiliary costs in its weights.)

    Args:
        num_particles: K.
        max_plate_nesting: number of plates of the model; one, over sequences, for the models here.
        vectorize_particles: as for Pyro's objectives; the particles are always drawn together here.

    Raises:
        ValueError: if K is below one, ``vectorize_particles`` is False, or a latent site of the guide is not
            reparametrised.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch, ZForcing
        >>> zf = ZForcing(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> loss = zf.loss_module(TraceIWAE(num_particles=5))
        >>> loss(SequenceBatch.from_targets(torch.ones(3, 5, 4))).shape
        torch.Size([])
    """

    def __init__(
        self, num_particles: int = 25, max_plate_nesting: int = 1, vectorize_particles: bool = True
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, not {num_particles}")
        if not vectorize_particles:
            raise ValueError(
                "TraceIWAE draws its particles together: leave out vectorize_particles"
            )
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=True,
        )

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Negative bound minus the auxiliary costs, summed over sequences, in nats."""
        (model_trace, guide_trace) = next(self._get_traces(model, guide, args, kwargs))
        if not _reparametrised(guide_trace):
            raise ValueError(
                "TraceIWAE needs a guide whose latent sites are reparametrised; Trace_ELBO (objective "
                "elbo-mc) does not"
            )
        log_weight, aux = _sums_per_sequence(model_trace, guide_trace)
        if self.num_particles == 1:
            return -(log_weight + aux).sum()
        log_mean = torch.logsumexp(log_weight, dim=0) - math.log(self.num_particles)
        return -log_mean.sum() - torch.as_tensor(aux).expand_as(log_weight).mean(0).sum()

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a float."""
        return _loss(self, model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a float, and accumulate its gradient in the parameters."""
        return _loss_and_grads(self, model, guide, *args, **kwargs)

    def _get_trace(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        with CarriedStates():
            traces = get_importance_trace(
                "flat", self.max_plate_nesting, model, guide, args, kwargs
            )
        check_sites(*traces)
        return traces


def _log_prob_sum(trace: Trace, name: str) -> Tensor:
    """Sum of the log-probabilities of one site, with scale and mask applied."""
    trace.compute_log_prob(lambda other, _: other == name)
    total: Tensor = trace.nodes[name]["log_prob_sum"]
    return total


def _loss(objective: Any, *args: Any, **kwargs: Any) -> float:
    """The differentiable loss as a float."""
    with torch.no_grad():
        return objective.differentiable_loss(*args, **kwargs).item()


def _loss_and_grads(objective: Any, *args: Any, **kwargs: Any) -> float:
    """The differentiable loss as a float, with its gradient accumulated in the parameters."""
    loss = objective.differentiable_loss(*args, **kwargs)
    if loss.requires_grad:
        loss.backward()
    return loss.item()


def _sums_per_sequence(model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor | float]:
    """Log weights and auxiliary costs of each particle and sequence, with scales and masks applied."""
    log_weight: Any = 0.0
    aux: Any = 0.0
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample":
            if name.startswith(AUX_PREFIX):
                aux = aux + site["log_prob"]
            elif _counts(guide_trace, name, site):
                log_weight = log_weight + site["log_prob"]
    for site in guide_trace.nodes.values():
        if site["type"] == "sample":
            log_weight = log_weight - site["log_prob"]
    return log_weight, aux


def _counts(guide_trace: Trace, name: str, site: Any) -> bool:
    """Whether a site counts. It does not if it is free of KL and a custom guide leaves it to the model."""
    return name in guide_trace.nodes or not is_free_of_kl(site)


def _reparametrised(guide_trace: Trace) -> bool:
    return all(
        getattr(site["fn"], "has_rsample", False)
        for site in guide_trace.nodes.values()
        if site["type"] == "sample"
    )

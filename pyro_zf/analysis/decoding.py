"""Decoding of distributions: sampling, sampling at a temperature, or the most probable value."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
)

from pyro_zf.distributions import AtMean as AtMeanDistribution
from pyro_zf.distributions import Autoregressive, DiscretizedLogisticMixture

__all__ = ["AtMean", "Decoding", "mean_of", "mode_of", "tempered"]


class Decoding(Messenger):
    """Effect handler that controls how a generating model chooses each :math:`y_t` and :math:`z_t`.

    Args:
        temperature: temperature of the emission. It divides logits and multiplies standard deviations.
        argmax: whether to take the most probable value, see :func:`mode_of`, instead of sampling.
        latent_temperature: temperature of the prior; 0 sets z to the prior's mean.

    Raises:
        ValueError: if a temperature is out of range.

    Example:
        >>> import torch
        >>> from pyro_zf import VRNN
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> always_the_same = Decoding(argmax=True, latent_temperature=0.0)
        >>> once = vrnn.generate(torch.zeros(1, 4), 5, always_the_same)
        >>> bool((once == vrnn.generate(torch.zeros(1, 4), 5, always_the_same)).all())
        True
    """

    def __init__(
        self, temperature: float = 1.0, argmax: bool = False, latent_temperature: float = 1.0
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(
                f"a temperature must be above 0, not {temperature}; argmax takes the most probable value"
            )
        if not latent_temperature >= 0:
            raise ValueError(
                f"a latent temperature must not be negative, but is {latent_temperature}"
            )
        self.temperature, self.argmax = temperature, argmax
        self.latent_temperature = latent_temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        kind = _kind(msg)
        if kind == "y" and self.argmax:
            msg["value"] = mode_of(msg["fn"])
        elif kind == "y" and self.temperature != 1:
            msg["fn"] = tempered(msg["fn"], self.temperature)
        elif kind == "latent" and self.latent_temperature == 0:
            msg["value"] = mean_of(msg["fn"])
        elif kind == "latent" and self.latent_temperature != 1:
            msg["fn"] = tempered(msg["fn"], self.latent_temperature)


class AtMean(Messenger):
    """Sets latents to the mean of their distribution, where it is known."""

    def _pyro_sample(self, msg: Any) -> None:
        if _kind(msg) == "latent" and msg["value"] is None:
            msg["value"] = mean_of(msg["fn"])


def _kind(msg: Any) -> str:
    """Kind of a site: ``"y"`` for data, ``"latent"``, or an empty string."""
    name: str = msg["name"]
    if name == "y" or name.startswith("y_"):
        return "y"
    neither = name == "skip" or isinstance(msg["fn"], _Subsample)
    return "" if neither or msg["is_observed"] else "latent"


def unmasked(distribution: Any) -> Any:
    """The distribution without the masks of sequences that have ended."""
    while isinstance(distribution, dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def mean_of(distribution: Any) -> Tensor:
    """The mean; for symbols the most probable one.

    Raises:
        ValueError: if the mean is not known.
    """
    distribution = unmasked(distribution)
    if isinstance(distribution, Categorical):
        return distribution.logits.argmax(-1)
    try:
        mean: Tensor = distribution.mean
        if bool(mean.isfinite().all()):
            return mean
    except NotImplementedError:
        pass
    raise ValueError(
        f"the mean of {_name(distribution)} is not known: draw samples, or give the distribution a "
        "property mean"
    )


def mode_of(distribution: Any) -> Tensor:
    """The most probable value.

    It is the ``mode`` that the distribution declares. Without one it is found among the values of a finite
    support; for real numbers the mean takes its place. For a mixture it is the mean of the most probable
    component, and for an autoregressive distribution the most probable value of each dimension in turn, given
    those before it.

    Raises:
        ValueError: if none of these is known.
    """
    distribution = unmasked(distribution)
    if isinstance(distribution, Independent):
        return mode_of(distribution.base_dist)
    if isinstance(distribution, Bernoulli):
        return (distribution.logits > 0).to(distribution.logits.dtype)
    if isinstance(distribution, Autoregressive):
        return distribution.in_turn(mode_of)
    if isinstance(distribution, MixtureSameFamily):
        index = distribution.mixture_distribution.logits.argmax(-1)
        means = distribution.component_distribution.mean
        index = index.reshape(*index.shape, *(1,) * (means.dim() - index.dim()))
        component = len(distribution.batch_shape)
        return means.gather(component, index.expand_as(means.narrow(component, 0, 1))).squeeze(
            component
        )
    try:
        mode: Tensor = distribution.mode
        if bool(mode.isfinite().all()):
            return mode
    except (NotImplementedError, AttributeError):
        pass
    try:
        if distribution.has_enumerate_support:
            values = distribution.enumerate_support()
            best = distribution.log_prob(values).argmax(0, keepdim=True)
            return values.expand(values.shape[:1] + best.shape[1:]).gather(0, best)[0]
        if not distribution.support.is_discrete:
            return mean_of(distribution)
    except (NotImplementedError, ValueError):
        pass
    raise ValueError(
        f"the most probable value of {_name(distribution)} is not known: sample instead (without "
        "--argmax), or give the distribution a property mode"
    )


def _name(distribution: Any) -> str:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return type(distribution).__name__


def tempered(distribution: Any, temperature: float) -> Any:
    """Apply a temperature: values below 1 make the distribution sharper, values above 1 flatter.

    Raises:
        ValueError: if temperatures are not defined for this distribution.
    """
    distribution = unmasked(distribution)
    if isinstance(distribution, Independent):
        base = tempered(distribution.base_dist, temperature)
        return base.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, Bernoulli):
        return dist.Bernoulli(logits=distribution.logits / temperature)
    if isinstance(distribution, Categorical):
        return dist.Categorical(logits=distribution.logits / temperature)
    if isinstance(distribution, AtMeanDistribution):
        return distribution  # it has no spread
    if isinstance(distribution, Normal):
        return dist.Normal(distribution.loc, distribution.scale * temperature)
    if isinstance(distribution, MixtureSameFamily):
        return dist.MixtureSameFamily(
            tempered(distribution.mixture_distribution, temperature),
            tempered(distribution.component_distribution, temperature),
        )
    if isinstance(distribution, DiscretizedLogisticMixture):
        return DiscretizedLogisticMixture(
            distribution.logits / temperature, distribution.loc,
            distribution.scale * temperature, distribution.levels, distribution.low,
            distribution.high, validate_args=False,
        )  # fmt: skip
    if isinstance(distribution, Autoregressive):
        conditionals = distribution.conditionals
        return distribution.with_conditionals(lambda y: tempered(conditionals(y), temperature))
    if isinstance(distribution, TransformedDistribution):
        base = tempered(distribution.base_dist, temperature)
        return dist.TransformedDistribution(base, distribution.transforms)
    raise ValueError(f"no temperature is known for {type(distribution).__name__}")

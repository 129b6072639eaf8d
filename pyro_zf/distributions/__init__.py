"""Distributions that are not available in PyTorch or Pyro."""

from pyro_zf.distributions.at_mean import AtMean
from pyro_zf.distributions.bernoulli_mask import BernoulliMask
from pyro_zf.distributions.chunks import by_chunks
from pyro_zf.distributions.data import Autoregressive, DiscretizedLogisticMixture
from pyro_zf.distributions.normal import DiagonalNormal
from pyro_zf.distributions.over_time import ChunkedEmission, OverTime, over_steps

__all__ = [
    "AtMean",
    "Autoregressive",
    "BernoulliMask",
    "ChunkedEmission",
    "DiagonalNormal",
    "DiscretizedLogisticMixture",
    "OverTime",
    "by_chunks",
    "over_steps",
]

"""Published systems, each as a pair of Pyro programs."""

from pyro_zf.models.base import AUX_PREFIX, LAYOUTS, LatentWeight, LossModule, SequenceModel
from pyro_zf.models.zforcing import DETACH, VARIANTS, ZForcing

__all__ = [
    "AUX_PREFIX",
    "DETACH",
    "LAYOUTS",
    "VARIANTS",
    "LatentWeight",
    "LossModule",
    "SequenceModel",
    "ZForcing",
]

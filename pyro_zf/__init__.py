"""Recurrent networks with latent variables as Pyro programs."""

from pyro_zf.batch import SequenceBatch
from pyro_zf.models import ZForcing

__all__ = ["SequenceBatch", "ZForcing", "__version__"]

__version__ = "0.1.0"

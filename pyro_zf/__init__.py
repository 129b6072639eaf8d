"""Recurrent networks with latent variables as Pyro programs."""

from pyro_zf.batch import SequenceBatch
from pyro_zf.models import RNN, SRNN, STORN, VRNN, VariationalBiLSTM, ZForcing

__all__ = [
    "RNN",
    "SRNN",
    "STORN",
    "VRNN",
    "SequenceBatch",
    "VariationalBiLSTM",
    "ZForcing",
    "__version__",
]

__version__ = "0.1.0"

"""Recurrent networks with latent variables as Pyro programs."""

from typing import TYPE_CHECKING, Any

from pyro_zf.batch import SequenceBatch
from pyro_zf.models import RNN, SRNN, STORN, VRNN, VariationalBiLSTM, ZForcing

if TYPE_CHECKING:
    from pyro_zf.trained import diagnose, evaluate, generate, load
    from pyro_zf.training import TrainConfig, export, train

__all__ = [
    "RNN",
    "SRNN",
    "STORN",
    "VRNN",
    "SequenceBatch",
    "TrainConfig",
    "VariationalBiLSTM",
    "ZForcing",
    "__version__",
    "diagnose",
    "evaluate",
    "export",
    "generate",
    "load",
    "train",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Training needs matplotlib, TensorBoard and the data sets, which models alone do not.
    if name in ("TrainConfig", "export", "train"):
        from pyro_zf import training

        return getattr(training, name)
    if name in ("diagnose", "evaluate", "generate", "load"):
        from pyro_zf import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

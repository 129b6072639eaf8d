"""Recurrent networks with latent variables as Pyro programs."""

from importlib.metadata import PackageNotFoundError, version
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

try:
    __version__ = version("pyro_zf")  # of the last tag in git, and the commits since then
except PackageNotFoundError:  # a copy of the files that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    # Training needs matplotlib, TensorBoard and the data sets, which models alone do not.
    if name in ("TrainConfig", "export", "train"):
        from pyro_zf import training

        return getattr(training, name)
    if name in ("diagnose", "evaluate", "generate", "load"):
        from pyro_zf import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

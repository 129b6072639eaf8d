"""Generation, reconstruction and figures."""

from pyro_zf.analysis.figures import curves, digits, kl_per_step, save_run_figures
from pyro_zf.analysis.generation import Reconstruction, reconstruct, sample

__all__ = [
    "Reconstruction",
    "curves",
    "digits",
    "kl_per_step",
    "reconstruct",
    "sample",
    "save_run_figures",
]

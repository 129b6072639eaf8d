"""Generation, reconstruction and figures."""

from pyro_zf.analysis.figures import curves, digits, kl_per_step, series, waveforms
from pyro_zf.analysis.generation import Reconstruction, reconstruct, sample
from pyro_zf.analysis.run_figures import save_run_figures

__all__ = [
    "Reconstruction",
    "curves",
    "digits",
    "kl_per_step",
    "reconstruct",
    "sample",
    "save_run_figures",
    "series",
    "waveforms",
]

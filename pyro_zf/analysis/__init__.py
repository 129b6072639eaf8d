"""Diagnostics, generation, interpolation, figures and reports."""

from pyro_zf.analysis.decoding import AtMean, Decoding, mean_of, mode_of, tempered
from pyro_zf.analysis.diagnostics import AuxiliaryGain, Diagnostics, diagnose
from pyro_zf.analysis.figures import (
    bound_in_training,
    curves,
    digits,
    kl_by_unit,
    kl_in_training,
    kl_over_images,
    kl_per_step,
    latent_pca,
    lengths_along,
    sampling_against_mean,
    series,
    spectrograms,
    waveforms,
)
from pyro_zf.analysis.generation import (
    FreeRunning,
    Reconstruction,
    continue_prefix,
    free_running,
    posterior_path,
    reconstruct,
    resample_latents,
    sample,
)
from pyro_zf.analysis.innovations import mutual_information
from pyro_zf.analysis.interpolation import interpolate
from pyro_zf.analysis.outputs import as_sounds, as_texts, markdown_cell, write_hdf5
from pyro_zf.analysis.run_figures import (
    RECONSTRUCTED,
    cut,
    save_run_figures,
    save_sequences,
    shown_steps,
)

__all__ = [
    "RECONSTRUCTED",
    "AtMean",
    "AuxiliaryGain",
    "Decoding",
    "Diagnostics",
    "FreeRunning",
    "Reconstruction",
    "as_sounds",
    "as_texts",
    "bound_in_training",
    "continue_prefix",
    "curves",
    "cut",
    "diagnose",
    "digits",
    "free_running",
    "interpolate",
    "kl_by_unit",
    "kl_in_training",
    "kl_over_images",
    "kl_per_step",
    "latent_pca",
    "lengths_along",
    "markdown_cell",
    "mean_of",
    "mode_of",
    "mutual_information",
    "posterior_path",
    "reconstruct",
    "resample_latents",
    "sample",
    "sampling_against_mean",
    "save_run_figures",
    "save_sequences",
    "series",
    "shown_steps",
    "spectrograms",
    "tempered",
    "waveforms",
    "write_hdf5",
]

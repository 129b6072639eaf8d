"""Preset settings for each data set, with their sources."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

#: In five minutes, a learning rate of 4e-3 reaches far better bounds than the 1e-3 of the papers, which trained
#: larger models for days (docs/training.md has the comparison).
_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "batch_size": 32,
    "learning_rate": 4e-3,
    "max_minutes": 5.0,
}
_ROWS = {**_SMALL, "frame": "row", "batch_size": 64}
_PAPER: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-3}
_PIXELS = {
    **_PAPER, "frame": "pixel", "hidden_size": 1024, "latent_size": 256, "mlp_size": 1024, "max_epochs": 50
}  # fmt: skip
#: Goyal et al. 2017, section 4.1.
_TIMIT = {**_PAPER, "hidden_size": 1024, "latent_size": 256, "mlp_size": 512, "max_epochs": 100}
_BLIZZARD = {
    **_TIMIT, "hidden_size": 2048, "mlp_size": 1024, "learning_rate": 3e-4, "batch_size": 128
}  # fmt: skip
#: Section 4.2.
_IMDB = {
    **_PAPER, "hidden_size": 500, "latent_size": 64, "mlp_size": 500, "embedding_size": 300, "max_epochs": 10
}  # fmt: skip
#: Goyal et al. 2017 report no results on Penn Treebank; these sizes are from Shabanian et al. 2017.
_PTB = {
    **_PAPER, "hidden_size": 1024, "latent_size": 128, "mlp_size": 1024, "batch_size": 50, "max_epochs": 20
}  # fmt: skip

#: Maps a data set and a preset to training settings and to layer sizes that apply to every model. Additional
#: settings from the paper of a model are declared by that model
#: (:meth:`~pyro_zf.models.SequenceModel.preset`).
#:
#: Source: Goyal et al. 2017, section 4.1 (MNIST: LSTM with 1024 units, learning rate 1e-3, batch size 32, no
#: KL annealing, latent size as for speech). The width of the hidden layers for MNIST is not published. Models
#: whose papers give no settings for a data set use these settings too, so that results can be compared.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {"paper": _PIXELS, "small": _ROWS},
    "timit": {"paper": _TIMIT, "small": {**_SMALL, "segment": 40}},
    "blizzard": {"paper": _BLIZZARD, "small": _SMALL},
    "imdb": {"paper": _IMDB, "small": {**_SMALL, "embedding_size": 128}},
    "ptb": {"paper": _PTB, "small": {**_SMALL, "embedding_size": 64}},
    "wav": {"paper": _TIMIT, "small": _SMALL},
    "text": {"paper": _IMDB, "small": {**_SMALL, "embedding_size": 128}},
    # What fits arrays of any kind, and models of one's own, is not known: the usual rate.
    "hdf5": {"paper": _TIMIT, "small": {**_SMALL, "learning_rate": 1e-3}},
}

"""Preset settings for each data set, with their sources."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

_PIXELS: dict[str, Any] = {
    "frame": "pixel",
    "hidden_size": 1024,
    "latent_size": 256,
    "mlp_size": 1024,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "max_epochs": 50,
}
#: In five minutes, a learning rate of 4e-3 reaches far better bounds than the 1e-3 of the papers, which trained
#: larger models for days (docs/training.md has the comparison).
_RATE = 4e-3
_ROWS: dict[str, Any] = {
    "frame": "row",
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "batch_size": 64,
    "learning_rate": _RATE,
    "max_minutes": 5.0,
}

_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "batch_size": 32,
    "learning_rate": _RATE,
    "max_minutes": 5.0,
}
#: Goyal et al. 2017, section 4.1.
_TIMIT = {
    **_SMALL, "hidden_size": 1024, "latent_size": 256, "mlp_size": 512, "learning_rate": 1e-3
}  # fmt: skip
_BLIZZARD = {
    **_TIMIT, "hidden_size": 2048, "mlp_size": 1024, "learning_rate": 3e-4, "batch_size": 128
}  # fmt: skip
#: Section 4.2.
_IMDB = {
    **_SMALL, "hidden_size": 500, "latent_size": 64, "mlp_size": 500, "embedding_size": 300, "learning_rate": 1e-3
}  # fmt: skip
#: Goyal et al. 2017 report no results on Penn Treebank; these sizes are from Shabanian et al. 2017.
_PTB = {
    **_SMALL, "hidden_size": 1024, "latent_size": 128, "mlp_size": 1024, "batch_size": 50, "learning_rate": 1e-3
}  # fmt: skip


def _epochs(settings: dict[str, Any], number: int) -> dict[str, Any]:
    return {**{k: v for k, v in settings.items() if k != "max_minutes"}, "max_epochs": number}


#: Maps a data set and a preset to training settings and to layer sizes that apply to every model. Additional
#: settings from the paper of a model are declared by that model
#: (:meth:`~pyro_zf.models.SequenceModel.preset`).
#:
#: Source: Goyal et al. 2017, section 4.1 (MNIST: LSTM with 1024 units, learning rate 1e-3, batch size 32, no
#: KL annealing, latent size as for speech). The width of the hidden layers for MNIST is not published. Models
#: whose papers give no settings for a data set use these settings too, so that results can be compared.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {"paper": _PIXELS, "small": _ROWS},
    "timit": {"paper": _epochs(_TIMIT, 100), "small": {**_SMALL, "segment": 40}},
    "blizzard": {"paper": _epochs(_BLIZZARD, 100), "small": _SMALL},
    "imdb": {"paper": _epochs(_IMDB, 10), "small": {**_SMALL, "embedding_size": 128}},
    "ptb": {"paper": _epochs(_PTB, 20), "small": {**_SMALL, "embedding_size": 64}},
    "wav": {"paper": _epochs(_TIMIT, 100), "small": _SMALL},
    "text": {"paper": _epochs(_IMDB, 10), "small": {**_SMALL, "embedding_size": 128}},
    # What fits arrays of any kind, and models of one's own, is not known: the usual rate.
    "hdf5": {"paper": _epochs(_TIMIT, 100), "small": {**_SMALL, "learning_rate": 1e-3}},
}

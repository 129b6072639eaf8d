"""Settings by data set, with their source."""

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
_ROWS: dict[str, Any] = {
    "frame": "row",
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "max_minutes": 5.0,
}

_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "max_minutes": 5.0,
}
#: Goyal et al. 2017, section 4.1.
_TIMIT = {**_SMALL, "hidden_size": 1024, "latent_size": 256, "mlp_size": 512}
_BLIZZARD = {
    **_TIMIT, "hidden_size": 2048, "mlp_size": 1024, "learning_rate": 3e-4, "batch_size": 128
}  # fmt: skip
#: Section 4.2.
_IMDB = {**_SMALL, "hidden_size": 500, "latent_size": 64, "mlp_size": 500, "embedding_size": 300}
#: Goyal et al. 2017 has no run on Penn Treebank: sizes of Shabanian et al. 2017.
_PTB = {**_SMALL, "hidden_size": 1024, "latent_size": 128, "mlp_size": 1024, "batch_size": 50}


def _epochs(settings: dict[str, Any], number: int) -> dict[str, Any]:
    return {**{k: v for k, v in settings.items() if k != "max_minutes"}, "max_epochs": number}


#: Data set -> preset -> settings of training, and sizes of any system. What the paper of a system gives
#: beside them stands with the system (:meth:`~pyro_zf.models.SequenceModel.preset`).
#:
#: Source: Goyal et al. 2017, section 4.1 (MNIST: LSTM 1024, learning rate 1e-3, batch 32, no KL annealing,
#: latent size as for speech); the width of the hidden layers for MNIST is not published. Systems whose papers
#: give no settings for a data set take these, as a comparison wants.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {"paper": _PIXELS, "small": _ROWS},
    "timit": {"paper": _epochs(_TIMIT, 100), "small": {**_SMALL, "segment": 40}},
    "blizzard": {"paper": _epochs(_BLIZZARD, 100), "small": _SMALL},
    "imdb": {"paper": _epochs(_IMDB, 10), "small": {**_SMALL, "embedding_size": 128}},
    "ptb": {"paper": _epochs(_PTB, 20), "small": {**_SMALL, "embedding_size": 64}},
    "wav": {"paper": _epochs(_TIMIT, 100), "small": _SMALL},
    "text": {"paper": _epochs(_IMDB, 10), "small": {**_SMALL, "embedding_size": 128}},
    "hdf5": {"paper": _epochs(_TIMIT, 100), "small": _SMALL},
}

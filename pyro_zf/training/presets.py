"""Settings by data set and system, each with its source."""

from __future__ import annotations

from typing import Any

__all__ = ["AUX_STRENGTH", "PRESETS", "VARIATIONAL_BILSTM_SETTINGS"]

#: alpha and beta of Z-Forcing. Speech: the authors' research code (reference in docs/training.md);
#: IMDB: Goyal et al. 2017, table 2, and other text and arrays the same. MNIST (row, pixel): times the
#: size of b, of which values the cost is a sum; not published, found on short runs on a CPU, see
#: docs/results.md.
AUX_STRENGTH: dict[str, float] = {
    "row": 0.128, "pixel": 0.0128, "timit": 5e-4, "blizzard": 5e-4, "wav": 5e-4, "imdb": 2.5e-3,
    "ptb": 2.5e-3, "text": 2.5e-3, "hdf5": 2.5e-3,
}  # fmt: skip

_PIXELS: dict[str, Any] = {
    "frame": "pixel",
    "hidden_size": 1024,
    "latent_size": 256,
    "mlp_size": 1024,
    "activation": "clipped-leaky-relu",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "forget_bias": 0.0,
    "max_epochs": 50,
}
_ROWS: dict[str, Any] = {
    "frame": "row",
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "activation": "clipped-leaky-relu",
    "batch_size": 64,
    "learning_rate": 1e-3,
    "forget_bias": 0.0,
    "max_minutes": 5.0,
}

_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "latent_size": 32,
    "mlp_size": 256,
    "activation": "clipped-leaky-relu",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "forget_bias": 0.0,
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


#: What Shabanian et al. 2017, section 3, give for each data set: options of
#: :class:`~pyro_zf.models.VariationalBiLSTM`, and of its training.
VARIATIONAL_BILSTM_SETTINGS: dict[str, dict[str, Any]] = {
    "timit": {
        "hidden_size": 2048, "mlp_size": 1024, "latent_size": 128, "alpha": 1.0, "beta": 0.0,
        "learning_rate": 1e-4, "batch_size": 128, "activation": "leaky-relu",
    },
    "blizzard": {
        "hidden_size": 1024, "mlp_size": 1024, "latent_size": 512, "alpha": 1.0, "beta": 1.0,
        "learning_rate": 1e-3, "batch_size": 32, "activation": "leaky-relu",
    },
    "mnist": {
        "hidden_size": 1024, "mlp_size": 1024, "latent_size": 256, "alpha": 1e-3, "beta": 0.0,
        "learning_rate": 1e-4, "batch_size": 32, "activation": "leaky-relu",
    },
    "imdb": {
        "hidden_size": 500, "mlp_size": 500, "latent_size": 64, "alpha": 1.0, "beta": 1.0,
        "learning_rate": 1e-3, "batch_size": 32, "activation": "leaky-relu",
    },
    "ptb": {
        "hidden_size": 1024, "mlp_size": 1024, "latent_size": 128, "alpha": 1.0, "beta": 1.0,
        "learning_rate": 1e-3, "batch_size": 50, "prior": "standard-normal",
        "activation": "leaky-relu",
    },
}  # fmt: skip

#: (data set, system) -> preset -> settings; those of (data set, "") for systems that are not named.
#:
#: Sources. Z-Forcing: Goyal et al. 2017, section 4.1 (LSTM 1024, learning rate 1e-3, batch 32, no KL
#: annealing for MNIST, latent size as for speech); the width of the hidden layers for MNIST is not
#: published. Variational Bi-LSTM: Shabanian et al. 2017, section 3 (LSTM and hidden layers 1024, z 256,
#: learning rate 1e-4, batch 32, alpha 0.001, beta 0). The other systems have no published settings on
#: MNIST and take those of Z-Forcing, as a comparison wants.
PRESETS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("mnist", ""): {"paper": _PIXELS, "small": _ROWS},
    ("timit", ""): {"paper": _epochs(_TIMIT, 100), "small": {**_SMALL, "segment": 40}},
    ("blizzard", ""): {"paper": _epochs(_BLIZZARD, 100), "small": _SMALL},
    ("imdb", ""): {"paper": _epochs(_IMDB, 10), "small": {**_SMALL, "embedding_size": 128}},
    ("ptb", ""): {"paper": _epochs(_PTB, 20), "small": {**_SMALL, "embedding_size": 64}},
    ("wav", ""): {"paper": _epochs(_TIMIT, 100), "small": _SMALL},
    ("text", ""): {"paper": _epochs(_IMDB, 10), "small": {**_SMALL, "embedding_size": 128}},
    ("hdf5", ""): {"paper": _epochs(_TIMIT, 100), "small": _SMALL},
    ("mnist", "variational-bilstm"): {
        "paper": {**_PIXELS, **VARIATIONAL_BILSTM_SETTINGS["mnist"]},
        "small": {**_ROWS, "activation": "leaky-relu", "alpha": 1e-3, "beta": 0.0},
    },
}
for _name, _settings in VARIATIONAL_BILSTM_SETTINGS.items():
    if _name != "mnist":
        _of = PRESETS[_name, ""]
        _keep = ("alpha", "beta", "prior", "activation")
        PRESETS[_name, "variational-bilstm"] = {
            "paper": {**_of["paper"], **_settings},
            "small": {**_of["small"], **{k: v for k, v in _settings.items() if k in _keep}},
        }

"""Settings by data set and system, each with its source."""

from __future__ import annotations

from typing import Any

__all__ = ["AUX_STRENGTH", "PRESETS", "VARIATIONAL_BILSTM_SETTINGS"]

#: alpha and beta of Z-Forcing on MNIST, times the size of b. The cost with weight alpha is a sum over
#: the values of b and over steps. Not published; found on short runs on a CPU, see docs/results.md.
AUX_STRENGTH: dict[str, float] = {"row": 0.128, "pixel": 0.0128}

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
    ("mnist", "variational-bilstm"): {
        "paper": {**_PIXELS, **VARIATIONAL_BILSTM_SETTINGS["mnist"]},
        "small": {**_ROWS, "activation": "leaky-relu", "alpha": 1e-3, "beta": 0.0},
    },
}

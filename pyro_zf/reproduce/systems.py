"""Systems that are trained for the papers' tables, and their settings at each scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pyro_zf.models.variational_bilstm import PUBLISHED
from pyro_zf.training import TrainConfig
from pyro_zf.training.data import Dataset
from pyro_zf.training.presets import PRESETS

__all__ = ["SCALES", "SYSTEMS", "Scale", "Training"]

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")

_NO_AUX = {"alpha": 0.0, "beta": 0.0}
#: Initial KL weight of the papers' annealing. Its speed depends on the length of training.
_ANNEALED = {"kl_start": 0.2}

#: Variational Bi-LSTM with auxiliary costs averaged over the units of a state. Equations 5 and 6 are sums,
#: but with sums and the published weights of 1, the costs outweigh the likelihood of text a hundredfold
#: and z mainly encodes their targets. The published KL (0.001 on Penn Treebank) rules this out.
_MEAN: dict[str, Any] = {"model": "variational-bilstm", "averaged": True}

#: Options of :class:`~pyro_zf.training.TrainConfig` by system; ``summed`` takes the published weights of the
#: auxiliary costs, and ``averaged`` divides them by the number of units of the LSTM. Weights of costs that are
#: sums over units are for models of the paper's size, see :meth:`Training.config`.
SYSTEMS: dict[str, dict[str, Any]] = {
    "rnn": {"model": "rnn"},
    "rnn-gauss": {"model": "rnn", "emission": "gaussian"},
    "rnn-gmm": {"model": "rnn", "emission": "gaussian-mixture"},
    "vrnn-i-gauss": {"model": "vrnn-i", "emission": "gaussian"},
    "vrnn-gauss": {"model": "vrnn", "emission": "gaussian"},
    "vrnn-gmm": {"model": "vrnn", "emission": "gaussian-mixture"},
    "srnn": {"model": "srnn"},
    "zf": {"model": "zforcing", **_NO_AUX},
    "zf-kla": {"model": "zforcing", **_NO_AUX, **_ANNEALED},
    "zf-aux": {"model": "zforcing"},
    "zf-kla-aux": {"model": "zforcing", **_ANNEALED},
    "zf-aux-0.0025": {"model": "zforcing", "alpha": 0.0025, "beta": 0.0025},
    "zf-aux-0.005": {"model": "zforcing", "alpha": 0.005, "beta": 0.005},
    "vbl": {"model": "variational-bilstm", "summed": True},
    "vbl-no-aux": {"model": "variational-bilstm", **_NO_AUX},
    "vbl-mean": _MEAN,
    "vbl-mean-no-skip": {**_MEAN, "skip_gradient": 0.0},
    **{
        f"vbl-mean-gamma-{gamma:g}": {**_MEAN, "beta": 0.0, "gamma": gamma}
        for gamma in (0.001, 1.0, 4.0, 8.0, 16.0)
    },
}

_SMOKE: dict[str, Any] = {
    "preset": "small", "hidden_size": 8, "mlp_size": 8, "latent_size": 2, "batch_size": 8,
    "max_updates": 4, "valid_interval": 2, "log_interval": 2, "train_sequences": 16,
    "valid_sequences": 8, "test_sequences": 8, "num_figures": 0,
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "preset": "small", "hidden_size": 128, "mlp_size": 128, "log_interval": 25,
    "valid_sequences": 500, "test_sequences": 1000, "num_figures": 16,
}  # fmt: skip
_UPDATES = {"mnist": 3000, "timit": 300, "blizzard": 600, "imdb": 750, "ptb": 750}
#: Options by scale and data set. Scale "paper" uses those of the preset.
_SETTINGS: dict[Scale, dict[str, dict[str, Any]]] = {
    "smoke": {
        "mnist": _SMOKE,
        "timit": {**_SMOKE, "segment": 10},
        "blizzard": {**_SMOKE, "segment": 10},
        "imdb": {**_SMOKE, "embedding_size": 8},
        "ptb": {**_SMOKE, "embedding_size": 8, "segment": 20},
    },
    "small": {
        name: {**_SMALL, "max_updates": updates, "valid_interval": updates // 15}
        for name, updates in _UPDATES.items()
    },
    "paper": {name: {"preset": "paper"} for name in _UPDATES},
}


@dataclass(frozen=True)
class Training:
    """One run: a system on a data set, with a seed.

    Args:
        dataset: name of a data set of :class:`~pyro_zf.training.DataConfig`.
        system: a key of :data:`SYSTEMS`.
        seed: seed of the weights, the order of the data and the noise.
        extra: further options.
    """

    dataset: str
    system: str
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"{self.dataset}-{self.system}-seed{self.seed}"

    def config(self, scale: Scale, output_dir: Path, **options: Any) -> TrainConfig:
        """The settings of the run at a scale.

        A cost that is a sum over the units of a state grows with their number. In a model of another size than
        the paper's, its weight is therefore multiplied by the paper's number of units over its own.
        """
        values = {**_SETTINGS[scale][self.dataset], **SYSTEMS[self.system], **self.extra, **options}
        if values["model"] == "rnn":
            values.pop("latent_size", None)
        summed, averaged = values.pop("summed", False), values.pop("averaged", False)
        of_paper = PRESETS[self.dataset]["paper"]["hidden_size"]
        if summed or averaged:
            published = PUBLISHED[self.dataset]
            of_paper = published["hidden_size"]
            for letter in ("alpha", "beta", "gamma"):
                values[letter] = values.get(letter, published.get(letter, 0.0))
        size = values.get("hidden_size", of_paper)
        # The cost of Z-Forcing with weight beta is a sum over the values of the data.
        sums = ("alpha",) if values["model"] == "zforcing" else ("alpha", "beta", "gamma")
        for letter in sums:
            if letter in values:
                values[letter] *= (1 if averaged else of_paper) / size
        if "kl_start" in values and (updates := values.get("max_updates")):
            # The papers anneal for 16,000 updates; here annealing takes half of the training.
            values["kl_increment"] = (1 - values["kl_start"]) / (updates / 2)
        return TrainConfig.of(
            dataset=cast(Dataset, self.dataset), seed=self.seed, output_dir=output_dir, **values
        )

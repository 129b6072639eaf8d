"""Trainings in double precision, run by one process or several: ``shared_runs.py FOLDER UPDATES [NAME ...]``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_zf.data import ArrayDataset, DataSource, Splits, TextStream, Values
from pyro_zf.models import SRNN, VRNN, SequenceModel, VariationalBiLSTM, ZForcing
from pyro_zf.training import TrainConfig, train

SIZES: dict[str, Any] = {"hidden_size": 6, "latent_size": 3, "mlp_size": 5}


def ragged(number: int = 22) -> Splits:
    """Bits of several lengths. The last batch of seven of an epoch has one sequence."""
    rng = np.random.default_rng(0)
    bits, lengths = rng.integers(0, 2, (number, 6, 4)).astype(np.uint8), rng.integers(1, 7, number)
    parts = [
        ArrayDataset(bits, lengths),
        ArrayDataset(bits[:9], lengths[:9]),
        ArrayDataset(bits[9:], lengths[9:]),
    ]
    return Splits(*parts, DataSource("bits", "", False))


def stream() -> Splits:
    symbols = np.random.default_rng(0).integers(0, 5, 203)
    text = TextStream(symbols, Values("categorical", 6, start=5), segment=5)
    return Splits(text, text, text, DataSource("text", "", False), unit="segment")


RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "zforcing": (
        lambda: ZForcing(4, alpha=0.3, beta=0.5, emission="autoregressive-bernoulli", dropout=0.3, **SIZES),
        ragged,
        {
            "learning_rate_decay": "plateau", "decay_patience": 1, "warmup_updates": 5, "weight_decay": 0.1,
            "average_decay": 0.8,
        },
    ),
    "accumulated": (
        lambda: ZForcing(4, dropout=0.2, **SIZES), ragged,
        {"accumulate": 2, "word_dropout": 0.3, "input_dropout": 0.2, "recurrent_dropout": 0.4},
    ),
    "skip": (lambda: VariationalBiLSTM(4, alpha=0.2, beta=0.3, **SIZES), ragged, {"objective": "elbo-mc"}),
    "iwae": (
        lambda: VRNN(4, posterior="flow", **SIZES), ragged, {"objective": "iwae", "num_particles": 3},
    ),
    "fivo": (lambda: SRNN(4, **SIZES), ragged, {"objective": "fivo", "num_particles": 4}),
    "carried": (
        lambda: ZForcing(6, emission="categorical", **SIZES), stream, {"accumulate": 2, "batch_size": 5},
    ),
}  # fmt: skip


def run(name: str, folder: Path, updates: int) -> None:
    make, data, options = RUNS[name]
    torch.manual_seed(1)
    model: SequenceModel = make()
    path = folder / name
    if (path / "config.json").exists():
        config = TrainConfig(resume=path, max_updates=updates)
    else:
        settings = {
            "batch_size": 7,
            "log_interval": 4,
            "valid_interval": 7,
            "num_figures": 0,
            **options,
        }
        config = TrainConfig(output_dir=path, max_updates=updates, learning_rate=0.01, **settings)
    train(config, model=model, data=data())


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    logging.getLogger("pyro_zf").setLevel(logging.ERROR)
    for name in sys.argv[3:] or RUNS:
        run(name, Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()

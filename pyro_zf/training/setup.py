"""From settings to data and model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pyro_zf.data import DataError, Splits, load_mnist
from pyro_zf.models import SequenceModel, ZForcing
from pyro_zf.training.checkpoint import load_checkpoint, load_weights
from pyro_zf.training.config import TrainConfig, read_config

__all__ = ["build_data", "build_model", "check_same_data", "load_run"]

_EMISSIONS = {"binary": "bernoulli", "real": "gaussian", "categorical": "categorical"}


def build_data(config: TrainConfig) -> Splits:
    """The data set of a resolved configuration."""
    return load_mnist(config.data_dir, config.frame or "pixel", config.binarization)


def build_model(config: TrainConfig, splits: Splits) -> SequenceModel:
    """The model of a resolved configuration, freshly initialised."""
    assert config.hidden_size and config.latent_size and config.mlp_size
    assert config.alpha is not None and config.beta is not None and config.forget_bias is not None
    return ZForcing(
        splits.data_size,
        emission=_EMISSIONS[splits.kind],
        hidden_size=config.hidden_size,
        latent_size=config.latent_size,
        mlp_size=config.mlp_size,
        mlp_depth=config.mlp_depth,
        activation=config.activation,
        embedding_size=config.embedding_size,
        orthogonal=config.orthogonal,
        forget_bias=config.forget_bias,
        alpha=config.alpha,
        beta=config.beta,
        detach=config.detach,
        variant=config.variant,
    )


def check_same_data(checkpoint: dict[str, Any], splits: Splits, run: Path) -> None:
    """Refuse data other than those that a run was trained on.

    Raises:
        DataError: if they are others.
    """
    trained_on = checkpoint.get("data")
    if trained_on != splits.source.name:
        raise DataError(
            f"{run} was trained on {trained_on}, but what is found here is {splits.source.name}; "
            "name the folder of its data by --data-dir"
        )


def load_run(
    run: Path, which: str = "best", device: str = "cpu", data_dir: Path | None = None
) -> tuple[TrainConfig, Splits, SequenceModel, int]:
    """Settings, data, trained model and its number of updates, from a run folder.

    Raises:
        DataError: if the folder holds no run or no such checkpoint, or its data are not to be had.
    """
    config = read_config(run)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    path = run / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        raise DataError(f"{run} has no checkpoint {which!r} (looked for {path})")
    splits = build_data(config)
    checkpoint = load_checkpoint(path, torch.device(device))
    check_same_data(checkpoint, splits, run)
    model = build_model(config, splits).to(device)
    load_weights(model, checkpoint, path)
    return config, splits, model.eval(), int(checkpoint["step"])

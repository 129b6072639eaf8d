"""Construction of data and models from settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pyro_zf.data import DataError, Splits
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.nn import EMISSIONS
from pyro_zf.nn.mlp import declared
from pyro_zf.sequence import recurrence_in_use
from pyro_zf.training.checkpoint import load_checkpoint, load_weights
from pyro_zf.training.checks import UsageError, aux_weights
from pyro_zf.training.config import TrainConfig, read_config
from pyro_zf.training.data import build_data, check_data, check_same_data, data_record
from pyro_zf.training.options import model_class

__all__ = ["build_model", "load_run"]

_EMISSIONS = {"binary": "bernoulli", "real": "gaussian", "categorical": "categorical"}


def build_model(config: TrainConfig, splits: Splits) -> SequenceModel:
    """Build and initialise the model of a resolved configuration.

    Raises:
        UsageError: if the components of the model are incompatible with each other or with the data.
    """
    options = dict(config.options)
    emission = options.setdefault("emission", _EMISSIONS[splits.kind])
    kinds = declared(EMISSIONS[emission], "kinds", None)
    if kinds is not None and splits.kind not in kinds:
        fitting = [n for n, e in EMISSIONS.items() if splits.kind in declared(e, "kinds", ())]
        raise UsageError(
            f"--emission {emission} is for {' and '.join(kinds)} data, but {splits.source.name} is "
            f"{splits.kind}; use {' or '.join(fitting)}"
        )
    model: Any = model_class(config.model)
    options |= {"time_chunk": config.time_chunk, "covariate_size": splits.covariate_size}
    if model.has_latents:
        aux = aux_weights(config)
        if aux is not None:  # these replace alpha, beta and gamma
            options |= {letter: aux.pop(cost, 0.0) for letter, cost in model.letters.items()}
        options |= {"aux": aux, "core": None if config.core == "auto" else config.core}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        built = model(splits.data_size, **given)
        if isinstance(built, LatentSequenceModel):
            recurrence_in_use(built)
            for source in config.valid_latents:
                with built.drawing_latents_from(source):  # raises if the source is not supported
                    pass
        return built
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from error


def load_run(
    run: Path,
    which: str = "best",
    device: str = "cpu",
    data_dir: Path | None = None,
    data: Path | None = None,
) -> tuple[TrainConfig, Splits, SequenceModel, int]:
    """Load the settings, the data, the trained model and its number of updates from a run folder.

    Raises:
        DataError: if the folder does not contain a run or the checkpoint, or the data are not available.
    """
    config = read_config(run)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    if data is not None:
        config = dataclasses.replace(config, data=data)
    check_data(config)
    path = run / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        raise DataError(f"{run} has no checkpoint {which!r} (looked for {path})")
    splits = build_data(config)
    checkpoint = load_checkpoint(path, torch.device(device))
    check_same_data(run, checkpoint["data"], data_record(splits))
    model = build_model(config, splits).to(device)
    load_weights(model, checkpoint, path)
    return config, splits, model.eval(), int(checkpoint["step"])

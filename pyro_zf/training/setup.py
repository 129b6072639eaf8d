"""From settings to data and model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pyro_zf.cores import recurrence_in_use
from pyro_zf.data import DataError, Splits
from pyro_zf.models import MODELS, LatentSequenceModel, SequenceModel
from pyro_zf.nn import EMISSIONS
from pyro_zf.nn.mlp import declared
from pyro_zf.training.checkpoint import load_checkpoint, load_weights
from pyro_zf.training.checks import BUILT_IN, UsageError, aux_weights
from pyro_zf.training.config import TrainConfig, read_config
from pyro_zf.training.data import build_data, check_data, check_same_data, data_record

__all__ = ["LETTERS", "build_model", "load_run"]

_EMISSIONS = {"binary": "bernoulli", "real": "gaussian", "categorical": "categorical"}


#: The auxiliary cost that each of a paper's letters weighs.
LETTERS: dict[str, dict[str, str]] = {
    "zforcing": {"alpha": "b", "beta": "u"},
    "variational-bilstm": {"alpha": "b", "beta": "h", "gamma": "activity"},
}


def build_model(config: TrainConfig, splits: Splits) -> SequenceModel:
    """The model of a resolved configuration, freshly initialised.

    Raises:
        UsageError: if its parts do not go together, or not with the data.
    """
    emission = config.emission or _EMISSIONS[splits.kind]
    kinds = declared(EMISSIONS[emission], "kinds", None)
    if kinds is not None and splits.kind not in kinds:
        fitting = [n for n, e in EMISSIONS.items() if splits.kind in declared(e, "kinds", ())]
        raise UsageError(
            f"--emission {emission} is for {' and '.join(kinds)} data, and {splits.source.name} is "
            f"{splits.kind}; take {' or '.join(fitting)}"
        )
    options: dict[str, Any] = {
        "emission": emission,
        "hidden_size": config.hidden_size,
        "mlp_size": config.mlp_size,
        "activation": config.activation,
        "embedding_size": config.embedding_size,
        "orthogonal": config.orthogonal,
        "forget_bias": config.forget_bias,
        "time_chunk": config.time_chunk,
    }
    if config.model != "rnn":
        options |= {"latent_size": config.latent_size, "mlp_depth": config.mlp_depth}
        aux = aux_weights(config)
        if config.model == "zforcing":
            options |= {"detach": config.detach, "variant": config.variant}
        if config.model in LETTERS:
            for letter, cost in LETTERS[config.model].items():
                options[letter] = getattr(config, letter) if aux is None else aux.pop(cost, 0.0)
        elif config.model not in BUILT_IN:
            for name in ("alpha", "beta", "gamma", "detach", "variant"):
                if getattr(config, name) != getattr(TrainConfig, name):
                    options[name] = getattr(config, name)
        options |= {
            "aux": aux, "prior": config.prior, "posterior": config.posterior,
            "skip_gradient": config.skip_gradient,
            "core": None if config.core == "auto" else config.core,
        }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    try:
        model = MODELS[config.model](splits.data_size, **given)
        if isinstance(model, LatentSequenceModel):
            recurrence_in_use(model)
            for source in config.valid_latents:
                with model.drawing_latents_from(source):  # one that there is not is said here
                    pass
        return model
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from error
    except TypeError as error:
        if config.model in BUILT_IN:
            raise
        raise UsageError(f"--model {config.model} does not take these options: {error}") from error


def load_run(
    run: Path,
    which: str = "best",
    device: str = "cpu",
    data_dir: Path | None = None,
    data: Path | None = None,
) -> tuple[TrainConfig, Splits, SequenceModel, int]:
    """Settings, data, trained model and its number of updates, from a run folder.

    Raises:
        DataError: if the folder holds no run or no such checkpoint, or its data are not to be had.
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

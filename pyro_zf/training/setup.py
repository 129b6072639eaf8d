"""Construction of data and models from settings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
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

__all__ = ["build_model", "load_run", "prepare_model"]

log = logging.getLogger(__name__)

_EMISSIONS = {
    "binary": "bernoulli", "real": "gaussian", "counts": "negative-binomial",
    "categorical": "categorical",
}  # fmt: skip


def build_model(config: TrainConfig, data: Splits | Mapping[str, Any]) -> SequenceModel:
    """Build and initialise the model of a resolved configuration.

    Args:
        config: the settings.
        data: the data, or their properties (:func:`~pyro_zf.training.data.data_record`).

    Raises:
        UsageError: if the components of the model are incompatible with each other or with the data.
    """
    data = data_record(data) if isinstance(data, Splits) else data
    kind = data["kind"]
    options = dict(config.options)
    emission = options.setdefault("emission", _EMISSIONS[kind])
    kinds = declared(EMISSIONS[emission], "kinds", None)
    if kinds is not None and kind not in kinds:
        fitting = [n for n, e in EMISSIONS.items() if kind in declared(e, "kinds", ())]
        raise UsageError(
            f"--emission {emission} is for {' and '.join(kinds)} data, but the values in "
            f"{data['name']} are {kind}; use {' or '.join(fitting)}"
        )
    if emission == "beta-binomial":
        options["max_count"] = options.get("max_count") or data["high"]
        _check_max_count(options["max_count"], data)
    model: Any = model_class(config.model)
    options |= {"time_chunk": config.time_chunk, "covariate_size": data["covariates"]}
    if model.has_latents:
        aux = aux_weights(config)
        if aux is not None:  # these replace alpha, beta and gamma
            options |= {letter: aux.pop(cost, 0.0) for letter, cost in model.letters.items()}
        options |= {"aux": aux, "core": None if config.core == "auto" else config.core}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        built = model(data["size"], **given)
        if isinstance(built, LatentSequenceModel):
            recurrence_in_use(built)
            for source in config.valid_latents:
                with built.drawing_latents_from(source):  # raises if the source is not supported
                    pass
        return built
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from error


def _check_max_count(most: int | None, data: Mapping[str, Any]) -> None:
    if most is not None and most < data.get("high", 0):
        raise UsageError(
            f"--max-count {most} is the largest count that the emission allows, but {data['name']} has "
            f"{data['high']}"
        )


def prepare_model(config: TrainConfig, model: SequenceModel, data: Mapping[str, Any]) -> None:
    """Check that a model object fits the data, and apply the settings that concern it.

    Raises:
        UsageError: if its sizes, its emission or its covariates do not fit the data.
        TypeError: if it is not a model.
    """
    if not isinstance(model, SequenceModel):
        how = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"model must be an instance of a SequenceModel, not {how}: derive your class from "
            "pyro_zf.models.SequenceModel or one of its subclasses"
        )
    name, size = type(model).__name__, model.data_size
    kinds = declared(model.emission, "kinds", None)
    if kinds is not None and data["kind"] not in kinds:
        raise UsageError(
            f"the emission of {name} is for {' and '.join(kinds)} data, but the values in {data['name']} are "
            f"{data['kind']}"
            + ("; splits_of(data, kind=...) sets their kind" if config.own_data else "")
        )
    fits = size == data["size"] or (data["kind"] == "categorical" and (size or 0) > data["size"])
    if size is not None and not fits:
        what = "symbols" if data["kind"] == "categorical" else "values per step"
        raise UsageError(
            f"{name} was made for {size} {what}, but {data['name']} has {data['size']}"
        )
    if model.covariate_size != data["covariates"]:
        raise UsageError(
            f"{name} is conditioned on {model.covariate_size} covariates, but {data['name']} has "
            f"{data['covariates']}"
        )
    if not isinstance(model, LatentSequenceModel):
        for flag, given in (
            ("valid-latents", config.valid_latents),
            ("objective", config.objective == "fivo"),
        ):
            if given:
                if model.has_latents:
                    raise UsageError(
                        f"--{flag} requires a LatentSequenceModel, which {name} is not"
                    )
                raise UsageError(f"--{flag} applies to latents, but {name} has none")
    for weight, start in (("kl_weight", config.kl_start), ("aux_weight", config.aux_start)):
        if (own := float(getattr(model, weight))) not in (1.0, start):
            log.warning(
                "the model's %s of %g is replaced by the schedule of the settings, which starts at %g (--%s-start)",
                weight, own, start, weight.split("_")[0],
            )  # fmt: skip
    _check_max_count(getattr(model.emission, "max_count", None), data)
    if config.time_chunk is not None:
        model.time_chunk = config.time_chunk
    if isinstance(model, LatentSequenceModel) and config.core != "auto":
        model.core = config.core


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
    if config.own_model or config.own_data:
        own = "a model object" if config.own_model else "data"
        raise DataError(
            f"{run} was trained on {own} given in Python: open it there with pyro_zf.load"
        )
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    if data is not None:
        config = dataclasses.replace(config, data=data)
    check_data(config)
    path = run / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        raise DataError(f"{run} has no checkpoint {which!r} (looked for {path})")
    splits = build_data(config, evaluated=True)
    checkpoint = load_checkpoint(path, torch.device(device))
    record = data_record(splits)
    check_same_data(run, checkpoint["data"], record)
    model = build_model(config, record).to(device)
    load_weights(model, checkpoint, path)
    return config, splits, model.eval(), int(checkpoint["update"])

"""Runs that a table needs: trained once, taken up where they stopped, shared by tables."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock

from pyro_zf.reproduce.systems import Scale, Training
from pyro_zf.training import TrainConfig, UsageError, read_config, resolve, train

__all__ = ["trained"]

log = logging.getLogger(__name__)

#: Settings that say where and how a run is computed, not what it is.
_ANYWHERE = (
    "output_dir", "resume", "data_dir", "data", "workers", "device", "checkpoint_minutes",
    "num_figures",
)  # fmt: skip


def trained(training: Training, scale: Scale, folder: Path, **options: Any) -> Path:
    """The run folder of a training that is finished, after it was trained if need be.

    Another process that wants the same run waits.

    Args:
        training: what to train.
        scale: how large.
        folder: of all runs.
        options: of :class:`~pyro_zf.training.TrainConfig`, for where it is computed.

    Raises:
        UsageError: if there is a run of that name with other settings.
    """
    run = folder / scale / training.name
    run.parent.mkdir(parents=True, exist_ok=True)
    config = training.config(scale, run, **options)
    with FileLock(run.parent / f".{training.name}.lock"):
        if (run / "config.json").is_file():
            _check_same(run, resolve(config))
            if not (run / "summary.json").is_file():
                train(TrainConfig(resume=run, **options))
        else:
            train(config)
    return run


def _check_same(run: Path, wanted: TrainConfig) -> None:
    ours, theirs = (
        {**dataclasses.asdict(config), **config.options} for config in (wanted, read_config(run))
    )
    for name in sorted(ours.keys() | theirs.keys() - {"options", *_ANYWHERE}):
        if name not in ("options", *_ANYWHERE) and ours.get(name) != theirs.get(name):
            raise UsageError(
                f"{run} is a run with {name} {theirs.get(name)}, not {ours.get(name)}: remove it, or "
                "take another --output-dir"
            )

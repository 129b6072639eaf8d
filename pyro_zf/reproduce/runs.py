"""Training of the runs of the tables. Runs are trained once, resumed if interrupted, and shared."""

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

#: Settings of where and how a run is computed, which do not define the run.
_ANYWHERE = (
    "output_dir", "resume", "data_dir", "data", "workers", "device", "checkpoint_minutes",
    "num_figures",
)  # fmt: skip


def trained(training: Training, scale: Scale, folder: Path, **options: Any) -> Path:
    """Train a run unless it is finished already, and return its folder.

    A lock makes other processes that need the same run wait.

    Args:
        training: the run to train.
        scale: scale of the run.
        folder: folder of all runs.
        options: options of :class:`~pyro_zf.training.TrainConfig`: where and how to compute, and limits.

    Raises:
        UsageError: if a run of the same name exists with other settings.
    """
    run = folder / scale / training.name
    run.parent.mkdir(parents=True, exist_ok=True)
    config = training.config(scale, run, **options)
    with FileLock(run.parent / f".{training.name}.lock"):
        if (run / "config.json").is_file():
            _check_same(run, resolve(config))
            if not (run / "summary.json").is_file():
                where = {name: value for name, value in options.items() if name in _ANYWHERE}
                train(TrainConfig(resume=run, **where))
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
                "choose another --output-dir"
            )

"""Training of the runs of the tables. Runs are trained once, resumed if interrupted, and shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from pyro_zf.reproduce.systems import Scale, Training
from pyro_zf.training.loop import train_unless_finished

__all__ = ["trained"]


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
        train_unless_finished(config)
    return run

"""Several trainings side by side, on this machine or on a cluster."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pyro_zf.reproduce.runs import trained
from pyro_zf.reproduce.systems import Scale, Training
from pyro_zf.training import TrainingError, UsageError

__all__ = ["Launcher", "executor", "run_all"]

log = logging.getLogger(__name__)

Launcher = Literal["none", "local", "slurm"]


def run_all(
    trainings: Sequence[Training],
    scale: Scale,
    folder: Path,
    jobs: int,
    launcher: Launcher,
    options: dict[str, Any],
) -> None:
    """Train runs side by side. Runs that have finished are left as they are, others are resumed.

    Args:
        trainings: the runs.
        scale, folder: as for :func:`~pyro_zf.reproduce.runs.trained`.
        jobs: number of runs at a time.
        launcher: ``"none"`` starts processes of its own and ``"local"`` those of submitit; ``"slurm"``
            submits a job array to Slurm, and waits.
        options: options of each run, as its device.

    Raises:
        UsageError: if submitit is needed and not installed.
        TrainingError: if a run has failed; the others are finished first.
    """
    if launcher == "none":
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            waiting = [pool.submit(_one, t, scale, folder, options) for t in trainings]
            results: list[str | None] = [w.result() for w in waiting]
    else:
        submitted = executor(launcher, folder / "jobs", jobs).map_array(
            _one, trainings, *([x] * len(trainings) for x in (scale, folder, options))
        )
        results = [job.result() for job in submitted]
    failed = [(t.name, error) for t, error in zip(trainings, results, strict=True) if error]
    for name, error in failed:
        log.warning("%s failed: %s", name, error)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(trainings)} runs failed, the first {failed[0][0]}: {failed[0][1]}"
        )


def _one(training: Training, scale: Scale, folder: Path, options: dict[str, Any]) -> str | None:
    """Train a run; return what went wrong, if anything did."""
    logging.basicConfig(level=logging.WARNING, format=f"{training.name}: %(message)s")
    try:
        trained(training, scale, folder, **options)
    except Exception as error:  # the other runs go on
        return f"{type(error).__name__}: {error}"
    return None


def executor(launcher: Launcher, folder: Path, jobs: int) -> Any:
    """The executor of submitit that runs at most ``jobs`` trainings at a time.

    Its logs are in ``folder``. A run that Slurm stops is continued from its checkpoint when the same command
    is given again.

    Raises:
        UsageError: if submitit is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError(
            f'--launcher {launcher} needs submitit: pip install "pyro_zf[cluster]"'
        ) from None
    made = submitit.AutoExecutor(folder=folder, cluster=launcher)
    made.update_parameters(
        name="pyro_zf", slurm_array_parallelism=jobs, cpus_per_task=2, timeout_min=24 * 60,
        slurm_signal_delay_s=120,
    )  # fmt: skip
    return made

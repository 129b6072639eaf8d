"""Training runs: settings, training loop, checkpoints and the files of a run."""

from pyro_zf.training.checks import UsageError
from pyro_zf.training.config import TrainConfig, read_config, resolve, resolve_device
from pyro_zf.training.data import DATASETS, DataConfig, build_data
from pyro_zf.training.distributed import Processes, ProcessLost, started
from pyro_zf.training.export import export
from pyro_zf.training.loop import Interrupted, TrainingError, train
from pyro_zf.training.numbers import (
    baseline_line,
    far_worse,
    headline,
    marginal_numbers,
    text_numbers,
)
from pyro_zf.training.presets import PRESETS
from pyro_zf.training.record import json_text, read_metrics
from pyro_zf.training.setup import build_model, load_run

__all__ = [
    "DATASETS",
    "PRESETS",
    "DataConfig",
    "Interrupted",
    "ProcessLost",
    "Processes",
    "TrainConfig",
    "TrainingError",
    "UsageError",
    "baseline_line",
    "build_data",
    "build_model",
    "export",
    "far_worse",
    "headline",
    "json_text",
    "load_run",
    "marginal_numbers",
    "read_config",
    "read_metrics",
    "resolve",
    "resolve_device",
    "started",
    "text_numbers",
    "train",
]

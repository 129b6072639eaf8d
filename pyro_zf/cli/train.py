"""``svi_train.py`` and ``prepare_data.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from pyro_zf.cli.common import run_command
from pyro_zf.data.progress import always_shown
from pyro_zf.training import (
    DATASETS,
    DataConfig,
    TrainConfig,
    baseline_line,
    build_data,
    headline,
    train,
)
from pyro_zf.training.checks import there_are
from pyro_zf.training.data import check_data

__all__ = ["prepare_main", "train_main"]


def train_main(argv: Sequence[str] | None = None) -> int:
    """``svi_train.py``: see :class:`~pyro_zf.training.TrainConfig` for the options."""
    return run_command(_train, tyro.cli(TrainConfig, args=argv, prog="svi_train.py"))


def prepare_main(argv: Sequence[str] | None = None) -> int:
    """``prepare_data.py NAME``: see :class:`~pyro_zf.training.DataConfig` for the options."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in DATASETS:
        arguments[:1] = ["--dataset", arguments[0]]
    elif arguments and not arguments[0].startswith("-"):
        print(f"error: {there_are(arguments[0], DATASETS)}", file=sys.stderr)
        return 2
    return run_command(_prepare, tyro.cli(DataConfig, args=arguments, prog="prepare_data.py"))


def _train(config: TrainConfig) -> None:
    summary = train(config)
    figures = Path(summary["figures"][0]).parent
    print(f"figures: {figures}")
    print(headline(summary))
    if not summary["comparable_with_published"]:
        print(
            "these data are not those of the papers: the figure does NOT compare with published ones"
        )
    if summary["verdict"]:
        print(f"latents: {summary['verdict']}")


def _prepare(config: DataConfig) -> None:
    check_data(config)
    with always_shown():
        splits = build_data(config)
    print(f"{splits.source.name} ({splits.source.detail})")
    for finding in splits.findings:
        print(f"  {finding}")
    print(f"  {baseline_line(splits)}")

"""``reproduce.py``: reproduce the tables and figures of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyro_zf.cli.common import at_least_one, run_command
from pyro_zf.cli.parsing import parsed
from pyro_zf.names import there_are
from pyro_zf.reproduce import TABLES, Scale, reproduce
from pyro_zf.reproduce.jobs import Launcher
from pyro_zf.training import UsageError

__all__ = ["ReproduceConfig", "reproduce_main"]

EXAMPLES = (
    "python scripts/reproduce.py zf-figure2 --scale small --dataset mnist --jobs 2",
    "python scripts/reproduce.py zf-table2 --scale paper --max-minutes 60 --max-sequences 1000",
    "python scripts/reproduce.py all --scale smoke --seeds 1",
)


@dataclass(frozen=True)
class ReproduceConfig:
    """Train the models for a table or figure of the papers, and print our results next to the published
    ones."""

    table: Annotated[str, tyro.conf.Positional]
    """Table or figure to reproduce: zf-table1, zf-table2, zf-table3, zf-figure2 (Z-Forcing), vbl-table1 to
    vbl-table6, vbl-figure2, vbl-figure3 (Variational Bi-LSTM), or all."""
    scale: Scale = "small"
    """Scale of the runs. smoke: seconds per run, to check that everything works. small: minutes per run on a
    CPU. paper: the model sizes of the papers."""
    dataset: Literal["mnist", "timit", "blizzard", "imdb", "ptb"] | None = None
    """Data set to restrict the table to. Default: all data sets of the table."""
    seeds: int | None = None
    """Number of runs per model. Default: 3 for figures, 1 for tables."""
    num_samples: int | None = None
    """Number of importance samples K of the IWAE bound. Default: 25 (smoke: 2)."""
    max_minutes: float | None = None
    """Stop the training of each run after this many minutes. Default: no such limit."""
    max_sequences: int | None = None
    """Number of sequences of each split for validation and evaluation. Default: that of the scale."""
    output_dir: Path = Path("reproduce")
    """Folder for runs and results. Runs that it already contains are reused or resumed."""
    data_dir: Path | None = None
    """Folder with the data sets of the papers. It is searched before $PYRO_ZF_DATA and the user cache."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the training: fp32, or bf16 (automatic mixed precision). Evaluations are in single
    precision."""
    jobs: int = 1
    """Number of runs that are trained side by side."""
    launcher: Launcher = "none"
    """How they are started: none (processes of this command), local or slurm (by submitit)."""
    collect: bool = False
    """Make the table from the runs that have finished, without training any."""


def reproduce_main(argv: Sequence[str] | None = None) -> int:
    """``reproduce.py``: see :class:`ReproduceConfig` for the options."""
    return run_command(lambda: _reproduce(parsed(ReproduceConfig, argv, "reproduce.py", EXAMPLES)))


def _reproduce(config: ReproduceConfig) -> None:
    at_least_one(config, "seeds", "num_samples", "max_sequences", "jobs")
    if config.table != "all" and config.table not in TABLES:
        raise UsageError(there_are(config.table, [*TABLES, "all"]))
    names = list(TABLES) if config.table == "all" else [config.table]
    if config.dataset is not None:
        parts = {n: [s.dataset for s in TABLES[n].sections] for n in names}
        names = [n for n in names if config.dataset in parts[n]]
        if not names:
            raise UsageError(
                f"{config.table} has no part on {config.dataset}, but on {', '.join(parts[config.table])}"
            )
    for name in names:
        paths = reproduce(
            name,
            config.scale,
            config.output_dir,
            dataset=config.dataset,
            seeds=config.seeds,
            num_samples=config.num_samples,
            max_minutes=config.max_minutes,
            max_sequences=config.max_sequences,
            data_dir=config.data_dir,
            device=config.device,
            precision=config.precision,
            jobs=config.jobs,
            launcher=config.launcher,
            collect=config.collect,
        )
        print(paths[0].read_text(encoding="utf-8"))
        for path in paths:
            print(f"wrote: {path}")

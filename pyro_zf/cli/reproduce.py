"""``reproduce.py``: the papers' tables and figures, trained anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyro_zf.cli.common import at_least_one, run_command
from pyro_zf.reproduce import TABLES, Scale, reproduce
from pyro_zf.training import UsageError
from pyro_zf.training.checks import there_are

__all__ = ["ReproduceConfig", "reproduce_main"]


@dataclass(frozen=True)
class ReproduceConfig:
    """Train what a table or figure of the papers needs, and print ours beside theirs."""

    table: Annotated[str, tyro.conf.Positional]
    """zf-table1, zf-table2, zf-table3, zf-figure2 (Z-Forcing), vbl-table1 to vbl-table6, vbl-figure2,
    vbl-figure3 (Variational Bi-LSTM), or all."""
    scale: Scale = "small"
    """smoke: seconds, to see that it works. small: minutes a run on a CPU. paper: the papers' sizes."""
    dataset: Literal["mnist", "timit", "blizzard", "imdb", "ptb"] | None = None
    """Only this part of the table."""
    seeds: int | None = None
    """Runs of each system. Default: 3 for figures, 1 for tables."""
    num_samples: int | None = None
    """K of the IWAE. Default: 25 (smoke: 2)."""
    output_dir: Path = Path("reproduce")
    """Where runs and results go; what is there already is taken up."""
    data_dir: Path | None = None
    """Folder with the data; searched before $PYRO_ZF_DATA and the user cache."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def reproduce_main(argv: Sequence[str] | None = None) -> int:
    """``reproduce.py``: see :class:`ReproduceConfig` for the options."""
    return run_command(_reproduce, tyro.cli(ReproduceConfig, args=argv, prog="reproduce.py"))


def _reproduce(config: ReproduceConfig) -> None:
    at_least_one(config, "seeds", "num_samples")
    if config.table != "all" and config.table not in TABLES:
        raise UsageError(there_are(config.table, [*TABLES, "all"]))
    names = list(TABLES) if config.table == "all" else [config.table]
    if config.dataset is not None:
        names = [n for n in names if config.dataset in {s.dataset for s in TABLES[n].sections}]
        if not names:
            raise UsageError(f"{config.table} has no part on {config.dataset}")
    for name in names:
        paths = reproduce(
            name,
            config.scale,
            config.output_dir,
            dataset=config.dataset,
            seeds=config.seeds,
            num_samples=config.num_samples,
            data_dir=config.data_dir,
            device=config.device,
        )
        print(paths[0].read_text(encoding="utf-8"))
        for path in paths:
            print(f"wrote: {path}")

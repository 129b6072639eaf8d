"""``report.py``: summarise runs on an HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from pyro_zf.analysis.report import RunContent, report_page
from pyro_zf.cli.common import run_command
from pyro_zf.cli.parsing import parsed
from pyro_zf.training import UsageError, read_config, read_metrics
from pyro_zf.training.evaluation import read_evaluations
from pyro_zf.training.record import read_json, write_text

#: Entries of summary.json that a report shows.
SUMMARY = ("data", "data_detail", "num_parameters", "updates", "training_seconds", "unit")

__all__ = ["ReportConfig", "read_run", "report_main"]

EXAMPLES = (
    "python scripts/report.py RUN",
    "python scripts/report.py runs/* --output comparison.html",
)


@dataclass(frozen=True)
class ReportConfig:
    """Write a self-contained HTML page about one or more runs: settings, curves, bounds, diagnostics of the
    latents, pictures, sounds and texts."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders to include."""
    output: Path | None = None
    """File to write. Default: report.html, in the run folder if there is only one run."""
    title: str | None = None
    """Title of the page. Default: the name of the run, or the number of runs."""


def report_main(argv: Sequence[str] | None = None) -> int:
    """``report.py``: see :class:`ReportConfig` for the options."""
    return run_command(lambda: _report(parsed(ReportConfig, argv, "report.py", EXAMPLES)))


def _report(config: ReportConfig) -> None:
    if not config.runs:
        raise UsageError("name at least one run folder")
    runs = [read_run(run) for run in config.runs]
    for i, run in enumerate(runs):  # folders of the same name in different places
        if sum(other.name == run.name for other in runs) > 1:
            runs[i] = replace(run, name=str(config.runs[i]))
    title = config.title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    output = config.output or (
        config.runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, report_page(runs, title))
    print(f"wrote: {output}")


def read_run(run: Path) -> RunContent:
    """Read the content of a run folder.

    Raises:
        DataError: if the folder is not a run folder.
    """
    settings = json.loads(read_config(run).to_json())
    summary = run / "summary.json"
    return RunContent(
        name=run.resolve().name,
        config=settings,
        events=read_metrics(run),
        summary=read_json(summary, SUMMARY, "delete it; evaluate gives its numbers anew")
        if summary.is_file()
        else {},
        evaluations=read_evaluations(run),
        files=[
            path
            for folder in ("figures", "generated", "interpolated")
            for path in sorted((run / folder).glob("*"))
            if path.is_file() and not path.is_symlink()
        ],
    )

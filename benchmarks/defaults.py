"""Train every system on every data set with its defaults for a few minutes, and compare with the baseline.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py --minutes 5 --jobs 2 --output-dir runs/defaults

The baseline is the best model without memory: independent pixels or the frequencies of symbols, or the mean and
variance of frames. The table gives the gain of each system over it in nats per sequence on test data; a system that
ends below the baseline is marked, and the script then ends with 1. Runs that are there are taken up or kept.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import report, table

from pyro_zf.models import MODELS
from pyro_zf.training.record import read_json

DATASETS = ("mnist", "timit", "blizzard", "imdb", "ptb")


@dataclass(frozen=True)
class Config:
    """Compare all systems with the baseline on all data sets."""

    minutes: float = 5.0
    """Minutes of each training."""
    jobs: int = 1
    """Number of trainings side by side."""
    datasets: tuple[str, ...] = DATASETS
    """Data sets to train on."""
    models: tuple[str, ...] = tuple(MODELS)
    """Systems to train."""
    max_updates: int | None = None
    """Updates of each training, in place of minutes."""
    test_sequences: int = 1000
    """Sequences to validate and to test on."""
    output_dir: Path = Path("runs/defaults")
    """Folder of the runs."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


def trained(config: Config, dataset: str, model: str) -> dict[str, float | str]:
    """Train a system, or go on with it; return its results on test data."""
    run = config.output_dir / f"{dataset}-{model}"
    if not (run / "summary.json").exists():
        number = str(config.test_sequences)
        limit = (
            ["--max-minutes", str(config.minutes)]
            if config.max_updates is None
            else ["--max-updates", str(config.max_updates)]
        )
        new = [
            "--dataset", dataset, "--model", model, "--output-dir", str(run), "--num-figures", "0",
            "--valid-sequences", number, "--test-sequences", number, *limit,
        ]  # fmt: skip
        arguments = ["--resume", str(run)] if (run / "config.json").exists() else new
        done = subprocess.run(
            [sys.executable, "-m", "pyro_zf.cli", "train", *arguments], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1]}
    summary = read_json(run / "summary.json")
    bound = summary.get("test_elbo_nats_per_sequence")
    if bound is None:
        return {"error": "the test has failed"}
    return {
        "bound": bound, "baseline": summary["marginal_nats_per_sequence"], "unit": summary["unit"],
        "updates": summary["updates"], "KL": summary["test_kl_nats_per_sequence"],
        "learning_rate": read_json(run / "config.json")["learning_rate"],
    }  # fmt: skip


def main(config: Config) -> None:
    pairs = [(d, m) for d in config.datasets for m in config.models]
    with ThreadPoolExecutor(config.jobs) as pool:
        results = dict(
            zip(pairs, pool.map(lambda pair: trained(config, *pair), pairs), strict=True)
        )
    worse = []
    for dataset in config.datasets:
        rows: list[tuple[object, ...]] = []
        for model in config.models:
            of = results[dataset, model]
            if "error" in of:
                rows.append((model, of["error"], "", "", ""))
                worse.append(f"{dataset} {model}")
                continue
            gain = float(of["bound"]) - float(of["baseline"])
            rows.append((
                model, f"{of['bound']:.2f}", f"{gain:+.2f}" + (" WORSE" if gain < 0 else ""), of["KL"],
                of["updates"],
            ))  # fmt: skip
            if not gain >= 0:
                worse.append(f"{dataset} {model}")
        units = {of["unit"] for (d, _), of in results.items() if d == dataset and "unit" in of}
        print(f"\n{dataset}, test ELBO in nats per {', '.join(map(str, units))}")
        print(table(["system", "ELBO", "over the baseline", "KL", "updates"], rows))
    report("defaults", {f"{d} {m}": of for (d, m), of in results.items()}, config.output)
    if worse:
        sys.exit(f"worse than the baseline: {', '.join(worse)}")


if __name__ == "__main__":
    main(tyro.cli(Config))

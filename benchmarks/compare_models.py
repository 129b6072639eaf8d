"""Bounds, KL and speed of every system after the same number of updates on the same digits.

    OMP_NUM_THREADS=1 python benchmarks/compare_models.py --updates 1500 --output comparison

Each system is trained by the trainer of the package with the ``small`` preset (28 rows of 28 bits, LSTM
256, z 32, hidden layers 256, batch 64) on the same 10,000 images in the same order. The state with the
best validation bound is tested. The script writes ``comparison.md``, ``comparison.json`` and
``comparison.png``. The systems differ in size; the table gives the number of parameters. A finished run is
not repeated.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure

from pyro_zf.data import Batches
from pyro_zf.infer import evaluate
from pyro_zf.training import TrainConfig, load_run, read_metrics, train
from pyro_zf.training.config import read_config

#: Rows of the table: label -> settings in addition to the common ones.
SYSTEMS: dict[str, dict[str, Any]] = {
    "RNN": {"model": "rnn"},
    "STORN": {"model": "storn"},
    "VRNN-I": {"model": "vrnn-i"},
    "VRNN": {"model": "vrnn"},
    "SRNN (smooth, res_q)": {"model": "srnn"},
    "Z-Forcing, no aux": {"model": "zforcing", "alpha": 0.0, "beta": 0.0},
    "Z-Forcing": {"model": "zforcing"},
    "Variational Bi-LSTM": {"model": "variational-bilstm"},
}


@dataclass(frozen=True)
class Config:
    """Train every system with the same settings and write a table."""

    updates: int = 1500
    """Updates of each system."""
    train_sequences: int = 10_000
    """Training images, a fixed random subset."""
    test_sequences: int = 2_000
    """Test images, a fixed random subset."""
    num_samples: int = 25
    """Samples of the IWAE."""
    systems: tuple[str, ...] = tuple(SYSTEMS)
    """Systems to compare, one row of the table each."""
    seed: int = 0
    """Seed of the weights, the order of the data and the noise."""
    data_dir: Path | None = None
    """Folder with the data."""
    output: Path = Path("comparison")
    """Folder of the runs; the table, the JSON file and the plot are written next to it."""


def run_one(label: str, config: Config) -> dict[str, Any]:
    """Train and test one system, and return its row of the table."""
    run = config.output / label.lower().replace(" ", "-").translate(str.maketrans("", "", "(),"))
    common: dict[str, Any] = {"max_updates": config.updates, "data_dir": config.data_dir}
    settings = TrainConfig.of(
        **SYSTEMS[label], preset="small", seed=config.seed, log_interval=min(50, config.updates), checkpoint_minutes=60,
        train_sequences=config.train_sequences, valid_sequences=config.test_sequences,
        test_sequences=config.test_sequences, output_dir=run, **common,
    )  # fmt: skip
    if not (run / "summary.json").is_file():
        resumable = (run / "checkpoints" / "last.pt").is_file()
        train(TrainConfig.of(resume=run, **common) if resumable else settings)
    saved = read_config(run)
    names = ("max_updates", "seed", "train_sequences", "test_sequences", "model")
    found = {name: getattr(saved, name) for name in names} | saved.options
    for name, wanted in (
        {name: getattr(settings, name) for name in names} | settings.options
    ).items():
        if found.get(name) != wanted:
            sys.exit(f"{run} is a run with {name} {found.get(name)}, not {wanted}: remove it")
    summary = json.loads((run / "summary.json").read_text())
    _, splits, model, _ = load_run(run, data_dir=config.data_dir)
    torch.manual_seed(config.seed)
    batches = Batches(splits.test, 100, limit=config.test_sequences)
    bounds = evaluate(model.model, model.guide, batches.epoch(0, 0, torch.device("cpu")),
                      config.num_samples, chunk=5)  # fmt: skip
    events = read_metrics(run)
    speeds = [e["sequences_per_second"] for e in events if e["event"] == "train"]
    row: dict[str, Any] = {
        "system": label,
        "parameters": summary["num_parameters"],
        "updates_per_second": statistics.median(speeds) / 64,
        "valid": [
            (e["update"], -e["elbo_nats_per_sequence"]) for e in events if e["event"] == "valid"
        ],
    }
    for name in ("elbo", "iwae", "kl"):
        estimate = bounds.per_sequence(name)
        row[name], row[f"{name}_stderr"] = estimate.mean, estimate.stderr
    return row


def table(rows: list[dict[str, Any]], config: Config) -> str:
    lines = [
        f"| system | parameters | -ELBO | -IWAE, k = {config.num_samples} | KL | updates/s |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['system']} | {r['parameters'] / 1e6:.2f} M | {-r['elbo']:.2f} ± "
            f"{r['elbo_stderr']:.2f} | {-r['iwae']:.2f} ± {r['iwae_stderr']:.2f} | {r['kl']:.2f} | "
            f"{r['updates_per_second']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for r in rows:
        steps, nats = zip(*r["valid"], strict=True)
        axes.plot(steps, nats, label=r["system"], lw=1.3, marker="o", ms=3)
    axes.set(xlabel="update", ylabel="validation -ELBO, nats per image")
    best = min(min(n for _, n in r["valid"]) for r in rows)
    axes.set_ylim(best - 3, max(r["valid"][-1][1] for r in rows) + 40)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def main(config: Config) -> None:
    rows = []
    for label in config.systems:
        rows.append(run_one(label, config))
        print(table(rows, config), flush=True)
    stem = config.output
    stem.with_suffix(".md").write_text(table(rows, config), encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(rows, indent=2))
    plot(rows).savefig(stem.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Config))

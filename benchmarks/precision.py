"""Gradients and training curves on real digits in bf16 and in float32.

    OMP_NUM_THREADS=1 python benchmarks/precision.py

For each seed, a model is trained twice on the same digits, in the same order and with the same noise: with
float32 products and with bf16 operands. The script prints the cosine between the two gradients of one
batch, at the start and after ``cosine_after`` updates of the float32 run, and the mean loss of the last 100
updates of both runs. The difference of the losses should be compared with the spread between seeds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import tyro
from common import Shape, make_model, report, svi_of, table
from torch import Tensor

from pyro_zf import SequenceBatch
from pyro_zf.data import Batches, load_mnist
from pyro_zf.infer import TraceMeanField_ELBO
from pyro_zf.models import LatentSequenceModel
from pyro_zf.training.memory import keep_freed_memory

SHAPES = {"row": Shape(28, 64, 28, 256, 32, 256), "pixel": Shape(784, 32, 1, 128, 32, 128)}
#: Weights of both auxiliary costs, as in the presets.
AUX = {"row": 0.128 / 256, "pixel": 0.0128 / 128}


@dataclass(frozen=True)
class Config:
    """Compare bf16 with float32."""

    frame: Literal["row", "pixel"] = "row"
    """row (T = 28) or pixel (T = 784)."""
    updates: int = 500
    """Updates of each run."""
    seeds: int = 3
    """Runs with each precision."""
    cosine_after: int = 200
    """Number of updates after which gradients are compared, in addition to the start."""
    data_dir: Path | None = None
    """Folder with the data."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


def gradient(model: LatentSequenceModel, batch: SequenceBatch, bf16: bool) -> Tensor:
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model.loss_module(TraceMeanField_ELBO(max_plate_nesting=1))(batch)
    loss.backward()
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts).double()


def cosine(model: LatentSequenceModel, batch: SequenceBatch) -> float:
    exact, low = (gradient(model, batch, bf16) for bf16 in (False, True))
    return float(torch.nn.functional.cosine_similarity(exact, low, dim=0))


def main(config: Config) -> None:
    pyro.enable_validation(False)
    keep_freed_memory()
    shape = SHAPES[config.frame]
    splits: Any = load_mnist(config.data_dir, frame=config.frame)
    print(f"{splits.source.name}, {config.frame}, {shape}")
    rows: list[tuple[Any, ...]] = []
    curves: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        batches = Batches(splits.train, shape.batch, seed=seed)
        losses: dict[bool, list[float]] = {}
        cosines: list[float] = []
        for bf16 in (False, True):
            model = make_model(shape, seed=seed, alpha=AUX[config.frame], beta=AUX[config.frame])
            svi, kept = svi_of(model, bf16), []
            probe = next(iter(batches.epoch(99)))
            torch.manual_seed(seed)
            for update, batch in enumerate(islice(batches.epoch(0), config.updates)):
                if not bf16 and update in (0, config.cosine_after):
                    state = torch.get_rng_state()
                    cosines.append(cosine(model, probe))
                    torch.set_rng_state(state)
                kept.append(svi.step(batch))
            losses[bf16] = torch.stack(kept).tolist()
            curves[f"seed {seed}, {'bf16' if bf16 else 'float32'}"] = losses[bf16]
        means = [statistics.fmean(losses[bf16][-100:]) for bf16 in (False, True)]
        rows.append((seed, *(f"{c:.6f}" for c in cosines), *means, means[1] - means[0]))
        print(f"seed {seed} done", flush=True)
    header = [
        "seed", "cosine at the start", f"after {config.cosine_after}", "loss, float32", "loss, bf16",
        "difference",
    ]  # fmt: skip
    print(table(header, rows))
    spread = statistics.stdev(row[3] for row in rows) if len(rows) > 1 else float("nan")
    print(
        "losses: mean of the last 100 updates, nats per image with auxiliary costs; standard deviation "
        f"over seeds (float32): {spread:.2f}"
    )
    report("precision", {"config": str(config), "losses": curves, "rows": rows}, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))

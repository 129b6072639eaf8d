"""Seconds per update of the two layouts, beside two bare LSTMs over the same steps.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py --config mnist-pixel-small

All variants run interleaved in one process, on random data; times are CPU seconds of the process
(``time.process_time``), medians over repetitions. An update is loss, gradients, global-norm clipping
and Adam, under the evidence lower bound with analytic KL. The floor is the forward and backward
recurrence as two calls of ``torch.nn.LSTM``, forward and backward pass, no loss and no optimiser.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyro
import torch
import tyro

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import SVI, TraceMeanField_ELBO


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of a batch."""

    steps: int
    batch: int
    data: int
    hidden: int
    latent: int
    mlp: int
    emission: str = "bernoulli"


SHAPES = {
    "mnist-pixel-small": Shape(784, 32, 1, 128, 32, 128),
    "mnist-row": Shape(28, 64, 28, 256, 32, 256),
    "timit": Shape(40, 32, 200, 1024, 256, 512, "gaussian"),
}


@dataclass(frozen=True)
class Config:
    """Time one training update of each variant."""

    config: Literal["mnist-pixel-small", "mnist-row", "timit"] = "mnist-pixel-small"
    """Sizes of model and batch."""
    repetitions: int = 5
    """Measured updates of each variant, after one that is not."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


def layout_update(shape: Shape, layout: Literal["steps", "time"]) -> Callable[[], object]:
    torch.manual_seed(0)
    zf = ZForcing(
        shape.data,
        emission=shape.emission,
        hidden_size=shape.hidden,
        latent_size=shape.latent,
        mlp_size=shape.mlp,
        layout=layout,
    )
    optimiser = torch.optim.Adam(zf.parameters(), lr=1e-3)
    objective = TraceMeanField_ELBO(max_plate_nesting=1)
    svi = SVI(zf.model, zf.guide, optimiser, objective, clip_norm=100.0)
    batch = SequenceBatch.from_targets(
        (torch.rand(shape.batch, shape.steps, shape.data) > 0.5).float()
    )
    return lambda: svi.step(batch)


def two_lstms(shape: Shape) -> Callable[[], object]:
    forward = torch.nn.LSTM(shape.data + shape.latent, shape.hidden)
    backward = torch.nn.LSTM(shape.data, shape.hidden)
    u = torch.randn(shape.steps, shape.batch, shape.data + shape.latent)
    y = torch.randn(shape.steps, shape.batch, shape.data)
    seed = torch.randn(shape.steps, shape.batch, shape.hidden)

    def update() -> None:
        torch.autograd.backward([forward(u)[0], backward(y)[0]], [seed, seed])

    return update


def main(config: Config) -> None:
    pyro.enable_validation(False)
    shape = SHAPES[config.config]
    variants = {
        "layout steps": layout_update(shape, "steps"),
        "layout time": layout_update(shape, "time"),
        "two bare nn.LSTM": two_lstms(shape),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(config.repetitions + 1):
        for name, update in variants.items():
            start = time.process_time()
            update()
            if repetition > 0:
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base, floor = medians["layout steps"], medians["two bare nn.LSTM"]
    print(
        f"{config.config}: {shape}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    print(f"{'variant':<18} {'CPU s/update':>12} {'x faster than steps':>20} {'x two LSTMs':>12}")
    for name, value in medians.items():
        print(f"{name:<18} {value:>12.4f} {base / value:>20.2f} {value / floor:>12.2f}")
    if config.output is not None:
        config.output.write_text(
            json.dumps({"config": config.config, "seconds": medians}, indent=2)
        )


if __name__ == "__main__":
    main(tyro.cli(Config))

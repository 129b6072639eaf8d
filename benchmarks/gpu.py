"""Time of an update on a CUDA GPU: eager, as a CUDA graph and in bf16, at the paper's size for MNIST.

    python benchmarks/gpu.py

Times are medians in milliseconds, measured with CUDA events, and minutes per epoch of MNIST. Each variant
is created, timed and freed before the next, since several of them do not fit into the memory of a GPU at
the larger batch sizes. Before the timing, losses and gradients are compared: fused with eager, and replayed
with ordinary updates. The floor is the forward and backward pass of both recurrences as two bare cuDNN
LSTMs. Layout "steps" (one sample site per step) is timed only at the smallest batch size, because the host
limits its speed.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from common import Shape, make_model, random_batch, report, svi_of, table, two_lstms, update_of

from pyro_zf.infer import GraphedSVI

DIGITS = 50_000


@dataclass(frozen=True)
class Config:
    """Time training updates on a GPU."""

    steps: int = 784
    """Steps per sequence."""
    hidden: int = 1024
    """Units of each LSTM."""
    latent: int = 256
    """Size of z."""
    mlp: int = 1024
    """Units of each hidden layer."""
    batch: tuple[int, ...] = (32, 128, 256, 512)
    """Batch sizes."""
    repetitions: int = 5
    """Measured updates of each variant, after the warm-up."""
    tf32: bool = True
    """Whether float32 matrix products may use TF32."""
    time_chunk: int | None = None
    """Steps that are evaluated at a time, as in training."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


def graphed_update(shape: Shape, bf16: bool, **options: Any) -> Callable[[], object]:
    model = make_model(shape, "cuda", **options)
    graphed = GraphedSVI(svi_of(model, bf16), warmup=3)
    batch = random_batch(shape, "cuda")
    for _ in range(4):  # three ordinary updates, then the recorded one
        graphed.step(batch)
    return lambda: graphed.step(batch)


def milliseconds(make: Callable[[], Callable[[], object]], repetitions: int) -> float:
    """Median time of an update, or NaN if it does not fit into the memory."""
    times = []
    try:
        update = make()
        for _ in range(repetitions + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()  # type: ignore[no-untyped-call]
            update()
            end.record()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return math.nan
    finally:
        update = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()
    return statistics.median(times[1:])


def check(shape: Shape, time_chunk: int | None) -> dict[str, float]:
    """Compare gradients of the fused and the eager core, and losses of replayed and ordinary updates."""
    small = dataclasses.replace(shape, steps=min(shape.steps, 56))
    batch = random_batch(small, "cuda")
    noise = torch.randn(small.steps, small.batch, small.latent, device="cuda")
    found: dict[str, float] = {}
    vectors = {}
    for name, core, bf16 in (("eager", "eager", False), ("fused", "fused", False), ("bf16", "fused", True)):  # fmt: skip
        model = make_model(small, "cuda", core=core, time_chunk=time_chunk)
        svi = svi_of(model, bf16)
        with _FixedNoise(noise):
            svi.step(batch)
        vectors[name] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
    for name in ("fused", "bf16"):
        cosine = torch.nn.functional.cosine_similarity(vectors[name], vectors["eager"], dim=0)
        found[f"gradient cosine, {name} and eager"] = float(cosine)
    losses = []
    for graph in (False, True):
        svi = svi_of(make_model(small, "cuda", core="fused", time_chunk=time_chunk))
        engine: Any = GraphedSVI(svi) if graph else svi
        torch.manual_seed(2)
        losses.append(torch.stack([engine.step(batch) for _ in range(12)]))
    found["largest relative difference of losses, replayed and ordinary"] = float(
        ((losses[1] - losses[0]) / losses[0]).abs().max()
    )
    return found


class _FixedNoise:
    """Gives every core the same noise, whether it is drawn step by step or at once."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise, self.t = noise, 0

    def __enter__(self) -> None:
        self.normal = torch.Tensor.normal_

        def normal_(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if x.shape == self.noise.shape:
                return x.copy_(self.noise)
            self.t += 1
            return x.copy_(self.noise[self.t - 1])

        torch.Tensor.normal_ = normal_  # type: ignore[method-assign, assignment]

    def __exit__(self, *args: object) -> None:
        torch.Tensor.normal_ = self.normal  # type: ignore[method-assign]


def main(config: Config) -> None:
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA GPU, and PyTorch finds none", file=sys.stderr)
        sys.exit(2)
    pyro.enable_validation(False)
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    shape = Shape(config.steps, 32, 1, config.hidden, config.latent, config.mlp)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, TF32 {config.tf32}, {shape}")
    agreement = check(dataclasses.replace(shape, batch=min(config.batch)), config.time_chunk)
    for what, value in agreement.items():
        print(f"{what}: {value:.6f}")
    results: dict[int, dict[str, float]] = {}
    lines = []
    options: dict[str, Any] = {"core": "fused", "time_chunk": config.time_chunk}
    for size in config.batch:
        sized = dataclasses.replace(shape, batch=size)
        variants: dict[str, Callable[[], Callable[[], object]]] = {
            "two cuDNN LSTMs": partial(two_lstms, sized, "cuda"),
            "two cuDNN LSTMs, bf16": partial(two_lstms, sized, "cuda", torch.bfloat16),
            "time, eager core": partial(update_of, sized, device="cuda", core="eager"),
            "time, fused": partial(update_of, sized, device="cuda", **options),
            "time, fused, bf16": partial(update_of, sized, device="cuda", bf16=True, **options),
            "graph": partial(graphed_update, sized, False, **options),
            "graph, bf16": partial(graphed_update, sized, True, **options),
        }
        if size == min(config.batch):
            variants["steps (base)"] = partial(update_of, sized, device="cuda", layout="steps")
        times = results[size] = {
            name: milliseconds(make, config.repetitions) for name, make in variants.items()
        }
        for name, value in times.items():
            minutes = value * DIGITS / size / 60_000
            lines.append((f"{size}: {name}", value, minutes, value / times["two cuDNN LSTMs"]))
    header = ["batch: variant", "ms/update", "min/epoch of 50,000", "two LSTMs"]
    print(table(header, lines))
    print(f"peak memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    report("gpu", {"milliseconds": results, "agreement": agreement}, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))

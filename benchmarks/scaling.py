"""Time and memory of an update for different numbers of steps, sequences and units.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Times are CPU seconds of the fused update in float32; the values of one size take turns. Memory is the growth
of the peak resident set of a fresh process by its first update. A tiny update, which loads libraries, comes
before it and is not counted. Memory is measured without keeping freed memory.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import tyro
from common import SHAPES, Shape, Update, interleaved, report, table, two_lstms, update_of

from pyro_zf.training.memory import keep_freed_memory

MEMORY: dict[str, dict[str, Any]] = {
    "steps (base)": {"layout": "steps"},
    "time, eager": {"core": "eager"},
    "time, fused": {"core": "fused"},
    "time, fused, bf16": {"core": "fused", "bf16": True},
    "time, fused, time_chunk=56": {"core": "fused", "time_chunk": 56},
}
FLOOR = "two bare LSTMs"


@dataclass(frozen=True)
class Config:
    """Measure time and memory of an update for different sizes."""

    steps: tuple[int, ...] = (196, 784, 3136)
    """Numbers of steps. Without a value, the table is left out; the same holds for the next two options."""
    batch: tuple[int, ...] = (8, 32, 128)
    """Batch sizes, at 196 steps."""
    hidden: tuple[int, ...] = (64, 128, 256, 512)
    """Units of the LSTMs and hidden layers, at 196 steps."""
    repetitions: int = 3
    """Measured updates of each variant, after one warm-up update."""
    output: Path | None = None
    """Also write the figures to this JSON file."""
    keep_memory: bool = True
    """Whether the C library keeps freed memory during the timing, as in the training command."""
    measure_memory_of: str | None = None
    """Print the memory of one variant and exit; the script uses this itself."""


def memory_of(variant: str, shape: Shape) -> float:
    """Growth of the peak resident set by one update, in megabytes."""

    def make(size: Shape) -> Update:
        return two_lstms(size) if variant == FLOOR else update_of(size, **MEMORY[variant])

    make(dataclasses.replace(shape, steps=4))()
    update = make(shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    update()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_fresh_process(variant: str, steps: int) -> float:
    command = [sys.executable, __file__, "--measure-memory-of", variant, "--steps", str(steps)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout))


def main(config: Config) -> None:
    pyro.enable_validation(False)
    mnist = SHAPES["mnist"]
    if config.measure_memory_of is not None:
        shape = dataclasses.replace(mnist, steps=config.steps[0])
        print(json.dumps(memory_of(config.measure_memory_of, shape)))
        return
    memory = {
        steps: {name: in_fresh_process(name, steps) for name in (*MEMORY, FLOOR)}
        for steps in config.steps
        if steps >= 784
    }
    if config.keep_memory:
        keep_freed_memory()
    short = dataclasses.replace(mnist, steps=196)
    sizes: dict[str, dict[int, Shape]] = {
        "steps": {n: dataclasses.replace(mnist, steps=n) for n in config.steps},
        "batch": {n: dataclasses.replace(short, batch=n) for n in config.batch},
        "hidden": {n: dataclasses.replace(short, hidden=n, mlp=n) for n in config.hidden},
    }
    seconds: dict[str, dict[int, dict[str, float]]] = {}
    for name, shapes in sizes.items():
        if not shapes:
            continue
        variants = {}
        for n, shape in shapes.items():
            variants[f"{n} fused"] = update_of(shape, core="fused")
            variants[f"{n} floor"] = two_lstms(shape)
        times = interleaved(variants, config.repetitions)
        seconds[name] = {
            n: {kind: times[f"{n} {kind}"] for kind in ("fused", "floor")} for n in shapes
        }
        print(f"\n{name}, others as in {short if name != 'steps' else mnist}")
        first = seconds[name][next(iter(shapes))]["fused"]
        rows = [
            (n, t["fused"], t["fused"] / first, t["fused"] / t["floor"])
            for n, t in seconds[name].items()
        ]
        print(table([name, "CPU s/update", "times the first", "two LSTMs"], rows))
    for steps, megabytes in memory.items():
        print(f"\npeak memory of an update at T = {steps}")
        base = megabytes["steps (base)"]
        peaks = [(k, f"{v:.0f}", v / base) for k, v in megabytes.items()]
        print(table(["variant", "MB", "of the base"], peaks))
    report("scaling", {"seconds": seconds, "megabytes": memory}, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))

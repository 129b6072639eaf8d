"""CPU seconds of a training update in several implementations, compared with two bare LSTMs.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py

All variants take turns in one process, on random data. Times are CPU seconds of the process
(``time.process_time``), as medians over repetitions. An update consists of loss, gradients, clipping by the
global norm and Adam; the loss is the evidence lower bound with analytic KL and both auxiliary costs.
Pyro's validation is off. The base is layout "steps" (one sample site per step). The peer is a loop over
PyTorch modules as such models are commonly written. The second table compares the eager and the fused
recurrence for the systems of the package at their defaults (STORN draws all steps at once in any case).
The last table gives the fixed cost of Pyro: the time of an update of a tiny model, minus that of the same
update whose terms are added up without Pyro.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
import tyro
from common import (
    SHAPES,
    Shape,
    Update,
    interleaved,
    plain_update,
    report,
    table,
    two_lstms,
    update_of,
    update_without_pyro,
)

from pyro_zf.training.memory import keep_freed_memory


@dataclass(frozen=True)
class Config:
    """Time a training update of each variant."""

    shapes: tuple[str, ...] = ("mnist", "mnist-row", "timit")
    """Sizes of model and batch: mnist (pixels), mnist-row, timit."""
    systems: tuple[str, ...] = ("zforcing", "variational-bilstm", "srnn", "vrnn", "storn")
    """Systems with latents to compare."""
    system_steps: int = 196
    """Number of steps in the comparison of systems."""
    repetitions: int = 5
    """Measured updates of each variant, after one warm-up update."""
    keep_memory: bool = True
    """Whether the C library keeps freed memory, as in the training command."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


def variants(shape: Shape) -> dict[str, Update]:
    return {
        "steps (base)": update_of(shape, layout="steps"),
        "plain PyTorch loop": plain_update(shape),
        "time, eager": update_of(shape, core="eager"),
        "time, fused": update_of(shape, core="fused"),
        "time, fused, bf16": update_of(shape, bf16=True, core="fused"),
        "two bare LSTMs": two_lstms(shape),
    }


def main(config: Config) -> None:
    pyro.enable_validation(False)
    kept = config.keep_memory and keep_freed_memory()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"{torch.backends.cpu.get_cpu_capability()}, freed memory is {'' if kept else 'not '}kept"
    )
    results: dict[str, dict[str, float]] = {}
    for name in config.shapes:
        shape = SHAPES[name]
        seconds = results[name] = interleaved(variants(shape), config.repetitions)
        base, floor = seconds["steps (base)"], seconds["two bare LSTMs"]
        print(f"\n{name}: {shape}")
        rows = [(k, v, base / v, v / floor) for k, v in seconds.items()]
        print(table(["variant", "CPU s/update", "times the base", "two LSTMs"], rows))
    short = dataclasses.replace(SHAPES["mnist"], steps=config.system_steps)
    print(f"\nsystems: {short}")
    by_system: list[tuple[object, ...]] = []
    for system in config.systems:
        kinds = {
            "eager": update_of(short, system=system, core="eager"),
            "fused": update_of(short, system=system),
            "fused, bf16": update_of(short, system=system, bf16=True),
        }
        times = results[system] = interleaved(kinds, config.repetitions)
        by_system.append((system, *times.values(), times["eager"] / times["fused"]))
    print(table(["CPU s/update", "eager", "fused", "fused, bf16", "eager over fused"], by_system))
    tiny = SHAPES["tiny"]
    pair = {
        "by SVI": update_of(tiny, core="fused"),
        "without Pyro": update_without_pyro(tiny, core="fused"),
    }
    seconds = results["overhead"] = interleaved(pair, 10 * config.repetitions)
    print(f"\ntiny: {tiny}")
    print(table(["update", "CPU ms"], [(k, 1e3 * v) for k, v in seconds.items()]))
    fixed = seconds["by SVI"] - seconds["without Pyro"]
    print(f"fixed cost of Pyro: {1e3 * fixed:.1f} ms per update")
    report("train_step", {"seconds": results, "memory_kept": kept}, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))

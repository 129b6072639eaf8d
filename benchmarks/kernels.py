"""Number of kernels and of waits for the device in an update.

    python benchmarks/kernels.py

A dispatch mode counts the operators that reach the CPU's kernels, without views and empty allocations. The
table gives kernels per step (from the difference between two numbers of steps), fixed kernels per update,
and reads of a number from a tensor, at each of which a host would wait for a GPU. A GPU has other kernels
for some operators (an LSTM, a fused Adam), so its numbers are similar but not equal.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from common import SHAPES, Shape, Update, plain_update, report, table, update_of
from torch.utils._python_dispatch import TorchDispatchMode

_READ = torch.ops.aten._local_scalar_dense.default
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_")


class KernelCounter(TorchDispatchMode):
    """Counts kernels by name, and reads of a number from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
        view = any(not alias.is_write for alias in aliases)
        if func is _READ:
            self.reads += 1
        elif not view and name not in (*_ALLOCATIONS, "detach"):
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Count:
    """Numbers of kernels and reads of an update."""

    per_step: float
    fixed: float
    reads: int
    by_name: dict[str, float]


def count(make: Any, shape: Shape) -> Count:
    """Count in the second call of the update that ``make`` creates for a shape."""
    counters = []
    for steps in (10, 20):
        update: Update = make(dataclasses.replace(shape, steps=steps))
        update()
        with KernelCounter() as counter:
            update()
        counters.append(counter)
    few, many = (c.kernels for c in counters)
    by_name = {k: (many[k] - few[k]) / 10 for k in many if many[k] != few[k]}
    per_step = sum(by_name.values())
    return Count(per_step, few.total() - 10 * per_step, counters[1].reads, by_name)


VARIANTS: dict[str, Any] = {
    "steps (base)": lambda shape: update_of(shape, layout="steps"),
    "plain PyTorch loop": plain_update,
    "time, eager": lambda shape: update_of(shape, core="eager"),
    "time, fused": lambda shape: update_of(shape, core="fused"),
    "time, fused, bf16": lambda shape: update_of(shape, core="fused", bf16=True),
}


@dataclass(frozen=True)
class Config:
    """Count kernels and waits in an update."""

    shapes: tuple[str, ...] = ("mnist", "timit")
    """Sizes of model and batch; small weights need fewer kernels, see docs/performance.md."""
    by_name: bool = False
    """Also list the kernels of one step of the fused recurrence."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


def main(config: Config) -> None:
    pyro.enable_validation(False)
    results: dict[str, dict[str, Any]] = {}
    for name in config.shapes:
        counts = {k: count(make, SHAPES[name]) for k, make in VARIANTS.items()}
        results[name] = {k: dataclasses.asdict(c) for k, c in counts.items()}
        print(f"\n{name}")
        rows = [(k, f"{c.per_step:.1f}", f"{c.fixed:.0f}", c.reads) for k, c in counts.items()]
        print(table(["variant", "kernels/step", "fixed/update", "waits/update"], rows))
        if config.by_name:
            print(counts["time, fused"].by_name)
    report("kernels", {"kernels": results}, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))

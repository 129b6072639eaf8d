"""A substitute for CUDA graphs on a CPU, which records kernels and runs them again.

As with CUDA graphs, a replay runs no Python code, keeps the recorded numbers, and reads and writes existing
tensors in place. Unlike with CUDA graphs, recording runs the kernels too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Recorder(TorchDispatchMode):
    """Records each kernel with its arguments and results."""

    def __init__(self, may_read: bool = False) -> None:
        super().__init__()
        self.may_read = may_read
        self.kernels: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten._local_scalar_dense.default and not self.may_read:
            raise RuntimeError("a number was read from a tensor, which no graph can do")
        result = func(*args, **(kwargs or {}))
        self.kernels.append((func, args, kwargs or {}, result))
        return result


def record_with(
    keep: Callable[[], Callable[[], None]], may_read: bool = False
) -> Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]:
    """Make the ``record`` argument of :class:`pyro_zf.infer.GraphedSVI`.

    Args:
        keep: saves the state of training and returns a function that restores it.
        may_read: whether tensors may be converted to Python numbers.
    """

    def record(update: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        bring_back = keep()
        try:
            with Recorder(may_read) as recorder:
                result = update()
        finally:
            bring_back()

        def replay() -> None:
            storages: dict[int, Any] = {}

            def now(x: Any) -> Any:
                """Current replacement of a tensor that was created during recording."""
                if not isinstance(x, Tensor):
                    return x
                storage = storages.get(x.untyped_storage()._cdata)
                if storage is None:
                    return x.detach() if x.requires_grad else x
                made = torch.empty(0, dtype=x.dtype)
                return made.set_(storage, x.storage_offset(), x.shape, x.stride())

            with torch.no_grad():
                for func, args, kwargs, old in recorder.kernels:
                    new = func(*tree_map(now, args), **tree_map(now, kwargs))
                    given = {
                        x.untyped_storage()._cdata
                        for x in tree_leaves((args, kwargs))
                        if isinstance(x, Tensor)
                    }
                    for a, b in zip(tree_leaves(old), tree_leaves(new), strict=True):
                        if isinstance(a, Tensor) and a.untyped_storage()._cdata not in given:
                            storages[a.untyped_storage()._cdata] = b.untyped_storage()
                for x in tree_leaves(result):
                    x.copy_(now(x))

        return result, replay

    return record

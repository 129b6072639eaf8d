"""Products with a weight, computed by the fastest available library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Product"]

#: On a CPU, products with weights of fewer values use ``torch.mm`` in full precision, since the call to
#: another library or the casts to half precision cost more than they save.
SMALLEST = 2**15


class Product:
    """Products with a weight, (out, in), and with its transpose.

    Args:
        weight: in full precision.
        low: the precision of the operands, or None for that of the weight.
    """

    def __init__(self, weight: Tensor, low: torch.dtype | None = None) -> None:
        small = weight.device.type == "cpu" and weight.numel() < SMALLEST
        self.low = None if small else low
        self.weight = (weight if self.low is None else weight.to(self.low)).contiguous()
        self._transposed = self.weight.t()
        onednn = not small and weight.device.type == "cpu" and weight.dtype == torch.float32
        self._onednn = _onednn_linear() if onednn and self.low is None else None
        #: Whether products are added to ``out`` by the library itself.
        self._in_place = self.low is None and self._onednn is None

    def add(self, x: Tensor, out: Tensor) -> None:
        r""":math:`out \mathrel{+}= x W^\top`."""
        if self._in_place:
            out.addmm_(x, self._transposed)
        else:
            out.add_(self._times(x, self._transposed))

    def affine(self, x: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
        r""":math:`x W^\top + bias`, in ``out`` if it is given."""
        if self._in_place:
            return torch.addmm(bias, x, self._transposed, out=out)
        return torch.add(self._times(x, self._transposed), bias, out=out)

    def back(self, g: Tensor, room: Tensor) -> Tensor:
        r""":math:`g W`, in ``room`` or elsewhere."""
        if self._in_place:
            return torch.mm(g, self.weight, out=room)
        return self._times(g, self.weight)

    def add_back(self, g: Tensor, out: Tensor) -> Tensor:
        r""":math:`out \mathrel{+}= g W`."""
        if self._in_place:
            return out.addmm_(g, self.weight)
        return out.add_(self._times(g, self.weight))

    def gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """The gradient of the weight, from all gradients of outputs and all inputs, (steps, rows, size)."""
        g, x = g.flatten(0, 1), x.flatten(0, 1)
        if self.low is None and len(x) > 4 * max(self.weight.shape):
            return torch.mm(g.t(), x)  # for long sums, MKL is as fast as any other library
        return self._times(g.t(), x).to(g.dtype)

    def _times(self, a: Tensor, b: Tensor) -> Tensor:
        if self.low is not None:
            return torch.mm(a.to(self.low), b.to(self.low))
        return torch.mm(a, b) if self._onednn is None else self._onednn(a, b)


@functools.cache
def _mkl_is_fast() -> bool:
    """Whether MKL, which ``torch.mm`` calls for float32, runs at its full speed on this processor."""
    try:
        return "AuthenticAMD" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True


@functools.cache
def _onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """A product of float32 matrices by oneDNN, on processors where it is faster than MKL.

    The operator is private to PyTorch. On one thread of an Intel Xeon, it was 0.6 to 1.1 times as fast as
    ``torch.mm`` for products of 32 or 64 rows with weights of the standard sizes, so it is not used there.
    On AMD processors, MKL runs below its full speed, and an earlier measurement found oneDNN faster.
    """
    if _mkl_is_fast():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():
        return None

    def times(a: Tensor, b: Tensor) -> Tensor:
        if not (b.is_contiguous() or b.t().is_contiguous()):
            b = (
                b.contiguous()
            )  # for a part of a matrix, oneDNN uses plain loops, which are a thousand times slower
        return operator(a, b.t(), None, "none", [], "")

    try:
        works = torch.allclose(times(torch.ones(2, 3), torch.ones(3, 4)), torch.full((2, 4), 3.0))
    except (RuntimeError, TypeError):
        return None
    return times if works else None

"""Updates that are recorded once as CUDA graphs and replayed on a GPU."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_zf.batch import SequenceBatch
from pyro_zf.infer.carried import CarriedState
from pyro_zf.infer.svi import SVI

__all__ = ["GraphedSVI"]

#: Result of an update: its loss, and the final state if states are carried between batches.
Result = tuple[Tensor, tuple[Tensor, ...]]
#: Runs an update once while recording it. Returns its result, and a function that runs the kernels
#: again on the current contents of the same memory.
Record = Callable[[Callable[[], Result]], tuple[Result, Callable[[], None]]]


class GraphedSVI:
    """Updates of an :class:`~pyro_zf.infer.SVI`, replayed from one CUDA graph per batch shape.

    Forward, backward, clipping and optimiser take one launch, regardless of the number of steps: Pyro
    and Python run only while a graph is recorded. Anything that changes between updates must therefore
    be a tensor that is modified in place (``model.kl_weight = torch.ones((), device="cuda")``, then
    ``model.kl_weight.fill_(0.5)``); a number keeps its value from the recording.

    A shape is recorded after ``warmup`` ordinary updates. Rarer shapes, such as that of the last batch of
    an epoch, continue to use ordinary updates.

    Args:
        svi: the SVI that performs the updates; its optimiser must be ``capturable``.
        carried: the object that carries states between batches, if there is one.
        warmup: number of ordinary updates of a shape before it is recorded.
        max_graphs: maximum number of recorded shapes.
        strict: whether to raise an error if an update cannot be recorded, instead of warning and
            continuing with ordinary updates.
        record: function that records an update; by default it uses :class:`torch.cuda.CUDAGraph`.

    Raises:
        ValueError: if the optimiser is not ``capturable``.
    """

    def __init__(
        self,
        svi: SVI,
        carried: CarriedState | None = None,
        warmup: int = 3,
        max_graphs: int = 4,
        strict: bool = True,
        record: Record | None = None,
    ) -> None:
        groups = svi.optim.param_groups
        if record is None and not all(group.get("capturable", False) for group in groups):
            raise ValueError(
                f"{type(svi.optim).__name__} must be made with capturable=True for CUDA graphs"
            )
        self.svi, self.carried, self.warmup, self.max_graphs = svi, carried, warmup, max_graphs
        self.strict = strict
        self._stream = torch.cuda.Stream() if record is None else None
        self._pool = torch.cuda.graph_pool_handle() if record is None else None
        self._record = record or self._record_on_cuda
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    def step(self, batch: SequenceBatch) -> Tensor:
        """Perform one update; see :meth:`SVI.step`.

        Raises:
            RuntimeError: if ``strict`` is set and the update cannot be recorded, for example because it
                reads a number from the device.
        """
        shape = _shape(batch)
        graph = self._graphs.get(shape)
        if graph is None:
            self._seen[shape] += 1
            if self._seen[shape] <= self.warmup or len(self._graphs) >= self.max_graphs:
                return self._ordinary(batch)
            try:
                graph = _Graph(batch, self._update, self._record)
            except RuntimeError as error:
                if self.strict:
                    raise
                reason = str(error).splitlines()[0]
                warnings.warn(f"updates are not replayed from graphs: {reason}", stacklevel=2)
                self.max_graphs = 0
                return self._ordinary(batch)
            self._graphs[shape] = graph
        else:
            graph.fill(batch)
        graph.replay()
        loss, end = graph.result
        if self.carried is not None:
            self.carried.leave(batch, end)
        return loss.clone()

    def _ordinary(self, batch: SequenceBatch) -> Tensor:
        with self._aside(), warnings.catch_warnings():
            # Running without a graph is intended here.
            warnings.filterwarnings("ignore", ".*constructed with capturable=True")
            return self.svi.step(batch)

    def _update(self, batch: SequenceBatch) -> Result:
        loss = self.svi.step(batch)
        return loss, () if self.carried is None else self.carried.left(batch)

    def _aside(self) -> AbstractContextManager[Any]:
        """Context for ordinary updates on the recording stream, so they are not tied to another stream."""
        return nullcontext() if self._stream is None else _OnStream(self._stream)

    def _record_on_cuda(self, update: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # The result of a replay is copied at once, so graphs can share memory. Data-loading threads may
        # continue to use the device.
        with torch.cuda.graph(
            graph, self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            result = update()
        return result, graph.replay


class _Graph:
    """A recorded update and the memory from which it reads its batch."""

    def __init__(
        self, batch: SequenceBatch, update: Callable[[SequenceBatch], Result], record: Record
    ) -> None:
        self._tensors = [x.clone() for x in _tensors(batch)]

        def recorded() -> Result:
            # Construct the batch here, so that the graph computes its mask.
            return update(_with_tensors(batch, self._tensors))

        self.result, self.replay = record(recorded)

    def fill(self, batch: SequenceBatch) -> None:
        """Copy in the batch for the next replay."""
        for own, given in zip(self._tensors, _tensors(batch), strict=True):
            own.copy_(given, non_blocking=True)


class _OnStream:
    """Runs work on another stream, synchronised with the current stream on entry and exit."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.context = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        self.context.__enter__()

    def __exit__(self, *args: Any) -> None:
        self.context.__exit__(*args)
        torch.cuda.current_stream().wait_stream(self.stream)


def _tensors(batch: SequenceBatch) -> list[Tensor]:
    return [x for _, x in _named_tensors(batch)]


def _named_tensors(batch: SequenceBatch) -> list[tuple[str, Tensor]]:
    names = ("inputs", "targets", "lengths", "uncorrupted", "covariates")
    given = [(name, getattr(batch, name)) for name in names]
    carried = [("carried", x) for x in batch.carried or ()]
    return [(name, x) for name, x in (*given, *carried) if x is not None]


def _with_tensors(batch: SequenceBatch, tensors: list[Tensor]) -> SequenceBatch:
    """Replace the tensors of a batch, in the order of :func:`_named_tensors`."""
    names = [name for name, _ in _named_tensors(batch)]
    given: dict[str, Any] = dict(zip(names, tensors, strict=True))
    if "carried" in given:
        given["carried"] = tuple(
            x for name, x in zip(names, tensors, strict=True) if name == "carried"
        )
    return replace(batch, **given)


def _shape(batch: SequenceBatch) -> Hashable:
    """The key of the graph for a batch."""
    tensors = tuple((name, x.shape, x.dtype) for name, x in _named_tensors(batch))
    return (tensors, batch.has_start_symbol)

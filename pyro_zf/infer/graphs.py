"""Updates that are recorded once and replayed: CUDA graphs, on a GPU."""

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

#: What an update gives: its loss, and the state that a carried batch is left in.
Result = tuple[Tensor, tuple[Tensor, ...]]
#: Runs an update once while recording it; gives its result, and a function that runs the kernels
#: again, on whatever the same memory holds by then.
Record = Callable[[Callable[[], Result]], tuple[Result, Callable[[], None]]]


class GraphedSVI:
    """Updates of an :class:`~pyro_zf.infer.SVI`, replayed from CUDA graphs, one for each shape of batch.

    Forward, backward, clipping and optimiser are one launch, whatever the number of steps: Pyro and
    Python run while a graph is recorded and not after. So what changes between updates must be a
    tensor that is changed in place (``model.kl_weight = torch.ones((), device="cuda")``, then
    ``model.kl_weight.fill_(0.5)``); a number is recorded as it was.

    A shape is recorded once it has come ``warmup`` times, which are ordinary updates. Batches of rarer
    shapes, as the last of an epoch, stay ordinary ones.

    Args:
        svi: its optimiser must be ``capturable``.
        carried: the keeper of states from batch to batch, if there is one.
        warmup: ordinary updates of a shape before it is recorded.
        max_graphs: how many shapes are recorded.
        strict: whether an update that cannot be recorded is an error; if not, there is a warning, and
            ordinary updates go on.
        record: how to record; by default with :class:`torch.cuda.CUDAGraph`.

    Raises:
        ValueError: if the optimiser cannot be captured.
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
        """One update; see :meth:`SVI.step`.

        Raises:
            RuntimeError: if it is strict and the update cannot be recorded, for example since it reads
                a number from the device.
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
            # That it runs without a graph is meant here.
            warnings.filterwarnings("ignore", ".*constructed with capturable=True")
            return self.svi.step(batch)

    def _update(self, batch: SequenceBatch) -> Result:
        loss = self.svi.step(batch)
        return loss, () if self.carried is None else self.carried.left(batch)

    def _aside(self) -> AbstractContextManager[Any]:
        """Where the ordinary updates run, so that nothing of theirs is bound to another stream."""
        return nullcontext() if self._stream is None else _OnStream(self._stream)

    def _record_on_cuda(self, update: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # What a replay gives out is copied at once, so that graphs can share their memory. Threads that
        # load data may go on with theirs.
        with torch.cuda.graph(
            graph, self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            result = update()
        return result, graph.replay


class _Graph:
    """A recorded update, and the memory that it reads its batch from."""

    def __init__(
        self, batch: SequenceBatch, update: Callable[[SequenceBatch], Result], record: Record
    ) -> None:
        self._tensors = [x.clone() for x in _tensors(batch)]

        def recorded() -> Result:
            # Made anew, so that its mask is computed by the graph.
            return update(_with_tensors(batch, self._tensors))

        self.result, self.replay = record(recorded)

    def fill(self, batch: SequenceBatch) -> None:
        """Another batch for the next replay."""
        for own, given in zip(self._tensors, _tensors(batch), strict=True):
            own.copy_(given, non_blocking=True)


class _OnStream:
    """Work on another stream, which waits for this one and is waited for."""

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
    """The batch with other tensors in the same places."""
    names = [name for name, _ in _named_tensors(batch)]
    given: dict[str, Any] = dict(zip(names, tensors, strict=True))
    if "carried" in given:
        given["carried"] = tuple(
            x for name, x in zip(names, tensors, strict=True) if name == "carried"
        )
    return replace(batch, **given)


def _shape(batch: SequenceBatch) -> Hashable:
    """What a graph is recorded for."""
    tensors = tuple((name, x.shape, x.dtype) for name, x in _named_tensors(batch))
    return (tensors, batch.has_start_symbol)

"""Training on several processes, which ``torchrun`` starts.

Every process reads the same batches in the same order and keeps the rows of its own. Gradients are summed
in one reduction after the backward pass and divided by the number of sequences of the whole batch, so an
update is that of one process on the whole batch, up to rounding, for any number of processes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_zf.batch import SequenceBatch
from pyro_zf.distributions.noise import noise_of_rows
from pyro_zf.training.checkpoint import random_state
from pyro_zf.training.checks import UsageError

__all__ = ["ProcessLost", "Processes", "parts_of", "started"]

T = TypeVar("T")
#: Values that the processes share through torchrun, once they are connected.
_store: Any = None
#: Seconds after which a process that waits for another gives up.
PATIENCE = 1800


class ProcessLost(Exception):
    """Another process has ended. The message is a single line.

    Args:
        message: what has happened.
        first: whether this process is the first of the remaining ones to find out.
    """

    def __init__(self, message: str, first: bool = True) -> None:
        super().__init__(message)
        self.first = first


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Args:
        rank: index of this process.
        size: number of processes.
        device: device of this process.
        generator: source of the noise that they share; PyTorch's generator is that of this process alone.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    generator: torch.Generator | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    # Sharing a batch

    def rows(self, number: int) -> list[int]:
        """Rows of a batch of a number of sequences that belong to this process; neighbours are spread."""
        return list(range(self.rank, number, self.size))

    def share(self, batch: SequenceBatch) -> SequenceBatch:
        """The rows of this process; if there are none, one row of length zero."""
        if self.size == 1:
            return batch
        rows = self.rows(batch.num_sequences)
        part = batch.select(rows or [0])
        if rows:
            return part
        return replace(part, lengths=torch.zeros(1, dtype=torch.long, device=part.inputs.device))

    def noise(
        self, batch: SequenceBatch, shared: bool = True, whole: bool = False
    ) -> AbstractContextManager[None]:
        """Context in which this process draws its rows of the noise of a whole batch.

        Args:
            batch: the whole batch.
            shared: whether to draw from the generator of training.
            whole: whether to draw the noise of all rows.
        """
        if self.size == 1:
            return nullcontext()
        number = batch.num_sequences
        rows = list(range(number)) if whole else self.rows(number) or [0]
        return noise_of_rows(rows, number, self.generator if shared else None)

    def random_state(self) -> dict[str, Any]:
        """State of the generators of training, which is the same for any number of processes."""
        state = random_state()
        if self.generator is not None:
            on_cpu = self.generator.device.type == "cpu"
            shared = self.generator.get_state()
            state = {"cpu": shared, "cuda": []} if on_cpu else {**state, "cuda": [shared]}
        return state

    def start_noise(self, seed: int) -> None:
        """Share the present state of PyTorch's generator, and give each process a generator of its own."""
        if self.generator is None:
            return
        own = torch.cuda if self.generator.device.type == "cuda" else torch
        self.generator.set_state(own.get_rng_state())
        torch.manual_seed(seed + 1_000_003 * (self.rank + 1))

    # Communication

    def summed(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes, in place.

        Raises:
            ProcessLost: if another process has ended.
        """
        if self.size > 1:
            with _lost(self):
                dist.all_reduce(values)
        return values

    def gathered(self, content: T) -> list[T]:
        """The content of every process, by rank.

        Raises:
            ProcessLost: if another process has ended.
        """
        if self.size == 1:
            return [content]
        found: list[Any] = [None] * self.size
        with _lost(self):
            dist.all_gather_object(found, content)
        return found

    def results(self, compute: Callable[[], T]) -> list[T]:
        """The results of a function in every process, by rank; its errors are raised in all processes.

        Raises:
            ProcessLost: if another process has ended.
        """
        if self.size == 1:
            return [compute()]
        found: T | Exception
        try:
            found = compute()
        except Exception as error:  # the other processes would wait for this one
            found = error
        gathered = self.gathered(found)
        for one in gathered:
            if isinstance(one, Exception):
                raise one
        return gathered  # type: ignore[return-value]

    def agreed(self, decide: Callable[[], T]) -> T:
        """The result of a function that the first process calls; its errors are raised in all processes.

        Raises:
            ProcessLost: if another process has ended.
        """
        if self.size == 1:
            return decide()
        content: list[Any] = [None, None]
        if self.first:
            try:
                content[0] = decide()
            except Exception as error:
                content[1] = error
        with _lost(self):
            dist.broadcast_object_list(content, src=0)
        if content[1] is not None:
            raise content[1]
        return content[0]  # type: ignore[no-any-return]

    def equal_parameters(self, module: torch.nn.Module) -> None:
        """Give all processes the parameters of the first."""
        if self.size > 1:
            with _lost(self):
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, src=0)

    # States that are carried from batch to batch

    def joined(self, state: Sequence[Tensor] | None, parts: Sequence[int]) -> list[Tensor] | None:
        """Combine the carried states of the processes to that of the whole batch.

        Args:
            state: of the rows of this process.
            parts: number of sequences of each part of the whole batch.
        """
        if state is None or self.size == 1:
            return None if state is None else list(state)
        states = self.gathered([x.cpu() for x in state])
        whole = [x.new_zeros(sum(parts), *x.shape[1:]) for x in states[0]]
        for rank, of_rank in enumerate(states):
            rows = _rows_of(parts, rank, self.size)
            for into, x in zip(whole, of_rank, strict=True):
                into[[i for i in rows if i is not None]] = x[
                    [k for k, i in enumerate(rows) if i is not None]
                ]
        return whole

    def own(
        self, state: Sequence[Tensor] | None, parts: Sequence[int]
    ) -> tuple[Tensor, ...] | None:
        """Select the rows of this process from the carried state of the whole batch; the inverse of :meth:`joined`."""
        if state is None or self.size == 1:
            return None if state is None else tuple(state)
        rows = [i or 0 for i in _rows_of(parts, self.rank, self.size)]
        return tuple(x[rows] for x in state)


def parts_of(number: int, accumulate: int) -> list[int]:
    """Number of sequences of each part that a batch is split into, see :meth:`SequenceBatch.chunk`."""
    return [len(part) for part in torch.arange(number).chunk(accumulate)]


def _rows_of(parts: Sequence[int], rank: int, size: int) -> list[int | None]:
    """Rows of the whole batch that belong to a process, in its order; None for a row of length zero."""
    rows: list[int | None] = []
    first = 0
    for number in parts:
        rows += [first + i for i in range(rank, number, size)] or [None]
        first += number
    return rows


@contextmanager
def _lost(processes: Processes) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what the libraries raise when a connection breaks
        first = True
        with suppress(Exception):  # the store may be gone, too
            first = _store.add("lost", 1) == 1
        raise ProcessLost(
            f"process {processes.rank} of {processes.size} has lost another process, so the training ends; "
            "the last checkpoint is valid, and --resume continues from it",
            first,
        ) from error


def started(device: str) -> Processes:
    """The processes that ``torchrun`` has started, connected with each other.

    Args:
        device: ``cpu`` or ``cuda``, on which each process takes a GPU of its own.

    Raises:
        UsageError: if there are fewer GPUs than processes on this machine, or a single GPU is named.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes(device=device)
    if device.startswith("cuda"):
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device != "cuda":
            raise UsageError(
                f"--device {device} names one GPU, but there are {size} processes: use cuda"
            )
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine has no GPU: PyTorch finds {torch.cuda.device_count()}; "
                "start fewer processes by --nproc-per-node"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    global _store
    if not dist.is_initialized():  # a second training uses the connections of the first
        backend = "nccl" if device.startswith("cuda") else "gloo"
        patience = timedelta(seconds=PATIENCE)
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))  # type: ignore[attr-defined]
        # After a restart the store still has the addresses of the processes before.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _store = dist.PrefixStore(restart, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=patience)
        atexit.register(dist.destroy_process_group)
    return Processes(rank, size, device, torch.Generator(device))

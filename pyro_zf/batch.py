"""The unit of data: a batch of sequences with inputs, targets and lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = ["SequenceBatch", "masked", "with_particles"]


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Target sequences :math:`y_{1:T}` and the inputs :math:`u_{1:T}` from which they are predicted.

    This is the only data structure passed between data, models and inference. Everything past the end
    of a sequence is set to zero on construction, so that no model can depend on it.

    Args:
        inputs: :math:`u_t = y_{t-1}`, with a start symbol as :math:`u_1`. Batch first.
        targets: :math:`y_t`, or None for a batch that a model generates. In that case only
            ``inputs[:, 0]`` is used, and the shape of ``inputs`` sets the number of steps.
        lengths: number of steps of each sequence, or None if all have T steps. A length of 0 marks an
            empty row, which averages leave out.
        has_start_symbol: whether ``inputs[:, 0]`` is a start symbol rather than an observation. The
            auxiliary cost that predicts the inputs in reverse never scores a start symbol.
        uncorrupted: the inputs before some of them were dropped, for costs that score the inputs;
            defaults to ``inputs``.
        continues: whether each row continues the same row of the previous batch.
        carried: the final state of the model on the previous batch, from which this batch starts; None
            starts from zeros. Model programs return it; batch first, or (particles, batch, ...).
        covariates: conditioning information for every network, such as a class or a speaker: one
            vector for each sequence, or one for each step.

    Raises:
        ValueError: if the shapes disagree or a length lies outside 0..T.
        TypeError: if something other than a tensor is given, or the lengths are not whole numbers.

    Example:
        >>> import torch
        >>> batch = SequenceBatch.from_targets(torch.ones(2, 3, 4), lengths=torch.tensor([3, 1]))
        >>> batch.num_sequences, batch.num_steps
        (2, 3)
        >>> batch.mask
        tensor([[ True,  True,  True],
                [ True, False, False]])
        >>> batch.inputs[0, :, 0]  # the targets, delayed by one step
        tensor([0., 1., 1.])
    """

    inputs: Shaped[Tensor, "batch time ..."]
    targets: Shaped[Tensor, "batch time ..."] | None = None
    lengths: Int[Tensor, " batch"] | None = None
    has_start_symbol: bool = True
    uncorrupted: Shaped[Tensor, "batch time ..."] | None = None
    continues: bool = False
    carried: tuple[Shaped[Tensor, "... batch _"], ...] | None = None
    covariates: Float[Tensor, "batch *time covariates"] | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "targets", "lengths", "covariates"):
            _require_tensor(getattr(self, name), name)
        if self.inputs.dim() < 2:
            raise ValueError(f"inputs must be (batch, time, ...), not {tuple(self.inputs.shape)}")
        shape = self.inputs.shape[:2]
        if self.targets is not None and self.targets.shape[:2] != shape:
            raise ValueError(
                f"targets {tuple(self.targets.shape)} and inputs {tuple(self.inputs.shape)} "
                "differ in their first two dimensions (batch, time)"
            )
        if self.covariates is not None and self.covariates.shape[:-1] not in (shape[:1], shape):
            raise ValueError(
                f"covariates {tuple(self.covariates.shape)} are neither (batch, size) nor (batch, "
                f"time, size) for {shape[0]} sequences of {shape[1]} steps"
            )
        if self.lengths is None:
            return
        if self.lengths.is_floating_point() or self.lengths.dtype == torch.bool:
            raise TypeError(
                f"lengths must be whole numbers, not {self.lengths.dtype}: convert them with .long()"
            )
        if self.lengths.shape != shape[:1]:
            raise ValueError(
                f"lengths {tuple(self.lengths.shape)} do not match a batch of {shape[0]} sequences"
            )
        if not self.lengths.is_cuda:  # on a GPU the check would block the host at every batch
            low, high = (int(x) for x in self.lengths.aminmax())
            if low < 0 or high > shape[1]:
                raise ValueError(
                    f"lengths run from {low} to {high}; they must lie in 0..{shape[1]}"
                )
        object.__setattr__(self, "inputs", self._zero_padding(self.inputs))
        if self.targets is not None:
            object.__setattr__(self, "targets", self._zero_padding(self.targets))
        if self.uncorrupted is not None:
            object.__setattr__(self, "uncorrupted", self._zero_padding(self.uncorrupted))
        if self.covariates is not None and self.covariates.dim() == 3:
            object.__setattr__(self, "covariates", self._zero_padding(self.covariates))

    @classmethod
    def from_targets(
        cls,
        targets: Shaped[Tensor, "batch time ..."],
        lengths: Int[Tensor, " batch"] | None = None,
        start: Shaped[Tensor, "..."] | float | int = 0,
        covariates: Float[Tensor, "batch *time covariates"] | None = None,
    ) -> SequenceBatch:
        """Use the targets delayed by one step as inputs, after a start symbol filled with ``start``.

        Raises:
            TypeError: if the targets or lengths are not tensors.
            ValueError: if the shapes disagree.
        """
        _require_tensor(targets, "targets")
        if targets.dim() < 2:
            raise ValueError(f"targets must be (batch, time, ...), not {tuple(targets.shape)}")
        first = torch.as_tensor(start, dtype=targets.dtype, device=targets.device)
        first = first.expand(targets[:, :1].shape)
        inputs = torch.cat([first, targets[:, :-1]], dim=1)
        return cls(inputs, targets, lengths, covariates=covariates)

    @classmethod
    def to_generate(
        cls,
        start: Shaped[Tensor, "batch ..."],
        num_steps: int,
        lengths: Int[Tensor, " batch"] | None = None,
        covariates: Float[Tensor, "batch *time covariates"] | None = None,
    ) -> SequenceBatch:
        """A batch without targets: ``start`` is :math:`u_1`, and a model draws the rest."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {num_steps}")
        _require_tensor(start, "start")
        rest = torch.zeros_like(start).unsqueeze(1).expand(-1, num_steps - 1, *start.shape[1:])
        inputs = torch.cat([start.unsqueeze(1), rest], dim=1)
        return cls(inputs, None, lengths, covariates=covariates)

    @property
    def num_sequences(self) -> int:
        """Number of rows in the batch, including those of length 0."""
        return self.inputs.shape[0]

    @property
    def num_steps(self) -> int:
        """T, the number of steps to which the sequences are padded."""
        return self.inputs.shape[1]

    @property
    def covariates_over_time(self) -> Float[Tensor, "time batch covariates"] | None:
        """The covariates of every step, time first, or None if there are none."""
        if self.covariates is None:
            return None
        if self.covariates.dim() == 2:
            return self.covariates.expand(self.num_steps, *self.covariates.shape)
        return self.covariates.transpose(0, 1)

    @property
    def clean_inputs(self) -> Shaped[Tensor, "batch time ..."]:
        """The inputs before any corruption."""
        return self.inputs if self.uncorrupted is None else self.uncorrupted

    @cached_property
    def num_real(self) -> Tensor | int:
        """Number of nonempty rows, by which averages are divided."""
        return self.num_sequences if self.lengths is None else (self.lengths > 0).sum()

    @cached_property
    def mask(self) -> Bool[Tensor, "batch time"] | None:
        """True on the steps of each sequence, or None if every sequence has T steps."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.num_steps, device=self.lengths.device)
        return steps < self.lengths.unsqueeze(-1)

    def reverse(self, values: Shaped[Tensor, "batch time ..."]) -> Shaped[Tensor, "batch time ..."]:
        """Reverse each sequence within its own length; the padding stays at the end."""
        if self.lengths is None:
            return values.flip(1)
        steps = torch.arange(self.num_steps, device=values.device)
        mirrored = self.lengths.unsqueeze(-1) - 1 - steps
        index = torch.where(mirrored >= 0, mirrored, steps)
        return values[torch.arange(self.num_sequences, device=values.device).unsqueeze(-1), index]

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> SequenceBatch:
        """Move all tensors to ``device`` and convert floating-point tensors to ``dtype``."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None, non_blocking)

        return self._mapped(move)

    def numeric(self, dtype: torch.dtype | None = None) -> SequenceBatch:
        """Convert binary data, which are stored as bytes, to ``dtype``, by default PyTorch's default."""
        dtype = dtype or torch.get_default_dtype()
        if self.inputs.dtype not in (torch.uint8, torch.bool):
            return self
        return self._mapped(lambda x: x.to(dtype) if x.dtype in (torch.uint8, torch.bool) else x)

    def pin_memory(self) -> SequenceBatch:
        """Copy all tensors to pinned memory, from which a GPU can copy asynchronously."""
        return self._mapped(Tensor.pin_memory)

    def first(self, number: int) -> SequenceBatch:
        """The first ``number`` sequences, or all of them if there are fewer."""
        part = torch.arange(min(number, self.num_sequences), device=self.inputs.device)
        return self._part(part)

    def select(self, rows: Sequence[int]) -> SequenceBatch:
        """The sequences in the given rows."""
        return self._part(torch.tensor(rows, device=self.inputs.device))

    def chunk(self, number: int) -> list[SequenceBatch]:
        """Split into at most ``number`` batches of nearly equal size."""
        if number == 1:  # the case of every update without gradient accumulation
            return [self]
        parts = torch.arange(self.num_sequences, device=self.inputs.device).chunk(number)
        return [self._part(part) for part in parts]

    def _part(self, part: Int[Tensor, " rows"]) -> SequenceBatch:
        """Select some of the rows."""
        cut = self._mapped(lambda x: x[part], carried=False)
        if self.carried is None:
            return cut
        return replace(cut, carried=tuple(x[..., part, :] for x in self.carried))

    def _mapped(self, change: Callable[[Tensor], Tensor], carried: bool = True) -> SequenceBatch:
        """Apply ``change`` to all tensors."""
        return SequenceBatch(
            change(self.inputs),
            None if self.targets is None else change(self.targets),
            None if self.lengths is None else change(self.lengths),
            self.has_start_symbol,
            None if self.uncorrupted is None else change(self.uncorrupted),
            self.continues,
            tuple(map(change, self.carried)) if self.carried is not None and carried else None,
            None if self.covariates is None else change(self.covariates),
        )

    def _zero_padding(self, values: Tensor) -> Tensor:
        assert self.mask is not None
        mask = self.mask.reshape(self.mask.shape + (1,) * (values.dim() - 2))
        return torch.where(mask, values, torch.zeros_like(values))


def _require_tensor(value: object, name: str) -> None:
    """Reject a list or an array where a tensor is expected."""
    if value is None or isinstance(value, Tensor):
        return
    how = "torch.from_numpy" if type(value).__module__ == "numpy" else "torch.tensor"
    raise TypeError(f"{name} must be a tensor, not a {type(value).__name__}: use {how}({name})")


def with_particles(
    values: Shaped[Tensor, "time batch *rest"], num_particle_dims: int
) -> Shaped[Tensor, "time ..."]:
    """Insert dimensions of size one between time and batch, to broadcast against particles."""
    return values.reshape(values.shape[0], *(1,) * num_particle_dims, *values.shape[1:])


def masked(
    per_step: Float[Tensor, "time *particles batch"], mask: Bool[Tensor, "time batch"] | None
) -> Float[Tensor, "time *particles batch"]:
    """Set values to zero where the mask is False; with a mask of None they are unchanged."""
    if mask is None:
        return per_step
    mask = with_particles(mask, per_step.dim() - mask.dim())
    return torch.where(mask, per_step, torch.zeros_like(per_step))

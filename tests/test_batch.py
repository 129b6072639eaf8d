from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_zf import SequenceBatch


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), extra=st.integers(0, 3))
def test_reverse_turns_each_sequence_within_its_length(lengths: list[int], extra: int) -> None:
    num_steps = max(1, max(lengths)) + extra
    targets = torch.arange(1.0, len(lengths) * num_steps + 1).reshape(len(lengths), num_steps, 1)
    batch = SequenceBatch.from_targets(targets, torch.tensor(lengths))
    assert batch.targets is not None
    reversed_ = batch.reverse(batch.targets)
    for row, back, length in zip(batch.targets, reversed_, lengths, strict=True):
        assert torch.equal(back[:length], row[:length].flip(0))
        assert (back[length:] == 0).all()
    assert torch.equal(batch.reverse(reversed_), batch.targets)


def test_inputs_are_the_targets_one_step_late() -> None:
    targets = torch.randn(2, 4, 3)
    batch = SequenceBatch.from_targets(targets, start=9.0)
    assert (batch.inputs[:, 0] == 9).all()
    assert torch.equal(batch.inputs[:, 1:], targets[:, :-1])
    symbols = SequenceBatch.from_targets(torch.tensor([[4, 5]]), start=1)
    assert symbols.inputs.tolist() == [[1, 4]]


def test_padding_is_zeroed() -> None:
    targets = torch.full((2, 3, 1), torch.nan)
    targets[0, :2] = targets[1, :1] = 1
    batch = SequenceBatch.from_targets(targets, torch.tensor([2, 1]))
    assert batch.targets is not None
    assert batch.targets.isfinite().all()
    assert batch.inputs.isfinite().all()
    assert batch.num_real == 2


def test_chunks_are_the_batch() -> None:
    batch = SequenceBatch(
        torch.randn(5, 3, 1), torch.randn(5, 3, 1), torch.tensor([3, 1, 2, 3, 0]), False
    )
    parts = batch.chunk(2)
    assert [part.num_sequences for part in parts] == [3, 2]
    assert not any(part.has_start_symbol for part in parts)
    for name in ("inputs", "targets", "lengths"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name))
    assert len(batch.chunk(9)) == 5


def test_to_moves_everything_but_keeps_integers() -> None:
    batch = SequenceBatch.from_targets(torch.ones(2, 3, 1), torch.tensor([3, 1]))
    single = batch.to(dtype=torch.float32)
    assert single.inputs.dtype == torch.float32
    assert single.lengths is not None
    assert single.lengths.dtype == torch.int64


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([3, 4], r"from 3 to 4; they must lie in 0\.\.3"), ([-1, 2], "from -1 to 2"), ([3], "2 seq")],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_lengths(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceBatch.from_targets(torch.ones(2, 3, 1), torch.tensor(lengths))


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="differ in their first two dimensions"):
        SequenceBatch(torch.ones(2, 3, 1), torch.ones(2, 4, 1))
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        SequenceBatch.to_generate(torch.ones(2, 1), 0)


def test_bytes_become_numbers() -> None:
    bits = (torch.rand(2, 3, 4) > 0.5).to(torch.uint8)
    stored = SequenceBatch.from_targets(bits, torch.tensor([3, 1]))
    assert stored.numeric(torch.float32).inputs.dtype == torch.float32
    batch = stored.numeric()
    assert batch.inputs.dtype == torch.get_default_dtype()
    assert batch.targets is not None
    assert batch.targets.dtype == torch.get_default_dtype()
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [3, 1]
    assert torch.equal(batch.targets[0], bits[0].double())
    assert batch.numeric() is batch
    symbols = SequenceBatch.from_targets(torch.ones(2, 3, dtype=torch.long))
    assert symbols.numeric() is symbols

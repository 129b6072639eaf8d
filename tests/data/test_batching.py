"""Batches contain each sequence whole and once per epoch, with little padding, reproducibly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.data import (
    ArrayDataset,
    Batches,
    DataError,
    SequenceDataset,
    Statistics,
    StreamBatches,
    TextStream,
    Values,
    blocks,
    make_batches,
    padding_ratio,
)
from pyro_zf.data.store import Writer, prepared

SYMBOLS = Values("categorical", 1000, start=999)


def sequences(lengths: list[int]) -> list[np.ndarray]:
    """Sequences that begin with their own index, by which they are identified."""
    return [(np.arange(n) + 7 * i) % 999 for i, n in enumerate(lengths)]


def in_array(lengths: list[int]) -> ArrayDataset:
    padded = np.full((len(lengths), max(lengths)), 5)
    for row, values in zip(padded, sequences(lengths), strict=True):
        row[: len(values)] = values
    return ArrayDataset(padded, np.array(lengths), None, SYMBOLS)


def in_file(lengths: list[int]) -> SequenceDataset:
    def build(file):  # type: ignore[no-untyped-def]
        writer = Writer(file, SYMBOLS, np.uint16)
        for values in sequences(lengths):
            writer.add("train", values.astype(np.uint16))
        writer.close()
        return {}

    key = "-".join(map(str, lengths))[:80] + f"-{hash(tuple(lengths)) % 10**9}"
    return prepared("test", key, build).dataset("train", SYMBOLS)


def read(batches: Batches | StreamBatches, epoch: int = 0, first: int = 0) -> list[list[int]]:
    rows = []
    for batch in batches.epoch(epoch, first):
        assert batch.targets is not None
        lengths = (
            batch.lengths if batch.lengths is not None else [batch.num_steps] * len(batch.inputs)
        )
        for u, y, n in zip(batch.inputs, batch.targets, lengths, strict=True):
            assert (y[n:] == 0).all()
            assert u[1:n].tolist() == y[: n - 1].tolist(), (
                "inputs are the targets of the previous step"
            )
            rows.append(y[:n].tolist())
    return rows


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    seed=st.one_of(st.none(), st.integers(0, 3)),
    bucketed=st.booleans(),
    stored=st.booleans(),
    in_memory=st.booleans(),
)
def test_every_sequence_comes_whole_and_once(
    lengths: list[int], batch_size: int, seed: int | None, bucketed: bool, stored: bool,
    in_memory: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        if not in_memory:  # small blocks, of which few are cached
            patch.setattr(blocks, "IN_MEMORY", 0)
            patch.setattr(blocks, "BLOCK_BYTES", 40)
            patch.setattr(blocks, "KEPT_BYTES", 100)
        data = in_file(lengths) if stored else in_array(lengths)
        assert isinstance(data, SequenceDataset)
        batches = Batches(data, batch_size, seed, bucketed=bucketed)
        expected = [s.tolist() for s in sequences(lengths)]
        for epoch in (0, 1):
            rows = read(batches, epoch)
            assert sorted(rows) == sorted(expected)
            if seed is None and not bucketed:
                assert rows == expected, "original order without a seed"
            assert rows == read(Batches(data, batch_size, seed, bucketed=bucketed), epoch)
            sizes = [len(index) for index in batches.order(epoch)]
            assert len(sizes) == len(batches)
            assert all(n == batch_size for n in sizes[:-1])
        done = sum(len(index) for index in batches.order(1)[:2])
        assert read(batches, 1, first=2) == read(batches, 1)[done:], (
            "start in the middle of an epoch"
        )
        statistics = data.statistics()
        assert statistics.num_steps == sum(lengths)
        assert statistics.num_sequences == len(lengths)
        assert statistics.sums.sum() == sum(lengths)


@settings(deadline=None, max_examples=80)
@given(
    total=st.integers(1, 200), segment=st.integers(1, 15), streams=st.integers(1, 9),
    limit=st.one_of(st.none(), st.integers(1, 30)),
)  # fmt: skip
def test_every_symbol_of_a_stream_is_predicted_once(
    total: int, segment: int, streams: int, limit: int | None
) -> None:
    text = TextStream(np.arange(total) % 900, Values("categorical", 1000, start=999), segment)
    batches = StreamBatches(text, streams, limit)
    seen: list[list[int]] = [[] for _ in range(batches.batch_size)]
    for k, batch in enumerate(batches.epoch(0)):
        assert batch.targets is not None
        assert batch.continues == (k > 0)
        lengths = (
            batch.lengths if batch.lengths is not None else [batch.num_steps] * len(batch.inputs)
        )
        for row, (u, y, n) in enumerate(zip(batch.inputs, batch.targets, lengths, strict=True)):
            if n:
                before = seen[row][-1] if seen[row] else None
                first = int(batches.starts[row])
                expected = before if before is not None else (first - 1) % 900 if first else 999
                assert u[0] == expected, "the previous true symbol, or the start symbol"
            seen[row] += y[:n].tolist()
    joined = list(itertools.chain(*seen))
    if limit is None:
        assert joined == (np.arange(total) % 900).tolist()
    else:
        assert len(joined) <= total
    assert batches.num_sequences == sum(-(-len(s) // segment) for s in seen)


def test_independent_segments_cover_the_text() -> None:
    text = TextStream(np.arange(23), Values("categorical", 50, start=49), segment=5, carried=False)
    batches = make_batches(text, 2, seed=3)
    assert isinstance(batches, Batches)
    rows = sorted(read(batches))
    assert list(itertools.chain(*rows)) == list(range(23))
    first = next(b for b in batches.epoch(0) if (b.targets[:, 0] == 0).any())
    assert 49 in first.inputs, "the first symbol of the text follows the start symbol"


def test_streams_are_made_only_where_states_are_carried() -> None:
    values = Values("categorical", 50)
    assert isinstance(make_batches(TextStream(np.arange(9), values, 3), 2), StreamBatches)
    with pytest.raises(DataError, match="a segment must have at least one step, got 0"):
        TextStream(np.arange(9), values, 0)


def test_padding_on_the_lengths_of_timit(timit_lengths: list[int]) -> None:
    assert len(timit_lengths) == 160
    few = Batches(in_array(timit_lengths), 16, seed=0, bucketed=True)
    shuffled = Batches(in_array(timit_lengths), 16, seed=0)
    assert padding_ratio(few) < 0.10
    assert padding_ratio(shuffled) > 0.25, "padding without grouping by length"
    # As many lengths as the training set of the whole corpus, with the same distribution.
    many = np.random.default_rng(0).choice(timit_lengths, 4620).tolist()
    for epoch in range(3):
        batches = Batches(in_array(many), 32, seed=0, bucketed=True)
        assert padding_ratio(batches, epoch) < 0.03
    first, second = (batches.order(epoch) for epoch in (0, 1))
    assert not np.array_equal(first[0], second[0]), "batches differ between epochs"


@pytest.fixture(scope="module")
def timit_lengths(real_data: Path) -> list[int]:
    from pyro_zf.data.audio import announced, sound_files

    files = sound_files(real_data / "timit_nltk_sample").files
    return [announced(file)[0] // 200 for file in files]


def test_workers_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "IN_MEMORY", 0)
    data = in_file([3, 5, 2, 8, 1, 1, 4, 9, 9, 2])
    data[0]  # type: ignore[index]  # opened here, before the workers are forked
    state = torch.get_rng_state()
    with_workers = read(Batches(data, 3, seed=1, workers=2), 4)
    assert with_workers == read(Batches(data, 3, seed=1), 4)
    assert torch.equal(state, torch.get_rng_state()), "the random state of training is not changed"
    with pytest.raises(ValueError, match="workers must not be negative"):
        Batches(data, 3, workers=-1)


def test_marginals_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, test = rng.normal(3.0, 2.0, (50, 4)), rng.normal(3.0, 2.0, (20, 4))
    train = Statistics.of("real", 4, [x])
    mean, std = train.moments()
    assert (mean, std) == pytest.approx((x.mean(), x.std()))
    values = Values("real", 4, mean, std)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = -normal.log_prob(values.targets(test, torch.float64)).sum().item()
    assert Statistics.of("real", 4, [test]).nats(train, values) == pytest.approx(expected)
    each = Values("real", 4, *train.moments_by_dimension())
    expected = -normal.log_prob(each.targets(test, torch.float64)).sum().item()
    assert Statistics.of("real", 4, [test]).nats(train, each) == pytest.approx(expected)
    np.testing.assert_allclose(each.restored(each.targets(test, torch.float64)), test)

    symbols, other = rng.integers(0, 3, 30), rng.integers(0, 3, 10)
    counted = Statistics.of("categorical", 4, [symbols])
    p = torch.tensor([(symbols == i).sum() + 1.0 for i in range(4)])
    expected = -torch.log(p / p.sum())[other].sum().item()
    of_other = Statistics.of("categorical", 4, [other])
    assert of_other.nats(counted, Values("categorical", 4)) == pytest.approx(expected)

    bits, others = rng.integers(0, 2, (30, 2)), rng.integers(0, 2, (10, 2))
    q = torch.tensor((bits.sum(0) + 1) / 32)
    bernoulli = torch.distributions.Bernoulli(q)
    expected = -bernoulli.log_prob(torch.tensor(others, dtype=q.dtype)).sum().item()
    of_bits = Statistics.of("binary", 2, [others])
    assert of_bits.nats(Statistics.of("binary", 2, [bits]), Values("binary", 2)) == pytest.approx(
        expected
    )
    constant = Statistics.of("real", 1, [np.full((5, 1), 3.0)])
    assert constant.moments() == (3.0, 1.0), "no division by zero"


def test_bits_are_bytes_until_they_are_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (7, 3, 2)).astype(np.uint8)
    batches = Batches(ArrayDataset(bits), batch_size=4)
    moved = []
    to = SequenceBatch.to

    def noted(batch: SequenceBatch, *args: Any, **kwargs: Any) -> SequenceBatch:
        moved.append(batch.inputs.dtype)
        return to(batch, *args, **kwargs)

    monkeypatch.setattr(SequenceBatch, "to", noted)
    targets = torch.cat([b.targets for b in batches if b.targets is not None])
    assert moved == [torch.uint8] * 2
    assert targets.dtype == torch.get_default_dtype()
    np.testing.assert_array_equal(targets.numpy(), bits)


@pytest.mark.parametrize("own", [False, True])
def test_grey_levels_are_not_stored_as_bits(own: bool) -> None:
    """Fractional values are not stored as bits, even if the data are declared binary."""

    class Own:
        """A custom data set without support for bytes."""

        def __init__(self, data: ArrayDataset) -> None:
            self.data = data

        def __len__(self) -> int:
            return len(self.data)

        def __getattr__(self, name: str) -> Any:
            if name == "gives_bytes":
                raise AttributeError(name)
            return getattr(self.data, name)

        def at_epoch(self, epoch: int) -> Own:
            return self

        def batch(self, index: np.ndarray) -> SequenceBatch:
            return self.data.batch(index)

    data: Any = ArrayDataset(np.full((2, 3, 4), 0.7, dtype=np.float32))
    (batch,) = Batches(Own(data) if own else data, 2)
    assert batch.targets is not None
    assert batch.targets.unique().tolist() == pytest.approx([0.7])


def test_the_beginning_of_a_text_has_a_start_symbol() -> None:
    """Its first input is never predicted in reverse; other segments begin with the symbol before them."""
    symbols = np.arange(1, 41, dtype=np.int32)
    stream = TextStream(symbols, Values("categorical", 42, start=0), segment=5)
    assert stream.batch(np.array([0])).has_start_symbol
    assert stream.batch(np.array([2, 0])).has_start_symbol
    assert not stream.batch(np.array([1, 3])).has_start_symbol
    first, second, *_ = StreamBatches(stream, num_streams=2)
    assert first.has_start_symbol
    assert not second.has_start_symbol
    model = ZForcing(42, emission="categorical", hidden_size=4, latent_size=2, mlp_size=4)
    model.eval()
    for batch, scored in ((first, 4), (second, 5)):
        with model.using_layout("steps"):
            trace = pyro.poutine.trace(model.model).get_trace(batch)
        assert len([name for name in trace.nodes if name.startswith("aux_u_")]) == scored

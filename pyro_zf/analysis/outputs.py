"""Sequences as files that one can look at, listen to, read, and compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from pyro_zf.analysis.figures import digits, series, spectrograms, waveforms
from pyro_zf.data import Splits

__all__ = [
    "as_sounds",
    "as_texts",
    "interpolation_table",
    "markdown_cell",
    "save_pictures",
    "save_sounds",
    "save_texts",
    "write_hdf5",
]

Rows = Mapping[str, Shaped[Tensor, "_ _ ..."]]
#: Sounds and series of a row that are shown.
SHOWN = 4


def as_sounds(
    sequences: Shaped[Tensor, "sequences time ..."],
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
) -> list[np.ndarray]:
    """Frames as samples between -1 and 1, up to the end of each sequence."""
    return [
        np.clip(splits.values.restored(frames.flatten()) / 32768.0, -1.0, 1.0)
        for frames in _ended(sequences, lengths)
    ]


def as_texts(
    sequences: Shaped[Tensor, "sequences time"],
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
) -> list[str]:
    """Symbols as text, up to the end of each sequence; sentences without the symbol for it."""
    assert splits.vocabulary is not None
    end = splits.vocabulary.index("<eos>") if "<eos>" in splits.vocabulary else None
    texts = []
    for symbols in _ended(sequences, lengths):
        row = symbols.cpu().numpy()
        if end is not None and splits.unit != "segment" and (row == end).any():
            row = row[: int(np.argmax(row == end))]
        texts.append(splits.text(row))
    return texts


def _ended(
    sequences: Shaped[Tensor, "sequences time ..."], lengths: Int[Tensor, " sequences"] | None
) -> list[Tensor]:
    """Each sequence without what lies behind its end."""
    if lengths is None:
        return list(sequences)
    return [s[:n] for s, n in zip(sequences, lengths.tolist(), strict=True)]


def save_pictures(
    folder: Path, name: str, rows: Rows, splits: Splits, grid: bool = False
) -> list[Path]:
    """Images, or numbers as pictures, in one PNG file; a row of it for each of ``rows``.

    Args:
        folder: that there is.
        name: of the file.
        rows: title -> sequences.
        splits: what they are.
        grid: whether the first row becomes a square without a title.
    """
    path = folder / f"{name}.png"
    if splits.is_image:
        figure = digits(list(rows.values()), None if grid else list(rows))
    else:
        figure = series([x[: SHOWN + 1] for x in rows.values()], list(rows))
    figure.savefig(path, dpi=150)
    return [path]


def save_sounds(
    folder: Path,
    name: str,
    rows: Rows,
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
) -> list[Path]:
    """WAV files of 16 bits, ``NAME-TITLE-1.wav`` and so on, with their waveforms and spectrograms."""
    import soundfile

    assert splits.sample_rate is not None
    sounds = {title: as_sounds(x, splits, lengths)[:SHOWN] for title, x in rows.items()}
    written = []
    for suffix, figure in (("", waveforms), ("-spectrograms", spectrograms)):
        written.append(folder / f"{name}{suffix}.png")
        figure(list(sounds.values()), list(sounds), splits.sample_rate).savefig(
            written[-1], dpi=150
        )
    for title, row in sounds.items():
        stem = "-".join(dict.fromkeys([name, title.replace(", ", "-").replace(" ", "-")]))
        for i, wave in enumerate(row):
            written.append(folder / f"{stem}-{i + 1}.wav")
            soundfile.write(written[-1], wave, splits.sample_rate, subtype="PCM_16")
    return written


def save_texts(
    folder: Path,
    name: str,
    rows: Rows,
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
) -> list[Path]:
    """One file; of several rows, the first of each beneath each other, then the second, and so on."""
    texts = {title: as_texts(x, splits, lengths) for title, x in rows.items()}
    path = folder / f"{name}.txt"
    if len(texts) == 1:
        gap = "\n" if splits.unit != "segment" else "\n" + "-" * 40 + "\n"
        content = gap.join(next(iter(texts.values())))
    else:
        content = "\n".join(
            f"{title}: {text}"
            for beneath in zip(*texts.values(), strict=True)
            for title, text in zip(texts, beneath, strict=True)
        )
    path.write_text(content + "\n", encoding="utf-8")
    return [path]


def write_hdf5(
    path: Path,
    rows: Rows,
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
    **attributes: Any,
) -> Path:
    """The sequences as arrays, one a row, in the units of the data: bits, symbols, restored numbers.

    Args:
        path: of the file.
        rows: name -> sequences.
        splits: what they are.
        lengths: steps of each sequence, if they differ; what lies behind them means nothing.
        **attributes: of the file, such as the settings that they were drawn under.
    """
    with h5py.File(path, "w") as file:
        for name, sequences in rows.items():
            values = splits.values.restored(sequences)
            if splits.kind == "binary" and bool(
                torch.isin(sequences, torch.tensor([0.0, 1.0], device=sequences.device)).all()
            ):
                values = values.astype(np.uint8)
            file.create_dataset(name.replace("/", "-"), data=values, compression="gzip")
        if lengths is not None:
            file.create_dataset("lengths", data=lengths.cpu().numpy())
        file.attrs["data"] = splits.source.name
        file.attrs["kind"] = splits.kind
        if splits.vocabulary is not None:
            file.create_dataset(
                "vocabulary", data=list(splits.vocabulary), dtype=h5py.string_dtype()
            )
        if splits.sample_rate is not None:
            file.attrs["sample_rate"] = splits.sample_rate
        for name, value in attributes.items():
            if value is not None:
                file.attrs[name] = value
    return path


def interpolation_table(
    weights: Sequence[float], columns: Mapping[str, Sequence[str]]
) -> list[str]:
    """Texts between two others as a table in Markdown (Goyal et al. 2017, table 3), line by line.

    Args:
        weights: of the second.
        columns: how they were decoded -> a text at each weight.
    """
    lines = [f"| {' | '.join(['a', *columns])} |", "|---" * (1 + len(columns)) + "|"]
    for a, *texts in zip(weights, *columns.values(), strict=True):
        lines.append(f"| {' | '.join([f'{a:.1f}', *map(markdown_cell, texts)])} |")
    return lines


def markdown_cell(text: str) -> str:
    """A text as a cell of a table in Markdown."""
    for symbol in "\\|*_<>`":
        text = text.replace(symbol, f"\\{symbol}")
    return text.replace("\n", " ⏎ ")

"""Output of sequences as pictures, sounds, texts and HDF5 files."""

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
from pyro_zf.data.datasets import text_of

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
#: Number of steps of each sequence, the same for all rows or by title; None if all steps are valid.
Lengths = Int[Tensor, " sequences"] | Mapping[str, Int[Tensor, " sequences"]] | None
#: Number of sounds or series shown per row.
SHOWN = 4


def as_sounds(
    sequences: Shaped[Tensor, "sequences time ..."],
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
) -> list[np.ndarray]:
    """Convert frames to audio samples between -1 and 1, up to the end of each sequence."""
    return [
        np.clip(splits.values.restored(frames.flatten()) / 32768.0, -1.0, 1.0)
        for frames in _ended(sequences, lengths)
    ]


def as_texts(
    sequences: Shaped[Tensor, "sequences time"],
    splits: Splits,
    lengths: Int[Tensor, " sequences"] | None = None,
) -> list[str]:
    """Convert symbols to text, up to the end of each sequence; sentences without the end symbol."""
    assert splits.vocabulary is not None
    return [
        text_of(row.cpu().numpy(), splits.vocabulary, splits.joiner, splits.unit != "segment")
        for row in _ended(sequences, lengths)
    ]


def _lengths_of(lengths: Lengths, title: str) -> Int[Tensor, " sequences"] | None:
    return lengths.get(title) if isinstance(lengths, Mapping) else lengths


def _ended(
    sequences: Shaped[Tensor, "sequences time ..."], lengths: Int[Tensor, " sequences"] | None
) -> list[Tensor]:
    """Cut each sequence to its length."""
    if lengths is None:
        return list(sequences)
    return [s[:n] for s, n in zip(sequences, lengths.tolist(), strict=True)]


def save_pictures(
    folder: Path,
    name: str,
    rows: Rows,
    splits: Splits,
    grid: bool = False,
    lengths: Lengths = None,
) -> list[Path]:
    """Save images, or numbers as pictures, in one PNG file with one row for each of ``rows``.

    Args:
        folder: an existing folder.
        name: name of the file without its suffix.
        rows: sequences by title.
        splits: the data set of the sequences.
        grid: whether to show images of the first row only, as a square grid without a title.
        lengths: number of steps of each sequence to show, the same for all rows or by title.
    """
    path = folder / f"{name}.png"
    if splits.is_image:
        figure = digits(list(rows.values()), None if grid else list(rows))
    else:
        shown = [_ended(x, _lengths_of(lengths, title))[: SHOWN + 1] for title, x in rows.items()]
        figure = series(shown, list(rows))
    figure.savefig(path, dpi=150)
    return [path]


def save_sounds(
    folder: Path,
    name: str,
    rows: Rows,
    splits: Splits,
    lengths: Lengths = None,
) -> list[Path]:
    """Save 16-bit WAV files, ``NAME-TITLE-1.wav`` etc., and pictures of waveforms and spectrograms."""
    import soundfile

    assert splits.sample_rate is not None
    sounds = {
        title: as_sounds(x, splits, _lengths_of(lengths, title))[:SHOWN]
        for title, x in rows.items()
    }
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
    lengths: Lengths = None,
) -> list[Path]:
    """Save texts in one file. Several rows are interleaved: the first text of each, then the second, .."""
    texts = {title: as_texts(x, splits, _lengths_of(lengths, title)) for title, x in rows.items()}
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
    lengths: Lengths = None,
    **attributes: Any,
) -> Path:
    """Write sequences as arrays, one per row, in the units of the data: bits, symbols, restored numbers.

    Args:
        path: path of the file.
        rows: sequences by name.
        splits: the data set of the sequences.
        lengths: number of steps of each sequence, if they differ, also by row. Later steps have no meaning.
        **attributes: attributes of the file, such as the settings of the generation.
    """
    with h5py.File(path, "w") as file:
        for name, sequences in rows.items():
            values = splits.values.restored(sequences)
            if splits.kind == "binary" and bool(
                torch.isin(sequences, torch.tensor([0.0, 1.0], device=sequences.device)).all()
            ):
                values = values.astype(np.uint8)
            file.create_dataset(name.replace("/", "-"), data=values, compression="gzip")
        if isinstance(lengths, Mapping):
            for name, of_row in lengths.items():
                file.create_dataset(f"{name}_lengths", data=of_row.cpu().numpy())
        elif lengths is not None:
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
    """Lines of a Markdown table of interpolated texts (Goyal et al. 2017, table 3).

    Args:
        weights: interpolation weights of the second text.
        columns: the text at each weight, by name of the decoding.
    """
    lines = [f"| {' | '.join(['a', *columns])} |", "|---" * (1 + len(columns)) + "|"]
    for a, *texts in zip(weights, *columns.values(), strict=True):
        lines.append(f"| {' | '.join([f'{a:.1f}', *map(markdown_cell, texts)])} |")
    return lines


def markdown_cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    for symbol in "\\|*_<>`":
        text = text.replace(symbol, f"\\{symbol}")
    return text.replace("\n", " ⏎ ")

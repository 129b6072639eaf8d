"""What a run shows at its end: pictures, sounds and texts of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_zf.analysis.figures import curves, digits, kl_per_step, series, waveforms
from pyro_zf.analysis.generation import Reconstruction, reconstruct, sample
from pyro_zf.batch import SequenceBatch
from pyro_zf.data import Batches, Splits
from pyro_zf.infer import batch_bounds
from pyro_zf.models import SequenceModel

__all__ = ["save_run_figures"]

#: Seconds of the sounds, and steps of other sequences, that are drawn from a model at most.
SECONDS, STEPS = 2.0, 200
_TITLES = ("test data", "mean, true past", "from z alone")


@torch.no_grad()
def save_run_figures(
    run: Path,
    model: SequenceModel,
    splits: Splits,
    events: Sequence[dict[str, Any]],
    num_samples: int = 64,
) -> list[Path]:
    """Samples, reconstructions of test data, KL by step and curves, in ``run/figures``.

    Pictures as PNG; of speech and other sounds WAV files too, of text a file.
    """
    device = next(model.parameters()).device
    few = _cut(next(iter(Batches(splits.test, 10, limit=10))), splits).to(device)
    many = next(iter(Batches(splits.test, 200, limit=200))).to(device)
    steps = few.num_steps if splits.sample_rate is None else _steps(splits)
    samples = sample(model, splits.values, num_samples, steps)
    reconstructions = reconstruct(model, few)
    bounds = batch_bounds(model.model, model.guide, many)
    reached = many.num_real if many.mask is None else many.mask.sum(0).clamp(min=1)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    figures = {
        "kl_per_step": kl_per_step((bounds.kl_per_step.sum(0) / reached).cpu(), splits.step_unit),
        "curves": curves(events, *_measure(splits)),
    }
    written: list[Path] = []
    if splits.is_image:
        figures |= {
            "samples": digits([samples]),
            "reconstructions": digits(reconstructions, _TITLES),
        }
    elif splits.sample_rate is not None:
        sounds, written = _sounds(folder, samples, reconstructions, few, splits)
        figures |= sounds
    elif splits.vocabulary is not None:
        written = _texts(folder, samples, reconstructions, few, splits)
    elif splits.kind != "categorical":
        figures["samples"] = series([samples[:5]], ["samples"])
        figures["reconstructions"] = series([x[:5] for x in reconstructions], _TITLES)
    pictures = []
    for name, figure in figures.items():
        pictures.append(folder / f"{name}.png")
        figure.savefig(pictures[-1], dpi=150)
    return pictures + written


def _measure(splits: Splits) -> tuple[str, Literal["sequence", "step"]]:
    """What the curves are per: sequences, unless those of training are cut to another length."""
    if splits.train.num_steps == splits.valid.num_steps:
        return splits.unit, "sequence"
    return splits.step_unit, "step"


def _steps(splits: Splits) -> int:
    assert splits.sample_rate is not None
    return max(int(SECONDS * splits.sample_rate / splits.data_size), 1)


def _cut(batch: SequenceBatch, splits: Splits) -> SequenceBatch:
    """No longer than what is shown."""
    most = _steps(splits) if splits.sample_rate is not None else STEPS
    if splits.is_image or batch.num_steps <= most:
        return batch
    assert batch.targets is not None
    lengths = None if batch.lengths is None else batch.lengths.clamp(max=most)
    return SequenceBatch(
        batch.inputs[:, :most], batch.targets[:, :most], lengths, batch.has_start_symbol
    )


def _sounds(
    folder: Path,
    samples: torch.Tensor,
    reconstructions: Reconstruction,
    few: SequenceBatch,
    splits: Splits,
) -> tuple[dict[str, Figure], list[Path]]:
    import soundfile

    assert splits.sample_rate is not None
    lengths = (
        few.lengths if few.lengths is not None else torch.full((few.num_sequences,), few.num_steps)
    )

    def waves(sequences: torch.Tensor, steps: Sequence[int], number: int = 4) -> list[np.ndarray]:
        chosen = zip(sequences[:number], steps[:number], strict=False)
        values = [splits.values.restored(s[:n].flatten()) for s, n in chosen]
        return [np.clip(v / 32768.0, -1.0, 1.0) for v in values]

    own = [samples.shape[1]] * len(samples)
    real = [int(n) for n in lengths]
    rows = {
        "samples": waves(samples, own),
        **{t.replace(", ", "-").replace(" ", "-"): waves(x, real) for t, x in zip(_TITLES, reconstructions, strict=True)},
    }  # fmt: skip
    written = []
    for name, row in rows.items():
        for i, wave in enumerate(row):
            written.append(folder / f"{name}-{i + 1}.wav")
            soundfile.write(written[-1], wave, splits.sample_rate, subtype="PCM_16")
    figures = {
        "samples": waveforms([rows["samples"]], ["samples"], splits.sample_rate),
        "reconstructions": waveforms(list(rows.values())[1:], _TITLES, splits.sample_rate),
    }
    return figures, written


def _texts(
    folder: Path,
    samples: torch.Tensor,
    reconstructions: Reconstruction,
    few: SequenceBatch,
    splits: Splits,
) -> list[Path]:
    """Two files; a sequence that has an end is shown up to it."""
    assert splits.vocabulary is not None
    ends = splits.vocabulary.index("<eos>") if "<eos>" in splits.vocabulary else None

    def text(symbols: torch.Tensor, length: int | None = None) -> str:
        row = symbols.cpu().numpy()[:length]
        if ends is not None and splits.unit != "segment" and (row == ends).any():
            row = row[: int(np.argmax(row == ends))]
        return splits.text(row)

    gap = "\n" if splits.unit != "segment" else "\n" + "-" * 40 + "\n"
    paths = [folder / "samples.txt", folder / "reconstructions.txt"]
    paths[0].write_text(gap.join(text(row) for row in samples) + "\n", encoding="utf-8")
    lines = []
    for i in range(few.num_sequences):
        length = None if few.lengths is None else int(few.lengths[i])
        lines += [
            f"{title}: {text(x[i], length)}"
            for title, x in zip(_TITLES, reconstructions, strict=True)
        ]
    paths[1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths

"""Pictures, sounds and texts that are saved at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pyro_zf.analysis.figures import curves, kl_over_images, kl_per_step
from pyro_zf.analysis.generation import reconstruct, sample
from pyro_zf.analysis.outputs import Lengths, Rows, save_pictures, save_sounds, save_texts
from pyro_zf.batch import SequenceBatch
from pyro_zf.data import Batches, Splits
from pyro_zf.infer import batch_bounds
from pyro_zf.models import SequenceModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RECONSTRUCTED",
    "covariates_like",
    "cut",
    "images_by_class",
    "save_run_figures",
    "save_sequences",
    "shown_steps",
    "steps_of",
]

#: Maximum number of seconds of sound, and of steps of other sequences, that are shown.
SECONDS, STEPS = 2.0, 200
RECONSTRUCTED = ("test data", "mean, true past", "from z alone")


@torch.no_grad()
def save_run_figures(
    run: Path,
    model: SequenceModel,
    splits: Splits,
    events: Sequence[dict[str, Any]],
    num_samples: int = 64,
) -> list[Path]:
    """Save samples, reconstructions of test data, KL per step and curves to ``run/figures``.

    Pictures are saved as PNG files. Sounds are saved as WAV files too, and texts as text files.
    """
    device = next(model.parameters()).device
    few = cut(next(iter(Batches(splits.test, 10, limit=10))), splits).to(device)
    many = next(iter(Batches(splits.test, 200, limit=200))).to(device)
    steps = few.num_steps if splits.sample_rate is None else shown_steps(splits)
    covariates = covariates_like(splits, "test", num_samples, steps, device)
    samples = sample(model, splits.values, num_samples, steps, covariates=covariates)
    reconstructions = dict(zip(RECONSTRUCTED, reconstruct(model, few), strict=True))
    bounds = batch_bounds(model.model, model.guide, many)
    figures: dict[str, Figure] = {"curves": curves(events, *_measure(splits))}
    if bool(bounds.kl.any()):
        reached = many.num_real if many.mask is None else many.mask.sum(0).clamp(min=1)
        by_step = (bounds.kl_per_step.sum(0) / reached).cpu()
        figures["kl_per_step"] = kl_per_step(by_step, splits.step_unit)
        if splits.is_image and many.targets is not None:
            spread = torch.linspace(0, many.num_sequences - 1, 8).long().unique()  # of all classes
            figures["kl_over_images"] = kl_over_images(
                many.targets[spread], bounds.kl_per_step[spread]
            )
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=150)
    classes = images_by_class(samples, covariates, splits)
    rows = classes or {"samples": samples}
    written += save_sequences(folder, "samples", rows, splits, grid=not classes)
    written += save_sequences(folder, "reconstructions", reconstructions, splits, few.lengths)
    return written


def covariates_like(
    splits: Splits, split: str, number: int, steps: int, device: torch.device
) -> torch.Tensor | None:
    """Covariates of the first sequences of a split, repeated as needed; None if there are none."""
    if not splits.covariate_size:
        return None
    dataset = splits[split]
    index = np.arange(number) % len(dataset)
    covariates = dataset.batch(index).covariates
    assert covariates is not None
    if covariates.dim() == 3 and covariates.shape[1] < steps:
        missing = steps - covariates.shape[1]
        covariates = torch.cat([covariates, covariates[:, -1:].expand(-1, missing, -1)], dim=1)
    return (covariates if covariates.dim() == 2 else covariates[:, :steps]).to(device)


def images_by_class(
    images: torch.Tensor, covariates: torch.Tensor | None, splits: Splits, number: int = 8
) -> dict[str, torch.Tensor]:
    """Images grouped by the class that they are conditioned on, at most ``number`` of each.

    The result is empty if the data are not images, or the covariates are not classes.
    """
    if covariates is None or splits.covariate_names is None or not splits.is_image:
        return {}
    classes = covariates.argmax(-1)
    found = {name: images[classes == i][:number] for i, name in enumerate(splits.covariate_names)}
    return {name: of_class for name, of_class in found.items() if len(of_class)}


def save_sequences(
    folder: Path,
    name: str,
    rows: Rows,
    splits: Splits,
    lengths: Lengths = None,
    grid: bool = False,
) -> list[Path]:
    """Save sequences as pictures, sounds or texts, depending on the data.

    Args:
        folder: an existing folder.
        name: name of the files without their suffixes.
        rows: sequences by title.
        splits: the data set of the sequences.
        lengths: number of steps of each sequence to show, the same for all rows or by title.
        grid: whether to show images of the first row only, as a square grid without a title.
    """
    if splits.sample_rate is not None:
        return save_sounds(folder, name, rows, splits, lengths)
    if splits.vocabulary is not None:
        return save_texts(folder, name, rows, splits, lengths)
    if splits.kind == "categorical":  # indices cannot be shown as a picture
        return []
    return save_pictures(folder, name, rows, splits, grid, lengths)


def _measure(splits: Splits) -> tuple[str, Literal["sequence", "step"]]:
    """Unit of the curves: sequences, unless training sequences are cut to another length."""
    if splits.train.num_steps == splits.valid.num_steps:
        return splits.unit, "sequence"
    return splits.step_unit, "step"


def shown_steps(splits: Splits, seconds: float = SECONDS) -> int:
    """Number of steps to show, see :func:`steps_of`."""
    return steps_of(
        splits.num_steps, splits.is_image, splits.sample_rate, splits.data_size, seconds
    )


def steps_of(
    longest: int, is_image: bool, sample_rate: int | None, data_size: int, seconds: float = SECONDS
) -> int:
    """Number of steps to show: ``seconds`` of a sound, whole images, up to ``STEPS`` of other sequences."""
    if sample_rate is None:
        return longest if is_image else min(longest, STEPS)
    return max(int(seconds * sample_rate / data_size), 1)


def cut(batch: SequenceBatch, splits: Splits, most: int | None = None) -> SequenceBatch:
    """Cut a batch to the number of steps to show."""
    if most is None:
        most = shown_steps(splits) if splits.sample_rate is not None else STEPS
        if splits.is_image:
            return batch
    if batch.num_steps <= most:
        return batch
    assert batch.targets is not None
    lengths = None if batch.lengths is None else batch.lengths.clamp(max=most)
    covariates = batch.covariates
    if covariates is not None and covariates.dim() == 3:
        covariates = covariates[:, :most]
    return SequenceBatch(
        batch.inputs[:, :most], batch.targets[:, :most], lengths, batch.has_start_symbol,
        covariates=covariates,
    )  # fmt: skip

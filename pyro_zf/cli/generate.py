"""``generate.py`` and ``interpolate.py``: generate sequences with a trained model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_zf.analysis import (
    RECONSTRUCTED,
    Decoding,
    argmax_and_sampling,
    as_texts,
    continue_prefix,
    covariates_like,
    cut,
    images_by_class,
    interpolate,
    interpolation_table,
    markdown_cell,
    reconstruct,
    resample_latents,
    sample,
    save_sequences,
    shown_steps,
    write_hdf5,
)
from pyro_zf.analysis.outputs import Lengths
from pyro_zf.batch import SequenceBatch
from pyro_zf.cli.common import RunOptions, at_least_one, first_line, load, run_command
from pyro_zf.cli.parsing import parsed
from pyro_zf.data import Splits
from pyro_zf.data.covariates import one_hot
from pyro_zf.data.vocabulary import without_surrogates
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.names import there_are
from pyro_zf.training import UsageError

__all__ = ["GenerateConfig", "InterpolateConfig", "generate_main", "interpolate_main"]

GENERATE_EXAMPLES = (
    "python scripts/generate.py RUN --number 16 --temperature 0.7",
    "python scripts/generate.py RUN --task continue --variants 4",
    'python scripts/generate.py RUN --task continue --prefix "the film" --argmax',
)
INTERPOLATE_EXAMPLES = (
    "python scripts/interpolate.py RUN --pairs 3",
    'python scripts/interpolate.py RUN --first "i loved it ." --second "do not waste your time ."',
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateConfig(RunOptions):
    """Generate sequences with a trained model, as pictures, sounds or text and as arrays in HDF5."""

    task: Literal["samples", "continue", "reconstruct", "resample"] = "samples"
    """What to generate. samples: unconditional samples. continue: continuations of --prefix or of the
    beginnings of sequences of --split. reconstruct: sequences of --split, decoded from latents of the
    posterior. resample: reconstructions with the latents of --resample-steps redrawn from the prior."""
    number: int = 64
    """Number of samples, or number of sequences of --split to continue, reconstruct or resample (at most 8 of
    these are shown)."""
    temperature: float = 1.0
    """Temperature of the emission distribution: below 1 it is sharper, above 1 flatter."""
    argmax: bool = False
    """Use the most probable value of each step (the mean for real numbers) instead of a sample."""
    latent_temperature: float = 1.0
    """Factor on the standard deviations of the prior; 0 sets z to the mean of the prior."""
    steps: int | None = None
    """Number of steps to generate, including the steps of a prefix. Default: a whole image, segment or
    sentence, or --seconds of sound."""
    seconds: float = 2.0
    """Duration of generated sounds in seconds."""
    split: Literal["train", "valid", "test"] = "test"
    """Split that sequences to continue, reconstruct or resample are taken from."""
    prefix: str | None = None
    """Text to continue."""
    prefix_steps: int | None = None
    """Number of given steps when continuing sequences of --split; shorter sequences are given whole.
    Default: half an image, one second of sound, three words, or half a segment."""
    variants: int = 4
    """Number of variants for each sequence that is continued or resampled."""
    condition: str | None = None
    """Class of all samples, for example a label, if the model is conditioned on a class. Default: the
    classes of sequences of --split."""
    resample_steps: tuple[int, ...] = ()
    """Steps whose z is resampled, counted from 1. Default: the second half."""
    output_dir: Path | None = None
    """Folder that files are written to. Default: the folder generated in the run folder."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True)
class InterpolateConfig(RunOptions):
    """Interpolate between the latent paths of two sequences, decoded by argmax and by sampling."""

    pairs: int = 4
    """Number of pairs of sequences of --split; the sequences are a fixed random subset."""
    points: int = 11
    """Number of interpolation points per pair, including both ends."""
    first: str | None = None
    """Text at the start of the interpolation, instead of sequences of --split."""
    second: str | None = None
    """Text at the end of the interpolation."""
    temperature: float = 1.0
    """Temperature of the emission distribution for decoding by sampling."""
    codes: Literal["mean", "sample"] = "mean"
    """Latents that represent a sequence: the mean of the posterior at each step (mean), or a sample from it
    (sample)."""
    seconds: float = 1.0
    """Duration of the excerpt of each sound in seconds."""
    split: Literal["train", "valid", "test"] = "test"
    """Split that sequences are taken from."""
    output_dir: Path | None = None
    """Folder that files are written to. Default: the folder interpolated in the run folder."""
    seed: int = 0
    """Random seed."""


def generate_main(argv: Sequence[str] | None = None) -> int:
    """``generate.py``: see :class:`GenerateConfig` for the options."""
    return run_command(
        lambda: _generate(parsed(GenerateConfig, argv, "generate.py", GENERATE_EXAMPLES))
    )


def interpolate_main(argv: Sequence[str] | None = None) -> int:
    """``interpolate.py``: see :class:`InterpolateConfig` for the options."""
    return run_command(
        lambda: _interpolate(
            parsed(InterpolateConfig, argv, "interpolate.py", INTERPOLATE_EXAMPLES)
        )
    )


def _generate(config: GenerateConfig) -> None:
    at_least_one(config, "number", "steps", "prefix_steps", "variants")
    try:
        decoding = Decoding(config.temperature, config.argmax, config.latent_temperature)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not config.seconds > 0:
        raise UsageError(f"--seconds must be positive, got {config.seconds}")
    if config.prefix is not None and config.task != "continue":
        raise UsageError("--prefix requires --task continue")
    settings, splits, model, _, device = load(config)
    if splits.is_image:
        for name in ("steps", "prefix_steps"):
            most = splits.num_steps - (name == "prefix_steps")
            if (getattr(config, name) or 0) > most:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at most {most}: an image has "
                    f"{splits.num_steps} {splits.step_unit}s"
                )
    if config.task in ("reconstruct", "resample") and not isinstance(model, LatentSequenceModel):
        raise UsageError(f"{settings.model} has no latents to {config.task}")
    torch.manual_seed(config.seed)
    steps = config.steps or shown_steps(splits, config.seconds)
    lengths: Lengths = None
    rows: dict[str, Tensor]
    classes: dict[str, Tensor] = {}
    try:
        if config.task == "samples":
            covariates = _covariates(config, splits, steps, device)
            drawn = sample(model, splits.values, config.number, steps, decoding, covariates)
            rows = {"samples": drawn}
            classes = images_by_class(drawn, covariates, splits)
        elif config.task == "continue":
            rows, lengths = _continued(config, model, splits, steps, decoding, device)
        else:
            batch = _sequences(splits, config.split, config.number, config.steps, device)
            lengths = batch.lengths
            if config.task == "reconstruct":
                found = reconstruct(model, batch, decoding)
                rows = dict(zip(RECONSTRUCTED, found, strict=True))
            else:
                chosen = config.resample_steps or range(
                    batch.num_steps // 2 + 1, batch.num_steps + 1
                )
                assert batch.targets is not None
                rows = {"data": batch.targets} | {
                    f"z drawn anew {i + 1}": resample_latents(model, batch, chosen, decoding)
                    for i in range(config.variants)
                }
    except ValueError as error:  # a step out of range, or an emission that has no temperature
        raise UsageError(first_line(error)) from error
    folder = config.output_dir or config.run / "generated"
    attributes = {
        "task": config.task, "temperature": config.temperature, "argmax": config.argmax,
        "latent_temperature": config.latent_temperature, "seed": config.seed,
        "run": str(config.run),
    }  # fmt: skip
    grid = config.task == "samples" and not classes
    _save(folder, config.task, rows, splits, lengths, grid, attributes, classes)


def _covariates(
    config: GenerateConfig, splits: Splits, steps: int, device: torch.device
) -> Tensor | None:
    """Covariates that the samples are conditioned on."""
    if config.condition is None:
        return covariates_like(splits, config.split, config.number, steps, device)
    if splits.covariate_names is None:
        raise UsageError("--condition names a class, but the model is not conditioned on classes")
    if config.condition not in splits.covariate_names:
        raise UsageError(f"--condition {there_are(config.condition, splits.covariate_names)}")
    classes = one_hot([config.condition] * config.number, splits.covariate_names)
    return torch.tensor(classes, dtype=torch.get_default_dtype(), device=device)


def _continued(
    config: GenerateConfig,
    model: SequenceModel,
    splits: Splits,
    steps: int,
    decoding: Decoding,
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The given beginnings and their continuations, by title; the lengths of the beginnings."""
    if config.prefix is not None:
        known = _text_batch([config.prefix], splits, device)
    else:
        most = config.prefix_steps or _prefix_steps(splits, steps)
        known = _beginnings(splits, config.split, config.number, most, device)
    if known.num_steps >= steps:
        steps = known.num_steps + (config.steps or known.num_steps)
    assert known.targets is not None
    rows = {}
    lengths: dict[str, Tensor] = {}
    if config.prefix is None:
        rows["given"] = known.targets
        if known.lengths is not None:
            lengths["given"] = known.lengths
    for i in range(config.variants):
        rows[f"continued {i + 1}"] = continue_prefix(
            model, known, steps - known.num_steps, decoding
        )
    return rows, lengths


def _prefix_steps(splits: Splits, steps: int) -> int:
    if splits.sample_rate is not None:
        return max(min(shown_steps(splits, 1.0), steps - 1), 1)
    if splits.step_unit == "word":
        return 3
    return max(steps // 2, 1)


def _beginnings(
    splits: Splits, split: str, number: int, steps: int, device: torch.device
) -> SequenceBatch:
    """The first ``steps`` steps of sequences of a split, or as many as there are."""
    ends = int(splits.vocabulary is not None and splits.unit != "segment")  # with an end symbol
    batch = _sequences(splits, split, number, steps + ends, device, at_least=steps + ends)
    lengths = batch.lengths
    if lengths is None:
        lengths = torch.full((batch.num_sequences,), batch.num_steps, device=device)
    lengths = (lengths - ends).clamp(1, steps)
    longest = int(lengths.max())
    if longest < steps:
        log.info(
            "the prefix is %d steps, all that sequences of the %s split have, not %d (--prefix-steps)",
            longest, split, steps,
        )  # fmt: skip
    same = bool((lengths == longest).all())
    batch = cut(replace(batch, lengths=lengths), splits, longest)
    return replace(batch, lengths=None) if same else batch


def _sequences(
    splits: Splits,
    split: str,
    number: int,
    steps: int | None,
    device: torch.device,
    at_least: int = 1,
) -> SequenceBatch:
    """Sequences of a split, cut to the length that is shown; if possible, of at least that many steps."""
    dataset = splits[split]
    index = np.arange(len(dataset))
    if dataset.lengths is not None and (dataset.lengths >= at_least).any():
        index = index[dataset.lengths >= at_least]
    chosen = np.sort(np.random.default_rng(0).permutation(index)[:number])
    return cut(dataset.batch(chosen), splits, steps).to(device).numeric()


def _text_batch(texts: list[str], splits: Splits, device: torch.device) -> SequenceBatch:
    if splits.vocabulary is None:
        raise UsageError(f"the data are not text: {splits.source.name}")
    texts = [without_surrogates(text) for text in texts]
    batch = splits.batch_of_texts(texts)
    assert batch.targets is not None
    for text, symbols in zip(texts, batch.targets, strict=True):
        unknown = [w for w, i in zip(text.split(), symbols, strict=False) if i == splits.unknown]
        if splits.joiner and unknown:
            log.warning("not in the vocabulary: %s", ", ".join(unknown))
    return batch.to(device)


def _interpolate(config: InterpolateConfig) -> None:
    at_least_one(config, "pairs")
    if config.points < 2:
        raise UsageError(f"--points must be at least 2, got {config.points}")
    if (config.first is None) != (config.second is None):
        raise UsageError("--first and --second must be given together")
    try:
        decoders = argmax_and_sampling(config.temperature)
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings, splits, model, _, device = load(config)
    if not isinstance(model, LatentSequenceModel):
        raise UsageError(f"{settings.model} has no latents to interpolate")
    torch.manual_seed(config.seed)
    pairs = _pairs(config, splits, device)
    weights = torch.linspace(0, 1, config.points, device=device)
    rows: dict[str, Tensor] = {}
    steps = None
    if splits.vocabulary is not None and splits.unit != "segment":
        steps = splits.num_steps  # an upper limit: a sentence ends at its end symbol
    for i, pair in enumerate(pairs):
        for name, decoding in decoders.items():
            try:
                found = interpolate(model, pair, weights, decoding, steps, config.codes == "mean")
            except ValueError as error:  # a posterior without a mean, or an emission without a mode
                raise UsageError(f"{first_line(error)} (--codes {config.codes})") from error
            rows[f"{i + 1} {name}"] = found
    folder = config.output_dir or config.run / "interpolated"
    attributes = {"weights": weights.cpu().numpy(), "seed": config.seed, "run": str(config.run)}
    if splits.vocabulary is None:
        shown = rows
        if splits.is_image:  # between the two images of the data set
            ends = [pair.targets for pair in pairs for _ in decoders]
            shown = {
                title: torch.cat([pair[:1], between, pair[1:]])
                for (title, between), pair in zip(rows.items(), ends, strict=True)
                if pair is not None
            }
        _save(folder, "interpolation", rows, splits, None, False, attributes, shown)
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "interpolation.md"
    path.write_text(_as_tables(pairs, rows, weights, splits), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    print(f"wrote: {path}")
    print(f"wrote: {write_hdf5(folder / 'interpolation.h5', rows, splits, None, **attributes)}")


def _pairs(config: InterpolateConfig, splits: Splits, device: torch.device) -> list[SequenceBatch]:
    if config.first is not None and config.second is not None:
        return [_text_batch([config.first, config.second], splits, device)]
    steps = shown_steps(splits, config.seconds) if splits.sample_rate is not None else None
    batch = _sequences(splits, config.split, 2 * config.pairs, steps, device)
    if batch.num_sequences < 2:
        raise UsageError(
            f"the {config.split} split has {batch.num_sequences} sequence; a pair needs two"
        )
    number = batch.num_sequences // 2
    return batch.first(2 * number).chunk(number)


def _as_tables(
    pairs: list[SequenceBatch], rows: dict[str, Tensor], weights: Tensor, splits: Splits
) -> str:
    """Argmax and sampling side by side between the two sentences, as in table 3 of the paper."""
    lines = []
    for i, pair in enumerate(pairs):
        assert pair.targets is not None
        ends = [markdown_cell(x) for x in as_texts(pair.targets, splits, pair.lengths)]
        columns = {
            name: as_texts(rows[f"{i + 1} {name}"], splits) for name in ("argmax", "sampling")
        }
        table = interpolation_table(weights.tolist(), columns)
        lines += [f"**{ends[0]}**", "", *table, "", f"**{ends[1]}**", ""]
    return "\n".join(lines)


def _save(
    folder: Path,
    name: str,
    rows: dict[str, Tensor],
    splits: Splits,
    lengths: Lengths,
    grid: bool,
    attributes: dict[str, Any],
    shown: dict[str, Tensor] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shown = shown or rows
    if splits.vocabulary is None and name != "interpolation" and not grid:
        shown = {title: x[:8] for title, x in rows.items()}
    number = len(next(iter(shown.values())))
    few: Lengths = lengths
    if isinstance(lengths, dict):
        few = {title: x[:number] for title, x in lengths.items()}
    elif isinstance(lengths, Tensor):
        few = lengths[:number]
    paths = save_sequences(folder, name, shown, splits, few, grid)
    paths.append(write_hdf5(folder / f"{name}.h5", rows, splits, lengths, **attributes))
    for path in paths:
        print(f"wrote: {path}")

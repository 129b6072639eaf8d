"""Evaluation of a trained model: bounds, diagnostics of the latents, and free-running scores."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_zf.analysis import FreeRunning, diagnose, free_running
from pyro_zf.data import Batches, Splits, StreamBatches, make_batches
from pyro_zf.infer import Bounds
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.training.checks import UsageError
from pyro_zf.training.distributed import Processes
from pyro_zf.training.numbers import marginal_numbers, text_numbers
from pyro_zf.training.record import json_text, read_json, write_text
from pyro_zf.training.validation import shared_evaluation

__all__ = [
    "EvaluationConfig",
    "evaluate_model",
    "evaluation_path",
    "read_evaluations",
    "save_evaluation",
]

log = logging.getLogger(__name__)

#: Number of steps that are scored at a time in an evaluation.
EVALUATION_CHUNK = 64
#: Number of sequences that the estimate of the mutual information compares with each other.
PAIRS = 64


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate, and how accurately."""

    split: Literal["train", "valid", "test"] = "test"
    """Split to evaluate on."""
    num_samples: int = 25
    """Number of importance samples K of the IWAE bound. The ELBO is averaged over the same samples."""
    fivo: bool = False
    """Also run a particle filter with --num-samples particles and report its bound (FIVO)."""
    latents: Literal["posterior", "prior", "prior-mean"] = "posterior"
    """Distribution that z is drawn from. posterior gives the usual bounds; prior gives bounds that do not use
    the targets to infer z; prior-mean gives the likelihood with z set to the mean of the prior, which is not
    a bound."""
    max_sequences: int | None = None
    """Maximum number of sequences to evaluate: a fixed random subset of the split, or for a stream
    approximately that many segments, taken from the start of each part of the text. Default: all."""
    diagnosed_sequences: int = 200
    """Number of sequences for the diagnostics of the latents and for the free-running score; 0
    disables both."""
    batch_size: int = 100
    """Number of sequences per batch."""
    samples_per_pass: int = 5
    """Number of latent samples per forward pass. Memory use grows with this number, not with
    --num-samples."""
    seed: int = 0
    """Random seed of the latent samples."""


def evaluate_model(
    model: SequenceModel,
    splits: Splits,
    config: EvaluationConfig,
    device: torch.device,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Compute bounds with standard errors, diagnostics of the latents and the free-running score.

    Bounds are reported in total and for each step. Several processes share the batches of the bounds; the
    result is the same.

    Raises:
        UsageError: if the model or the data do not support what is asked for.
    """
    torch.manual_seed(config.seed)
    # Without gradients nothing is recomputed, so chunks limit the memory at no cost in time.
    model.time_chunk = model.time_chunk or EVALUATION_CHUNK
    dataset = splits[config.split]
    batches = make_batches(dataset, config.batch_size, limit=config.max_sequences)
    if config.fivo and isinstance(batches, StreamBatches):
        raise UsageError(f"--fivo filters whole sequences, but {splits.source.name} is one stream")
    with ExitStack() as stack:
        if isinstance(model, LatentSequenceModel):
            try:
                stack.enter_context(model.drawing_latents_from(config.latents))
                if config.fivo and config.latents != "posterior":
                    raise ValueError("the particles of --fivo are drawn from the posterior")
            except ValueError as error:
                raise UsageError(f"--latents {config.latents}: {error}") from error
        elif config.fivo or config.latents != "posterior":
            raise UsageError(f"{model.name} has no latents: omit --fivo and --latents")
        bounds = shared_evaluation(
            model, batches, device, processes, f"{config.split}, k = {config.num_samples}",
            num_samples=config.num_samples, chunk=config.samples_per_pass, fivo=config.fivo,
        )  # fmt: skip
    result: dict[str, Any] = {
        "split": config.split,
        "num_sequences": bounds.num_sequences,
        "num_samples": config.num_samples,
        "latents": config.latents,
        "max_sequences": config.max_sequences,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "unit": splits.unit,
        "step_unit": splits.step_unit,
        **bound_numbers(bounds, splits.step_unit, config.fivo),
        **marginal_numbers(splits, config.split, bounds),
    }
    for name in ("elbo", "kl", *["fivo"] * config.fivo):
        if (estimates := bounds.at_steps(name)) is not None:
            result[f"{name}_nats_at_steps"] = [round(e.mean, 5) for e in estimates]
            result[f"{name}_nats_at_steps_stderr"] = [round(e.stderr, 5) for e in estimates]
    number = min(config.diagnosed_sequences, config.max_sequences or len(dataset), len(dataset))
    if config.latents == "posterior" and number > 1:
        result |= _closer_look(model, splits, config, number, device)
    return result


def bound_numbers(bounds: Bounds, step_unit: str, fivo: bool = False) -> dict[str, float]:
    """Each bound per sequence and per step with its standard error.

    For text, the perplexity or the bits per character are added.
    """
    numbers: dict[str, float] = {}
    for name in ("elbo", "iwae", *["fivo"] * fivo, "kl", "log_likelihood"):
        for where, estimate in (
            ("sequence", bounds.per_sequence(name)),
            ("step", bounds.per_step(name)),
        ):
            numbers[f"{name}_nats_per_{where}"] = estimate.mean
            numbers[f"{name}_nats_per_{where}_stderr"] = estimate.stderr
        if name in ("elbo", "iwae", "fivo"):
            numbers |= text_numbers(name, numbers[f"{name}_nats_per_step"], step_unit)
    return numbers


def _closer_look(
    model: SequenceModel,
    splits: Splits,
    config: EvaluationConfig,
    number: int,
    device: torch.device,
) -> dict[str, Any]:
    """Diagnostics and the free-running score on a few sequences, each read from its start."""
    # The generator is seeded again so that the result does not depend on the number of samples above.
    torch.manual_seed(config.seed)
    most = max(config.batch_size, 2)  # z is shuffled within a batch, which needs two sequences
    size = -(-number // -(-number // most))  # batches of nearly equal size
    if number > size and number % size == 1:
        number -= 1
    batches = list(Batches(splits[config.split], size, limit=number).epoch(0, 0, device))
    numbers: dict[str, Any] = {}
    if isinstance(model, LatentSequenceModel):
        diagnostics = diagnose(model, batches, PAIRS)
        numbers |= diagnostics.numbers()
        numbers["verdict"] = diagnostics.verdict(splits.unit)
    scores = [free_running(model, batch) for batch in batches]
    for name in FreeRunning._fields:
        values = torch.cat([getattr(score, name) for score in scores])
        key = f"{name}_log_likelihood_nats_per_sequence"
        numbers[key] = values.mean().item()
        numbers[f"{key}_stderr"] = (values.std() / len(values) ** 0.5).item()
    return numbers


def evaluation_path(
    run: Path,
    split: str,
    latents: str,
    num_samples: int,
    max_sequences: int | None = None,
    fivo: bool = False,
) -> Path:
    """Path of the file that an evaluation is saved to; one for each kind of evaluation."""
    most = "" if max_sequences is None else f"-n{max_sequences}"
    name = f"evaluation-{split}-{latents}-k{num_samples}{most}{'-fivo' * fivo}"
    return run / f"{name}.json"


def save_evaluation(run: Path, result: dict[str, Any]) -> Path | None:
    """Save an evaluation in the run folder for use in reports.

    Returns:
        Path | None: the file, or None if the folder is not writable.
    """
    path = evaluation_path(
        run, result["split"], result["latents"], result["num_samples"], result["max_sequences"],
        "fivo_nats_per_sequence" in result,
    )  # fmt: skip
    try:
        write_text(path, json_text(result, indent=2) + "\n")
    except OSError as error:
        log.warning("the evaluation could not be saved in %s: %s", run, error.strerror)
        return None
    return path


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Read all evaluations that :func:`save_evaluation` has saved in a run folder."""
    needed = ("split", "latents", "num_samples", "num_sequences")
    found = [
        read_json(path, needed, "delete it, and evaluate again")
        for path in run.glob("evaluation-*.json")
    ]
    return sorted(found, key=lambda e: (e["split"], e["latents"], e["num_samples"]))

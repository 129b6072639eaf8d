"""What there is to say of a trained model: bounds, diagnostics, and how it runs on its own."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_zf.analysis import FreeRunning, diagnose, free_running
from pyro_zf.data import Batches, Splits, StreamBatches, make_batches
from pyro_zf.infer import Bounds, evaluate
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.training.checks import UsageError
from pyro_zf.training.numbers import marginal_numbers, text_numbers
from pyro_zf.training.record import json_text, write_text

__all__ = [
    "EvaluationConfig",
    "evaluate_model",
    "evaluation_path",
    "read_evaluations",
    "save_evaluation",
]

log = logging.getLogger(__name__)

#: Steps that are scored at a time in an evaluation.
EVALUATION_CHUNK = 64
#: Sequences that the mutual information compares with each other.
PAIRS = 64


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how well."""

    split: Literal["train", "valid", "test"] = "test"
    """Data to evaluate on."""
    num_samples: int = 25
    """K of the IWAE; the ELBO is averaged over the same samples."""
    fivo: bool = False
    """Also run a particle filter with so many particles, and report its bound."""
    latents: Literal["posterior", "prior", "prior-mean"] = "posterior"
    """Where z is drawn: posterior gives the usual bounds, prior the bounds without looking at the
    targets, prior-mean the likelihood with z at the mean of the prior, no bound of the model."""
    max_sequences: int | None = None
    """Only so many sequences of the split, a fixed random subset (of a stream about so many segments, the
    first of each part of the text)."""
    diagnosed_sequences: int = 200
    """Sequences whose latents are looked at, and which are scored in generation mode too; 0 for none."""
    batch_size: int = 100
    """Sequences at a time."""
    samples_per_pass: int = 5
    """Samples at a time; memory grows with it, not with --num-samples."""
    seed: int = 0
    """Of the latent samples."""


def evaluate_model(
    model: SequenceModel, splits: Splits, config: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """Bounds with standard errors, in all and step by step; what z carries; generation mode.

    Raises:
        UsageError: if the model or the data have not what is asked for.
    """
    torch.manual_seed(config.seed)
    # Without gradients nothing is computed twice: pieces cost no time and bound the memory.
    model.time_chunk = model.time_chunk or EVALUATION_CHUNK
    dataset = splits[config.split]
    batches = make_batches(dataset, config.batch_size, limit=config.max_sequences)
    if config.fivo and isinstance(batches, StreamBatches):
        raise UsageError(f"--fivo filters whole sequences, and {splits.source.name} is one stream")
    with ExitStack() as stack:
        if isinstance(model, LatentSequenceModel):
            try:
                stack.enter_context(model.drawing_latents_from(config.latents))
                if config.fivo and config.latents != "posterior":
                    raise ValueError("the particles of --fivo are drawn from the posterior")
            except ValueError as error:
                raise UsageError(f"--latents {config.latents}: {error}") from error
        elif config.fivo or config.latents != "posterior":
            raise UsageError(f"{model.name} has no latents: leave out --fivo and --latents")
        bounds = evaluate(
            model.model, model.guide, batches.epoch(0, 0, device), config.num_samples,
            config.samples_per_pass, config.fivo,
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
            result[f"{name}_nats_at_steps_stderr"] = [
                round(e.stderr, 5) if e.stderr == e.stderr else None for e in estimates
            ]
    number = min(config.diagnosed_sequences, config.max_sequences or len(dataset), len(dataset))
    if config.latents == "posterior" and number > 1:
        result |= _closer_look(model, splits, config, number, device)
    return result


def bound_numbers(bounds: Bounds, step_unit: str, fivo: bool = False) -> dict[str, float]:
    """Each bound per sequence and per step with its standard error; perplexity or bits of text."""
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
    """Diagnostics and generation mode, on a few sequences, each from its start."""
    # Noise of its own: it does not depend on how many samples the bounds took.
    torch.manual_seed(config.seed)
    size = -(-number // -(-number // config.batch_size))  # batches of nearly one size
    if number > size and number % size == 1:  # z is shuffled within a batch
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


def evaluation_path(run: Path, split: str, latents: str, num_samples: int) -> Path:
    """Where an evaluation is kept."""
    return run / f"evaluation-{split}-{latents}-k{num_samples}.json"


def save_evaluation(run: Path, result: dict[str, Any]) -> Path | None:
    """Keep an evaluation with the run, for reports; None where the folder cannot be written."""
    path = evaluation_path(run, result["split"], result["latents"], result["num_samples"])
    try:
        write_text(path, json_text(result, indent=2) + "\n")
    except OSError as error:
        log.warning("the evaluation is not kept in %s: %s", run, error.strerror)
        return None
    return path


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """What :func:`save_evaluation` kept."""
    found = [json.loads(path.read_text()) for path in run.glob("evaluation-*.json")]
    return sorted(found, key=lambda e: (e["split"], e["latents"], e["num_samples"]))

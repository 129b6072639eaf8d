"""The training loop, from settings to a finished run folder, in the order of execution."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyro
import torch
from tqdm import tqdm

from pyro_zf.analysis import save_run_figures
from pyro_zf.data import StreamBatches, make_batches
from pyro_zf.infer import (
    OBJECTIVES,
    SVI,
    CarriedState,
    GraphedSVI,
    LinearSchedule,
    WordDropout,
    batch_bounds,
)
from pyro_zf.models import LatentSequenceModel
from pyro_zf.sequence import recurrence_in_use
from pyro_zf.training.checkpoint import (
    load_checkpoint,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from pyro_zf.training.checks import UsageError, without_effect
from pyro_zf.training.config import TrainConfig, resolve, resumed
from pyro_zf.training.data import build_data, check_same_data, data_record
from pyro_zf.training.memory import keep_freed_memory
from pyro_zf.training.numbers import brief, marginal_numbers, training_numbers
from pyro_zf.training.record import Record, json_text, read_metrics, write_text
from pyro_zf.training.setup import build_model
from pyro_zf.training.signals import stop_on_signal
from pyro_zf.training.validation import (
    bounds_with_own_noise,
    latent_diagnostics,
    own_noise,
    without_posterior,
)

__all__ = ["Interrupted", "TrainingError", "train"]

log = logging.getLogger(__name__)


class TrainingError(Exception):
    """Training cannot continue. The message is a single line."""


class Interrupted(Exception):
    """Training was stopped by a signal and has saved a checkpoint."""


@dataclass
class Progress:
    """Progress of a run, which is stored in checkpoints next to the tensors and settings."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_nats: float = math.inf
    best_step: int = -1
    validated_step: int = 0


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model, validate it regularly, test the best state, and save figures and generated sequences.

    Args:
        config: settings as given on the command line; see :class:`TrainConfig`.

    Returns:
        dict: the content of ``summary.json``.

    Raises:
        UsageError, DataError: if the settings or the data are invalid.
        TrainingError: if the loss is not finite.
        Interrupted: on SIGINT or SIGTERM, after a checkpoint has been saved.
    """
    # Settings and run folder
    resuming = config.resume is not None
    config = resumed(config) if resuming else resolve(config)
    device = torch.device(config.device)
    run = config.output_dir or Path("runs") / (
        f"{config.dataset}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    if not resuming and (run / "config.json").exists():
        raise UsageError(f"{run} already contains a run; resume it with --resume {run}")

    # Data, model, optimiser
    keep_freed_memory()
    torch.manual_seed(config.seed)
    splits = build_data(config)
    data = data_record(splits)
    model = build_model(config, splits).to(device)
    assert config.batch_size and config.learning_rate
    train_batches = make_batches(
        splits.train, config.batch_size, config.seed, config.train_sequences, config.workers or 0
    )
    carried = CarriedState(model.model) if isinstance(train_batches, StreamBatches) else None
    if carried is not None and config.objective == "fivo":
        raise UsageError(
            "--objective fivo filters whole sequences: use --carry-state False for independent segments"
        )
    # Without gradients, a larger batch fits into the same memory. The number of streams stays the same, since
    # a few long streams are better than many short ones.
    eval_batch = config.batch_size if carried else 4 * config.batch_size
    valid_batches = make_batches(splits.valid, eval_batch, limit=config.valid_sequences)
    test_batches = make_batches(splits.test, eval_batch, limit=config.test_sequences)
    by_graphs = device.type == "cuda" and config.cuda_graph != "off" and config.accumulate == 1
    optimiser = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, fused=True, capturable=by_graphs
    )
    bf16 = functools.partial(torch.autocast, device.type, torch.bfloat16)
    svi = SVI(
        carried.model if carried else model.model,
        model.guide,
        optimiser,
        OBJECTIVES[config.objective](
            config.num_particles, **({"free_bits": config.free_bits} if config.free_bits else {})
        ),
        clip_norm=config.clip_norm,
        loss_context=bf16 if config.precision == "bf16" else None,
    )
    graphed = None
    if by_graphs:
        graphed = GraphedSVI(svi, carried, strict=config.cuda_graph == "on")
        # The graph records these tensors, so new weights must be written into them in place.
        model.kl_weight, model.aux_weight = (torch.ones((), device=device) for _ in range(2))
    kl_weight = LinearSchedule(config.kl_start, max(config.kl_start, 1.0), config.kl_increment)
    aux_weight = LinearSchedule(config.aux_start, config.aux_stop, config.aux_increment)
    word_dropout = WordDropout(config.word_dropout, splits.hidden_symbol)
    progress = Progress()
    losses = torch.zeros(config.log_interval, device=device)  # since the last training entry
    num_losses = 0
    last, best = run / "checkpoints" / "last.pt", run / "checkpoints" / "best.pt"
    if resuming:
        checkpoint = load_checkpoint(last, device)
        check_same_data(run, checkpoint["data"], data)
        load_weights(model, checkpoint, last)
        for saved, own in zip(
            checkpoint["optimizer"]["param_groups"], optimiser.param_groups, strict=True
        ):  # these flags depend on the current device, not on the run
            saved.update({name: own[name] for name in ("fused", "capturable", "foreach")})
        optimiser.load_state_dict(checkpoint["optimizer"])
        restore_random_state(checkpoint["random"])
        progress = Progress(**checkpoint["progress"])
        num_losses = len(checkpoint["losses"])
        losses[:num_losses] = checkpoint["losses"]
        if carried:
            carried.state = checkpoint["carried"]
    parameters = sum(p.numel() for p in model.parameters())
    log.info("data: %s (%s)", splits.source.name, splits.source.detail)
    for finding in splits.findings:
        log.info("  %s", finding)
    log.info(
        "model: %s, %s parameters, %s, %s", config.model, f"{parameters:,}", device, config.preset
    )
    if isinstance(model, LatentSequenceModel):
        log.info("  recurrence: %s%s", recurrence_in_use(model), ", CUDA graphs" if graphed else "")
    log.info("run folder: %s", run)
    if ignored := without_effect(config):
        are = "is" if len(ignored) == 1 else "are"
        log.warning("%s has no latents: %s %s not used", config.model, ", ".join(ignored), are)

    def mean_loss() -> float:
        """Mean loss of the updates since the last training entry. This synchronises with the device."""
        loss = losses[:num_losses].mean().item() if num_losses else 0.0
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} within the {num_losses} updates up to update {progress.step}; "
                f"the last valid state is {last if last.exists() else 'the initial one'}"
            )
        return loss

    def save(path: Path) -> None:
        mean_loss()  # raises if the loss is not finite, so that such a state is never saved
        content = {
            "format": 1,
            "step": progress.step,
            "config": config.to_json(),
            "data": data,
            "carried": carried.state if carried else None,
            "progress": dataclasses.asdict(progress),
            "model": model.state_dict(),
            "optimizer": optimiser.state_dict(),
            "random": random_state(),
            "losses": losses[:num_losses].clone(),
        }
        save_checkpoint(path, content)

    last.parent.mkdir(parents=True, exist_ok=True)
    if not resuming:
        save(last)  # before config.json, so that every folder with a config.json can be resumed
    write_text(run / "config.json", config.to_json())
    if splits.vocabulary is not None:
        write_text(run / "vocabulary.json", json_text({"symbols": splits.vocabulary}) + "\n")
    record = Record(run, last_step=progress.step if resuming else None)

    def set_weights(step: int) -> None:
        """Set the weights of the KL and auxiliary terms for an update."""
        if graphed is None:
            model.kl_weight, model.aux_weight = kl_weight(step), aux_weight(step)
        else:
            model.kl_weight.fill_(kl_weight(step))  # type: ignore[union-attr]
            model.aux_weight.fill_(aux_weight(step))  # type: ignore[union-attr]

    def validate() -> None:
        mean_loss()
        set_weights(progress.step)
        bounds = bounds_with_own_noise(model, valid_batches, config.seed, device)
        numbers = training_numbers(bounds, splits)
        numbers |= without_posterior(
            model, valid_batches, config.seed, device, config.valid_latents, splits
        )
        diagnostics = latent_diagnostics(model, splits.valid, config.seed, device)
        numbers |= diagnostics.numbers() if diagnostics else {}
        nats = -numbers["elbo_nats_per_sequence"]
        record.write("valid", progress.step, epoch=progress.epoch, **numbers)
        log.info(
            "epoch %d, update %d: validation %s, KL %.2f",
            progress.epoch, progress.step, brief(numbers, splits), numbers["kl_nats_per_sequence"],
        )  # fmt: skip
        if diagnostics:
            log.info("  %s", diagnostics.verdict(splits.unit))
        progress.validated_step = progress.step
        if nats < progress.best_nats:
            progress.best_nats, progress.best_step = nats, progress.step
            save(best)

    # The loop
    started = time.monotonic() - progress.seconds
    saved = window_start = time.monotonic()
    sequences = 0
    steps_an_epoch = len(train_batches)
    total = _total_steps(config, steps_an_epoch)
    bar = tqdm(total=total, initial=progress.step, unit="update", disable=not sys.stderr.isatty())
    with stop_on_signal() as stop, bar:
        batches = train_batches.epoch(progress.epoch, progress.batch, device)
        while not _finished(config, progress):
            batch = next(batches, None)
            if batch is None:
                progress.epoch, progress.batch = progress.epoch + 1, 0
                if config.valid_interval is None:
                    validate()
                save(last)
                saved = time.monotonic()
                batches = train_batches.epoch(progress.epoch, 0, device)
                continue

            set_weights(progress.step)
            with pyro.validation_enabled(progress.step == 0):
                batch = carried.given_to(batch) if carried else batch
                parts = word_dropout(batch).chunk(config.accumulate)
                losses[num_losses] = graphed.step(parts[0]) if graphed else svi.step(parts)
                num_losses += 1
                if carried:
                    carried.keep(parts)
            progress.step += 1
            progress.batch += 1
            progress.seconds = time.monotonic() - started
            sequences += batch.num_sequences
            bar.update()

            if progress.step % config.log_interval == 0:
                loss = mean_loss()
                seconds = time.monotonic() - window_start
                with own_noise(config.seed + progress.step, device):
                    terms = batch_bounds(model.model, model.guide, batch)
                steps = batch.num_steps if batch.lengths is None else batch.lengths.double().mean()
                means = {n: getattr(terms, n).mean().item() for n in ("elbo", "kl", "aux")}
                numbers = {
                    "loss_nats_per_sequence": loss,
                    **{f"{n}_nats_per_sequence": mean for n, mean in means.items()},
                    **{f"{n}_nats_per_step": mean / float(steps) for n, mean in means.items()},
                    "kl_weight": kl_weight(progress.step - 1),
                    "sequences_per_second": sequences / seconds,
                }
                record.write("train", progress.step, epoch=progress.epoch, **numbers)
                bar.set_postfix(
                    loss=f"{loss:.1f}",
                    ELBO=f"{numbers['elbo_nats_per_sequence']:.1f}",
                    KL=f"{numbers['kl_nats_per_sequence']:.1f}",
                    aux=f"{numbers['aux_nats_per_sequence']:.1f}",
                    seq_s=f"{numbers['sequences_per_second']:.0f}",
                )
                num_losses, sequences, window_start = 0, 0, time.monotonic()
            if config.valid_interval and progress.step % config.valid_interval == 0:
                validate()
            # Read the flag only once: a signal after the save would otherwise stop without a checkpoint.
            stopping = stop.requested
            if stopping or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(last)
                saved = time.monotonic()
            if stopping:
                record.close()
                raise Interrupted(f"stopped at update {progress.step}; resume with --resume {run}")

        if progress.validated_step != progress.step:
            validate()
        save(last)

    # Test of the best model, and figures
    load_weights(model, load_checkpoint(best, device), best)
    set_weights(progress.best_step)
    bounds = bounds_with_own_noise(model, test_batches, config.seed, device)
    numbers = training_numbers(bounds, splits)
    diagnostics = latent_diagnostics(model, splits.test, config.seed, device)
    numbers |= diagnostics.numbers() if diagnostics else {}
    record.write("test", progress.best_step, **numbers)
    record.close()
    figures: list[Path] = []
    if config.num_figures:
        with own_noise(config.seed, device):
            figures = save_run_figures(
                run, model.eval(), splits, read_metrics(run), config.num_figures
            )
    summary = {
        "dataset": config.dataset,
        "data": splits.source.name,
        "data_detail": splits.source.detail,
        "comparable_with_published": splits.source.comparable,
        "kind": splits.kind,
        "unit": splits.unit,
        "step_unit": splits.step_unit,
        "sample_rate": splits.sample_rate,
        "model": config.model,
        "has_latents": isinstance(model, LatentSequenceModel),
        "num_parameters": parameters,
        "steps": progress.step,
        "best_step": progress.best_step,
        "training_seconds": round(progress.seconds, 1),
        "valid_elbo_nats_per_sequence": -progress.best_nats,
        "test_num_sequences": bounds.num_sequences,
        "test_num_samples": bounds.num_samples,
        **{f"test_{name}": value for name, value in numbers.items()},
        **marginal_numbers(splits, "test", bounds),
        "verdict": diagnostics.verdict(splits.unit) if diagnostics else None,
        "figures": [str(path) for path in figures],
    }
    write_text(run / "summary.json", json_text(summary, indent=2) + "\n")
    return summary


def _finished(config: TrainConfig, progress: Progress) -> bool:
    return (
        (config.max_steps is not None and progress.step >= config.max_steps)
        or (config.max_epochs is not None and progress.epoch >= config.max_epochs)
        or (config.max_minutes is not None and progress.seconds >= 60 * config.max_minutes)
    )


def _total_steps(config: TrainConfig, steps_an_epoch: int) -> int | None:
    totals = [config.max_steps, config.max_epochs and config.max_epochs * steps_an_epoch]
    return min((total for total in totals if total is not None), default=None)

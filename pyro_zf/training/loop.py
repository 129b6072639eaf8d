"""The training loop, from settings to a finished run folder, in the order of execution."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyro
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pyro_zf.analysis import save_run_figures
from pyro_zf.batch import SequenceBatch
from pyro_zf.data import DataError, Splits, StreamBatches, make_batches, splits_of
from pyro_zf.data.datasets import SequenceDataset
from pyro_zf.infer import (
    OBJECTIVES,
    SVI,
    Bounds,
    CarriedState,
    GraphedSVI,
    InputDropout,
    LinearSchedule,
    WordDropout,
)
from pyro_zf.infer.bounds import unchecked_bounds
from pyro_zf.infer.sites import check_padding
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.models.base import local_parameters
from pyro_zf.nn.cells import cpu_has_bfloat16
from pyro_zf.sequence import recurrence_in_use
from pyro_zf.training.checkpoint import (
    load_checkpoint,
    load_last,
    load_weights,
    restore_random_state,
    save_checkpoint,
)
from pyro_zf.training.checks import UsageError, check_corruption, without_effect
from pyro_zf.training.config import (
    TrainConfig,
    check_same_settings,
    command_of,
    preset_note,
    resolve,
    resolve_device,
    resumed,
)
from pyro_zf.training.data import build_data, check_same_data, data_record
from pyro_zf.training.distributed import Processes, parts_of, started
from pyro_zf.training.memory import keep_freed_memory
from pyro_zf.training.numbers import brief, marginal_numbers, training_numbers
from pyro_zf.training.recipe import (
    averaged_weights,
    averages_of,
    rate_factor,
    recurrent_dropout,
    recurrent_weights,
    set_rate,
)
from pyro_zf.training.record import (
    NoRecord,
    Record,
    json_text,
    read_json,
    read_metrics,
    write_text,
)
from pyro_zf.training.setup import build_model, prepare_model
from pyro_zf.training.signals import stop_on_signal
from pyro_zf.training.validation import (
    bounds_with_own_noise,
    evaluating,
    latent_diagnostics,
    own_noise,
    without_posterior,
)

__all__ = ["Interrupted", "TrainingError", "train", "train_unless_finished"]

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Entries of a checkpoint that a resumed training needs.
NEEDED = {"carried", "data", "losses", "model", "optimizer", "progress", "random"}


class TrainingError(Exception):
    """Training cannot continue. The message is a single line."""


class Interrupted(Exception):
    """Training was stopped by a signal and has saved a checkpoint."""


@dataclass
class Progress:
    """Progress of a run, which is stored in checkpoints next to the tensors and settings."""

    update: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_nats: float = math.inf
    best_update: int = -1
    validated_update: int = 0
    worse_validations: int = 0  # in a row, up to the last
    halvings: int = 0  # of the learning rate
    validating: bool = False  # the state was saved before a validation


#: Terms of the loss that the progress shows.
_TERMS = {"elbo": "ELBO", "kl": "KL", "aux": "aux"}
#: Seconds between two lines about the progress where no bar is shown.
LOGGED_EVERY = 60.0


def train(
    config: TrainConfig | None = None,
    model: SequenceModel | None = None,
    data: Splits | Any = None,
) -> dict[str, Any]:
    """Train a model, validate it regularly, test the best state, and save figures and generated sequences.

    A validation, a test or figures that fail are a warning; the state before them has been saved.

    Args:
        config: settings as given on the command line; see :class:`TrainConfig`.
        model: a model to train, in place of one that is built from the settings.
        data: data in place of those that the settings select: :class:`~pyro_zf.data.Splits`, or what
            :func:`~pyro_zf.data.splits_of` accepts, such as a :class:`torch.utils.data.DataLoader`.

    Returns:
        dict: the content of ``summary.json``.

    Raises:
        UsageError, DataError: if the settings or the data are invalid.
        TrainingError: if the loss is not finite.
        Interrupted: on SIGINT, SIGTERM or SIGHUP, after a checkpoint has been saved.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from pyro_zf import VRNN
        >>> from pyro_zf.training import TrainConfig
        >>> data = torch.utils.data.DataLoader((torch.rand(40, 6, 4) > 0.5).float(), batch_size=8)
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(output_dir=Path(folder) / "run", max_updates=5, num_figures=0)
        ...     summary = train(config, model=vrnn, data=data)
        >>> summary["updates"], summary["test_num_sequences"]
        (5, 2)
    """
    if config is not None and not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, not a {type(config).__name__}")
    config = config or TrainConfig()
    processes = started(resolve_device(config.device))
    if processes.first:
        show_progress()
    else:
        logging.getLogger("pyro_zf").setLevel(logging.ERROR)
    return _train(config, model, data, processes)


def train_unless_finished(config: TrainConfig) -> dict[str, Any]:
    """Train a run in ``config.output_dir``, resume it if it was interrupted, or take it as it is.

    Returns:
        dict: the content of ``summary.json``.

    Raises:
        UsageError: if the folder has a run with other settings.
    """
    run = config.output_dir
    assert run is not None
    if not (run / "config.json").is_file():
        return train(config)
    check_same_settings(run, resolve(config))
    if (run / "summary.json").is_file():
        return read_json(run / "summary.json")
    where = {name: getattr(config, name) for name in ("device", "data_dir", "data", "workers")}
    return train(TrainConfig(resume=run, **where))


def _train(
    config: TrainConfig, model: SequenceModel | None, data: Any, processes: Processes
) -> dict[str, Any]:
    # Settings and run folder
    resuming = config.resume is not None
    if not resuming and model is not None:
        config = dataclasses.replace(config, own_model=True, model=type(model).__name__)
    if not resuming and data is not None:
        size = config.batch_size or getattr(data, "batch_size", None)  # that of a DataLoader
        config = dataclasses.replace(config, own_data=True, batch_size=size)
    if processes.size > 1:
        config = dataclasses.replace(config, device=processes.device)
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and not resuming and config.output_dir is None:
        raise UsageError("--max-restarts needs --output-dir, so that a restart finds its run again")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if restarted and config.output_dir and (config.output_dir / "config.json").exists():
        config = dataclasses.replace(TrainConfig(device=config.device), resume=config.output_dir)
        resuming = True
    resumed_run = config.resume
    config = resumed(config) if resuming else resolve(config)
    for what, given, was_own in (
        ("model", model, config.own_model),
        ("data", data, config.own_data),
    ):
        if was_own != (given is not None):
            raise UsageError(
                f"{resumed_run} was trained on a {what} argument: give it again, as train(config, {what}=...)"
                if was_own
                else f"{resumed_run} has {what} of its settings: leave out the {what} argument"
            )
    run = processes.agreed(lambda: _run_folder(config, resuming))
    with ExitStack() as held:
        return _train_in(run, resuming, config, model, data, processes, held)


def _check_model(
    model: SequenceModel, objective: Any, dataset: SequenceDataset, device: torch.device
) -> None:
    """Run the programs and the objective once on two sequences, if possible of different lengths.

    Raises:
        UsageError: if the guide lacks a latent or does not suit the objective, or if steps past the end of a
            sequence count.
    """
    lengths = dataset.lengths
    pair = [0, len(dataset) - 1] if lengths is None else [lengths.argmin(), lengths.argmax()]
    batch = dataset.batch(np.array(pair)).to(device)
    noise = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with noise, local_parameters():
        try:
            check_padding(model.model, model.guide, batch)
            objective.differentiable_loss(model.model, model.guide, batch)
        except ValueError as error:
            raise UsageError(str(error)) from error


def _train_in(
    run: Path,
    resuming: bool,
    config: TrainConfig,
    model: SequenceModel | None,
    data: Any,
    processes: Processes,
    held: ExitStack,
) -> dict[str, Any]:
    if resuming:
        processes.agreed(lambda: _lock(run, held))
    device = torch.device(config.device)

    # Data, model, optimiser
    keep_freed_memory()
    torch.manual_seed(config.seed)
    splits = build_data(config) if data is None else splits_of(data)
    record_of_data = data_record(splits)
    if model is None:
        model = build_model(config, record_of_data)
    else:
        prepare_model(config, model, record_of_data)
    model.to(device).train()
    processes.equal_parameters(model)
    assert config.batch_size and config.learning_rate
    train_batches = make_batches(
        splits.train, config.batch_size, config.seed, config.train_sequences, config.workers or 0
    )
    carried = CarriedState(model.model) if isinstance(train_batches, StreamBatches) else None
    if carried is not None and config.objective == "fivo":
        raise UsageError(
            "--objective fivo filters whole sequences: use --carry-state False for independent segments"
        )
    check_corruption(config, splits.kind)
    # Without gradients, a larger batch fits into the same memory. The number of streams stays the same, since
    # a few long streams are better than many short ones.
    eval_batch = config.batch_size if carried else 4 * config.batch_size
    valid_batches = make_batches(splits.valid, eval_batch, limit=config.valid_sequences)
    test_batches = make_batches(splits.test, eval_batch, limit=config.test_sequences)
    free_bits = {"free_bits": config.free_bits} if config.free_bits else {}
    objective = OBJECTIVES[config.objective](config.num_particles, **free_bits)
    if not resuming and carried is None:
        # Before there is a folder, so that a model that does not run leaves none.
        _check_model(model, objective, splits.train, device)
    if config.recurrent_dropout and not recurrent_weights(model):
        raise UsageError("--recurrent-dropout: the model has no LSTM or GRU")
    if processes.size > 1 and config.cuda_graph == "on":
        raise UsageError("--cuda-graph on is for a single process")
    by_graphs = (
        device.type == "cuda"
        and config.cuda_graph != "off"
        and config.accumulate == 1
        and not config.recurrent_dropout
        and processes.size == 1
    )
    rate = config.learning_rate
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=torch.tensor(rate, device=device) if by_graphs else rate,
        weight_decay=config.weight_decay, fused=True, capturable=by_graphs,
    )  # fmt: skip
    averages = averages_of(model, config.average_decay)
    bf16 = functools.partial(torch.autocast, device.type, torch.bfloat16)
    svi = SVI(
        carried.model if carried else model.model,
        model.guide,
        optimiser,
        objective,
        clip_norm=config.clip_norm,
        loss_context=bf16 if config.precision == "bf16" else None,
        gradient_context=lambda: recurrent_dropout(
            model, config.recurrent_dropout, config.seed + progress.update
        ),
        skip_non_finite=not by_graphs,
        reduce=processes.summed if processes.size > 1 else None,
    )
    graphed = None
    if by_graphs:
        graphed = GraphedSVI(svi, carried, strict=config.cuda_graph == "on")
        # The graph records these tensors, so new weights must be written into them in place.
        model.kl_weight, model.aux_weight = (torch.ones((), device=device) for _ in range(2))
    kl_weight = LinearSchedule(config.kl_start, max(config.kl_start, 1.0), config.kl_increment)
    aux_weight = LinearSchedule(config.aux_start, config.aux_stop, config.aux_increment)
    word_dropout = WordDropout(config.word_dropout, splits.hidden_symbol)
    input_dropout = InputDropout(config.input_dropout)
    progress = Progress()
    losses = torch.zeros(config.log_interval, device=device)  # since the last training entry
    num_losses = 0
    last, best = run / "checkpoints" / "last.pt", run / "checkpoints" / "best.pt"

    def restore(checkpoint: dict[str, Any]) -> None:
        """Restore the weights, their averages, the optimiser and the carried states."""
        load_weights(model, checkpoint, last)
        optimiser.load_state_dict(checkpoint["optimizer"])
        if averages is not None:
            averages.load_state_dict(checkpoint["averages"])
        if carried:
            parts = parts_of(train_batches.batch_size, config.accumulate)
            carried.state = processes.own(checkpoint["carried"], parts)

    if resuming:
        checkpoint = load_last(last, device)
        if missing := NEEDED - set(checkpoint):
            raise DataError(f"{last} is not a checkpoint of a training: it lacks {min(missing)}")
        check_same_data(run, checkpoint["data"], record_of_data)
        for saved, own in zip(
            checkpoint["optimizer"]["param_groups"], optimiser.param_groups, strict=True
        ):  # these flags depend on the current device, not on the run
            saved.update({name: own[name] for name in ("fused", "capturable", "foreach", "lr")})
        restore(checkpoint)
        restore_random_state(checkpoint["random"])
        progress = Progress(**checkpoint["progress"])
        if config.patience is not None and progress.worse_validations >= config.patience:
            log.warning(
                "%s stopped after %d validations in a row without improvement: a larger --patience continues it",
                run, progress.worse_validations,
            )  # fmt: skip
        num_losses = len(checkpoint["losses"])
        losses[:num_losses] = checkpoint["losses"]
    processes.start_noise(config.seed + progress.update)
    parameters = sum(p.numel() for p in model.parameters())
    log.info("data: %s (%s)", splits.source.name, splits.source.detail)
    for finding in splits.findings:
        log.info("  %s", finding)
    log.info(
        "model: %s, %s parameters, %s, %s", config.model, f"{parameters:,}", device, config.preset
    )
    if isinstance(model, LatentSequenceModel):
        if costs := {k: w for k, w in model.aux_weights.items() if w}:
            written = ", ".join(f"{name} {weight:.3g}" for name, weight in costs.items())
            log.info("  weights of auxiliary costs: %s%s", written, preset_note(config))
        log.info("  recurrence: %s%s", recurrence_in_use(model), ", CUDA graphs" if graphed else "")
    if processes.size > 1:
        log.info("  %d processes, each with its rows of every batch", processes.size)
    if config.precision == "bf16" and device.type == "cpu" and not cpu_has_bfloat16():
        log.warning("this processor has no bfloat16 instructions: bf16 is much slower than fp32")
    log.info("run folder: %s", run)
    if ignored := without_effect(config):
        are = "is" if len(ignored) == 1 else "are"
        log.warning("%s has no latents: %s %s not used", config.model, ", ".join(ignored), are)

    def mean_loss() -> float:
        """Mean loss of the updates since the last training entry. This synchronises with the device."""
        recent = losses[:num_losses]
        finite = recent[recent.isfinite()]
        if num_losses and not len(finite) and svi.skip_non_finite:
            return math.nan  # all were skipped, see check_updates
        if num_losses and not len(finite):
            raise TrainingError(
                f"the loss is {recent.mean().item()} within the {num_losses} updates up to update "
                f"{progress.update}; the last valid state is {last if last.exists() else 'the initial one'}"
            )
        return finite.mean().item() if num_losses else 0.0

    def check_updates() -> None:
        """Stop, or go back to the last checkpoint, after many updates in a row that were not finite."""
        skipped = int(svi.skipped_in_a_row)
        if skipped < config.max_skipped:
            return
        names = [
            name for name, p in model.named_parameters()
            if p.grad is not None and not bool(p.grad.isfinite().all())
        ]  # fmt: skip
        where = f", first in {names[0]}" if names else ""
        reason = (
            f"the loss or its gradient is not finite{where}, in {skipped} updates in a row up to update "
            f"{progress.update}"
        )
        if config.on_divergence == "stop" or not last.exists():
            raise TrainingError(f"{reason}; the last valid state is {last}")
        if progress.halvings >= 10:
            raise TrainingError(
                f"{reason}, also after {progress.halvings} halvings of the learning rate"
            )
        progress.halvings += 1
        content = load_last(last, device)
        restore(content)
        svi.skipped_in_a_row.zero_()
        log.warning("%s: back to update %d, with half the learning rate", reason, content["update"])

    def save(path: Path) -> None:
        mean_loss()  # raises if the loss is not finite, so that such a state is never saved
        if not all(bool(x.isfinite().all()) for x in model.parameters()):
            raise TrainingError(
                f"the weights are not finite at update {progress.update}; the last valid state is "
                f"{last if last.exists() else 'the initial one'}"
            )
        if path == last and int(svi.skipped_in_a_row):
            return  # the weights may be the reason, so the checkpoint before them is kept
        number = train_batches.batch_size
        state = (
            processes.joined(carried.state, parts_of(number, config.accumulate))
            if carried
            else None
        )
        if not processes.first:
            return
        content = {
            "format": 1,
            "update": progress.update,
            "config": config.to_json(),
            "data": record_of_data,
            "carried": None if state is None else tuple(state),
            "progress": dataclasses.asdict(progress),
            "model": model.state_dict(),
            "optimizer": optimiser.state_dict(),
            **({"averages": averages.state_dict()} if averages is not None else {}),
            "random": processes.random_state(),
            "losses": losses[:num_losses].clone(),
        }
        save_checkpoint(path, content)

    if not resuming:
        processes.agreed(lambda: _lock(run, held))
        processes.agreed(lambda: _run_folder(config, resuming))  # none has come in between
    if processes.first:
        last.parent.mkdir(parents=True, exist_ok=True)
    if not resuming:
        save(last)  # before config.json, so that every folder with a config.json can be resumed
    record: Record | NoRecord = NoRecord()
    if processes.first:
        write_text(run / "config.json", config.to_json())
        if splits.vocabulary is not None:
            write_text(run / "vocabulary.json", json_text({"symbols": splits.vocabulary}) + "\n")
        record = Record(run, progress.update if resuming else None, progress.validating)

    def set_weights(update: int) -> None:
        """Set the weights of the KL and auxiliary terms for an update."""
        if graphed is None:
            model.kl_weight, model.aux_weight = kl_weight(update), aux_weight(update)
        else:
            model.kl_weight.fill_(kl_weight(update))  # type: ignore[union-attr]
            model.aux_weight.fill_(aux_weight(update))  # type: ignore[union-attr]

    def validate() -> None:
        progress.validating = True
        save(last)  # what follows may fail
        progress.validating, progress.validated_update = False, progress.update
        set_weights(progress.update)
        with averaged_weights(model, averages):
            nats = validated()
            if nats is None:
                return
            if nats < progress.best_nats:
                progress.best_nats, progress.best_update = nats, progress.update
                progress.worse_validations = 0
                save(best)
                return
        progress.worse_validations += 1
        if config.learning_rate_decay == "plateau":
            progress.halvings += progress.worse_validations % config.decay_patience == 0

    def validated() -> float | None:
        """Write the results of a validation; return its negative ELBO, or None if it failed."""
        bounds = tried(
            "validation",
            bounds_with_own_noise,
            model,
            valid_batches,
            config.seed,
            device,
            processes,
        )
        if bounds is None:
            return None
        numbers = training_numbers(bounds, splits)
        numbers |= (
            tried(
                "the bound without the posterior", without_posterior, model, valid_batches,
                config.seed, device, config.valid_latents, splits, processes,
            )
            or {}
        )  # fmt: skip
        diagnostics = tried(
            "the diagnosis of the latents",
            latent_diagnostics,
            model,
            splits.valid,
            config.seed,
            device,
        )
        numbers |= diagnostics.numbers() if diagnostics else {}
        record.write("valid", progress.update, epoch=progress.epoch, **numbers)
        log.info(
            "epoch %d, update %d: validation %s, KL %.2f (N = %s, k = 1)",
            progress.epoch, progress.update, brief(numbers, splits), numbers["kl_nats_per_sequence"],
            f"{bounds.num_sequences:,}",
        )  # fmt: skip
        if diagnostics:
            log.info("  %s", diagnostics.verdict(splits.unit))
        return -float(numbers["elbo_nats_per_sequence"])

    def terms_of(shares: list[SequenceBatch], parts: list[SequenceBatch]) -> Bounds:
        """Bounds of the sequences of a batch, with noise of their own."""

        def own_terms() -> Bounds:
            found = Bounds(num_samples=1)
            with own_noise(config.seed + progress.update, device):
                for share, part in zip(shares, parts, strict=True):
                    with processes.noise(part, shared=False):
                        found.add(share, unchecked_bounds(model.model, model.guide, share))
            return found

        return Bounds.joined(processes.results(own_terms))

    # The loop
    began = time.monotonic() - progress.seconds
    saved = window_start = time.monotonic()
    sequences: int | torch.Tensor = 0
    updates_an_epoch = len(train_batches)
    watched = sys.stderr.isatty() and processes.first
    bar = tqdm(initial=progress.update, unit="update", disable=not watched)
    # Messages are written above the bar.
    logging_to = [x for x in (logging.getLogger(), logging.getLogger("pyro_zf")) if x.handlers]
    redirected = logging_redirect_tqdm(logging_to) if watched else nullcontext()
    said = began
    with stop_on_signal() as stop, redirected, bar:
        if progress.validating:  # the validation at which the run was interrupted
            validate()
        if resuming and _finished(config, progress):
            log.info(
                "update %d is at or past the limit: there is nothing left to train", progress.update
            )
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

            set_weights(progress.update)
            done = _fraction(config, progress, updates_an_epoch)
            rate = config.learning_rate * rate_factor(
                config, progress.update, done, progress.halvings
            )
            set_rate(optimiser, rate)
            with pyro.validation_enabled(progress.update == 0):
                with processes.noise(batch, whole=True):
                    parts = input_dropout(word_dropout(batch)).chunk(config.accumulate)
                shares = [processes.share(part) for part in parts]
                if processes.size > 1:  # the clock of the first process, and a signal to any
                    now = time.monotonic()
                    due = stop.save or now - saved > 60 * config.checkpoint_minutes
                    clock = [now - began, float(due)] if processes.first else [0.0, 0.0]
                    svi.along = torch.tensor([clock[0], float(stop.requested), clock[1]])
                shares = carried.split(shares) if carried else shares
                losses[num_losses] = (
                    graphed.step(shares[0])
                    if graphed
                    else svi.step(shares, [processes.noise(part) for part in parts])
                )
                num_losses += 1
                if carried:
                    carried.keep(shares)
                if averages is not None:
                    averages.update_parameters(model)
            progress.update += 1
            progress.batch += 1
            if device.type == "cpu" or progress.update % config.log_interval == 0:
                check_updates()
            now = time.monotonic()
            save_is_due = stop.save or now - saved > 60 * config.checkpoint_minutes
            stop.save = False
            progress.seconds, stopping = now - began, stop.requested
            if processes.size > 1:  # they decide together
                progress.seconds, *decided = svi.along.tolist()
                stopping, save_is_due = map(bool, decided)
            sequences = sequences + batch.num_real  # on a GPU a tensor, which is not read here
            bar.update()

            if progress.update % config.log_interval == 0:
                loss = mean_loss()
                seconds = time.monotonic() - window_start
                means = tried("the bound of a batch", terms_of, shares, parts)
                skipped = int(svi.skipped)
                numbers = {
                    "loss_nats_per_sequence": loss,
                    **({"skipped_updates": skipped} if skipped else {}),
                    **(log_numbers(means) if means else {}),
                    "kl_weight": kl_weight(progress.update - 1),
                    "learning_rate": rate,
                    "sequences_per_second": float(sequences) / seconds,
                }
                record.write("train", progress.update, epoch=progress.epoch, **numbers)
                shown = {
                    "loss": f"{loss:.1f}",
                    **{x: f"{means.per_sequence(n).mean:.1f}" for n, x in _TERMS.items() if means},
                    "seq_s": f"{numbers['sequences_per_second']:.0f}",
                }
                done = _fraction(config, progress, updates_an_epoch)
                # A limit of time is a number of updates, too, by the speed so far.
                bar.total = round(progress.update / done) if done else None
                bar.set_postfix(shown)
                if not watched and time.monotonic() - said > LOGGED_EVERY:
                    said = time.monotonic()
                    log.info(
                        "update %s, epoch %d, %.0f %% done: %s", f"{progress.update:,}", progress.epoch,
                        100 * done, ", ".join(f"{name} {value}" for name, value in shown.items()),
                    )  # fmt: skip
                num_losses, sequences, window_start = 0, 0, time.monotonic()
            if config.valid_interval and progress.update % config.valid_interval == 0:
                validate()
            if stopping or save_is_due:
                save(last)
                saved = time.monotonic()
            if stopping:
                record.close()
                raise Interrupted(
                    f"stopped at update {progress.update}; resume with --resume {run}"
                )

        if progress.validated_update != progress.update:
            validate()
        save(last)

    # Test of the best model, and figures
    if progress.best_update >= 0:  # otherwise no validation has succeeded
        processes.agreed(lambda: None)  # wait until it is written
        load_weights(model, load_checkpoint(best, device), best)
    elif averages is not None:
        model.load_state_dict(averages.module.state_dict())
    tested = progress.best_update if progress.best_update >= 0 else progress.update
    set_weights(tested)
    bounds = tried(
        "the test", bounds_with_own_noise, model, test_batches, config.seed, device, processes
    )
    numbers = training_numbers(bounds, splits) if bounds else {}
    diagnostics = tried(
        "the diagnosis of the latents", latent_diagnostics, model, splits.test, config.seed, device
    )
    numbers |= diagnostics.numbers() if diagnostics else {}
    if bounds:
        record.write("test", tested, **numbers)
        numbers |= {"num_sequences": bounds.num_sequences, "num_samples": bounds.num_samples}
    record.close()
    figures: list[Path] = []
    if config.num_figures and processes.first:
        with evaluating(model), own_noise(config.seed, device):
            figures = (
                tried(
                    "saving figures", save_run_figures, run, model, splits, read_metrics(run),
                    config.num_figures,
                )
                or []
            )  # fmt: skip
    model.eval()
    summary = {
        "dataset": "own" if config.own_data else config.dataset,
        "data": splits.source.name,
        "data_detail": splits.source.detail,
        "comparable_with_published": splits.source.comparable,
        "kind": splits.kind,
        "unit": splits.unit,
        "step_unit": splits.step_unit,
        "sample_rate": splits.sample_rate,
        "model": config.model,
        "command": command_of(config),
        "has_latents": isinstance(model, LatentSequenceModel),
        "num_parameters": parameters,
        "updates": progress.update,
        "best_update": progress.best_update,
        "training_seconds": round(progress.seconds, 1),
        "valid_elbo_nats_per_sequence": -progress.best_nats,
        **{f"test_{name}": value for name, value in numbers.items()},
        **marginal_numbers(splits, "test", bounds),
        "verdict": diagnostics.verdict(splits.unit) if diagnostics else None,
        "figures": [str(path) for path in figures],
    }
    if processes.first:
        write_text(run / "summary.json", json_text(summary, indent=2) + "\n")
    return summary


def log_numbers(bounds: Bounds) -> dict[str, float]:
    """Means of ELBO, KL and auxiliary costs over sequences and over steps."""
    names = ("elbo", "kl", "aux")
    return {
        **{f"{n}_nats_per_sequence": bounds.per_sequence(n).mean for n in names},
        **{f"{n}_nats_per_step": bounds.per_step(n).mean for n in names},
    }


def tried(what: str, function: Callable[..., T], *arguments: Any) -> T | None:
    """Call a function that is not needed for training; if it fails, warn and return None."""
    try:
        return function(*arguments)
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        log.warning(
            "%s failed and is left out (%s: %s); nothing of the training is lost",
            what, type(error).__name__, reason,
        )  # fmt: skip
        log.debug("the traceback", exc_info=True)
        return None


def show_progress() -> None:
    """Print the log of the package to stderr, unless logging has been configured.

    A level of the logger ``pyro_zf``, or a handler of it or above it, is left as it is.
    """
    package = logging.getLogger("pyro_zf")
    if package.level == logging.NOTSET and not package.isEnabledFor(logging.INFO):
        package.setLevel(logging.INFO)
    if not package.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def _run_folder(config: TrainConfig, resuming: bool) -> Path:
    """The folder of a run.

    Raises:
        UsageError: if it holds a run already.
    """
    name = "own" if config.own_data else config.dataset
    run = config.output_dir or Path("runs") / (
        f"{name}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    if not resuming and (run / "config.json").exists():
        raise UsageError(f"{run} already contains a run; resume it with --resume {run}")
    return run


def _lock(run: Path, held: ExitStack) -> None:
    """Lock a run folder until ``held`` is closed, or this process ends.

    Raises:
        UsageError: if another training has locked it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another training is writing to {run}") from None
    held.callback(lock.release)


def _finished(config: TrainConfig, progress: Progress) -> bool:
    return (
        (config.max_updates is not None and progress.update >= config.max_updates)
        or (config.max_epochs is not None and progress.epoch >= config.max_epochs)
        or (config.max_minutes is not None and progress.seconds >= 60 * config.max_minutes)
        or (config.patience is not None and progress.worse_validations >= config.patience)
    )


def _fraction(config: TrainConfig, progress: Progress, updates_an_epoch: int) -> float:
    """Fraction of the training that is done, by the limit that is nearest."""
    epochs = progress.epoch + progress.batch / max(updates_an_epoch, 1)
    of_limits = [
        progress.update / config.max_updates if config.max_updates else 0.0,
        epochs / config.max_epochs if config.max_epochs else 0.0,
        progress.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0,
    ]
    return min(max(of_limits), 1.0)

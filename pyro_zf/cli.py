"""The commands. Exit codes: 0 done, 1 training failed, 2 wrong usage or data, 130 interrupted."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pyro_zf.data import DataError, StreamBatches, make_batches
from pyro_zf.data.progress import always_shown
from pyro_zf.infer import evaluate
from pyro_zf.models import LatentSequenceModel
from pyro_zf.training import (
    DATASETS,
    DataConfig,
    Interrupted,
    TrainConfig,
    TrainingError,
    UsageError,
    baseline_line,
    build_data,
    headline,
    json_text,
    load_run,
    marginal_numbers,
    resolve_device,
    text_numbers,
    train,
)
from pyro_zf.training.data import check_data

__all__ = ["evaluate_main", "main", "prepare_main", "train_main"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Bounds of a trained model. Prints one JSON object last."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
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
    checkpoint: Literal["best", "last"] = "best"
    """Which state of the model."""
    batch_size: int = 100
    """Sequences at a time."""
    samples_per_pass: int = 5
    """Samples at a time; memory grows with it, not with --num-samples."""
    data_dir: Path | None = None
    """Folder with the data, where it is not that of training."""
    data: Path | None = None
    """Your own data, where they are not where they were in training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the latent samples."""


def train_main(argv: Sequence[str] | None = None) -> int:
    """``svi_train.py``: see :class:`~pyro_zf.training.TrainConfig` for the options."""
    return _run(_train, tyro.cli(TrainConfig, args=argv, prog="svi_train.py"))


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """``evaluate.py``: see :class:`EvaluateConfig` for the options."""
    return _run(_evaluate, tyro.cli(EvaluateConfig, args=argv, prog="evaluate.py"))


def prepare_main(argv: Sequence[str] | None = None) -> int:
    """``prepare_data.py NAME``: see :class:`~pyro_zf.training.DataConfig` for the options."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in DATASETS:
        arguments[:1] = ["--dataset", arguments[0]]
    elif arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], DATASETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {arguments[0]}: there are {', '.join(DATASETS)}{hint}", file=sys.stderr)
        return 2
    return _run(_prepare, tyro.cli(DataConfig, args=arguments, prog="prepare_data.py"))


#: Steps that are scored at a time in an evaluation.
EVALUATION_CHUNK = 64

#: Commands of ``pyro-zf``.
COMMANDS: dict[str, Callable[[Sequence[str] | None], int]] = {
    "train": train_main,
    "evaluate": evaluate_main,
    "prepare": prepare_main,
}


def main(argv: Sequence[str] | None = None) -> int:
    """``pyro-zf COMMAND ...``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        print(
            f"usage: pyro-zf {{{','.join(COMMANDS)}}} [options]; --help lists them", file=sys.stderr
        )
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    return COMMANDS[argv[0]](argv[1:])


def _run(command: Callable[[Any], None], config: Any) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command(config)
    except (UsageError, DataError, PermissionError, NotADirectoryError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint stands", file=sys.stderr)
        return 130
    return 0


def _train(config: TrainConfig) -> None:
    summary = train(config)
    figures = Path(summary["figures"][0]).parent
    print(f"figures: {figures}")
    print(headline(summary))
    if not summary["comparable_with_published"]:
        print(
            "these data are not those of the papers: the figure does NOT compare with published ones"
        )


def _prepare(config: DataConfig) -> None:
    check_data(config)
    with always_shown():
        splits = build_data(config)
    print(f"{splits.source.name} ({splits.source.detail})")
    for finding in splits.findings:
        print(f"  {finding}")
    print(f"  {baseline_line(splits)}")


def _evaluate(config: EvaluateConfig) -> None:
    for name in ("num_samples", "max_sequences", "batch_size", "samples_per_pass"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, it is {value}")
    device = resolve_device(config.device)
    settings, splits, model, step = load_run(
        config.run, config.checkpoint, device, config.data_dir, config.data
    )
    torch.manual_seed(config.seed)
    # Without gradients nothing is computed twice: pieces cost no time and bound the memory.
    model.time_chunk = model.time_chunk or EVALUATION_CHUNK
    batches = make_batches(splits[config.split], config.batch_size, limit=config.max_sequences)
    if config.fivo and isinstance(batches, StreamBatches):
        raise UsageError(f"--fivo filters whole sequences, and {settings.dataset} is one stream")
    if not isinstance(model, LatentSequenceModel):
        if config.fivo or config.latents != "posterior":
            raise UsageError(f"{settings.model} has no latents: leave out --fivo and --latents")
        source: AbstractContextManager[None] = nullcontext()
    else:
        source = model.drawing_latents_from(config.latents)
    with ExitStack() as stack:
        try:
            stack.enter_context(source)
        except ValueError as error:
            raise UsageError(f"--latents {config.latents}: {error}") from error
        bounds = evaluate(
            model.model,
            model.guide,
            batches.epoch(0, 0, device),
            config.num_samples,
            config.samples_per_pass,
            config.fivo,
        )
    result: dict[str, Any] = {
        "dataset": settings.dataset,
        "data": splits.source.name,
        "comparable_with_published": splits.source.comparable,
        "split": config.split,
        "checkpoint": config.checkpoint,
        "step": step,
        "num_sequences": bounds.num_sequences,
        "num_samples": config.num_samples,
        "latents": config.latents,
        "unit": splits.unit,
        "step_unit": splits.step_unit,
    }
    for name in ("elbo", "iwae", *["fivo"] * config.fivo, "kl", "log_likelihood"):
        for where, estimate in (
            ("sequence", bounds.per_sequence(name)),
            ("step", bounds.per_step(name)),
        ):
            result[f"{name}_nats_per_{where}"] = estimate.mean
            result[f"{name}_nats_per_{where}_stderr"] = estimate.stderr
        if name in ("elbo", "iwae", "fivo"):
            result |= text_numbers(name, result[f"{name}_nats_per_step"], splits.step_unit)
    result |= marginal_numbers(splits, config.split, bounds)
    result["kl_nats_at_steps"] = [round(x, 5) for x in bounds.kl_at_steps()]
    print(json_text(result))


if __name__ == "__main__":
    sys.exit(main())

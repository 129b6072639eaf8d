"""``svi_train.py`` and ``prepare_data.py``: train a model, and prepare data in advance."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_zf.cli.common import print_anywhere, run_command
from pyro_zf.data.progress import always_shown
from pyro_zf.models import MODELS
from pyro_zf.training import (
    DATASETS,
    DataConfig,
    TrainConfig,
    UsageError,
    baseline_line,
    build_data,
    far_worse,
    headline,
    train,
)
from pyro_zf.training.checks import check_name, there_are
from pyro_zf.training.data import check_data
from pyro_zf.training.options import docs_of, misplaced, model_class, option_types, systems_with
from pyro_zf.training.record import json_text, read_json, write_text

__all__ = ["prepare_main", "train_main"]


def train_main(argv: Sequence[str] | None = None) -> int:
    """``svi_train.py``: see :class:`~pyro_zf.training.TrainConfig` and the options of the models."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_anywhere()
    try:
        seeds = _taken(arguments, "--seeds")
        config = parse_train(arguments)
        if seeds is not None:
            runs = of_seeds(config, seeds)
            return run_command(_train_all, runs)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(_train, config)


def of_seeds(config: TrainConfig, seeds: str) -> list[TrainConfig]:
    """The settings of runs with several seeds, each in a folder of its own.

    Raises:
        UsageError: if the number is not a whole number of at least one, or a run is to be resumed.
    """
    if not seeds.isdecimal() or int(seeds) < 1:
        raise UsageError(f"--seeds must be a whole number of at least 1, got {seeds}")
    if config.resume is not None:
        raise UsageError("--seeds is for new runs: resume each of them by --resume")
    folder = config.output_dir or Path("runs") / f"{config.dataset}-{config.model}-seeds"
    return [
        dataclasses.replace(config, seed=seed, output_dir=folder / f"seed{seed}")
        for seed in range(config.seed, config.seed + int(seeds))
    ]


def _train_all(configs: list[TrainConfig]) -> None:
    """Train runs one after the other, or go on with them; print and write mean and deviation."""
    summaries = []
    for config in configs:
        run = config.output_dir
        assert run is not None
        if (run / "summary.json").is_file():
            summaries.append(read_json(run / "summary.json"))
        elif (run / "config.json").is_file():
            summaries.append(train(TrainConfig(resume=run)))
        else:
            summaries.append(train(config))
        print(f"{run}: {headline(summaries[-1])}")
    folder = configs[0].output_dir.parent  # type: ignore[union-attr]
    content: dict[str, Any] = {"runs": [str(c.output_dir) for c in configs]}
    for name in sorted(set.intersection(*(set(s) for s in summaries))):
        values = [s[name] for s in summaries]
        if name.startswith("test_") and all(type(x) in (int, float) for x in values):
            content[f"{name}_mean"] = statistics.mean(values)
            if len(values) > 1:
                content[f"{name}_deviation"] = statistics.stdev(values)
    write_text(folder / "seeds.json", json_text(content, indent=2) + "\n")
    mean = content.get("test_elbo_nats_per_sequence_mean")
    if mean is not None:
        spread = content.get("test_elbo_nats_per_sequence_deviation")
        deviation = "" if spread is None else f", standard deviation {spread:.2f}"
        print(
            f"test ELBO of {len(configs)} seeds: mean {mean:.2f}{deviation} nats per {summaries[0]['unit']}"
        )
    print(f"wrote: {folder / 'seeds.json'}")


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """Parse the command line: the training settings, and the options of the selected model.

    ``--seeds N`` has been taken out before; see :func:`of_seeds`. ``--config FILE`` reads settings from a file in the format of :meth:`TrainConfig.to_json`. Flags override
    these settings.

    Raises:
        UsageError: if the model is unknown, a flag belongs to another model, or the file does not contain
            valid settings.
    """
    rest, base = list(arguments), TrainConfig()
    if (path := _taken(rest, "--config")) is not None:
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise UsageError(f"--config {path}: the file does not exist")
        base = TrainConfig.from_json(file.read_text(encoding="utf-8"), str(file))
        base = dataclasses.replace(
            base, output_dir=None, resume=None, own_data=False, own_model=False,
            model=TrainConfig.model if base.own_model else base.model,
        )  # fmt: skip
    model = _value_of(rest, "--model") or base.model
    check_name("model", model, MODELS)
    if model != base.model:  # keep only the options that the new model also has
        own = option_types(model)
        options = {k: x for k, x in base.options.items() if k in own}
        base = dataclasses.replace(base, model=model, options=options)
    types = option_types(model)
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    for argument in rest:
        name = argument.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if argument.startswith("--") and name not in types and systems_with(name):
            raise UsageError(misplaced(name, model, known))
    flat = _with_options(model)
    default = flat(**_fields(base), **base.options)
    parsed: Any = tyro.cli(flat, args=rest, prog="svi_train.py", default=default)
    given = {name: getattr(parsed, name) for name in types if getattr(parsed, name) is not None}
    settings = {name: getattr(parsed, name) for name in known if name != "options"}
    return TrainConfig(**settings, options=given)


def _fields(config: TrainConfig) -> dict[str, Any]:
    return {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "options"
    }


def _with_options(model: str) -> type:
    """Combine training settings and model options in one flat dataclass for the command line."""
    options: Any = model_class(model).Options
    defaults, docs = options(), docs_of(options)
    fields: list[Any] = [
        (
            name,
            Annotated[
                hint | None,
                tyro.conf.arg(
                    help=f"{docs.get(name, '')} (unless set by the preset: {getattr(defaults, name)})"
                ),
            ],
            dataclasses.field(default=None),
        )
        for name, hint in option_types(model).items()
    ]
    fields.append(
        ("options", tyro.conf.Suppress[dict[str, Any]], dataclasses.field(default_factory=dict))
    )
    for name in ("own_model", "own_data"):  # set by train() in Python
        fields.append((name, tyro.conf.Suppress[bool], dataclasses.field(default=False)))
    return dataclasses.make_dataclass(
        "Train", fields, bases=(TrainConfig,), frozen=True,
        namespace={"__doc__": f"Train a model; the options below include those of {model}."},
    )  # fmt: skip


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag; if it is given several times, the last value."""
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{flag}=")]
    values += [b for a, b in itertools.pairwise(arguments) if a == flag]
    return values[-1] if values else None


def _taken(arguments: list[str], flag: str) -> str | None:
    """Remove a flag from the arguments and return its value."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return arguments.pop(i).partition("=")[2]
        if argument == flag:
            if i + 1 == len(arguments):
                raise UsageError(f"{flag} needs a value")
            arguments.pop(i)
            return arguments.pop(i)
    return None


def prepare_main(argv: Sequence[str] | None = None) -> int:
    """``prepare_data.py NAME``: see :class:`~pyro_zf.training.DataConfig` for the options."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_anywhere()
    if arguments and arguments[0] in DATASETS:
        arguments[:1] = ["--dataset", arguments[0]]
    elif arguments and not arguments[0].startswith("-"):
        print(f"error: {there_are(arguments[0], DATASETS)}", file=sys.stderr)
        return 2
    return run_command(_prepare, tyro.cli(DataConfig, args=arguments, prog="prepare_data.py"))


def _train(config: TrainConfig) -> None:
    summary = train(config)
    if summary["figures"]:
        print(f"figures: {Path(summary['figures'][0]).parent}")
    print(headline(summary))
    if far_worse(summary):
        print(
            "the model is far worse than the baseline: training has diverged; try a lower --learning-rate"
        )
    if not summary["comparable_with_published"]:
        print(
            "these are not the data of the papers: the result is NOT comparable with published results"
        )
    if summary["verdict"]:
        print(f"latents: {summary['verdict']}")


def _prepare(config: DataConfig) -> None:
    check_data(config)
    with always_shown():
        splits = build_data(config)
    print(f"{splits.source.name} ({splits.source.detail})")
    for finding in splits.findings:
        print(f"  {finding}")
    print(f"  {baseline_line(splits)}")

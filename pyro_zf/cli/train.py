"""``svi_train.py`` and ``prepare_data.py``."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_zf.cli.common import run_command
from pyro_zf.data.progress import always_shown
from pyro_zf.models import MODELS
from pyro_zf.training import (
    DATASETS,
    DataConfig,
    TrainConfig,
    UsageError,
    baseline_line,
    build_data,
    headline,
    train,
)
from pyro_zf.training.checks import check_name, there_are
from pyro_zf.training.data import check_data
from pyro_zf.training.options import docs_of, misplaced, model_class, option_types, systems_with

__all__ = ["prepare_main", "train_main"]


def train_main(argv: Sequence[str] | None = None) -> int:
    """``svi_train.py``: see :class:`~pyro_zf.training.TrainConfig` and the options of the systems."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = parse_train(arguments)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(_train, config)


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """The settings that a command line gives: those of training, and the options of the system it names.

    ``--config FILE`` reads settings from a file, as :meth:`TrainConfig.to_json` writes it; flags win.

    Raises:
        UsageError: for a system that there is not, a flag of another system, or a file that is no settings.
    """
    rest, base = list(arguments), TrainConfig()
    if (path := _taken(rest, "--config")) is not None:
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise UsageError(f"--config {path}: there is no such file")
        base = TrainConfig.from_json(file.read_text(encoding="utf-8"), str(file))
        base = dataclasses.replace(base, output_dir=None, resume=None)
    model = _value_of(rest, "--model") or base.model
    check_name("model", model, MODELS)
    if model != base.model:  # options of another system do not go along
        own = option_types(model)
        options = {k: x for k, x in base.options.items() if k in own}
        base = dataclasses.replace(base, model=model, options=options)
    types = option_types(model)
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    for argument in rest:
        name = argument.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if argument.startswith("--") and name not in types and systems_with(name):
            raise UsageError(misplaced(name, model, known))
    parsed: Any = tyro.cli(
        _with_options(model),
        args=rest,
        prog="svi_train.py",
        default=_with_options(model)(**{**_fields(base), **base.options}),
    )
    given = {name: getattr(parsed, name) for name in types if getattr(parsed, name) is not None}
    settings = {name: getattr(parsed, name) for name in known if name != "options"}
    return TrainConfig(**settings, options=given)


def _fields(config: TrainConfig) -> dict[str, Any]:
    return {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "options"
    }


def _with_options(model: str) -> type:
    """The settings of training and the options of a system as one flat dataclass, for the command line."""
    options: Any = model_class(model).Options
    defaults, docs = options(), docs_of(options)
    fields: list[Any] = [
        (
            name,
            Annotated[
                hint | None,
                tyro.conf.arg(
                    help=f"{docs.get(name, '')} (in the paper's model: {getattr(defaults, name)})"
                ),
            ],
            dataclasses.field(default=None),
        )
        for name, hint in option_types(model).items()
    ]
    fields.append(
        ("options", tyro.conf.Suppress[dict[str, Any]], dataclasses.field(default_factory=dict))
    )
    return dataclasses.make_dataclass(
        "Train", fields, bases=(TrainConfig,), frozen=True,
        namespace={"__doc__": f"Train a model; the options below include those of {model}."},
    )  # fmt: skip


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, of the last one if there are several."""
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{flag}=")]
    values += [b for a, b in itertools.pairwise(arguments) if a == flag]
    return values[-1] if values else None


def _taken(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, which is taken out of the arguments."""
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
    if arguments and arguments[0] in DATASETS:
        arguments[:1] = ["--dataset", arguments[0]]
    elif arguments and not arguments[0].startswith("-"):
        print(f"error: {there_are(arguments[0], DATASETS)}", file=sys.stderr)
        return 2
    return run_command(_prepare, tyro.cli(DataConfig, args=arguments, prog="prepare_data.py"))


def _train(config: TrainConfig) -> None:
    summary = train(config)
    figures = Path(summary["figures"][0]).parent
    print(f"figures: {figures}")
    print(headline(summary))
    if not summary["comparable_with_published"]:
        print(
            "these data are not those of the papers: the number does NOT compare with published ones"
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

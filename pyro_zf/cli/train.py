"""``svi_train.py`` and ``prepare_data.py``: train a model, and prepare data in advance."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_zf.cli.common import run_command
from pyro_zf.cli.parsing import (
    IMPORT,
    Extra,
    by_tyro,
    check_flags,
    import_parts,
    parsed,
    show_help,
    taken,
    value_of,
    wants_help,
)
from pyro_zf.data import Splits, make_batches
from pyro_zf.data.progress import always_shown
from pyro_zf.models import MODELS
from pyro_zf.training import (
    DATASETS,
    DataConfig,
    TrainConfig,
    UsageError,
    baseline_line,
    build_data,
    build_model,
    far_worse,
    headline,
    resolve,
    train,
)
from pyro_zf.training.checks import check_corruption, check_name
from pyro_zf.training.config import command_of
from pyro_zf.training.data import check_data, data_record
from pyro_zf.training.loop import train_unless_finished
from pyro_zf.training.options import docs_of, misplaced, model_class, option_types
from pyro_zf.training.record import json_text, write_text

__all__ = ["prepare_main", "train_main"]


#: Options of ``svi_train.py`` by topic. The options of the model follow those of topic "model".
TOPICS: dict[str, tuple[str, ...]] = {
    "data": (
        "dataset", "data", "data_dir", "protocol", "segment", "carry_state", "frame", "binarization", "shift",
        "shift_epochs", "level", "vocabulary_size", "sample_rate", "frame_size", "hdf5_key", "kind",
        "condition_on", "train_sequences", "valid_sequences", "test_sequences", "workers",
    ),
    "model": ("model", "preset", "import"),
    "objective": (
        "objective", "num_particles", "aux", "aux_start", "aux_stop", "aux_increment", "kl_start",
        "kl_increment", "free_bits", "word_dropout", "input_dropout",
    ),
    "optimisation": (
        "batch_size", "accumulate", "learning_rate", "warmup_updates", "learning_rate_decay", "decay_start",
        "decay_patience", "weight_decay", "recurrent_dropout", "average_decay", "clip_norm",
        "max_skipped", "on_divergence",
    ),
    "length": ("max_updates", "max_epochs", "max_minutes", "patience"),
    "output": (
        "output_dir", "resume", "config", "dry_run", "log_interval", "valid_interval", "valid_latents",
        "checkpoint_minutes", "num_figures",
    ),
    "machine": ("device", "seed", "seeds", "precision", "core", "time_chunk", "cuda_graph"),
}  # fmt: skip
_EXTRAS = {
    "import": IMPORT,
    "config": Extra(
        Path, "File or run folder whose settings apply where no option is given, as in config.json."
    ),
    "seeds": Extra(
        int,
        "Number of runs, with seeds from --seed on, each in a folder of its own; their mean is printed.",
    ),
    "dry_run": Extra(bool, "Print the data, the model and the length of the training, and end."),
}
_COMMON = (
    "dataset", "data", "model", "preset", "hidden_size", "latent_size", "mlp_size", "emission", "alpha", "beta",
    "objective", "batch_size", "learning_rate", "max_updates", "max_epochs", "max_minutes", "output_dir",
    "resume", "dry_run", "device", "seed",
)  # fmt: skip
EXAMPLES = (
    "python scripts/svi_train.py --dataset mnist",
    "python scripts/svi_train.py --dataset ptb --model variational-bilstm --max-minutes 30",
    "python scripts/svi_train.py --dataset wav --data my_sounds --emission gaussian-mixture",
    "python scripts/svi_train.py --resume RUN --max-minutes 60",
)


PREPARE_EXAMPLES = (
    "python scripts/prepare_data.py mnist",
    "python scripts/prepare_data.py wav --data my_sounds --sample-rate 16000",
)


def train_main(argv: Sequence[str] | None = None) -> int:
    """``svi_train.py``: see :class:`~pyro_zf.training.TrainConfig` and the options of the models."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(arguments: list[str]) -> None:
    imported = import_parts(arguments)
    if wants_help(arguments):
        _help(arguments)
    seeds = taken(arguments, "--seeds")
    dry = "--dry-run" in arguments
    config = parse_train([a for a in arguments if a != "--dry-run"])
    if config.resume is None:
        config = dataclasses.replace(config, imported=imported)
    if dry:
        _describe(config)
    elif seeds is not None:
        _train_all(of_seeds(config, seeds))
    else:
        _train(config)


def _help(arguments: Sequence[str]) -> None:
    """Print the options, with the defaults of the data set, the model and the preset that are named."""
    named = {
        name: value
        for name in ("dataset", "model", "preset")
        if (value := value_of(arguments, f"--{name}")) is not None
    }
    config = parse_train([f"--{name}={value}" for name, value in named.items()])
    settled = resolve(config)
    options: Any = model_class(config.model).Options
    defaults = {
        **dataclasses.asdict(options()), **dataclasses.asdict(settled), **settled.options,
        "preset": config.preset, "output_dir": None, "device": "auto", "options": {},
    }  # fmt: skip
    groups: dict[str, Sequence[str]] = {}
    for topic, names in TOPICS.items():
        groups[topic] = names
        if topic == "model":
            groups[config.model] = list(option_types(config.model))
    show_help(
        _with_options(config.model), "svi_train.py", groups=groups, extras=_EXTRAS, docs=docs_of(options),
        defaults=defaults,
        description=f"Train a model. Defaults are those of {config.model} on {config.dataset}, preset "
        f"{settled.preset}; with --dataset, --model or --preset, those of that choice are shown.",
        short=None if "--help-all" in arguments else _COMMON, examples=EXAMPLES,
    )  # fmt: skip


def _describe(config: TrainConfig) -> None:
    """Print what would be trained."""
    if config.resume is not None:
        raise UsageError("--dry-run is for new runs: the settings of a run are in its config.json")
    config = resolve(config)
    splits = build_data(config)
    check_corruption(config, splits.kind)
    model = build_model(config, data_record(splits))
    assert config.batch_size
    batches = make_batches(
        splits.train, config.batch_size, config.seed, config.train_sequences, config.workers or 0
    )
    limits = {
        "updates": config.max_updates, "epochs": config.max_epochs, "minutes": config.max_minutes
    }  # fmt: skip
    _print_data(splits)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"model: {config.model}, {parameters:,} parameters, {config.device}, {config.preset}")
    print("  " + ", ".join(f"{name} {value}" for name, value in config.options.items()))
    print(
        f"training: {len(batches):,} updates an epoch, batches of {config.batch_size} {splits.unit}s, at most "
        + " or ".join(f"{limit:g} {name}" for name, limit in limits.items() if limit is not None)
    )
    print(f"command: {command_of(config)}")


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
    """Train or resume runs one after the other, and print and write the mean and standard deviation."""
    summaries = []
    for config in configs:
        summaries.append(train_unless_finished(config))
        print(f"{config.output_dir}: {headline(summaries[-1])}")
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

    ``--seeds N`` has been removed before; see :func:`of_seeds`. ``--config FILE`` reads settings from a file in
    the format of :meth:`TrainConfig.to_json`. Flags override these settings.

    Raises:
        UsageError: if the model is unknown, a flag belongs to another model, or the file does not contain
            valid settings.
    """
    rest, base = list(arguments), TrainConfig()
    if (path := taken(rest, "--config")) is not None:
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise UsageError(f"--config {path}: the file does not exist")
        base = TrainConfig.from_json(file.read_text(encoding="utf-8"), str(file))
        base = dataclasses.replace(
            base, output_dir=None, resume=None, own_data=False, own_model=False, imported=(),
            model=TrainConfig.model if base.own_model else base.model,
        )  # fmt: skip
    model = value_of(rest, "--model") or base.model
    check_name("model", model, MODELS)
    if model != base.model:  # keep only the options that the new model also has
        own = option_types(model)
        options = {k: x for k, x in base.options.items() if k in own}
        base = dataclasses.replace(base, model=model, options=options)
    types = option_types(model)
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    others = [*known, *_EXTRAS]
    check_flags(rest, [*others, *types], lambda name: misplaced(name, model, others))
    flat = _with_options(model)
    default = flat(**_fields(base), **base.options)
    found: Any = by_tyro(flat, rest, "svi_train.py", default=default)
    given = {name: getattr(found, name) for name in types if getattr(found, name) is not None}
    settings = {name: getattr(found, name) for name in known if name != "options"}
    return TrainConfig(**settings, options=given)


def _fields(config: TrainConfig) -> dict[str, Any]:
    return {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "options"
    }


def _with_options(model: str) -> type:
    """Training settings and the options of a model in one flat dataclass for the command line."""
    of_model: Any = model_class(model).Options
    docs = docs_of(of_model)
    fields: list[Any] = [
        (
            name,
            Annotated[hint | None, tyro.conf.arg(help=docs.get(name, ""))],
            dataclasses.field(default=None),
        )
        for name, hint in option_types(model).items()
    ]
    fields.append(
        ("options", tyro.conf.Suppress[dict[str, Any]], dataclasses.field(default_factory=dict))
    )
    for name in ("own_model", "own_data"):  # set by train() in Python
        fields.append((name, tyro.conf.Suppress[bool], dataclasses.field(default=False)))
    fields.append(("imported", tyro.conf.Suppress[tuple[str, ...]], dataclasses.field(default=())))
    return dataclasses.make_dataclass("Train", fields, bases=(TrainConfig,), frozen=True)


def prepare_main(argv: Sequence[str] | None = None) -> int:
    """``prepare_data.py NAME``: see :class:`~pyro_zf.training.DataConfig` for the options."""

    def main() -> None:
        arguments = list(sys.argv[1:] if argv is None else argv)
        if arguments and not arguments[0].startswith("-"):
            check_name("dataset", arguments[0], DATASETS)
            arguments[:1] = ["--dataset", arguments[0]]
        _prepare(parsed(DataConfig, arguments, "prepare_data.py", PREPARE_EXAMPLES))

    return run_command(main)


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
    _print_data(splits)


def _print_data(splits: Splits) -> None:
    print(f"{splits.source.name} ({splits.source.detail})")
    for finding in splits.findings:
        print(f"  {finding}")
    print(f"  {baseline_line(splits)}")

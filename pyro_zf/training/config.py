"""Settings of a training run. They are typed and documented, and saved with the run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch

from pyro_zf.data.datasets import DataError
from pyro_zf.models import MODELS, SequenceModel
from pyro_zf.names import nearest
from pyro_zf.sequence import Core
from pyro_zf.training.checks import (
    UsageError,
    check_name,
    check_names,
    check_numbers,
    check_parts,
    check_types,
)
from pyro_zf.training.data import DataConfig, check_data
from pyro_zf.training.options import has_type, misplaced, model_class, option_types
from pyro_zf.training.presets import PRESETS

__all__ = [
    "TrainConfig",
    "command_of",
    "preset_note",
    "read_config",
    "resolve",
    "resolve_device",
    "resumed",
]


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Train a model. Options whose default is None take their value from the preset.

    Options of the model itself, such as layer sizes, are stored in ``options``; on the command line each of
    them is a flag of its own. :meth:`of` accepts both kinds by name.
    """

    model: str = "zforcing"
    """Model to train: zforcing, variational-bilstm, srnn, vrnn, vrnn-i, storn or rnn."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the model by name; see the ``Options`` class of the model."""
    preset: Literal["auto", "paper", "small"] = "auto"
    """paper uses the settings of the paper, small uses a model that trains in minutes on a CPU. auto selects
    paper on a GPU and small on a CPU."""
    output_dir: Path | None = None
    """Folder that the run is written to. Default: runs/DATASET-MODEL-DATE-TIME."""
    resume: Path | None = None
    """Run folder of a run to resume. The settings are read from that folder."""

    objective: str = "elbo"
    """Bound to optimise: elbo (analytic KL), elbo-mc (sampled KL), iwae (importance-weighted) or fivo
    (particle filter)."""
    num_particles: int = 1
    """Number of latent samples per sequence that the objective draws."""
    aux: tuple[str, ...] | None = None
    """Auxiliary costs as NAME=WEIGHT. They replace alpha, beta and gamma and work with any model that has
    latent variables: b (z reconstructs the backward state), h (z reconstructs the forward state), u (the
    backward state predicts the input) and activity (activity regularisation of the forward state).
    --aux none disables all of them."""
    aux_start: float = 1.0
    """Initial value of the factor that multiplies the weights of all auxiliary costs."""
    aux_stop: float = 1.0
    """Final value of the factor that multiplies the weights of all auxiliary costs."""
    aux_increment: float = 5e-5
    """Change per update of the factor that multiplies the weights of all auxiliary costs."""
    kl_start: float = 1.0
    """Initial weight of the KL term. The annealing in the papers starts at 0.2."""
    kl_increment: float = 5e-5
    """Increase of the KL weight per update, until it reaches 1."""
    free_bits: float = 0.0
    """Nats of KL per step that are not penalised (objective elbo only)."""
    word_dropout: float = 0.0
    """Probability that the input of a step is hidden from the forward network during training."""
    input_dropout: float = 0.0
    """Probability that a value of a numeric input is set to zero during training, for the forward network and for an
    emission that reads it."""

    batch_size: int | None = None
    """Number of sequences per update."""
    accumulate: int = 1
    """Number of parts that each batch is split into to save memory; their gradients are accumulated."""
    learning_rate: float | None = None
    """Learning rate of Adam."""
    warmup_updates: int = 0
    """Number of updates over which the learning rate rises to its value."""
    learning_rate_decay: Literal["none", "linear", "cosine", "plateau"] = "none"
    """How the learning rate falls: linear or cosine (to zero at the end of training), or plateau (it is halved
    when validation does not improve)."""
    decay_start: float = 0.0
    """Fraction of the training after which a linear or cosine decay starts."""
    decay_patience: int = 2
    """Number of validations in a row without improvement after which plateau halves the learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    recurrent_dropout: float = 0.0
    """Probability that a recurrent weight of an LSTM or GRU is set to zero for an update (DropConnect)."""
    average_decay: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999. Validation, the best checkpoint and
    the test use the averages; 0 uses the weights themselves."""
    patience: int | None = None
    """Stop after this number of validations in a row without improvement."""
    clip_norm: float | None = 100.0
    """Maximum norm of the gradient over all parameters, for the loss in nats per sequence."""
    max_skipped: int = 10
    """Number of updates in a row whose loss or gradient is not finite, after which training has diverged. Such
    updates are skipped and counted."""
    on_divergence: Literal["stop", "rewind"] = "stop"
    """What to do when training has diverged (see --max-skipped): stop, or go back to the last
    checkpoint with half the learning rate."""
    max_updates: int | None = None
    """Stop after this number of updates."""
    max_epochs: int | None = None
    """Stop after this number of epochs."""
    max_minutes: float | None = None
    """Stop after this many minutes of training, including the earlier sessions of a resumed run."""

    seed: int = 0
    """Random seed of the initial weights, the order of the data and all noise."""
    device: str = "auto"
    """Device to train on: auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the matrix products during training. Weights and log-probabilities are always fp32."""
    core: Core = "auto"
    """Implementation of the recurrence during training: fused (with a hand-written backward pass), eager (a
    loop of PyTorch operations), or auto, which selects fused where the components of the model support it."""
    time_chunk: int | None = None
    """Number of steps that are scored at a time to save memory; intermediate values are recomputed in the
    backward pass."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Whether to replay updates from CUDA graphs, one for each batch shape. auto uses them on a GPU where
    capture succeeds."""
    log_interval: int = 50
    """Number of updates between two training entries in metrics.jsonl."""
    valid_interval: int | None = None
    """Number of updates between two validations. Default: validate at the end of each epoch."""
    valid_latents: tuple[Literal["prior", "prior-mean"], ...] = ()
    """Also validate with z drawn as at test time: from the prior, or set to the mean of the prior."""
    checkpoint_minutes: float = 5.0
    """Maximum number of minutes between two checkpoints. A checkpoint is also saved after each epoch."""
    train_sequences: int | None = None
    """Number of sequences to train on: a fixed random subset, or the first segments of a stream. Default:
    all."""
    valid_sequences: int | None = None
    """Number of sequences to validate on, selected in the same way. Default: all."""
    test_sequences: int | None = None
    """Number of sequences to test on at the end, selected in the same way. Default: all."""
    num_figures: int = 64
    """Number of sequences to generate for the pictures, sounds or texts at the end of training; 0 for
    no figures."""

    own_model: bool = False
    """Whether a model object was given to :func:`~pyro_zf.training.train`; ``model`` is then its class."""
    own_data: bool = False
    """Whether data were given to :func:`~pyro_zf.training.train`."""
    imported: tuple[str, ...] = ()
    """Names of the files of ``--import``, which define parts of the model."""

    def __post_init__(self) -> None:
        for name in ("data", "data_dir", "output_dir", "resume"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        check_types(self)

    @property
    def like(self) -> str:
        """The data set whose presets apply: that of arrays for data that were given in Python."""
        return "hdf5" if self.own_data else self.dataset

    @classmethod
    def of(cls, **settings: Any) -> TrainConfig:
        """Build a configuration from training settings and model options, all given by name.

        Raises:
            UsageError: if the name of a setting or of the model is unknown.

        Example:
            >>> TrainConfig.of(model="vrnn", hidden_size=64, max_updates=10).options
            {'hidden_size': 64}
        """
        check_name("model", settings.get("model", cls.model), MODELS)
        model = settings.get("model", cls.model)
        known = [f.name for f in dataclasses.fields(cls)]
        options = dict(settings.pop("options", {}))
        for name in [name for name in settings if name not in known]:
            if name not in option_types(model):
                raise UsageError(misplaced(name, model, known))
            value = settings.pop(name)
            if value is not None:
                options[name] = value
        return cls(**settings, options=options)

    def to_json(self) -> str:
        """Serialise the settings in the format that :meth:`from_json` and ``--config`` read."""
        plain = {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()
        }
        return json.dumps({"format": FORMAT, **plain}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config.json") -> TrainConfig:
        """Parse the settings of a run.

        Raises:
            UsageError: if the text is not valid JSON, was written by an earlier version, or contains
                settings that this version does not know.
        """
        try:
            plain: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(plain, dict) or not isinstance(plain.get("options", {}), dict):
            raise UsageError(f"{where} does not contain the settings of a run")
        if plain.pop("format", None) != FORMAT:
            raise UsageError(
                f'{where} has no entry "format": {FORMAT}: it was written by an earlier version of '
                "pyro_zf, whose settings and weights have different names (train the model again, or use "
                "that version), or by hand (add the entry)"
            )
        types = get_type_hints(cls)
        types_of_options: dict[str, Any] = {}
        if not plain.get("own_model"):
            with _import_hint(plain.get("imported")):
                check_name("model", plain.get("model", cls.model), MODELS)
            types_of_options = option_types(plain.get("model", cls.model))
        for settings, known in ((plain, types), (plain.get("options", {}), types_of_options)):
            for name, value in settings.items():
                if name not in known:
                    hint = nearest(name, known, "{!r}")
                    raise UsageError(f"{where} has an unknown setting {name!r}{hint}")
                paths = name in ("output_dir", "resume", "data_dir", "data")
                if paths and isinstance(value, str):
                    settings[name] = Path(value)
                elif value is not None and not has_type(value, known[name]):
                    raise UsageError(f"{where}: {name} cannot be {value!r}")
                elif isinstance(value, list):
                    settings[name] = tuple(value)
        config = cls(**plain)
        if config.imported:
            with _import_hint(config.imported):
                check_parts(config.options)
        return config


@contextmanager
def _import_hint(imported: object) -> Iterator[None]:
    """Add the files of ``--import`` of a run to the message about an unknown name."""
    try:
        yield
    except UsageError as error:
        files = imported if isinstance(imported, (list, tuple)) else ()
        flags = " ".join(f"--import {file}" for file in files)
        hint = f"; the run was trained with {flags}" if flags else ""
        raise UsageError(f"{error}{hint}") from error


#: Version of the format of config.json. It is incremented when older run folders can no longer be read.
FORMAT = 3
#: Settings of where a run is computed.
_ANYWHERE = ("output_dir", "resume", "data_dir", "device", "workers")
_LIMITS = ("max_updates", "max_epochs", "max_minutes")
#: Settings of where and how a run is computed, which do not define the run.
NOT_OF_RUN = (*_ANYWHERE, "data", "checkpoint_minutes", "num_figures")


def resolve(config: TrainConfig) -> TrainConfig:
    """Give every setting a value: the explicit one if there is one, otherwise the value of the preset.

    An explicit limit on the training time replaces all limits of the preset.

    Raises:
        UsageError: if a number is out of range or the device is not available.
    """
    device = resolve_device(config.device)
    preset = config.preset
    if preset == "auto":
        preset = "paper" if device.startswith("cuda") else "small"
    check_data(config)
    check_names(config)
    model = model_class(config.model) if not config.own_model else SequenceModel
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    given = {k: x for k, x in given.items() if x is not None} | config.options
    values = dict(PRESETS[config.like][preset])
    values |= model.preset(config.like, preset, {**values, **given})
    if any(getattr(config, name) is not None for name in _LIMITS):
        values = {k: v for k, v in values.items() if k not in _LIMITS}
    if config.aux is not None:
        values = {k: v for k, v in values.items() if k not in model.letters}
    known = option_types(config.model) if not config.own_model else {}
    options = {k: v for k, v in values.items() if k in known} | config.options
    own = [f.name for f in dataclasses.fields(config)]
    settings = {k: v for k, v in values.items() if k in own and getattr(config, k) is None}
    # Absolute paths, since a run may be resumed from another working directory.
    for name in ("data_dir", "data"):
        if (path := getattr(config, name)) is not None:
            settings[name] = Path(path).expanduser().absolute()
    config = dataclasses.replace(config, preset=preset, device=device, options=options, **settings)
    check_numbers(config)
    return config


def command_of(config: TrainConfig) -> str | None:
    """The command line of a run with these resolved settings; None if model or data were given in Python.

    The folders of the run and of the data sets are left out, and so is the device.

    Example:
        >>> config = resolve(TrainConfig.of(model="vrnn", hidden_size=64, max_updates=10, device="cpu"))
        >>> command_of(config)
        'python scripts/svi_train.py --dataset mnist --model vrnn --max-updates 10 --hidden-size 64'
    """
    if config.own_model or config.own_data:
        return None
    model = model_class(config.model)
    usual = resolve(
        TrainConfig(
            dataset=config.dataset, model=config.model, data=config.data, device="cpu", preset=config.preset
        )
    )  # fmt: skip
    # The preset's weights of auxiliary costs depend on the sizes of the model.
    sizes = {k: v for k, v in config.options.items() if k not in model.letters}
    weights = resolve(dataclasses.replace(config, options=sizes)).options
    defaults = {**dataclasses.asdict(model.Options()), **usual.options}
    defaults |= {k: v for k, v in weights.items() if k in model.letters}
    if config.aux is not None:
        defaults = {k: v for k, v in defaults.items() if k in config.options}
    words = ["python", "scripts/svi_train.py"]
    words += [word for file in config.imported for word in ("--import", file)]
    words += ["--dataset", config.dataset, "--model", config.model]
    if config.preset != ("paper" if config.device.startswith("cuda") else "small"):
        words += ["--preset", config.preset]
    left_out = {*_ANYWHERE, "options", "dataset", "model", "preset", "imported"}
    names = [f.name for f in dataclasses.fields(config) if f.name not in left_out]
    given = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(usual, n)}
    if config.data is not None:
        given["data"] = config.data
    given |= {k: v for k, v in config.options.items() if v != defaults.get(k)}
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            words += [flag, *map(str, value)]
        elif value is not None:
            words += [flag, value.name if isinstance(value, Path) else str(value)]
    return shlex.join(words)


def preset_note(config: TrainConfig) -> str:
    """Note on the auxiliary costs of resolved settings, in parentheses, if they are those of the preset."""
    if config.own_model:
        return ""
    model = model_class(config.model)
    preset = model.preset(config.like, config.preset, {**config.options, "frame": config.frame})
    same = all(config.options.get(name) == preset.get(name) for name in model.letters)
    note = model.preset_note.get(config.preset)
    return f" ({note})" if note and same else ""


def resolve_device(name: str) -> str:
    """Resolve the name of a device; ``auto`` selects a GPU if one is available.

    Raises:
        UsageError: if the device does not exist.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: must be one of auto, cpu, cuda, cuda:N")
    index = int(name.partition(":")[2] or 0)
    if name != "cpu" and index >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: PyTorch finds {torch.cuda.device_count()} CUDA devices; "
            "try --device cpu"
        )
    return name


def read_config(run: Path) -> TrainConfig:
    """Read the settings of a run from its folder.

    Raises:
        DataError: if the folder does not contain a run.
    """
    path = run / "config.json"
    if not path.is_file():
        export = "; pyro_zf.load reads an export" if (run / "model.safetensors").is_file() else ""
        raise DataError(f"{run} is not a run folder: it has no config.json{export}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: it is not UTF-8") from error
    return TrainConfig.from_json(text, str(path))


def check_same_settings(run: Path, wanted: TrainConfig) -> None:
    """Check that a run folder has the settings of a resolved configuration, except those of :data:`NOT_OF_RUN`.

    Raises:
        UsageError: for the first setting that differs.
    """
    ours, theirs = (
        {**dataclasses.asdict(config), **config.options} for config in (wanted, read_config(run))
    )
    for name in sorted((ours.keys() | theirs.keys()) - {"options", *NOT_OF_RUN}):
        if ours.get(name) != theirs.get(name):
            raise UsageError(
                f"{run} is a run with {name} {theirs.get(name)}, not {ours.get(name)}: remove it, or "
                "choose another --output-dir"
            )


def resumed(given: TrainConfig) -> TrainConfig:
    """Settings of the run ``given.resume``, updated with the limits, data and device in ``given``.

    Raises:
        UsageError: if any other setting was given.
        DataError: if the run does not exist.
    """
    assert given.resume is not None
    changeable = (
        "max_updates",
        "max_epochs",
        "max_minutes",
        "patience",
        "device",
        "data_dir",
        "data",
        "workers",
    )
    untouched = dataclasses.replace(
        given, resume=None, **{name: getattr(TrainConfig, name) for name in changeable}
    )
    default = TrainConfig()
    changed = [k for k, x in vars(untouched).items() if k != "options" and x != getattr(default, k)]
    for name in [*untouched.options, *changed]:
        raise UsageError(
            f"--{name.replace('_', '-')} cannot change on --resume; only --max-updates, --max-epochs, "
            "--max-minutes, --patience, --device, --data-dir, --data and --workers can"
        )
    config = read_config(given.resume)
    if not (given.resume / "checkpoints" / "last.pt").is_file():
        raise DataError(f"{given.resume} has no checkpoints/last.pt to resume from")
    limits = {name: getattr(given, name) for name in changeable[:3]}
    if all(limit is None for limit in limits.values()):
        limits = {name: getattr(config, name) for name in limits}
    now = {"output_dir": given.resume, **limits}
    if given.device != "auto":
        now["device"] = given.device
    for name in ("patience", "data_dir", "data", "workers"):
        if getattr(given, name) is not None:
            now[name] = getattr(given, name)
    return resolve(dataclasses.replace(config, **now))

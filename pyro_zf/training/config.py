"""Settings of a training run: typed, documented, saved with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch

from pyro_zf.data.datasets import DataError
from pyro_zf.models import MODELS
from pyro_zf.sequence import Core
from pyro_zf.training.checks import UsageError, check_name, check_names, check_numbers
from pyro_zf.training.data import DataConfig, check_data
from pyro_zf.training.options import has_type, misplaced, model_class, option_types
from pyro_zf.training.presets import PRESETS

__all__ = [
    "TrainConfig",
    "read_config",
    "resolve",
    "resolve_device",
    "resumed",
]


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Train a model. Options whose default is None take the value of the preset.

    The options of the system itself, such as its sizes, are in ``options``; on the command line each of
    them is a flag. :meth:`of` takes both by name.
    """

    model: str = "zforcing"
    """System to train: zforcing, variational-bilstm, srnn, vrnn, vrnn-i, storn or rnn."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the system by name, see the ``Options`` of its class."""
    preset: Literal["auto", "paper", "small"] = "auto"
    """Settings of the paper, or small ones that learn in minutes on a CPU. auto: paper on a GPU."""
    output_dir: Path | None = None
    """Run folder. Default: runs/DATASET-MODEL-DATE-TIME."""
    resume: Path | None = None
    """Run folder to continue, with its own settings."""

    objective: str = "elbo"
    """Bound to train on: elbo (analytic KL), elbo-mc (sampled KL), iwae (importance-weighted) or fivo
    (particle filter)."""
    num_particles: int = 1
    """Latent samples of the objective."""
    aux: tuple[str, ...] | None = None
    """Auxiliary costs as NAME=WEIGHT, in place of alpha, beta and gamma, for any system with latents: b
    and h (z reconstructs the backward, the forward state), u (the backward state predicts the input),
    activity (of the forward state). --aux none switches all of them off."""
    aux_start: float = 1.0
    """Factor on the weights of all auxiliary costs at the first update."""
    aux_stop: float = 1.0
    """Factor that this changes to."""
    aux_increment: float = 5e-5
    """Change of that factor per update."""
    kl_start: float = 1.0
    """KL weight at the first update. The papers' annealing starts at 0.2."""
    kl_increment: float = 5e-5
    """Increase of the KL weight per update, until it is 1."""
    free_bits: float = 0.0
    """Nats of KL that are free for each step of a sequence (objective elbo)."""
    word_dropout: float = 0.0
    """Probability with which the input of a step is hidden from the forward network in training."""

    batch_size: int | None = None
    """Sequences per update."""
    accumulate: int = 1
    """Number of parts that each batch is split into, whose gradients are added up, to save memory."""
    learning_rate: float | None = None
    """Of Adam."""
    clip_norm: float | None = 100.0
    """Bound on the norm of the whole gradient of the loss in nats per sequence."""
    max_steps: int | None = None
    """Number of updates to stop after."""
    max_epochs: int | None = None
    """Number of passes over the training data to stop after."""
    max_minutes: float | None = None
    """Minutes of training to stop after, earlier sessions of the run included."""

    seed: int = 0
    """Of the initial weights, the order of the data and all noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products of training. Weights and log-probabilities are fp32 always."""
    core: Core = "auto"
    """Recurrence of training: fused (its backward pass is written by hand), eager (a loop of PyTorch
    operations), or auto, which is fused where the parts of the model allow it."""
    time_chunk: int | None = None
    """Number of steps that are scored at a time, to save memory; what lies between is computed again in
    the backward pass."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Replay updates from CUDA graphs, one for each shape of batch. auto: on a GPU, where that works."""
    log_interval: int = 50
    """Updates between two entries of metrics.jsonl."""
    valid_interval: int | None = None
    """Updates between two validations. Default: one at the end of each epoch."""
    valid_latents: tuple[Literal["prior", "prior-mean"], ...] = ()
    """Also validate with z drawn as at test time: from the prior, or at its mean."""
    checkpoint_minutes: float = 5.0
    """Longest time between two checkpoints; there is one at the end of each epoch too."""
    train_sequences: int | None = None
    """Number of sequences to train on, a fixed random subset (of a stream its first segments). Default:
    all."""
    valid_sequences: int | None = None
    """Number of sequences to validate on, a fixed random subset. Default: all."""
    test_sequences: int | None = None
    """Number of sequences to test on at the end, likewise."""
    num_figures: int = 64
    """Sequences that are generated for the pictures, sounds or texts at the end."""

    @classmethod
    def of(cls, **settings: Any) -> TrainConfig:
        """Settings of training and options of the system, all by name.

        Raises:
            UsageError: for a name that there is not, or a system that there is not.

        Example:
            >>> TrainConfig.of(model="vrnn", hidden_size=64, max_steps=10).options
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
        """What :meth:`from_json` reads, and ``--config``."""
        plain = {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()
        }
        return json.dumps({"format": FORMAT, **plain}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config.json") -> TrainConfig:
        """The settings of a run.

        Raises:
            UsageError: if the text is no JSON, is of an earlier version, or has settings that this version
                does not know.
        """
        try:
            plain: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where} is no JSON: {error}") from error
        if plain.pop("format", None) != FORMAT:
            raise UsageError(
                f"{where} is of an earlier version of pyro_zf, whose settings and weights have other "
                "names: train the model again, or use that version"
            )
        types = get_type_hints(cls)
        check_name("model", plain.get("model", cls.model), MODELS)
        types_of_options = option_types(plain.get("model", cls.model))
        for settings, known in ((plain, types), (plain.get("options", {}), types_of_options)):
            for name, value in settings.items():
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise UsageError(f"{where} has an unknown setting {name!r}{hint}")
                if value is not None and name in ("output_dir", "resume", "data_dir", "data"):
                    settings[name] = Path(value)
                elif value is not None and not has_type(value, known[name]):
                    raise UsageError(f"{where}: {name} cannot be {value!r}")
                elif isinstance(value, list):
                    settings[name] = tuple(value)
        return cls(**plain)


#: Of config.json: counted up where older run folders cannot be read.
FORMAT = 2
_LIMITS = ("max_steps", "max_epochs", "max_minutes")


def resolve(config: TrainConfig) -> TrainConfig:
    """Every setting with a value: the one that was given, else that of the preset.

    A limit that was given replaces those of the preset.

    Raises:
        UsageError: if a number is out of range or the device is not to be had.
    """
    device = resolve_device(config.device)
    preset = config.preset
    if preset == "auto":
        preset = "paper" if device.startswith("cuda") else "small"
    check_data(config)
    check_names(config)
    model = model_class(config.model)
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    given = {k: x for k, x in given.items() if x is not None} | config.options
    values = dict(PRESETS[config.dataset][preset])
    values |= model.preset(config.dataset, preset, {**values, **given})
    if any(getattr(config, name) is not None for name in _LIMITS):
        values = {k: v for k, v in values.items() if k not in _LIMITS}
    if config.aux is not None:
        values = {k: v for k, v in values.items() if k not in model.letters}
    known = option_types(config.model)
    options = {k: v for k, v in values.items() if k in known} | config.options
    own = [f.name for f in dataclasses.fields(config)]
    settings = {k: v for k, v in values.items() if k in own and getattr(config, k) is None}
    for name in ("data_dir", "data"):  # a run outlives the folder that it was started in
        if (path := getattr(config, name)) is not None:
            settings[name] = Path(path).expanduser().absolute()
    config = dataclasses.replace(config, preset=preset, device=device, options=options, **settings)
    check_numbers(config)
    return config


def resolve_device(name: str) -> str:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        UsageError: if there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: there are auto, cpu, cuda and cuda:N")
    index = int(name.partition(":")[2] or 0)
    if name != "cpu" and index >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: PyTorch finds {torch.cuda.device_count()} CUDA devices here; "
            "try --device cpu"
        )
    return name


def read_config(run: Path) -> TrainConfig:
    """The settings of the run in a folder.

    Raises:
        DataError: if there is no run in it.
    """
    path = run / "config.json"
    if not path.is_file():
        raise DataError(f"{run} is no run folder: it has no config.json")
    return TrainConfig.from_json(path.read_text(), str(path))


def resumed(given: TrainConfig) -> TrainConfig:
    """Settings of the run ``given.resume``, with the limits, data and device that were given now.

    Raises:
        UsageError: if another setting was given.
        DataError: if there is no such run.
    """
    assert given.resume is not None
    changeable = ("max_steps", "max_epochs", "max_minutes", "device", "data_dir", "data", "workers")
    untouched = dataclasses.replace(
        given, resume=None, **{name: getattr(TrainConfig, name) for name in changeable}
    )
    default = TrainConfig()
    changed = [k for k, x in vars(untouched).items() if k != "options" and x != getattr(default, k)]
    for name in [*untouched.options, *changed]:
        raise UsageError(
            f"--{name.replace('_', '-')} cannot change on --resume; only --max-steps, --max-epochs, "
            "--max-minutes, --device, --data-dir, --data and --workers can"
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
    for name in ("data_dir", "data", "workers"):
        if getattr(given, name) is not None:
            now[name] = getattr(given, name)
    return resolve(dataclasses.replace(config, **now))

"""Settings of a training run: typed, documented, saved with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from pyro_zf.cores import Core
from pyro_zf.data.datasets import DataError
from pyro_zf.training.checks import UsageError, check_names, check_numbers
from pyro_zf.training.data import DataConfig, check_data
from pyro_zf.training.presets import AUX_STRENGTH, PRESETS

__all__ = [
    "TrainConfig",
    "read_config",
    "resolve",
    "resolve_device",
    "resumed",
]


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Train a model. Options whose default is None take the value of the preset."""

    model: str = "zforcing"
    """System to train: zforcing, variational-bilstm, srnn, vrnn, vrnn-i, storn or rnn."""
    preset: Literal["auto", "paper", "small"] = "auto"
    """Settings of the paper, or small ones that learn in minutes on a CPU. auto: paper on a GPU."""
    output_dir: Path | None = None
    """Run folder. Default: runs/DATASET-MODEL-DATE-TIME."""
    resume: Path | None = None
    """Go on with the run in this folder, under its own settings."""

    objective: str = "elbo"
    """Bound to train on: elbo (analytic KL), elbo-mc (sampled KL), iwae (importance-weighted) or fivo
    (particle filter)."""
    num_particles: int = 1
    """Latent samples of the objective."""
    alpha: float | None = None
    """Weight of the cost by which z reconstructs the backward state (zforcing,
    variational-bilstm)."""
    beta: float | None = None
    """Weight of the cost by which the backward state predicts the input (zforcing), or by which z
    reconstructs the forward state (variational-bilstm)."""
    gamma: float | None = None
    """Weight of the activity regularisation of the forward state (variational-bilstm)."""
    aux: tuple[str, ...] | None = None
    """Auxiliary costs as NAME=WEIGHT, in place of alpha, beta and gamma, for any system with latents: b
    and h (z reconstructs the backward, the forward state), u (the backward state predicts the input),
    activity (of the forward state). --aux none is none at all."""
    aux_start: float = 1.0
    """Factor on the weights of all auxiliary costs at the first update."""
    aux_stop: float = 1.0
    """Factor that it moves to."""
    aux_increment: float = 5e-5
    """How far it moves by each update."""
    kl_start: float = 1.0
    """KL weight at the first update. The papers' annealing starts at 0.2."""
    kl_increment: float = 5e-5
    """Growth of the KL weight by each update, until it is 1."""
    free_bits: float = 0.0
    """Nats of KL that each step of a sequence has for free (objective elbo)."""
    word_dropout: float = 0.0
    """Probability with which the input of a step is hidden from the forward network in training."""
    skip_gradient: float | None = None
    """Probability with which the stochastic networks' inputs are detached at a step
    (variational-bilstm)."""

    prior: str | None = None
    """gaussian (conditional), standard-normal, mixture or flow. Default: that of the system."""
    posterior: str | None = None
    """smoothing, filtering, flow, res_q or recognition. Default: that of the system."""
    emission: str | None = None
    """bernoulli, categorical, gaussian, gaussian-mixture, logistic-mixture or autoregressive-gaussian.
    Default: by the kind of data."""
    variant: Literal["paper", "released-code"] = "paper"
    """Architecture of the paper, or of the authors' released code."""
    detach: Literal["target", "posterior", "backward"] = "target"
    """What the cost with weight alpha does not train."""
    hidden_size: int | None = None
    """Units of the forward and of the backward LSTM."""
    latent_size: int | None = None
    """Size of z at each step."""
    mlp_size: int | None = None
    """Units of the hidden layers of prior, posterior, emission and auxiliary network."""
    mlp_depth: int = 1
    """Hidden layers of prior, posterior and auxiliary network."""
    activation: str | None = None
    """Of the hidden layers: clipped-leaky-relu, leaky-relu, relu, tanh, softplus or gelu."""
    embedding_size: int | None = None
    """Size of a linear layer on the data, shared both ways; without it none."""
    forget_bias: float | None = None
    """Initial bias of the LSTMs' forget gates."""
    orthogonal: bool = True
    """Orthogonal recurrent weights at the start."""

    batch_size: int | None = None
    """Sequences an update."""
    accumulate: int = 1
    """Split each batch into so many parts and add up their gradients, to save memory."""
    learning_rate: float | None = None
    """Of Adam."""
    clip_norm: float | None = 100.0
    """Bound on the norm of the whole gradient of the loss in nats per sequence."""
    max_steps: int | None = None
    """Stop after so many updates."""
    max_epochs: int | None = None
    """Stop after so many passes over the training data."""
    max_minutes: float | None = None
    """Stop after so many minutes of training, earlier sessions of the run included."""

    seed: int = 0
    """Of the initial weights, the order of the data and all noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products of training. Weights and log-probabilities are fp32 always."""
    core: Core = "auto"
    """Recurrence of training: fused (backward by hand), eager (PyTorch operations), or auto, which is fused
    where the parts of the model allow it."""
    time_chunk: int | None = None
    """Score so many steps at a time and compute what lies between again in the backward, to save
    memory."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Replay updates from CUDA graphs, one a shape of batch. auto: on a GPU, where the update allows it."""
    log_interval: int = 50
    """Updates between two entries of metrics.jsonl."""
    valid_interval: int | None = None
    """Updates between two validations. Default: one at the end of each epoch."""
    valid_latents: tuple[Literal["prior", "prior-mean"], ...] = ()
    """Validate too with z drawn as at test time: from the prior, or at its mean."""
    checkpoint_minutes: float = 5.0
    """Save at least so often; also at the end of each epoch."""
    train_sequences: int | None = None
    """Train on so many sequences, a fixed random subset (of a stream its first segments); without it on
    all."""
    valid_sequences: int | None = None
    """Validate on so many sequences, a fixed random subset; without it on all."""
    test_sequences: int | None = None
    """Likewise for the test at the end."""
    num_figures: int = 64
    """Sequences that are generated for the pictures, sounds or texts at the end."""

    def to_json(self) -> str:
        plain = {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()
        }
        return json.dumps(plain, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The settings of a run.

        Raises:
            UsageError: if the text is no JSON, or has settings that this version does not know.
        """
        try:
            plain: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"config.json is no JSON: {error}") from error
        types = get_type_hints(cls)
        for name, value in plain.items():
            if name not in types:
                near = difflib.get_close_matches(name, types, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"config.json has an unknown setting {name!r}{hint}")
            if value is not None and name in ("output_dir", "resume", "data_dir", "data"):
                plain[name] = Path(value)
            elif not _has_type(value, types[name]):
                raise UsageError(f"config.json: {name} cannot be {value!r}")
            elif isinstance(value, list):
                plain[name] = tuple(value)
        return cls(**plain)


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
    presets = PRESETS.get((config.dataset, config.model), PRESETS[config.dataset, ""])
    values = dict(presets[preset])
    if any(getattr(config, name) is not None for name in _LIMITS):
        values = {k: v for k, v in values.items() if k not in _LIMITS}
    if config.aux is not None:
        values = {k: v for k, v in values.items() if k not in ("alpha", "beta", "gamma")}
    if config.model == "rnn":
        values.pop("latent_size")
    values = {k: v for k, v in values.items() if getattr(config, k) is None}
    for name in ("data_dir", "data"):  # a run outlives the folder that it was started in
        if (given := getattr(config, name)) is not None:
            values[name] = given.expanduser().absolute()
    config = dataclasses.replace(config, preset=preset, device=device, **values)
    if config.model == "zforcing" and config.aux is None:
        assert config.hidden_size is not None
        strength = AUX_STRENGTH[config.frame or config.dataset]
        if config.frame is not None:
            strength /= max(config.hidden_size, 1)
        config = dataclasses.replace(
            config,
            alpha=strength if config.alpha is None else config.alpha,
            beta=strength if config.beta is None else config.beta,
        )
    check_numbers(config)
    return config


def _has_type(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_has_type(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:  # (str, ...): JSON has lists
        return isinstance(value, list) and all(isinstance(x, str) for x in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


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
    return TrainConfig.from_json(path.read_text())


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
    for field in dataclasses.fields(TrainConfig):
        if getattr(untouched, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise UsageError(
                f"--{flag} cannot change on --resume; only --max-steps, --max-epochs, --max-minutes, "
                "--device, --data-dir, --data and --workers can"
            )
    config = read_config(given.resume)
    if not (given.resume / "checkpoints" / "last.pt").is_file():
        raise DataError(f"{given.resume} has no checkpoints/last.pt to resume from")
    limits = {name: getattr(given, name) for name in changeable[:3]}
    if all(limit is None for limit in limits.values()):
        limits = {name: getattr(config, name) for name in limits}
    changed = {"output_dir": given.resume, **limits}
    if given.device != "auto":
        changed["device"] = given.device
    for name in ("data_dir", "data", "workers"):
        if getattr(given, name) is not None:
            changed[name] = getattr(given, name)
    return resolve(dataclasses.replace(config, **changed))

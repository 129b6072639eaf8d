"""Settings of a training run: typed, documented, saved with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from pyro_zf.data.datasets import DataError
from pyro_zf.data.mnist import Binarization, Frame
from pyro_zf.infer import OBJECTIVES
from pyro_zf.models import MODELS
from pyro_zf.nn import ACTIVATIONS, AUX_COSTS, EMISSIONS, POSTERIORS, PRIORS
from pyro_zf.training.presets import AUX_STRENGTH, PRESETS

__all__ = [
    "BUILT_IN",
    "TrainConfig",
    "UsageError",
    "aux_weights",
    "read_config",
    "resolve",
    "resolve_device",
]


class UsageError(Exception):
    """Settings that contradict each other; the message is one line."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a model. Options whose default is None take the value of the preset."""

    dataset: Literal["mnist"] = "mnist"
    """Data to train on."""
    model: str = "zforcing"
    """System to train: zforcing, variational-bilstm, srnn, vrnn, vrnn-i, storn or rnn."""
    preset: Literal["auto", "paper", "small"] = "auto"
    """Settings of the paper, or small ones that learn in minutes on a CPU. auto: paper on a GPU."""
    output_dir: Path | None = None
    """Run folder. Default: runs/DATASET-MODEL-DATE-TIME."""
    resume: Path | None = None
    """Go on with the run in this folder, under its own settings."""

    data_dir: Path | None = None
    """Folder with the data; searched before $PYRO_ZF_DATA and the user cache."""
    frame: Frame | None = None
    """What a step of an image is."""
    binarization: Binarization = "fixed"
    """Larochelle's bits, or bits drawn anew each epoch from grey levels."""

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
    activity. --aux none=0 is none at all."""
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
    activation: str = "clipped-leaky-relu"
    """Of the hidden layers."""
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
    log_interval: int = 50
    """Updates between two entries of metrics.jsonl."""
    checkpoint_minutes: float = 5.0
    """Save at least so often; also at the end of each epoch."""
    train_sequences: int | None = None
    """Train on so many sequences, a fixed random subset; without it on all."""
    valid_sequences: int | None = None
    """Validate on so many sequences, a fixed random subset; without it on all."""
    test_sequences: int | None = None
    """Likewise for the test at the end."""
    num_figures: int = 64
    """Digits in the picture of samples."""

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
            if value is not None and name in ("output_dir", "resume", "data_dir"):
                plain[name] = Path(value)
            elif not _has_type(value, types[name]):
                raise UsageError(f"config.json: {name} cannot be {value!r}")
            elif isinstance(value, list):
                plain[name] = tuple(value)
        return cls(**plain)


#: The systems that come with the package; what others take is not known here.
BUILT_IN = frozenset(MODELS)
#: Options that only some of them have.
_ONLY_OF: dict[str, tuple[str, ...]] = {
    "alpha": ("zforcing", "variational-bilstm"),
    "beta": ("zforcing", "variational-bilstm"),
    "gamma": ("variational-bilstm",),
    "skip_gradient": ("variational-bilstm",),
    "detach": ("zforcing",),
    "variant": ("zforcing",),
    **{
        name: tuple(m for m in MODELS if m != "rnn")
        for name in ("prior", "posterior", "aux", "free_bits", "mlp_depth")
    },
}

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
    _check_names(config)
    presets = PRESETS.get((config.dataset, config.model), PRESETS[config.dataset, ""])
    values = dict(presets[preset])
    if any(getattr(config, name) is not None for name in _LIMITS):
        values = {k: v for k, v in values.items() if k not in _LIMITS}
    if config.aux is not None:
        values = {k: v for k, v in values.items() if k not in ("alpha", "beta", "gamma")}
    values = {k: v for k, v in values.items() if getattr(config, k) is None}
    if config.data_dir is not None:  # a run outlives the folder that it was started in
        values["data_dir"] = config.data_dir.expanduser().absolute()
    config = dataclasses.replace(config, preset=preset, device=device, **values)
    if config.model == "zforcing" and config.aux is None:
        assert config.frame is not None and config.hidden_size is not None
        strength = AUX_STRENGTH[config.frame] / max(config.hidden_size, 1)
        config = dataclasses.replace(
            config,
            alpha=strength if config.alpha is None else config.alpha,
            beta=strength if config.beta is None else config.beta,
        )
    _check_numbers(config)
    return config


def aux_weights(config: TrainConfig) -> dict[str, float] | None:
    """The auxiliary costs of ``--aux`` with their weights; None if it was not given.

    Raises:
        UsageError: for a cost that there is not, or what is no NAME=WEIGHT.
    """
    if config.aux is None:
        return None
    weights = {}
    for text in config.aux:
        name, _, number = text.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise UsageError(f"--aux {text}: write NAME=WEIGHT, for example b=0.001") from None
        if not weights[name] >= 0:
            raise UsageError(f"--aux {text}: the weight must not be negative")
        if name != "none":
            _check_name("aux", name, AUX_COSTS)
    weights.pop("none", None)
    return weights


def _check_names(config: TrainConfig) -> None:
    _check_name("model", config.model, MODELS)
    _check_name("objective", config.objective, OBJECTIVES)
    _check_name("activation", config.activation, ACTIVATIONS)
    for option, known in (
        ("prior", PRIORS), ("posterior", POSTERIORS), ("emission", EMISSIONS)
    ):  # fmt: skip
        if (name := getattr(config, option)) is not None:
            _check_name(option, name, known)
    for option, models in _ONLY_OF.items():
        given = getattr(config, option) != getattr(TrainConfig, option)
        if given and config.model in BUILT_IN and config.model not in models:
            flag = option.replace("_", "-")
            raise UsageError(
                f"--{flag} is no option of {config.model}, but of {', '.join(models)}"
                + ("; other systems take --aux NAME=WEIGHT" if option in ("alpha", "beta") else "")
            )
    if config.aux is not None and any(
        getattr(config, letter) is not None for letter in ("alpha", "beta", "gamma")
    ):
        raise UsageError(
            "--aux takes the place of --alpha, --beta and --gamma: give one or the other"
        )
    if config.free_bits and config.objective != "elbo":
        raise UsageError(f"--free-bits belongs to --objective elbo, not to {config.objective}")
    if config.model == "rnn" and config.objective == "fivo":
        raise UsageError("--objective fivo filters latents, and rnn has none: take elbo")
    aux_weights(config)


def _check_name(option: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--{option} {name}: there are {', '.join(known)}{hint}")


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


def _check_numbers(config: TrainConfig) -> None:
    for name in (
        "num_particles", "hidden_size", "latent_size", "mlp_size", "batch_size", "learning_rate",
        "accumulate", "log_interval", "clip_norm", "max_steps", "max_epochs", "max_minutes",
        "checkpoint_minutes", "train_sequences", "valid_sequences", "test_sequences", "embedding_size", "num_figures",
    ):  # fmt: skip
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above zero, it is {value}")
    for name in (
        "alpha", "beta", "gamma", "kl_start", "kl_increment", "aux_start", "aux_stop",
        "aux_increment", "free_bits", "mlp_depth", "seed",
    ):  # fmt: skip
        value = getattr(config, name)
        if value is not None and value < 0:
            raise UsageError(f"--{name.replace('_', '-')} must not be negative, it is {value}")
    for name in ("word_dropout", "skip_gradient"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"--{name.replace('_', '-')} is a probability, it is {value}")
    if config.seed >= 2**63:
        raise UsageError(f"--seed must be below 2**63, it is {config.seed}")
    assert config.batch_size is not None
    if config.accumulate > config.batch_size:
        raise UsageError(
            f"--accumulate {config.accumulate} asks for more parts than the batch of "
            f"{config.batch_size} has sequences"
        )


def read_config(run: Path) -> TrainConfig:
    """The settings of the run in a folder.

    Raises:
        DataError: if there is no run in it.
    """
    path = run / "config.json"
    if not path.is_file():
        raise DataError(f"{run} is no run folder: it has no config.json")
    return TrainConfig.from_json(path.read_text())

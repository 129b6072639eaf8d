"""What is refused before a run begins, each in one line. ``config`` is a ``TrainConfig``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pyro_zf.infer import OBJECTIVES
from pyro_zf.models import MODELS
from pyro_zf.nn import ACTIVATIONS, AUX_COSTS, EMISSIONS, POSTERIORS, PRIORS

__all__ = [
    "BUILT_IN",
    "UsageError",
    "aux_weights",
    "check_names",
    "check_numbers",
    "check_options",
    "there_are",
    "without_effect",
]


class UsageError(Exception):
    """Settings that contradict each other; the message is one line."""


#: The systems that come with the package; what others take is not known here.
BUILT_IN = (
    "zforcing", "variational-bilstm", "srnn", "vrnn", "vrnn-i", "storn", "rnn",
)  # fmt: skip
#: Options that only some of them have.
_ONLY_OF: dict[str, tuple[str, ...]] = {
    "alpha": ("zforcing", "variational-bilstm"),
    "beta": ("zforcing", "variational-bilstm"),
    "gamma": ("variational-bilstm",),
    "skip_gradient": ("variational-bilstm",),
    "detach": ("zforcing",),
    "variant": ("zforcing",),
    **dict.fromkeys(
        ("prior", "posterior", "aux", "free_bits", "valid_latents"),
        tuple(name for name in BUILT_IN if name != "rnn"),
    ),
}


def without_effect(config: Any) -> list[str]:
    """Options that were given for latents to a system without any, as it is in a loop over systems."""
    if config.model != "rnn":
        return []
    names = (
        "latent_size", "mlp_depth", "num_particles", "kl_start", "kl_increment", "aux_start",
        "aux_stop", "aux_increment",
    )  # fmt: skip
    given = [name for name in names if getattr(config, name) != getattr(type(config), name)]
    return ["--" + name.replace("_", "-") for name in given]


def aux_weights(config: Any) -> dict[str, float] | None:
    """The auxiliary costs of ``--aux`` with their weights; None if it was not given.

    Raises:
        UsageError: for a cost that there is not, or what is no NAME=WEIGHT.
    """
    if config.aux is None:
        return None
    weights: dict[str, float] = {}
    for text in config.aux if config.aux != ("none",) else ():
        name, _, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            raise UsageError(
                f"--aux {text}: write NAME=WEIGHT, for example b=0.001, or none"
            ) from None
        _check_name("aux", name, AUX_COSTS)
        if not 0 <= weight < math.inf:
            raise UsageError(f"--aux {text}: the weight must be a number and not negative")
        if name in weights:
            raise UsageError(f"--aux gives {name} twice")
        weights[name] = weight
    if not config.aux:
        raise UsageError("--aux needs NAME=WEIGHT, for example b=0.001, or none")
    return weights


_HINTS = dict.fromkeys(("alpha", "beta"), "; other systems take --aux NAME=WEIGHT")


def check_options(
    config: Any,
    only_of: Mapping[str, tuple[str, ...]],
    choice: str,
    shown: str,
    hints: Mapping[str, str],
) -> None:
    """Refuse options that were given and that a choice does not have.

    Args:
        config: the settings.
        only_of: option -> the choices that have it.
        choice, shown: what was chosen, and how to call it.
        hints: option -> what else to say.

    Raises:
        UsageError: for the first of them.
    """
    for option, choices in only_of.items():
        if getattr(config, option) != getattr(type(config), option) and choice not in choices:
            flag = option.replace("_", "-")
            raise UsageError(
                f"--{flag} is no option of {shown}, but of {', '.join(choices)}{hints.get(option, '')}"
            )


def check_names(config: Any) -> None:
    _check_name("model", config.model, MODELS)
    _check_name("objective", config.objective, OBJECTIVES)
    for option, known in (
        ("prior", PRIORS), ("posterior", POSTERIORS), ("emission", EMISSIONS),
        ("activation", ACTIVATIONS),
    ):  # fmt: skip
        if (name := getattr(config, option)) is not None:
            _check_name(option, name, known)
    if config.model in BUILT_IN:
        check_options(config, _ONLY_OF, config.model, config.model, _HINTS)
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
    if config.objective in ("iwae", "fivo") and config.num_particles == 1 and config.model != "rnn":
        raise UsageError(
            f"--objective {config.objective} with one particle is elbo-mc: give --num-particles"
        )
    annealed = (config.aux_start, config.aux_stop) != (1.0, 1.0)
    if annealed and not aux_weights(config) and config.model in ("srnn", "vrnn", "vrnn-i", "storn"):
        raise UsageError(
            f"--aux-start and --aux-stop: {config.model} has no auxiliary costs; give some by --aux"
        )
    aux_weights(config)


def _check_name(option: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise UsageError(f"--{option} {there_are(name, known)}")


def there_are(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of those that are known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: there are {', '.join(names)}{hint}"


def check_numbers(config: Any) -> None:
    for name in (
        "num_particles", "hidden_size", "latent_size", "mlp_size", "batch_size", "learning_rate",
        "accumulate", "log_interval", "clip_norm", "max_steps", "max_epochs", "max_minutes",
        "checkpoint_minutes", "train_sequences", "valid_sequences", "test_sequences", "embedding_size", "num_figures",
        "time_chunk", "valid_interval",
    ):  # fmt: skip
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} must be above zero, it is {value}")
    for name in (
        "alpha", "beta", "gamma", "kl_start", "kl_increment", "aux_start", "aux_stop",
        "aux_increment", "free_bits", "mlp_depth", "seed",
    ):  # fmt: skip
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(
                f"--{name.replace('_', '-')} must be a number and not negative, it is {value}"
            )
    for name in ("word_dropout", "skip_gradient"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"--{name.replace('_', '-')} is a probability, it is {value}")
    if config.seed >= 2**63:
        raise UsageError(f"--seed must be below 2**63, it is {config.seed}")
    if config.cuda_graph == "on":
        if not config.device.startswith("cuda"):
            raise UsageError(f"--cuda-graph on needs a GPU, and the device is {config.device}")
        if config.accumulate > 1:
            raise UsageError("--cuda-graph on records whole batches: leave --accumulate")
    assert config.batch_size is not None
    if config.accumulate > config.batch_size:
        raise UsageError(
            f"--accumulate {config.accumulate} asks for more parts than the batch of "
            f"{config.batch_size} has sequences"
        )

"""What is refused before a run begins, each in one line. ``config`` is a ``TrainConfig``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pyro_zf.infer import OBJECTIVES
from pyro_zf.models import MODELS
from pyro_zf.nn import ACTIVATIONS, AUX_COSTS, CELLS, EMISSIONS, POSTERIORS, PRIORS
from pyro_zf.training.options import misplaced, model_class, option_types

__all__ = [
    "UsageError",
    "aux_weights",
    "check_name",
    "check_names",
    "check_numbers",
    "check_options",
    "there_are",
    "without_effect",
]


class UsageError(Exception):
    """Settings that contradict each other; the message is one line."""


def without_effect(config: Any) -> list[str]:
    """Settings for latents that were given to a system without any, as it is in a loop over systems."""
    if model_class(config.model).has_latents:
        return []
    names = (
        "num_particles", "kl_start", "kl_increment", "aux_start", "aux_stop", "aux_increment",
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
        check_name("aux", name, AUX_COSTS)
        if not 0 <= weight < math.inf:
            raise UsageError(f"--aux {text}: the weight must be a number and not negative")
        if name in weights:
            raise UsageError(f"--aux gives {name} twice")
        weights[name] = weight
    if not config.aux:
        raise UsageError("--aux needs NAME=WEIGHT, for example b=0.001, or none")
    return weights


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
                f"--{flag} is an option of {', '.join(choices)}, not of {shown}{hints.get(option, '')}"
            )


def check_names(config: Any) -> None:
    """Refuse names that there are not, and settings that do not go together.

    Raises:
        UsageError: for the first of them.
    """
    check_name("model", config.model, MODELS)
    check_name("objective", config.objective, OBJECTIVES)
    model, known = model_class(config.model), option_types(config.model)
    for name in config.options:
        if name not in known:
            raise UsageError(misplaced(name, config.model, list(vars(config))))
    for option, names in (
        ("prior", PRIORS), ("posterior", POSTERIORS), ("emission", EMISSIONS),
        ("activation", ACTIVATIONS), ("cell", CELLS),
    ):  # fmt: skip
        if (name := config.options.get(option)) is not None:
            check_name(option, name, names)
    if not model.has_latents:
        for name in ("aux", "free_bits", "valid_latents"):
            if getattr(config, name) != getattr(type(config), name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is for latents, and {config.model} has none"
                )
    if config.aux is not None and any(letter in config.options for letter in model.letters):
        raise UsageError(
            "--aux takes the place of --alpha, --beta and --gamma: give one or the other"
        )
    if config.free_bits and config.objective != "elbo":
        raise UsageError(f"--free-bits belongs to --objective elbo, not to {config.objective}")
    if not model.has_latents and config.objective == "fivo":
        raise UsageError(
            f"--objective fivo filters latents, and {config.model} has none: take elbo"
        )
    if config.objective in ("iwae", "fivo") and config.num_particles == 1 and model.has_latents:
        raise UsageError(
            f"--objective {config.objective} with one particle is elbo-mc: give --num-particles"
        )
    annealed = (config.aux_start, config.aux_stop) != (1.0, 1.0)
    if annealed and model.has_latents and not model.letters and not aux_weights(config):
        raise UsageError(
            f"--aux-start and --aux-stop: {config.model} has no auxiliary costs; give some by --aux"
        )
    aux_weights(config)


def check_name(option: str, name: str, known: Mapping[str, object]) -> None:
    """Refuse a name that is none of those that are known.

    Raises:
        UsageError: with the nearest that is.
    """
    if name not in known:
        raise UsageError(f"--{option} {there_are(name, known)}")


def there_are(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of those that are known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: there are {', '.join(names)}{hint}"


def check_numbers(config: Any) -> None:
    """Refuse numbers that are out of range.

    Raises:
        UsageError: for the first of them.
    """

    def given(name: str) -> Any:
        return config.options.get(name, getattr(config, name, None))

    for name in (
        "num_particles", "hidden_size", "latent_size", "mlp_size", "batch_size", "learning_rate",
        "accumulate", "log_interval", "clip_norm", "max_steps", "max_epochs", "max_minutes",
        "checkpoint_minutes", "train_sequences", "valid_sequences", "test_sequences", "embedding_size", "num_figures",
        "time_chunk", "valid_interval", "num_layers", "backward_size", "latent_embedding_size",
    ):  # fmt: skip
        value = given(name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} must be above zero, it is {value}")
    for name in (
        "alpha", "beta", "gamma", "kl_start", "kl_increment", "aux_start", "aux_stop",
        "aux_increment", "free_bits", "mlp_depth", "emission_depth", "seed",
    ):  # fmt: skip
        value = given(name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(
                f"--{name.replace('_', '-')} must be a number and not negative, it is {value}"
            )
    for name in ("word_dropout", "skip_gradient"):
        value = given(name)
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

"""Validation of settings before a run begins. ``config`` is a ``TrainConfig`` throughout."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from pyro_zf.infer import OBJECTIVES
from pyro_zf.models import MODELS
from pyro_zf.names import there_are
from pyro_zf.nn import ACTIVATIONS, AUX_COSTS, CELLS, EMISSIONS, POSTERIORS, PRIORS
from pyro_zf.training.options import has_type, misplaced, model_class, option_types

__all__ = [
    "UsageError",
    "aux_weights",
    "check_corruption",
    "check_name",
    "check_names",
    "check_numbers",
    "check_options",
    "check_parts",
    "check_types",
    "there_are",
    "without_effect",
]


class UsageError(Exception):
    """Invalid or contradictory settings. The message is a single line."""


def check_types(config: Any) -> None:
    """Reject settings whose value has the wrong type; the command line does so by itself.

    Raises:
        UsageError: for the first such setting.
    """
    cls: Any = type(config)
    for name, hint in _types(cls).items():
        value = getattr(config, name)
        if isinstance(value, (np.generic, list)):
            value = tuple(value) if isinstance(value, list) else value.item()
            object.__setattr__(config, name, value)
        if value is None and type(config).__dataclass_fields__[name].default is None:
            continue
        if has_type(value, hint):
            continue
        flag = "--" + name.replace("_", "-")
        if get_origin(hint) is Literal:
            raise UsageError(f"{flag} {there_are(str(value), get_args(hint))}")
        wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
        raise UsageError(f"{flag} cannot be {value!r}; it must be {wanted.replace(' | None', '')}")


@functools.cache
def _types(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def without_effect(config: Any) -> list[str]:
    """Options for latent variables that have no effect because the model has none.

    They are ignored rather than rejected, so that the same options can be passed to several models in a loop.
    """
    if config.own_model or model_class(config.model).has_latents:
        return []
    names = (
        "num_particles", "kl_start", "kl_increment", "aux_start", "aux_stop", "aux_increment",
    )  # fmt: skip
    given = [name for name in names if getattr(config, name) != getattr(type(config), name)]
    return ["--" + name.replace("_", "-") for name in given]


def aux_weights(config: Any) -> dict[str, float] | None:
    """Parse the auxiliary costs and weights of ``--aux``; None if the option was not given.

    Raises:
        UsageError: if a cost is unknown or an item does not have the form NAME=WEIGHT.
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
            raise UsageError(f"--aux {text}: the weight must be a non-negative finite number")
        if name in weights:
            raise UsageError(f"--aux specifies {name} twice")
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
    """Reject options that were given but do not apply to a choice.

    Args:
        config: the settings.
        only_of: maps an option to the choices that it applies to.
        choice: the choice that was made.
        shown: how to refer to this choice in the message.
        hints: maps an option to text that is appended to the message.

    Raises:
        UsageError: for the first such option.
    """
    for option, choices in only_of.items():
        if getattr(config, option) != getattr(type(config), option) and choice not in choices:
            flag = option.replace("_", "-")
            raise UsageError(
                f"--{flag} is an option of {', '.join(choices)}, not of {shown}{hints.get(option, '')}"
            )


def check_corruption(config: Any, kind: str) -> None:
    """Reject a corruption of the inputs that does not apply to the kind of the data.

    Raises:
        UsageError: if numeric inputs are to be dropped, and the data are symbols.
    """
    if config.input_dropout and kind == "categorical":
        raise UsageError(
            "--input-dropout is for numeric inputs, and those of this data are symbols: use --word-dropout"
        )


def check_names(config: Any) -> None:
    """Reject unknown names and incompatible settings.

    Raises:
        UsageError: for the first problem found.
    """
    check_name("objective", config.objective, OBJECTIVES)
    if config.free_bits and config.objective != "elbo":
        raise UsageError(f"--free-bits requires --objective elbo, not {config.objective}")
    for name, decays in (("decay_start", ("linear", "cosine")), ("decay_patience", ("plateau",))):
        given_value, default = getattr(config, name), getattr(type(config), name)
        if given_value != default and config.learning_rate_decay not in decays:
            raise UsageError(
                f"--{name.replace('_', '-')} requires --learning-rate-decay {' or '.join(decays)}, not "
                f"{config.learning_rate_decay}"
            )
    if config.own_model:
        if given := [*config.options, *["aux"] * (config.aux is not None)]:
            raise UsageError(
                f"--{given[0].replace('_', '-')} is an option of a model that train() builds; the model "
                "was given, so set it there"
            )
        return
    check_name("model", config.model, MODELS)
    model, known = model_class(config.model), option_types(config.model)
    for name, value in config.options.items():
        if name not in known:
            raise UsageError(misplaced(name, config.model, list(vars(config))))
        if value is not None and not has_type(value, known[name]):
            wanted = getattr(known[name], "__name__", str(known[name])).replace(" | None", "")
            raise UsageError(f"--{name.replace('_', '-')} cannot be {value!r}; it must be {wanted}")
    check_parts(config.options)
    if not model.has_latents:
        for name in ("aux", "free_bits", "valid_latents"):
            if getattr(config, name) != getattr(type(config), name):
                raise UsageError(
                    f"--{name.replace('_', '-')} applies to latents, but {config.model} has none"
                )
    if config.aux is not None and any(letter in config.options for letter in model.letters):
        raise UsageError("--aux replaces --alpha, --beta and --gamma: give one or the other")
    if not model.has_latents and config.objective == "fivo":
        raise UsageError(f"--objective fivo filters latents, but {config.model} has none: use elbo")
    if config.objective in ("iwae", "fivo") and config.num_particles == 1 and model.has_latents:
        raise UsageError(
            f"--objective {config.objective} with one particle equals elbo-mc: set --num-particles"
        )
    annealed = (config.aux_start, config.aux_stop) != (1.0, 1.0)
    if annealed and model.has_latents and not model.letters and not aux_weights(config):
        raise UsageError(
            f"--aux-start and --aux-stop: {config.model} has no auxiliary costs; add some with --aux"
        )
    aux_weights(config)


def check_parts(options: Mapping[str, Any]) -> None:
    """Reject unknown names of the parts of a model.

    Raises:
        UsageError: for the first such name.
    """
    for option, names in (
        ("prior", PRIORS), ("posterior", POSTERIORS), ("emission", EMISSIONS),
        ("activation", ACTIVATIONS), ("cell", CELLS),
    ):  # fmt: skip
        if (name := options.get(option)) is not None:
            check_name(option, name, names)


def check_name(option: str, name: str, known: Collection[str]) -> None:
    """Reject an unknown name.

    Raises:
        UsageError: if the name is unknown; the message suggests the closest known name.
    """
    if name not in known:
        raise UsageError(f"--{option} {there_are(name, known)}")


#: Upper limits of options, above which nothing sensible can be allocated.
_MOST: dict[int, tuple[str, ...]] = {
    1000: ("num_layers", "mlp_depth", "emission_depth"),
    10**6: (
        "hidden_size", "latent_size", "mlp_size", "emission_mlp_size", "backward_size", "embedding_size",
        "latent_embedding_size", "batch_size", "num_particles", "log_interval", "num_figures", "max_count",
    ),
}  # fmt: skip


def check_numbers(config: Any) -> None:
    """Reject numbers that are out of range.

    Raises:
        UsageError: for the first such number.
    """

    def given(name: str) -> Any:
        return config.options.get(name, getattr(config, name, None))

    for name in (
        "num_particles", "hidden_size", "latent_size", "mlp_size", "batch_size", "learning_rate",
        "accumulate", "log_interval", "clip_norm", "max_updates", "max_epochs", "max_minutes",
        "checkpoint_minutes", "train_sequences", "valid_sequences", "test_sequences", "embedding_size",
        "time_chunk", "valid_interval", "max_skipped", "num_layers", "backward_size", "latent_embedding_size",
        "emission_mlp_size", "patience", "decay_patience",
    ):  # fmt: skip
        value = given(name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(
                f"--{name.replace('_', '-')} must be a positive finite number, got {value}"
            )
    for name in (
        "alpha", "beta", "gamma", "kl_start", "kl_increment", "aux_start", "aux_stop",
        "aux_increment", "free_bits", "mlp_depth", "emission_depth", "seed", "num_figures", "warmup_updates",
        "weight_decay",
    ):  # fmt: skip
        value = given(name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(
                f"--{name.replace('_', '-')} must be a non-negative finite number, got {value}"
            )
    for most, names in _MOST.items():
        for name in names:
            value = given(name)
            if value is not None and value > most:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at most {most:,}, got {value}"
                )
    if not abs(given("forget_bias") or 0.0) <= 1e6:
        raise UsageError(f"--forget-bias must be from -1e6 to 1e6, got {given('forget_bias')}")
    for name in ("word_dropout", "skip_gradient"):
        value = given(name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"--{name.replace('_', '-')} must be a probability, got {value}")
    for name in ("dropout", "input_dropout", "recurrent_dropout", "average_decay", "decay_start"):
        if not 0 <= (given(name) or 0.0) < 1:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} must be at least 0 and below 1, got {given(name)}")
    if given("dropout") and config.time_chunk is not None:
        raise UsageError(
            "--dropout and --time-chunk exclude each other: the mask would be drawn twice"
        )
    if config.seed >= 2**63:
        raise UsageError(f"--seed must be below 2**63, got {config.seed}")
    if config.kl_increment != type(config).kl_increment and config.kl_start >= 1:
        raise UsageError(
            "--kl-increment requires a --kl-start below 1; the KL weight is 1 from the first update"
        )
    if config.aux_increment != type(config).aux_increment and config.aux_start == config.aux_stop:
        raise UsageError("--aux-increment requires --aux-start and --aux-stop to differ")
    if config.cuda_graph == "on":
        if not config.device.startswith("cuda"):
            raise UsageError(f"--cuda-graph on needs a GPU, but the device is {config.device}")
        if config.accumulate > 1:
            raise UsageError("--cuda-graph on records whole batches: omit --accumulate")
        if config.recurrent_dropout:
            raise UsageError("--cuda-graph on excludes --recurrent-dropout")
    assert config.batch_size is not None
    if config.accumulate > config.batch_size:
        raise UsageError(
            f"--accumulate {config.accumulate} requests more parts than there are sequences in a batch "
            f"({config.batch_size})"
        )

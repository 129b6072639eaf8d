"""Options of training runs, and the options that each model declares."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Collection
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pyro_zf.models import MODELS, SequenceModel
from pyro_zf.names import nearest

__all__ = [
    "docs_of",
    "has_type",
    "meant",
    "misplaced",
    "model_class",
    "option_types",
    "systems_with",
]


def model_class(name: str) -> type[SequenceModel]:
    """Return the class of a model. The name must be valid; it is checked elsewhere."""
    return MODELS[name]


def option_types(name: str) -> dict[str, Any]:
    """Return the options of a model with their types."""
    options = model_class(name).Options
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def systems_with(option: str) -> list[str]:
    """Return the names of the models that have an option."""
    return [name for name in MODELS if option in option_types(name)]


#: Names that other programs, or earlier versions, use for options.
_ALIASES = {
    "batch": ("batch_size",), "bs": ("batch_size",), "cuda": ("device",), "gpu": ("device",),
    "epochs": ("max_epochs",), "iterations": ("max_updates",), "updates": ("max_updates",),
    "max_steps": ("max_updates",), "k": ("num_samples", "num_particles"),
    "lr": ("learning_rate",), "minutes": ("max_minutes",), "n": ("number",), "num": ("number",),
    "o": ("output_dir", "output"), "out": ("output_dir", "output"), "output": ("output_dir",),
    "particles": ("num_particles",), "samples": ("num_samples", "number"), "z_dim": ("latent_size",),
    "hidden": ("hidden_size",), "warmup_steps": ("warmup_updates",), "dtype": ("precision",),
    "checkpoint": ("resume",), "name": ("output_dir",),
}  # fmt: skip


def meant(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown option: the option that was probably meant, or nothing."""
    wanted = next((other for other in _ALIASES.get(name.lower(), ()) if other in known), name)
    return nearest(wanted.replace("_", "-"), [x.replace("_", "-") for x in known], "--{}")


def misplaced(option: str, model: str, known: list[str]) -> str:
    """Message for an option that does not apply to training or to a model.

    It names the models that have this option or, if there are none, the closest known option.
    """
    flag = "--" + option.replace("_", "-")
    if others := systems_with(option):
        hint = "; use --aux NAME=WEIGHT for other models" if option in ("alpha", "beta") else ""
        return f"{flag} is an option of {', '.join(others)}, not of {model}{hint}"
    return f"there is no option {flag}{meant(option, [*known, *option_types(model)])}"


@functools.cache
def docs_of(options: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass, including inherited fields."""
    docs: dict[str, str] = {}
    for cls in reversed(options.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):  # defined interactively, so there is no source
            continue
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value that was read from JSON has a type."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(has_type(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:  # tuple[str, ...], which JSON stores as a list
        return isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))

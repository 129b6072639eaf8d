"""Checkpoints: tensors and plain types, whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from pyro_zf.data.datasets import DataError

__all__ = [
    "load_checkpoint",
    "load_weights",
    "random_state",
    "restore_random_state",
    "save_checkpoint",
]


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write to another file, then rename: a reader finds the old one or the new one, never half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto a device; nothing in it is executed.

    Raises:
        DataError: if the file is damaged or no checkpoint.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # what an unpickler raises on a damaged file is not documented
        raise DataError(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return content


def load_weights(model: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        DataError: if they are not weights of that model.
    """
    try:
        model.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{path} and config.json beside it are of different models") from error


def random_state() -> dict[str, Any]:
    """State of PyTorch's random number generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo what has been drawn since :func:`random_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    for index, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), index)

"""Checkpoints of tensors and plain types, which are written atomically."""

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
    """Save a checkpoint atomically.

    The content is written to a temporary file that is then renamed, so a reader never sees a partial file.
    """
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
    """Load a checkpoint onto a device. No code in the file is executed.

    Raises:
        DataError: if the file is damaged or is not a checkpoint.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (
        Exception
    ) as error:  # the exceptions that unpickling a damaged file raises are undocumented
        raise DataError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a checkpoint: it contains a {type(content).__name__}")
    return content


def load_weights(model: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        DataError: if the weights do not fit the model.
    """
    try:
        model.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{path} and its config.json belong to different models") from error


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's random number generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore a state of the random number generators that :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    for index, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), index)

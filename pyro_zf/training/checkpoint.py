"""Checkpoints of tensors and plain types, which are written atomically."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from pyro_zf.data.datasets import DataError

log = logging.getLogger(__name__)

__all__ = [
    "load_checkpoint",
    "load_last",
    "load_weights",
    "previous_of",
    "random_state",
    "restore_random_state",
    "save_checkpoint",
]


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save a checkpoint atomically.

    The content is written to a temporary file that is then renamed, so a reader never sees a partial file.
    A checkpoint that is replaced is kept as :func:`previous_of` it.

    Raises:
        OSError: if it cannot be written; the checkpoint that was there is unchanged.
    """
    for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            # PyTorch's own writer does not say which error of the system has stopped it.
            buffer = io.BytesIO()
            torch.save(content, buffer)
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        if path.name == "last.pt" and path.exists():
            kept = path.with_name(f".{path.name}.kept")
            try:
                os.link(path, kept)
            except OSError:  # a file system without links
                shutil.copyfile(path, kept)
            os.replace(kept, previous_of(path))
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def previous_of(path: Path) -> Path:
    """Path of the checkpoint that was saved before the last one."""
    return path.with_name("previous.pt")


def load_last(path: Path, device: torch.device) -> dict[str, Any]:
    """Load the last checkpoint of a run, or the one before if it is damaged.

    Raises:
        DataError: if both are damaged or missing.
    """
    try:
        return load_checkpoint(path, device)
    except DataError as error:
        try:
            content = load_checkpoint(previous_of(path), device)
        except DataError:
            raise error from None
        log.warning("%s; the one before it, of update %s, is used", error, content.get("update"))
        return content


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Load a checkpoint onto a device. No code in the file is executed.

    The checksums of the file are verified first.

    Raises:
        DataError: if the file is missing, is damaged or is not a checkpoint.
    """
    if not path.is_file():
        raise DataError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # what damage raises is not documented
        raise DataError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__})"
        ) from error
    if damaged is not None:
        raise DataError(f"{path} is damaged: the checksum of {damaged} does not match")
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
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not fit this {type(model).__name__}{_difference(model, checkpoint)}: the settings or "
            "the model argument are those of another model, or an earlier version has written the file"
        ) from error


def _difference(model: torch.nn.Module, checkpoint: dict[str, Any]) -> str:
    """The first parameter that differs, in parentheses."""
    saved, own = checkpoint.get("model"), model.state_dict()
    if not isinstance(saved, dict):
        return ""
    for name in [*own, *saved]:
        shapes = [tuple(x[name].shape) if name in x else None for x in (saved, own)]
        if shapes[0] != shapes[1]:
            there, here = ("is missing" if s is None else f"has shape {s}" for s in shapes)
            return f" ({name} {there} there and {here} here)"
    return ""


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's random number generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore a state of the random number generators that :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    for index, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), index)

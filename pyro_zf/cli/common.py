"""Functionality shared by the commands: options for a trained run, error handling and exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pyro_zf.data import DataError, Splits
from pyro_zf.models import SequenceModel
from pyro_zf.training import (
    Interrupted,
    ProcessLost,
    TrainConfig,
    TrainingError,
    UsageError,
    load_run,
    resolve_device,
)

__all__ = ["RunOptions", "at_least_one", "first_line", "load", "print_anywhere", "run_command"]


@dataclass(frozen=True)
class RunOptions:
    """Selection of a trained model and of the device to run it on."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of the trained model."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint to load: best (in validation) or last."""
    data_dir: Path | None = None
    """Folder with the data sets, if they have moved since training."""
    data: Path | None = None
    """Path of your own data, if they have moved since training."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""


def load(options: RunOptions) -> tuple[TrainConfig, Splits, SequenceModel, int, torch.device]:
    """Load the settings, the data, the model in evaluation mode, its number of updates and the device."""
    device = resolve_device(options.device)
    loaded = load_run(options.run, options.checkpoint, device, options.data_dir, options.data)
    return *loaded, torch.device(device)


def at_least_one(config: Any, *names: str) -> None:
    """Reject numbers below one.

    Raises:
        UsageError: for the first such number.
    """
    for name in names:
        value = getattr(config, name)
        flag = f"--{name.replace('_', '-')}"
        if value is not None and value < 1:
            raise UsageError(f"{flag} must be at least 1, got {value}")
        if value is not None and value > 10**7:
            raise UsageError(f"{flag} must be at most 10,000,000, got {value}")


class Printable(logging.Formatter):
    """Formats entries of the log without control characters, which names from files may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def printable(text: str) -> str:
    """A text whose control characters are escaped, apart from line ends and tabs."""
    return "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") or c == "\N{ZERO WIDTH JOINER}"
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )  # fmt: skip


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def first_line(error: Exception) -> str:
    """The message of an error, without the shapes of a trace that Pyro appends to it."""
    return str(error).strip().partition("\n")[0].strip()


def print_anywhere() -> None:
    """Let texts with characters that the terminal cannot show be printed, with these characters escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(command: Callable[[], None]) -> int:
    """Run a command, which includes parsing its command line, and return its exit code.

    Exit codes: 0 success, 1 training failed, 2 invalid usage or data, 130 interrupted.
    """
    print_anywhere()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C, wherever they arrive
        if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, name), _interrupt)
    # Of several processes that torchrun has started, the first one speaks for all.
    first = os.environ.get("RANK", "0") == "0"
    spoken = nullcontext() if first else redirect_stdout(io.StringIO())
    try:
        with spoken:
            command()
    except (UsageError, DataError) as error:
        if first:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        print("error: there is not enough memory; try smaller sizes or batches", file=sys.stderr)
        return 1
    except OSError as error:  # no space, no permission, a folder in place of a file ...
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {printable(f'{error.strerror or error}{where}')}", file=sys.stderr)
        return 2
    except TrainingError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except ProcessLost as error:
        if error.first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # the libraries would wait for the process that is gone
    except Interrupted as error:
        if first:
            print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0

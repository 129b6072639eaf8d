"""Command-line interface.

Exit codes: 0 success, 1 training failed, 2 invalid usage or data, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pyro
import torch

from pyro_zf import __version__
from pyro_zf.cli.evaluate import evaluate_main
from pyro_zf.cli.export import export_main
from pyro_zf.cli.generate import generate_main, interpolate_main
from pyro_zf.cli.report import report_main
from pyro_zf.cli.reproduce import reproduce_main
from pyro_zf.cli.train import prepare_main, train_main
from pyro_zf.names import there_are

__all__ = [
    "COMMANDS",
    "evaluate_main",
    "export_main",
    "generate_main",
    "interpolate_main",
    "main",
    "prepare_main",
    "report_main",
    "reproduce_main",
    "train_main",
]

#: Subcommands of ``pyro-zf``.
COMMANDS: dict[str, Callable[[Sequence[str] | None], int]] = {
    "train": train_main,
    "evaluate": evaluate_main,
    "generate": generate_main,
    "interpolate": interpolate_main,
    "report": report_main,
    "export": export_main,
    "reproduce": reproduce_main,
    "prepare": prepare_main,
}

SUMMARIES = {
    "train": "train a model on a data set of the papers or on your own data",
    "evaluate": "compute bounds and diagnostics of a trained model",
    "generate": "generate, continue or reconstruct sequences",
    "interpolate": "interpolate between the latents of two sequences",
    "report": "summarise one or more runs on an HTML page",
    "export": "write the weights of a model with a model card",
    "reproduce": "train the models of a table or figure of the papers",
    "prepare": "download and convert a data set in advance",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyro-zf COMMAND ...`` and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    if argv[:1] == ["--version"]:
        print(f"pyro_zf {__version__}, torch {torch.__version__}, Pyro {pyro.__version__}")
        return 0
    if argv and argv[0] not in ("-h", "--help"):
        print(f"error: {there_are(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    print("usage: pyro-zf COMMAND [OPTIONS]\n")
    for name, what in SUMMARIES.items():
        print(f"  {name:<13}{what}")
    print(
        "\npyro-zf COMMAND --help lists the options of a command, pyro-zf --version the versions."
    )
    return 0 if argv else 2

"""Command-line interface.

Exit codes: 0 success, 1 training failed, 2 invalid usage or data, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from pyro_zf.cli.evaluate import evaluate_main
from pyro_zf.cli.export import export_main
from pyro_zf.cli.generate import generate_main, interpolate_main
from pyro_zf.cli.report import report_main
from pyro_zf.cli.reproduce import reproduce_main
from pyro_zf.cli.train import prepare_main, train_main

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyro-zf COMMAND ...`` and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        print(
            f"usage: pyro-zf {{{','.join(COMMANDS)}}} [options]; COMMAND --help lists the options",
            file=sys.stderr,
        )
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    return COMMANDS[argv[0]](argv[1:])

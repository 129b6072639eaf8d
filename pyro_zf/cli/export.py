"""``export.py``: export the weights of a trained model with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyro_zf.cli.common import run_command
from pyro_zf.cli.parsing import parsed
from pyro_zf.training.export import CARD, export

__all__ = ["ExportConfig", "export_main"]

EXAMPLES = ("python scripts/export.py RUN weights/mnist",)


@dataclass(frozen=True)
class ExportConfig:
    """Write the best model of a run to a folder, as safetensors with its settings, and a model card.

    pyro_zf.load() reads the folder or the file."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of the trained model."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Folder to write to."""


def export_main(argv: Sequence[str] | None = None) -> int:
    """``export.py``: see :class:`ExportConfig`."""
    return run_command(lambda: _export(parsed(ExportConfig, argv, "export.py", EXAMPLES)))


def _export(config: ExportConfig) -> None:
    path = export(config.run, config.folder)
    print(f"wrote: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"wrote: {path.with_name(CARD)}")

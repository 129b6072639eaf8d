"""What a run leaves in its folder: metrics.jsonl, TensorBoard events, summary.json."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

__all__ = ["Record", "json_text", "read_metrics", "write_text"]


class Record:
    """Writes the events of a run, one a line, and their numbers to TensorBoard.

    Args:
        run: the run folder.
        last_step: events after this update are of a session that was cut off before it saved; they
            are dropped, and so is the test of a session that had ended.
    """

    def __init__(self, run: Path, last_step: int | None = None) -> None:
        self.path = run / "metrics.jsonl"
        if last_step is not None and self.path.exists():
            kept = [
                event
                for event in read_metrics(run)
                if event["step"] <= last_step and event["event"] != "test"
            ]
            text = "".join(json.dumps(event) + "\n" for event in kept)
            write_text(self.path, text)
        self._board = SummaryWriter(
            str(run), purge_step=None if last_step is None else last_step + 1
        )

    def write(self, event: str, step: int, **numbers: Any) -> None:
        """One event with its numbers; their names carry the unit."""
        line = json_text({"event": event, "step": step, **numbers})
        with self.path.open("a") as file:
            file.write(line + "\n")
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The events of a run. A last line that was cut off is left out."""
    events = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def json_text(content: dict[str, Any], indent: int | None = None) -> str:
    """JSON, in which a number that is none (the standard error of one value) is null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()
    }
    return json.dumps(finite, indent=indent, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole: a reader finds the old one or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)

"""Files that a run writes to its folder: metrics.jsonl, TensorBoard events and summary.json."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pyro_zf.data.datasets import DataError
from pyro_zf.data.vocabulary import without_surrogates

log = logging.getLogger(__name__)

__all__ = ["NoRecord", "Record", "json_text", "read_json", "read_metrics", "write_text"]


class Record:
    """Writes the events of a run to metrics.jsonl, one per line, and their metrics to TensorBoard.

    Args:
        run: the run folder.
        last_update: last update of a run that is resumed. Later events come from a session that was interrupted
            before it saved a checkpoint; they are dropped, as is the test event of a session that had
            finished.
        validating: whether the validation after that update is repeated.
    """

    def __init__(self, run: Path, last_update: int | None = None, validating: bool = False) -> None:
        self.path = run / "metrics.jsonl"
        if last_update is not None and self.path.exists():
            kept = [
                event
                for event in read_metrics(run)
                if event["update"] <= last_update
                and event["event"] != "test"
                and not (
                    validating and event["event"] == "valid" and event["update"] == last_update
                )
            ]
            text = "".join(json.dumps(event) + "\n" for event in kept)
            write_text(self.path, text)
        step = None if last_update is None else last_update + 1
        self._board: SummaryWriter | None = None
        try:
            self._board = SummaryWriter(str(run), purge_step=step)
        except UnicodeEncodeError:  # TensorBoard takes no folder whose name is not UTF-8
            log.warning("no TensorBoard events: the name of the run folder is not valid UTF-8")

    def write(self, event: str, update: int, **numbers: Any) -> None:
        """Write an event with its metrics, whose names include the unit."""
        line = json_text({"event": event, "update": update, **numbers})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in numbers.items():
            if self._board and isinstance(value, (int, float)) and math.isfinite(value):
                self._board.add_scalar(f"{event}/{name}", value, update)

    def close(self) -> None:
        """Close the file of TensorBoard, if there is one."""
        if self._board:
            self._board.close()


class NoRecord:
    """Writes nothing: the record of all processes but the first."""

    def write(self, event: str, update: int, **numbers: Any) -> None: ...

    def close(self) -> None: ...


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the events of a run. A last line that was not written completely is left out.

    Raises:
        DataError: if another line is damaged.
    """
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    events = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            event = json.loads(line.decode("utf-8"))
            if not isinstance(event["event"], str) or type(event["update"]) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if i == len(lines) - 1:  # no line end: the writer was killed
                log.warning("the last line of %s is incomplete and left out", path)
                continue
            raise DataError(
                f"{path} is damaged in line {i + 1}: restore the file, or delete that line"
            ) from error
        events.append(event)
    return events


def read_json(path: Path, needed: Sequence[str] = (), hint: str = "restore it") -> dict[str, Any]:
    """Read a JSON object from a file of a run folder.

    Args:
        path: the file.
        needed: entries that it must have.
        hint: what to do if it is damaged.

    Raises:
        DataError: if it is not valid.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}): {hint}") from error
    if not isinstance(content, dict) or not set(needed) <= set(content):
        raise DataError(f"{path} is damaged: it lacks entries; {hint}")
    return content


def json_text(content: dict[str, Any], indent: int | None = None) -> str:
    """Serialise to JSON. Non-finite numbers, such as the standard error of one value, become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace non-finite numbers by None at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(x) for k, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees either the old or the new content.

    Raises:
        OSError: if it cannot be written, or the path names a folder.
    """
    if not path.name:  # such as "." or "/", which have no name to derive a temporary one from
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(without_surrogates(text), encoding="utf-8")
    os.replace(temporary, path)

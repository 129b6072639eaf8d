"""Fixtures with small data sets of known content."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

Serve = Callable[..., str]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, without any other data folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PYRO_ZF_CACHE", str(folder))
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Function that starts a local HTTP server for a folder and returns its address."""
    servers = []

    def start(folder: Path, handler: type = http.server.SimpleHTTPRequestHandler) -> str:
        class Quiet(handler):  # type: ignore[misc, valid-type]
            def log_message(self, *args: object) -> None: ...

        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def tone(seconds: float, rate: int = 16000, pitch: float = 220.0) -> np.ndarray:
    """A sine wave with an amplitude of half the full scale."""
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def write_sounds(folder: Path, number: int = 4, seconds: float = 1.0, rate: int = 16000) -> Path:
    """Write a folder of tones, one per file."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        soundfile.write(folder / f"tone{i}.wav", tone(seconds, rate, 110.0 * (i + 1)), rate)
    return folder

"""Search paths for data, and downloads."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from pyro_zf.data.datasets import DataError

__all__ = ["cache_dir", "fetch", "find", "find_corpus", "locked", "search_dirs"]

log = logging.getLogger(__name__)

#: Environment variable that names a folder with data.
DATA_VARIABLE = "PYRO_ZF_DATA"
#: Environment variable that names the folder for downloads and prepared data.
CACHE_VARIABLE = "PYRO_ZF_CACHE"
#: Environment variable that disables downloads.
OFFLINE_VARIABLE = "PYRO_ZF_OFFLINE"
#: Maximum number of consecutive attempts per URL without progress.
ATTEMPTS = 2


def cache_dir() -> Path:
    """Folder for downloads and prepared data: ``$PYRO_ZF_CACHE`` if it is set, otherwise the user cache."""
    import pooch

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path(pooch.os_cache("pyro_zf"))


def search_dirs(data_dir: Path | str | None) -> list[Path]:
    """Folders to search: ``data_dir`` if given, then ``$PYRO_ZF_DATA`` if set, then the cache.

    Raises:
        DataError: if one of the first two is not a folder.
    """
    named = [("--data-dir", data_dir), (f"${DATA_VARIABLE}", os.environ.get(DATA_VARIABLE))]
    dirs = []
    for origin, folder in named:
        if folder:
            path = Path(folder).expanduser()
            if not path.is_dir():
                raise DataError(f"{origin} names {path}, which is not a folder")
            dirs.append(path)
    return [*dirs, cache_dir()]


def find(dirs: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Find the first existing file or folder with one of the names, ignoring case.

    Names may include folders (``"imdb/aclImdb_v1.tar.gz"``).
    """
    for folder in dirs:
        for name in names:
            found: Path | None = folder
            for part in name.split("/"):
                found = None if found is None else _entry(found, part)
            if found is not None:
                return found
    return None


def find_corpus(data_dir: Path | str | None, what: str, names: Sequence[str], origin: str) -> Path:
    """Find a corpus that cannot be downloaded.

    If ``data_dir`` is given, only this folder is searched, and it is itself returned if it contains none of
    the names. Otherwise the remaining search path is used.

    Raises:
        DataError: if the corpus is not found; ``origin`` tells the user how to obtain it.
    """
    dirs = search_dirs(data_dir)
    found = find(dirs[:1] if data_dir is not None else dirs, names)
    if found is not None or data_dir is not None:
        return found or dirs[0]
    raise DataError(
        f"no {what} in {', '.join(map(str, dirs))} (looked for {', '.join(names)}): {origin}; specify "
        "the folder of your copy with --data-dir"
    )


def _entry(folder: Path, name: str) -> Path | None:
    exact = folder / name
    if exact.exists():
        return exact
    try:
        return next((p for p in folder.iterdir() if p.name.lower() == name.lower()), None)
    except OSError:
        return None


def locked(folder: Path, name: str) -> BaseFileLock:
    """Inter-process lock for the creation of a file in a folder, to be used in a ``with`` block."""
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{name}.lock")


def fetch(urls: Sequence[str], sha256: str, folder: Path, name: str) -> Path:
    """Download ``name`` into a folder from the first URL that provides the correct file.

    The file has a temporary name until its hash has been verified. Interrupted downloads, including those of
    a killed process, are resumed if the server supports it. If several processes request the same file, one
    downloads it and the others wait.

    Raises:
        DataError: if all URLs fail; the message contains the last reason and instructions for a manual
            download.
    """
    import pooch
    import requests

    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise DataError(
            f"{name} is not in {folder}, and ${OFFLINE_VARIABLE} disables downloads; "
            f"{_by_hand(urls, folder)}"
        )
    reason = "no URL is known"
    try:
        with locked(folder, name):
            partial = folder / f".{name}.{sha256[:8]}.partial"
            for url in urls:
                # A partial file left by a killed process may be wrong; then try once more from the start.
                for _ in range(2 if partial.exists() else 1):
                    try:
                        return Path(
                            pooch.retrieve(
                                url, known_hash=f"sha256:{sha256}", fname=name, path=folder,
                                downloader=_Resuming(partial),
                            )
                        )  # fmt: skip
                    except (requests.RequestException, ValueError) as error:
                        reason = f"{url}: {_brief(error)}"
                        with contextlib.suppress(FileNotFoundError):
                            partial.unlink()
                log.warning("%s", reason)
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / f".{name}.{sha256[:8]}.partial").unlink()
        reason = f"{folder}: {error.strerror or error}"
    raise DataError(f"could not download {name} ({reason}); {_by_hand(urls, folder)}")


def _by_hand(urls: Sequence[str], folder: Path) -> str:
    where = f" ({urls[0]})" if urls else ""
    return f"to install it manually, place the file{where} in {folder}"


class _Resuming:
    """A downloader for pooch that resumes interrupted downloads.

    Args:
        partial: the partially downloaded file.
    """

    def __init__(self, partial: Path) -> None:
        self.partial = partial

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        import requests

        failed = 0
        while True:
            before = self._there()
            try:
                self._download(url)
                break
            except (
                requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError,
                _Wrong,
            ):  # fmt: skip
                failed = 0 if self._there() > before else failed + 1
                if failed == ATTEMPTS:
                    raise
        with self.partial.open("rb") as file:
            if file.read(256).lstrip().lower().startswith((b"<!doctype", b"<html")):
                raise _Wrong("the server returned a web page")
        os.replace(self.partial, output_file)

    def _there(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _download(self, url: str) -> None:
        import requests

        there = self._there()
        # Without compression, the number of received bytes matches the size of the file.
        headers = {"Accept-Encoding": "identity"}
        if there:
            headers["Range"] = f"bytes={there}-"
        with requests.get(url, headers=headers, stream=True, timeout=20) as response:
            if response.status_code == 416:  # no bytes remain, so the hash is checked next
                return
            response.raise_for_status()
            goes_on = response.status_code == 206
            expected = response.headers.get("Content-Length")
            size = there if goes_on else 0
            total = None if expected is None else size + int(expected)
            with self.partial.open("ab" if goes_on else "wb") as file:
                for piece in response.iter_content(2**13):
                    file.write(piece)
                    size += len(piece)
            if total is not None and size < total:
                raise _Wrong(f"the connection was lost after {size} of {total} bytes")


class _Wrong(ValueError):
    """The server returned an incomplete or wrong file."""


def _brief(error: Exception) -> str:
    import requests

    if isinstance(error, _Wrong):
        return str(error)
    if isinstance(error, ValueError) and not isinstance(error, requests.RequestException):
        return "its SHA-256 does not match the published one"
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP status {response.status_code}"
    return f"{type(error).__name__}: the connection failed"

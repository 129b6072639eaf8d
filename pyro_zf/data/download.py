"""Where data are looked for, and how they are fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pyro_zf.data.datasets import DataError

__all__ = ["cache_dir", "fetch", "search_dirs"]

#: Environment variable with a folder of data.
DATA_VARIABLE = "PYRO_ZF_DATA"
#: Environment variable that keeps the package from going to the network.
OFFLINE_VARIABLE = "PYRO_ZF_OFFLINE"


def cache_dir() -> Path:
    """The user's cache of this package."""
    import pooch

    return Path(pooch.os_cache("pyro_zf"))


def search_dirs(data_dir: Path | None) -> list[Path]:
    """Folders to look in: the one given, else that of ``$PYRO_ZF_DATA``; then the cache.

    Raises:
        DataError: if a folder that was named does not exist.
    """
    named = [("--data-dir", data_dir), (f"${DATA_VARIABLE}", os.environ.get(DATA_VARIABLE))]
    dirs = []
    for origin, folder in named:
        if folder:
            path = Path(folder).expanduser()
            if not path.is_dir():
                raise DataError(f"{origin} names {path}, which is no folder")
            dirs.append(path)
    return [*dirs, cache_dir()]


def fetch(urls: Sequence[str], sha256: str, folder: Path, name: str) -> Path:
    """Download ``name`` into a folder from the first address that gives the right bytes.

    The file is written under another name and renamed once its hash is right, so that a broken
    connection leaves nothing behind.

    Raises:
        DataError: if no address does; one line with the last reason and the way to do it by hand.
    """
    import pooch
    import requests

    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise DataError(f"{name} is not in {folder}, and ${OFFLINE_VARIABLE} forbids a download")
    reason = "no address is known"
    for url in urls:
        try:
            return Path(
                pooch.retrieve(
                    url, known_hash=f"sha256:{sha256}", fname=name, path=folder,
                    downloader=pooch.HTTPDownloader(timeout=20, progressbar=False),
                )
            )  # fmt: skip
        except (requests.RequestException, ValueError, OSError) as error:
            reason = f"{url}: {_brief(error)}"
    raise DataError(
        f"could not download {name} ({reason}); to place it by hand, put it into {folder}"
    )


def _brief(error: Exception) -> str:
    if isinstance(error, ValueError):
        return "its sha256 is not the published one"
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    return type(error).__name__

"""What must be set before anything is imported, notebooks and doctests included."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NOTEBOOK_UPDATES", "1")

#: Notebooks that need data which cannot be had everywhere.
NEEDED = {"04_speech.ipynb": "speech", "05_text.ipynb": "ptb"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip notebooks whose data are missing. In continuous integration they fail instead."""
    folder = Path(os.environ.get("PYRO_ZF_DATA", "/nowhere"))
    for item in items:
        needed = NEEDED.get(item.path.name)
        if needed and not (folder / needed).exists() and not os.environ.get("CI"):
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} in $PYRO_ZF_DATA"))

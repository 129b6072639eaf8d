"""Execute the notebooks in place, and note which code their outputs come from.

    python notebooks/run.py                # all
    python notebooks/run.py 05_text        # some of them
    python notebooks/run.py --check        # whether the outputs are those of the code

``NOTEBOOK_UPDATES`` sets the number of updates of each training; the tests run the notebooks with 1.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def digest(notebook: Any) -> str:
    """Checksum of the code of a notebook."""
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def stale() -> list[str]:
    """Names of the notebooks whose outputs do not come from their code."""
    found = []
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        executed = all(cell.execution_count for cell in cells)
        if not executed or notebook.metadata.get("code_sha256") != digest(notebook):
            found.append(path.stem)
    return found


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": HERE}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in each run
        cell.pop("id", None)
        if "outputs-not-stored" in cell.metadata.get("tags", []):  # recordings, which are not ours
            cell.outputs = []
    notebook.metadata["code_sha256"] = digest(notebook)
    notebook.nbformat_minor = 4
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="names without .ipynb; by default all")
    parser.add_argument(
        "--check", action="store_true", help="end with 1 if an output is not that of the code"
    )
    options = parser.parse_args()
    if options.check:
        found = stale()
        if found:
            sys.exit(f"run python notebooks/run.py {' '.join(found)}")
        return
    for path in sorted(HERE.glob("*.ipynb")):
        if not options.names or path.stem in options.names:
            start = time.perf_counter()
            execute(path)
            minutes = (time.perf_counter() - start) / 60
            print(f"executed: {path.name} in {minutes:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()

"""Memory, open files and threads of a long training.

    python benchmarks/leaks.py [--updates 2000]

A training on sequences of different lengths, with validation and checkpoints, runs in a process of its own, whose
resident memory, open files and threads are read from ``/proc`` every quarter of a second. Printed are the slope of
the memory over the second half of the updates and the growth of the other two. The script ends with 1 if memory
grows by more than 2 % per 1,000 updates, or if there are more files or threads in the last quarter of the
training than in the second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np


def looked_at(process: int) -> tuple[float, int, int]:
    """Resident memory in megabytes, number of open files and number of threads."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    resident = float(status["VmRSS"].split()[0]) / 1024
    return resident, len(os.listdir(f"/proc/{process}/fd")), int(status["Threads"])


def updates_of(run: Path) -> int:
    """The last update in the metrics of a run."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1]).get("update", 0)) if lines else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=2000)
    updates = parser.parse_args().updates
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    with h5py.File(folder / "x.h5", "w") as file:
        for split, number in {"train": 2000, "valid": 60, "test": 60}.items():
            file[split] = rng.normal(size=(number, 40, 8)).astype("f4")
            file[f"{split}_lengths"] = rng.integers(1, 41, number)
    run = folder / "run"
    training = subprocess.Popen(
        [
            sys.executable, "-m", "pyro_zf.cli", "train", "--dataset", "hdf5", "--data", str(folder / "x.h5"),
            "--model", "zforcing", "--hidden-size", "64", "--latent-size", "8", "--mlp-size", "64",
            "--batch-size", "32", "--max-updates", str(updates), "--log-interval", "10", "--valid-interval", "200",
            "--num-figures", "0", "--checkpoint-minutes", "0.02", "--output-dir", str(run),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen = []
    while training.poll() is None:
        at = updates_of(run)
        if 0 < at < updates:  # the test at the end is left out
            with contextlib.suppress(KeyError, OSError):  # it has ended since
                seen.append((at, *looked_at(training.pid)))
        time.sleep(0.25)
    assert training.wait() == 0
    at, resident, files, threads = np.array(seen).T
    second, last = (at > updates / 4) & (at <= updates / 2), at > 3 * updates / 4
    half = at > updates / 2
    slope = 1000 * np.polyfit(at[half], resident[half], 1)[0]
    # Files are open for a moment while a checkpoint is written, so the usual number counts.
    more = {
        name: np.median(x[last]) - np.median(x[second])
        for name, x in (("files", files), ("threads", threads))
    }
    print(
        f"{updates} updates, {len(at)} looks: {resident[last].mean():.0f} MB; {slope:+.2f} MB per 1,000 updates; "
        f"files {np.median(files[last]):.0f} ({more['files']:+.0f}), "
        f"threads {np.median(threads[last]):.0f} ({more['threads']:+.0f})"
    )
    sys.exit(bool(slope > 0.02 * resident[last].mean() or max(more.values()) > 0))


if __name__ == "__main__":
    main()

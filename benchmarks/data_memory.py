"""Memory and speed of the loaders on data sets that are larger than the memory they may use.

    python benchmarks/data_memory.py --gigabytes 4

This script writes an HDF5 file and a tree of WAV files of that size to a temporary folder, and reads each
in a separate process, which prepares the data and then reads one shuffled epoch of training batches. The
table gives the peak resident memory of that process, its resident memory before loading (Python and
PyTorch), and the speed. There is no training, so the figures are those of the loader alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import soundfile

ROWS, STEPS, SIZE = 512, 40, 200  # rows per block; a row is half a second of speech


def make_hdf5(path: Path, size: int) -> None:
    """Write rows of single-precision noise, in chunks of 64 rows."""
    rng = np.random.default_rng(0)
    number = max(size // (STEPS * SIZE * 4 * ROWS), 1) * ROWS
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "x", (number, STEPS, SIZE), np.float32, chunks=(64, STEPS, SIZE)
        )
        for first in range(0, number, ROWS):
            array[first : first + ROWS] = rng.standard_normal((ROWS, STEPS, SIZE), dtype=np.float32)


def make_wav(folder: Path, size: int, longest: int = 256 * 2**20) -> None:
    """Write 16-bit noise as files of 1 to 256 MB in nested folders."""
    rng = np.random.default_rng(0)
    lengths = [2**20, 2**22, 2**25, longest]
    written, i = 0, 0
    while written < size or i < 3:
        length = min(lengths[i % len(lengths)], max(size - written, 2**20))
        path = folder / f"speaker{i % 7}" / f"{i:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as sound:
            for _ in range(length // 2**20):
                sound.write(rng.integers(-8000, 8000, 2**19, dtype=np.int16))
        written, i = written + length, i + 1


def rss() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(kind: str, path: str, batch_size: int) -> dict[str, float]:
    """Load the data and read one epoch; return times and memory."""
    from pyro_zf.data import load_hdf5, load_wav, make_batches

    before = rss()
    started = time.monotonic()
    splits = load_hdf5(path) if kind == "hdf5" else load_wav(path)
    loaded = time.monotonic()
    values = 0
    for batch in make_batches(splits.train, batch_size, seed=0).epoch(0):
        values += batch.inputs.numel()
    seconds = time.monotonic() - loaded
    return {
        "prepare_s": loaded - started, "read_s": seconds, "before_mb": before, "peak_mb": rss(),
        "sequences_per_s": len(splits.train) / seconds, "values": values,
    }  # fmt: skip


def measure(kind: str, gigabytes: float, folder: Path, batch_size: int) -> dict[str, float]:
    """Write the data, and read them in another process."""
    size = int(gigabytes * 2**30)
    path = folder / ("large.h5" if kind == "hdf5" else "sounds")
    make_hdf5(path, size) if kind == "hdf5" else make_wav(path, size)
    command = [sys.executable, __file__, "--read", kind, str(path), "--batch-size", str(batch_size)]
    environment = {**os.environ, "PYRO_ZF_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--kinds", nargs="+", default=["hdf5", "wav"], choices=["hdf5", "wav"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read[0], options.read[1], options.batch_size)))
        return
    results = {}
    print(
        f"{'data':>6} {'GB':>6} {'prepare s':>10} {'epoch s':>8} {'seq/s':>8} {'before MB':>10} {'peak MB':>8}"
    )
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            r = results[kind] = measure(kind, options.gigabytes, Path(folder), options.batch_size)
        print(
            f"{kind:>6} {options.gigabytes:6.2f} {r['prepare_s']:10.1f} {r['read_s']:8.1f} "
            f"{r['sequences_per_s']:8.0f} {r['before_mb']:10.0f} {r['peak_mb']:8.0f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

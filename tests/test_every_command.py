"""Every command with every kind of data, sequences of different lengths, and models of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pyro_zf.cli import COMMANDS
from pyro_zf.models import MODELS, ZForcing
from pyro_zf.nn import SmoothingPosterior, StandardNormalPrior
from pyro_zf.sequence import Latent

T = 7
#: Number of steps of each sequence; in every split one sequence alone reaches the last step.
LENGTHS = {"train": [3, 7, 1, 5, 6, 2] * 2, "valid": [4, 7, 2, 1], "test": [5, 1, 7, 3, 2]}


def arrays(kind: str, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return {
        "binary": rng.integers(0, 2, (number, T, 3)).astype(np.uint8),
        "real": rng.normal(size=(number, T, 3)).astype(np.float32),
        "counts": rng.poisson(3.0, (number, T, 3)),
        "categorical": rng.integers(0, 6, (number, T)),
    }[kind]


class Mine(ZForcing):
    """Z-Forcing with a latent of the whole sequence."""

    def __init__(self, data_size: int, **options: Any) -> None:
        super().__init__(data_size, sequence_latent_size=2, **options)
        self.of_sequence = StandardNormalPrior(2)
        self.of_sequence_posterior = SmoothingPosterior(0, self.backward_size, 2, mlp_size=5)

    @property
    def latents(self) -> dict[str, Latent]:
        own = Latent(self.of_sequence, self.of_sequence_posterior, 2, per="sequence")
        return {"style": own, **super().latents}


def finite(content: Any) -> bool:
    """Whether all numbers are finite, at any depth."""
    if isinstance(content, dict):
        return all(map(finite, content.values()))
    if isinstance(content, list):
        return all(map(finite, content))
    return not isinstance(content, float) or math.isfinite(content)


@pytest.mark.usefixtures("single_precision", "unchecked")
@pytest.mark.parametrize(
    ("kind", "model"),
    [*((kind, "mine") for kind in ("binary", "real", "counts", "categorical")), ("real", "rnn"),
     ("categorical", "rnn")],
)  # fmt: skip
def test_every_command(
    kind: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "mine", Mine)
    with h5py.File("mine.h5", "w") as file:
        for split, lengths in LENGTHS.items():
            file[split], file[f"{split}_lengths"] = arrays(kind, len(lengths)), lengths

    def run(command: str, *arguments: str) -> str:
        code = COMMANDS[command]([*arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "left out (" not in err
        return str(out)

    latents = MODELS[model].has_latents
    sizes = ["--hidden-size", "6", "--mlp-size", "5", *(["--latent-size", "2"] * latents)]
    run(
        "train", "--dataset", "hdf5", "--data", "mine.h5", "--model", model, *sizes, "--batch-size", "5",
        "--max-updates", "6", "--log-interval", "2", "--valid-interval", "3", "--num-figures", "3",
        "--output-dir", "run",
    )  # fmt: skip
    filtering = ["--fivo"] * latents
    printed = run("evaluate", "run", "--num-samples", "3", *filtering).splitlines()[-1]
    result = json.loads(printed)
    assert finite(result)
    if latents:
        assert None in result["fivo_nats_at_steps_stderr"], "one sequence alone reaches a step"
        assert len(result["kl_nats_at_steps"]) == T, "a latent of the whole sequence has no step"
    run("generate", "run", "--number", "3")
    run("generate", "run", "--task", "continue", "--number", "3", "--variants", "2")
    if latents:
        run("generate", "run", "--task", "reconstruct", "--number", "3")
        run("generate", "run", "--task", "resample", "--number", "3", "--variants", "2")
        run("interpolate", "run", "--pairs", "1", "--points", "3")
    run("report", "run")
    assert Path("run/report.html").read_text(encoding="utf-8").count("<h2>") == 1
    with h5py.File("run/generated/continue.h5") as file:
        assert np.isfinite(file["continued 1"][...].astype(float)).all()
    events = [json.loads(x) for x in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {e["event"] for e in events} == {"train", "valid", "test"}
    assert finite(events)

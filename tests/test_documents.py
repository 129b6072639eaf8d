"""What the README and the benchmarks show, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import TraceMeanField_ELBO, batch_bounds
from pyro_zf.models import MODELS
from pyro_zf.nn import PRIORS

ROOT = Path(__file__).parent.parent


@pytest.mark.usefixtures("single_precision")
def test_python_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["digits"].shape == (16, 28, 28)
    names["zf"].name = "variant"
    names["pyro"].infer.Trace_ELBO().loss(names["zf"].model, names["zf"].guide, names["batch"])


@pytest.mark.usefixtures("single_precision")
def test_the_example_of_own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior and a guide of one's own, by the stock trainer, as the page has it."""
    pytest.importorskip("mlxtend")
    text = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    program = program.replace("max_steps=100", "max_steps=12").replace("=500", "=60")
    monkeypatch.chdir(tmp_path)
    # Set here, so that they are gone afterwards; the page sets them again.
    monkeypatch.setitem(PRIORS, "student", torch.nn.Identity)
    monkeypatch.setitem(MODELS, "independent", ZForcing)
    names: dict[str, Any] = {}
    exec(program, names)
    assert (tmp_path / "runs" / "independent" / "figures" / "samples.png").is_file()
    model = names["IndependentZForcing"](28, latent_size=2, hidden_size=4, mlp_size=4)
    assert names["summary"]["test_kl_nats_per_sequence"] > 0
    # Its KL is known step by step, and its weight is annealed like any other.
    batch = SequenceBatch.from_targets(torch.ones(3, 5, 28))
    names["pyro"].clear_param_store()
    assert batch_bounds(model.model, model.guide, batch).kl_per_step.shape == (3, 5)
    model.kl_weight = 0.0
    model.loss_module(TraceMeanField_ELBO())(batch).backward()
    assert all(p.grad.abs().max() == 0 for p in model.prior.parameters())


def test_the_readme_has_both_quickstarts() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("run", "test"):
        assert re.search(rf"<!-- quickstart:{name} -->\n```bash\npip install -e ", text)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_memory_of_the_loaders(tmp_path: Path) -> None:
    """Data of 400 MB, of which far less is kept; the whole run is --gigabytes 4."""
    results = tmp_path / "memory.json"
    command = [sys.executable, "benchmarks/data_memory.py", "--gigabytes", "0.4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--json", str(results)],
        check=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
    )
    for figures in json.loads(results.read_text()).values():
        assert figures["values"] > 80_000_000
        assert figures["peak_mb"] - figures["before_mb"] < 350


@pytest.mark.usefixtures("single_precision")
def test_the_comparison_of_models(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    command = [
        sys.executable, str(ROOT / "benchmarks" / "compare_models.py"), "--updates", "2",
        "--train-sequences", "100", "--test-sequences", "40", "--num-samples", "2",
        "--systems", "RNN", "VRNN", "--output", str(tmp_path / "comparison"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "PYRO_ZF_DATA"}
    subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["system"] for row in rows] == ["RNN", "VRNN"]
    assert rows[0]["kl"] == 0 < rows[1]["kl"]
    assert (tmp_path / "comparison.md").read_text().count("\n") == 4
    command[command.index("2")] = "3"
    other = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert other.returncode == 1
    assert "is a run with max_steps 2, not 3: remove it" in other.stderr
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_benchmark_of_an_update(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "train_step.py"),
        "--config", "mnist-row", "--repetitions", "1", "--output", str(output),
    ]  # fmt: skip
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds = json.loads(output.read_text())["seconds"]
    assert set(seconds) == {"layout steps", "layout time", "two bare nn.LSTM"}
    assert all(name in table for name in seconds)

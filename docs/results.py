"""The pages ``docs/results.md`` and ``docs/small_results.md``, from the files that the commands write.

    python docs/results.py --run SECTION LABEL RUN    # store the results of a run folder
    python docs/results.py --table TABLE.md           # store a table of reproduce.py, with its JSON and its picture
    python docs/results.py --defaults FILE.json       # store the figures of benchmarks/defaults.py, of some or all systems
    python docs/results.py                            # write the pages and their pictures anew

``benchmarks/results.sh`` trains the models.

What the pages need is stored in ``docs/results/``: ``runs.json`` has the settings, curve, test and evaluations of each
run, and a run with the section and label of an earlier one replaces it. The command of a run is derived from its
settings whenever the page is written, so it names what the presets of today do not say.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pyro_zf.analysis import bound_in_training
from pyro_zf.analysis.report import best_evaluations, summary_diagnostics, with_error
from pyro_zf.reproduce import TABLES
from pyro_zf.reproduce.results import markdown_table, with_spread
from pyro_zf.training import TrainConfig, read_config, read_metrics, resolve
from pyro_zf.training.config import command_of
from pyro_zf.training.evaluation import read_evaluations
from pyro_zf.training.record import json_text, read_json

FOLDER = Path(__file__).parent
STORED, PICTURES = FOLDER / "results", FOLDER / "_static"
PAGES = (FOLDER / "results.md", FOLDER / "small_results.md")
RUNS, DEFAULTS = STORED / "runs.json", STORED / "defaults.json"
KEPT = (
    "num_sequences", "num_samples", "elbo_nats_per_sequence", "elbo_nats_per_sequence_stderr",
    "iwae_nats_per_sequence", "iwae_nats_per_sequence_stderr", "kl_nats_per_sequence",
    "kl_nats_per_sequence_stderr", "active_units", "latent_units", "diagnosed_sequences",
    "shuffled_loss_nats_per_sequence", "elbo_perplexity", "iwae_perplexity", "elbo_bits_per_character",
    "iwae_bits_per_character",
)  # fmt: skip


def content_of(run: Path, section: str, label: str) -> dict[str, Any]:
    """What is kept of a run."""
    summary, config = read_json(run / "summary.json"), read_config(run)
    test = summary_diagnostics(summary)
    every = read_evaluations(run)
    evaluations, train = best_evaluations(summary, every), best_evaluations(summary, every, "train")
    return {
        "section": section,
        "label": label,
        "config": settings_of(config),
        "data": summary["data"],
        "has_latents": summary["has_latents"],
        "kind": summary["kind"],
        "unit": summary["unit"],
        "seed": config.seed,
        "parameters": summary["num_parameters"],
        "updates": summary["updates"],
        "best": summary["best_update"],
        "minutes": round(summary["training_seconds"] / 60, 1),
        "test": {k: test[k] for k in KEPT if test.get(k) is not None},
        "evaluations": [{k: e[k] for k in KEPT if e.get(k) is not None} for e in evaluations],
        "train": [{k: e[k] for k in KEPT if e.get(k) is not None} for e in train],
        "curve": [
            [
                e["update"],
                round(e["elbo_nats_per_sequence"], 2),
                round(e["kl_nats_per_sequence"], 2),
            ]
            for e in read_metrics(run)
            if e["event"] == "valid"
        ],
    }


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run as in its ``config.json``, without those of the machine."""
    here = {"output_dir": None, "resume": None, "data_dir": None, "device": "cpu", "workers": None}
    settings: dict[str, Any] = json.loads(dataclasses.replace(config, **here).to_json())
    return settings


def command(run: dict[str, Any]) -> str | None:
    """The command line of a stored run."""
    return command_of(TrainConfig.from_json(json.dumps(run["config"]), str(RUNS)))


def store_run(section: str, label: str, run: Path) -> None:
    known: list[dict[str, Any]] = json.loads(RUNS.read_text(encoding="utf-8"))
    others = [x for x in known if (x["section"], x["label"]) != (section, label)]
    text = json_text([*others, content_of(run, section, label)], indent=1)
    RUNS.write_text(text + "\n", encoding="utf-8")


def store_table(path: Path) -> None:
    for suffix, folder in ((".md", STORED), (".json", STORED), (".png", PICTURES)):
        shutil.copy(path.with_suffix(suffix), folder / f"{path.stem}{suffix}")


def store_defaults(path: Path) -> None:
    text = json_text({**read_json(DEFAULTS), **read_json(path)}, indent=2)
    DEFAULTS.write_text(text + "\n", encoding="utf-8")


def runs_of(section: str) -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = json.loads(RUNS.read_text(encoding="utf-8"))
    return [run for run in every if run["section"] == section]


def table_of(stem: str) -> dict[str, Any]:
    return read_json(STORED / f"{stem}.json")


def by_size(evaluations: list[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    """Evaluations by their numbers of samples and sequences."""
    return {(e["num_samples"], e["num_sequences"]): e for e in evaluations}


def bounds_table(runs: list[dict[str, Any]]) -> str:
    """Bounds of each run on test data, with a column for each kind of bound."""
    columns = sorted({size for run in runs for size in by_size(run["evaluations"])})
    fits = sorted({size for run in runs for size in by_size(run["train"])})
    sign, minus, _ = bound_sign(runs)
    bits = "elbo_bits_per_character" in runs[0]["test"]
    heads = [
        *bound_heads(runs), *(["the same in bits per character"] if bits else []), "KL",
        *(f"{minus}IWAE, k = {k:,}, N = {n:,}" for k, n in columns),
        *(f"{minus}ELBO of training data, k = {k:,}, N = {n:,}" for k, n in fits),
        "active units of z", "parameters", "updates", "minutes", "seed",
    ]  # fmt: skip
    lines = []
    for run in runs:
        of, fit = by_size(run["evaluations"]), by_size(run["train"])
        test, exact = run["test"], "" if run["has_latents"] else " (exact)"
        active = f"{test['active_units']} of {test['latent_units']}" if run["has_latents"] else ""
        lines.append([
            run["label"], with_error(test, "elbo_nats_per_sequence", sign) + exact,
            *([f"{test['elbo_bits_per_character']:.3f}"] if bits else []),
            with_error(test, "kl_nats_per_sequence") if run["has_latents"] else "",
            *(with_error(of[c], "iwae_nats_per_sequence", sign) + exact if c in of else "" for c in columns),
            *(with_error(fit[c], "elbo_nats_per_sequence", sign) if c in fit else "" for c in fits),
            active, f"{run['parameters']:,}", f"{run['updates']:,}", f"{run['minutes']:g}", str(run["seed"]),
        ])  # fmt: skip
    return "\n".join(markdown_table(heads, lines))


def bound_heads(runs: list[dict[str, Any]]) -> list[str]:
    """Heads of the columns of the labels and of the bounds on test data."""
    _, minus, better = bound_sign(runs)
    bound = f"{minus}ELBO, k = 1, N = {runs[0]['test']['num_sequences']:,}"
    return [f"nats per {runs[0]['unit']}, {better} is better", bound]


def bound_sign(runs: list[dict[str, Any]]) -> tuple[int, str, str]:
    """The sign of the bound in tables and figures, as a number and as a text, and which values are better.

    A density of real values can be above one, so the bound itself is given; otherwise minus the bound.
    """
    return (1, "", "higher") if runs[0]["kind"] == "real" else (-1, "-", "lower")


def printed_by(name: str, dataset: str) -> dict[str, str]:
    """The test results that a table of a paper prints for a data set, by system."""
    section = next(s for s in TABLES[name].sections if s.dataset == dataset)
    rows = [row for row in section.rows if row.published]
    return {row.label: row.published["test"].replace("<=", "≤") for row in rows}


def published(name: str, dataset: str) -> str:
    """The numbers that a paper prints, as a list."""
    return ", ".join(f"{label} {number}" for label, number in printed_by(name, dataset).items())


def generated_runs(section: str) -> str:
    """Bounds, curves and commands of the runs of a section."""
    runs = runs_of(section)
    picture = [
        f"![Validation of the runs of this table](_static/results-{section}.png)",
        f"*Validation during training{', up to the best one' * (runs[0]['kind'] == 'real')}, without the first third "
        "of each curve.*",
    ]  # fmt: skip
    return "\n\n".join(
        [bounds_table(runs), *(picture if has_curves(runs) else []), commands_of(runs)]
    )


def seeds_table(every: list[dict[str, Any]]) -> str:
    """Bounds and KL of systems that were trained with several seeds, whose labels end with ", seed N"."""
    systems: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(every, key=lambda run: run["seed"]):
        systems.setdefault(run["label"].rpartition(", seed ")[0], []).append(run)
    sign, *_ = bound_sign(every)
    label_head, bound_head = bound_heads(every)
    heads = [
        label_head, f"{bound_head}, by seed", "mean ± standard deviation of the seeds", "KL by seed", "active units",
        "updates", "minutes",
    ]  # fmt: skip
    lines = []
    for label, runs in systems.items():
        tests, latent = [run["test"] for run in runs], runs[0]["has_latents"]
        bounds = [sign * test["elbo_nats_per_sequence"] for test in tests]
        lines.append([
            label, listed(bounds, ",.2f") + ("" if latent else " (exact)"), with_spread(bounds, None, 2),
            listed([test["kl_nats_per_sequence"] for test in tests], ".2f") if latent else "",
            listed([test["active_units"] for test in tests], "d") if latent else "",
            listed([run["updates"] for run in runs], ",d"), listed([run["minutes"] for run in runs], "g"),
        ])  # fmt: skip
    return "\n".join(markdown_table(heads, lines))


def listed(values: list[Any], style: str) -> str:
    return ", ".join(f"{value:{style}}" for value in values)


def generated_seeds(section: str) -> str:
    """Bounds of several seeds, and the commands of their runs."""
    runs = runs_of(section)
    return f"{seeds_table(runs)}\n\n{commands_of(runs)}"


def commands_of(runs: list[dict[str, Any]]) -> str:
    lines = [f"{command(run)}  # {run['label']}, {run['minutes']:g} minutes" for run in runs]
    return "```bash\n" + "\n".join(lines) + "\n```"


def has_curves(runs: list[dict[str, Any]]) -> bool:
    """Whether there are enough validations for a picture."""
    return all(len(run["curve"]) > 3 for run in runs)


def generated_table(stem: str, picture: str = "with-picture") -> str:
    """A table of ``reproduce.py``, under a heading of level 3, with or ``without-picture``."""
    text = (STORED / f"{stem}.md").read_text(encoding="utf-8").rstrip()
    if picture == "without-picture":
        return text.rpartition("\n\n![")[0]
    return text.replace(f"({stem}.png)", f"(_static/{stem}.png)")


def generated_defaults() -> str:
    """The gain of each system over the marginal model on each data set."""
    kept = {
        k: of for k, of in read_json(DEFAULTS).items() if isinstance(of, dict) and "bound" in of
    }
    datasets = list(dict.fromkeys(key.split()[0] for key in kept))
    models = list(dict.fromkeys(key.split()[1] for key in kept))
    lines = []
    for model in models:
        cells = [model]
        for dataset in datasets:
            of = kept.get(f"{dataset} {model}")
            if of is None:
                cells.append("")
                continue
            gain = of["bound"] - of["baseline"]
            earlier = of["learning_rate"] != default_rate(dataset, model)
            cells.append(f"{gain:+,.1f}{'*' * earlier} (KL {of['KL']:,.1f}; {of['updates']:,})")
        lines.append(cells)
    heads = [
        f"{d}, per {kept[f'{d} {models[0]}']['unit']}, baseline {kept[f'{d} {models[0]}']['baseline']:,.1f}"
        for d in datasets
    ]
    text = "\n".join(markdown_table(["system", *heads], lines))
    return text + "\n\n\\* with a learning rate that is no longer the default" * ("*" in text)


def default_rate(dataset: str, model: str) -> float | None:
    """The learning rate of the preset without a GPU."""
    return resolve(TrainConfig.of(dataset=dataset, model=model, device="cpu")).learning_rate


def generated_summary() -> str:
    """Ours beside the papers' results."""
    lines = []
    runs = runs_of("mnist") + runs_of("mnist-convolutional")
    printed = printed_by("vbl-table2", "mnist")
    for system, paper in (
        ("Z-Forcing", "Z-Forcing"),
        ("Variational Bi-LSTM", "Variational Bi-LSTM"),
        ("RNN", "PixelRNN (7-layer)"),
    ):
        run = max(
            (run for run in runs if run["label"].startswith(system)),
            key=lambda run: run["test"]["elbo_nats_per_sequence"],
        )
        bound = "-ELBO, k = 1" if run["has_latents"] else "exact"
        lines.append([
            "MNIST, nats per image, lower is better", f"{paper} {printed[paper]}",
            f"{run['label']}: {with_error(run['test'], 'elbo_nats_per_sequence', -1)}",
            f"{bound}, N = {run['test']['num_sequences']:,}",
            f"{run['updates']:,} updates, {run['minutes']:g} minutes, seed {run['seed']}",
        ])  # fmt: skip
    printed = printed_by("vbl-table4", "ptb")
    names = {"rnn": "Unregularized LSTM", "zforcing": "Z-Forcing", "variational-bilstm": "Variational Bi-LSTM"}  # fmt: skip
    for run in runs_of("ptb"):
        paper = names[run["label"]]
        bound = "ELBO, k = 1" if run["has_latents"] else "exact"
        lines.append([
            "Penn Treebank, bits per character, lower is better", f"{paper}: {printed[paper]}",
            f"{run['test']['elbo_bits_per_character']:.3f}", f"{bound}, whole test split",
            f"{run['updates']:,} updates, {run['minutes']:g} minutes, seed {run['seed']}",
        ])  # fmt: skip
    for stem in sorted(path.stem for path in STORED.glob("zf-table2-paper*.json")):
        content = table_of(stem)
        rows = {row.system: row for s in TABLES["zf-table2"].sections for row in s.rows}
        for run in content["runs"]:
            row, test = rows[run["system"]], run["evaluations"]["test"]
            label = row.label.replace("Ours + aux,", "Z-Forcing, alpha = beta =").replace(
                "Ours", "Z-Forcing"
            )
            ran = f"{run['updates']:,} updates, {run['training_seconds'] / 60:.0f} minutes, seed {run['seed']}"
            lines.append([
                "IMDB, KL in nats per sentence", f"{label}: {row.published['KL']}",
                f"{test['kl_nats_per_sequence']:.2f}", f"test, N = {test['num_sequences']:,}", ran,
            ])  # fmt: skip
            lines.append([
                "IMDB, perplexity per word, lower is better",
                f"{label}: {row.published['test ELBO']}, IWAE {row.published['test IWAE']}",
                f"{test['elbo_perplexity']:.1f}, IWAE {test['iwae_perplexity']:.1f}",
                f"ELBO and IWAE, k = {test['num_samples']}, N = {test['num_sequences']:,}", ran,
            ])  # fmt: skip
    return "\n".join(
        markdown_table(["measure", "paper, test", "ours, test", "bound", "ours: training"], lines)
    )


GENERATED = {
    "summary": generated_summary, "runs": generated_runs, "seeds": generated_seeds, "published": published,
    "table": generated_table, "defaults": generated_defaults,
}  # fmt: skip


def page(path: Path) -> str:
    """A page with its generated parts made anew."""

    def filled(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return f"<!-- generated: {match[1]} -->\n{GENERATED[name](*arguments)}\n<!-- end -->"

    text = path.read_text(encoding="utf-8")
    return re.sub(r"<!-- generated: (.+?) -->\n.*?<!-- end -->", filled, text, flags=re.S)


def draw(section: str) -> None:
    """Curves of validation: the bound, and the KL where there are latents."""
    runs = runs_of(section)
    if not has_curves(runs):
        return
    sign, minus, _ = bound_sign(runs)
    bound: dict[str, Any] = {}
    kl_divergence: dict[str, Any] = {}
    for run in runs:
        # The density of real values has no limit, so a model that overfits or diverges would set the scale.
        end = run["best"] if run["kind"] == "real" else run["updates"]
        later = [point for point in run["curve"] if end / 3 < point[0] <= end]
        steps, elbo, kl = (list(column) for column in zip(*later, strict=True))
        bound[run["label"]] = [(steps, [sign * x for x in elbo])]
        # Without latents the curve is empty, so that a run has the same colour in both panels.
        kl_divergence[run["label"]] = [(steps, kl) if run["has_latents"] else ([], [])]
    panels = {f"{minus}ELBO": bound, "KL": kl_divergence}
    figure = bound_in_training(panels, f"nats per {runs[0]['unit']}")
    figure.savefig(PICTURES / f"results-{section}.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", nargs=3, metavar=("SECTION", "LABEL", "RUN"))
    parser.add_argument("--table", type=Path, metavar="TABLE.md")
    parser.add_argument("--defaults", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    if options.run:
        section, label, run = options.run
        store_run(section, label, Path(run))
    if options.table:
        store_table(options.table)
    if options.defaults:
        store_defaults(options.defaults)
    for path in PAGES:
        text = page(path)
        path.write_text(text, encoding="utf-8")
        for section in re.findall(r"<!-- generated: runs (\S+) -->", text):
            draw(section)


if __name__ == "__main__":
    main()

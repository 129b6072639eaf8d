"""The generated tables of ``docs/results.md``, from the files of run folders.

    python docs/results.py --add SECTION LABEL RUN    # store the results of a run in docs/results.json
    python docs/results.py                            # write the tables between the marks in docs/results.md

``docs/results.json`` has what the tables need of each run: its command, curve, test and evaluations. A run with the
section and label of an earlier one replaces it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from pyro_zf.analysis.report import summary_diagnostics, test_evaluations, with_error
from pyro_zf.reproduce import TABLES
from pyro_zf.reproduce.results import markdown_table
from pyro_zf.training import read_config, read_metrics
from pyro_zf.training.config import command_of
from pyro_zf.training.evaluation import read_evaluations
from pyro_zf.training.record import json_text, read_json

FOLDER = Path(__file__).parent
STORED, PAGE = FOLDER / "results.json", FOLDER / "results.md"
KEPT = (
    "num_sequences", "num_samples", "elbo_nats_per_sequence", "elbo_nats_per_sequence_stderr",
    "iwae_nats_per_sequence", "iwae_nats_per_sequence_stderr", "kl_nats_per_sequence",
    "kl_nats_per_sequence_stderr", "active_units", "latent_units", "diagnosed_sequences",
    "shuffled_loss_nats_per_sequence", "elbo_perplexity", "iwae_perplexity", "elbo_bits_per_character",
)  # fmt: skip


def content_of(run: Path, section: str, label: str) -> dict[str, Any]:
    """What is kept of a run."""
    summary, config = read_json(run / "summary.json"), read_config(run)
    test = summary_diagnostics(summary)
    evaluations = test_evaluations(summary, read_evaluations(run))
    return {
        "section": section,
        "label": label,
        "command": command_of(config),
        "data": summary["data"],
        "has_latents": summary["has_latents"],
        "unit": summary["unit"],
        "seed": config.seed,
        "parameters": summary["num_parameters"],
        "updates": summary["steps"],
        "best": summary["best_step"],
        "minutes": round(summary["training_seconds"] / 60, 1),
        "test": {k: test[k] for k in KEPT if test.get(k) is not None},
        "evaluations": [{k: e[k] for k in KEPT if e.get(k) is not None} for e in evaluations],
        "curve": [
            [e["step"], round(e["elbo_nats_per_sequence"], 2), round(e["kl_nats_per_sequence"], 2)]
            for e in read_metrics(run)
            if e["event"] == "valid"
        ],
    }


def stored() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(STORED.read_text(encoding="utf-8"))
    return found


def bounds_table(runs: list[dict[str, Any]]) -> str:
    """Bounds of each run on test data, a column for each kind of bound."""
    columns = sorted(
        {(e["num_samples"], e["num_sequences"]) for run in runs for e in run["evaluations"]}
    )
    unit = runs[0]["unit"]
    heads = [
        f"nats per {unit}, lower is better", f"-ELBO, k = 1, N = {runs[0]['test']['num_sequences']:,}", "KL",
        *(f"-IWAE, k = {k:,}, N = {n:,}" for k, n in columns), "active units of z", "updates", "minutes", "seed",
    ]  # fmt: skip
    lines = []
    for run in runs:
        of = {(e["num_samples"], e["num_sequences"]): e for e in run["evaluations"]}
        test = run["test"]
        active = f"{test['active_units']} of {test['latent_units']}" if run["has_latents"] else ""
        lines.append([
            run["label"], with_error(test, "elbo_nats_per_sequence", -1) + ("" if run["has_latents"] else " (exact)"),
            with_error(test, "kl_nats_per_sequence") if run["has_latents"] else "",
            *(with_error(of[c], "iwae_nats_per_sequence", -1) if c in of and run["has_latents"] else "" for c in columns),
            active, f"{run['updates']:,}", f"{run['minutes']:g}", str(run["seed"]),
        ])  # fmt: skip
    return "\n".join(markdown_table(heads, lines))


def curve_table(runs: list[dict[str, Any]]) -> str:
    """Validation by update: minus the ELBO, and the KL."""
    updates = sorted({step for run in runs for step, *_ in run["curve"]})
    lines = []
    for run in runs:
        at = {step: (elbo, kl) for step, elbo, kl in run["curve"]}
        lines.append([
            run["label"],
            *(
                "" if u not in at else f"{-at[u][0]:.2f}" + (f" ({at[u][1]:.2f})" if run["has_latents"] else "")
                for u in updates
            ),
        ])  # fmt: skip
    return "\n".join(markdown_table(["update", *(f"{u:,}" for u in updates)], lines))


def published(name: str, dataset: str) -> str:
    """The numbers that the papers print."""
    section = next(s for s in TABLES[name].sections if s.dataset == dataset)
    return ", ".join(
        f"{row.label} {row.published['test'].replace('<=', '≤')}"
        for row in section.rows
        if row.published
    )


def commands(runs: list[dict[str, Any]]) -> str:
    lines = [f"{run['command']}  # {run['label']}, {run['minutes']:g} minutes" for run in runs]
    return "```bash\n" + "\n".join(lines) + "\n```"


def generated(section: str) -> str:
    """The Markdown of a section."""
    runs = [run for run in stored() if run["section"] == section]
    return "\n\n".join([bounds_table(runs), "Validation after each epoch, -ELBO (KL):", curve_table(runs),
                        commands(runs)])  # fmt: skip


def page() -> str:
    """The page with its generated parts made anew."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        text = published(*name.split()[1:]) if name.startswith("published ") else generated(name)
        return f"<!-- generated: {name} -->\n{text}\n<!-- end -->"

    text = PAGE.read_text(encoding="utf-8")
    return re.sub(r"<!-- generated: (.+?) -->\n.*?<!-- end -->", filled, text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--add", nargs=3, metavar=("SECTION", "LABEL", "RUN"))
    options = parser.parse_args()
    if options.add:
        section, label, run = options.add
        new = content_of(Path(run), section, label)
        known = stored() if STORED.exists() else []
        others = [x for x in known if (x["section"], x["label"]) != (section, label)]
        STORED.write_text(json_text([*others, new], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Results of runs: evaluation, Markdown tables and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_zf.reproduce.published import Row, Section, Table
from pyro_zf.reproduce.systems import Training
from pyro_zf.training import load_run, read_metrics
from pyro_zf.training.evaluation import (
    EvaluationConfig,
    evaluate_model,
    evaluation_path,
    save_evaluation,
)
from pyro_zf.training.record import read_json

__all__ = ["SYMBOLS", "Result", "Results", "evaluated", "markdown", "markdown_table", "verdicts"]

#: Batch size of evaluations.
BATCH = 50
#: Comparisons in the figures: the system with a component, the system without it, the component.
_PAIRS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "kl-curves": (
        ("zf-aux", "zf", "the auxiliary cost"),
        ("zf-kla-aux", "zf-kla", "the auxiliary cost, under KL annealing,"),
        ("zf-aux-0.0025", "zf", "the auxiliary cost of weight 0.0025"),
        ("zf-aux-0.005", "zf-aux-0.0025", "weight 0.005 instead of 0.0025"),
    ),
    "bound-curves": (
        ("vbl-mean", "vbl-mean-no-skip", "skip gradient"),
        ("vbl-mean", "vbl-no-aux", "the auxiliary costs"),
    ),
}
#: Measure of the text data sets.
SYMBOLS = {"imdb": "perplexity", "ptb": "bits_per_character"}


@dataclass(frozen=True)
class Result:
    """A run with its evaluations.

    Args:
        training: the training that the run belongs to.
        run: folder of the run.
        config: settings of the run.
        summary: summary that was written at the end of the run.
        evaluations: results of the evaluations by split.
        events: events of the training.
    """

    training: Training
    run: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]

    def bound(self, name: str, split: str) -> tuple[float, float | None]:
        """A bound in the units of the papers, with its standard error.

        Speech is measured by log-likelihood, images by its negative, words by perplexity, and characters
        by bits per character.
        """
        found = self.evaluations[split]
        dataset = self.training.dataset
        if dataset in SYMBOLS:
            return found[f"{name}_{SYMBOLS[dataset]}"], None
        sign = -1.0 if dataset == "mnist" else 1.0
        key = f"{name}_nats_per_sequence"
        return sign * found[key], found[f"{key}_stderr"]

    def kl(self, split: str) -> float:
        """KL divergence in nats per sequence."""
        return float(self.evaluations[split]["kl_nats_per_sequence"])


#: Results of all seeds, by data set.
Results = dict[str, list[Result]]


def evaluated(
    training: Training,
    run: Path,
    splits: Sequence[str],
    num_samples: int,
    device: str,
    **where: Any,
) -> Result:
    """Evaluate a finished run and save the evaluation with it, or load an existing evaluation.

    Args:
        training: the training that the run belongs to.
        run: folder of the run.
        splits: splits to evaluate, with as many sequences as the run used for validation or testing.
        num_samples: number of samples k of the IWAE.
        device: device of the evaluation.
        **where: ``data_dir`` for :func:`~pyro_zf.training.load_run`.
    """
    config = read_json(run / "config.json")
    summary = read_json(
        run / "summary.json", ("best_update",), "delete the run folder, and train again"
    )
    evaluations = {}
    loaded = None
    for split in splits:
        path = evaluation_path(run, split, "posterior", num_samples, config[f"{split}_sequences"])
        wanted = {
            "update": summary["best_update"], "max_sequences": config[f"{split}_sequences"],
            "batch_size": BATCH, "seed": 0,
        }  # fmt: skip
        kept = read_json(path, hint="delete it, and evaluate again") if path.is_file() else {}
        if any(kept.get(name, ...) != value for name, value in wanted.items()):
            loaded = loaded or load_run(run, device=device, **where)
            _, data, model, update = loaded
            settings = EvaluationConfig(
                split=split,  # type: ignore[arg-type]
                num_samples=num_samples,
                max_sequences=config[f"{split}_sequences"],
                batch_size=BATCH,
            )
            found = evaluate_model(model, data, settings, torch.device(device))
            kept = {"dataset": training.dataset, "update": update, **found}
            save_evaluation(run, kept)
        evaluations[split] = kept
    return Result(training, run, config, summary, evaluations, read_metrics(run))


def markdown(name: str, table: Table, results: Results, num_samples: int, command: str) -> str:
    """Markdown table of published and reproduced results, with the settings and notes to read it."""
    lines = [f"### {table.title}", "", table.caption, "", f"```bash\n{command}\n```", ""]
    for section in table.sections:
        if found := results.get(section.dataset):
            lines += [*_section(table, section, found, num_samples), ""]
    lines += [f"- {line}" for line in verdicts(table, results)]
    lines += [f"- {note}" for note in table.notes]
    if lines[-1]:
        lines.append("")
    lines.append(f"![{table.title}]({name}.png)")
    return "\n".join(lines) + "\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def _section(table: Table, section: Section, found: list[Result], k: int) -> list[str]:
    lines = [f"**{section.dataset}**: {section.note}. {_provenance(found)}", ""]
    seeds = len({r.training.seed for r in found})
    heads = ["system", *(f"paper, {column}" for column in table.columns)]
    with_latents = any(r.summary["has_latents"] for r in found)
    for split in section.splits:
        heads += [f"ours, {split}, ELBO", f"IWAE, k = {k}"]
    if with_latents:
        heads += ["KL", "active units", "loss by shuffling z"]
    heads.append("updates (best of)")
    rows = []
    for row in section.rows:
        of_row = [r for r in found if r.training.system == row.system]
        rows.append(_row(table, section, row, of_row, with_latents))
    lines += markdown_table(heads, rows)
    if seeds > 1:
        lines += ["", f"Mean ± standard deviation of {seeds} seeds."]
    return lines


def _row(
    table: Table, section: Section, row: Row, found: list[Result], with_latents: bool
) -> list[str]:
    cells = [row.label, *(row.published.get(column, "") for column in table.columns)]
    width = len(cells) + 2 * len(section.splits) + 3 * with_latents + 1
    if not found:
        return cells + [""] * (width - len(cells))
    digits = 0 if section.dataset in ("timit", "blizzard") else 3 if section.dataset == "ptb" else 2
    for split in section.splits:
        for bound in ("elbo", "iwae"):
            pairs = [r.bound(bound, split) for r in found]
            cells.append(with_spread([p[0] for p in pairs], pairs[0][1], digits))
    if with_latents:
        split = section.splits[-1]
        cells.append(with_spread([r.kl(split) for r in found], None, 2))
        known = [r.evaluations[split] for r in found if r.evaluations[split].get("latent_units")]
        active = ", ".join(str(e["active_units"]) for e in known)
        cells.append(f"{active} of {known[0]['latent_units']}" if known else "")
        lost = [e["shuffled_loss_nats_per_sequence"] for e in known]
        cells.append(with_spread(lost, None, 2) if lost else "")
    best = ", ".join(f"{r.summary['best_update']:,}" for r in found)
    cells.append(f"{best} of {found[0].summary['updates']:,}")
    return cells


def with_spread(values: list[float], stderr: float | None, digits: int) -> str:
    """Format a mean with the standard deviation over runs, or the standard error of a single run."""
    mean = statistics.fmean(values)
    # Perplexities of models that have not learnt the text can have thirty digits.
    style = ".1e" if abs(mean) >= 1e9 else f",.{digits}f"
    spread = statistics.stdev(values) if len(values) > 1 else stderr
    return f"{mean:{style}}" if spread is None else f"{mean:{style}} ± {spread:{style}}"


def _provenance(found: list[Result]) -> str:
    """Short description of the data and the trained models."""
    result = found[0]
    config, summary = result.config, result.summary
    least, most = (f(r.summary["updates"] for r in found) for f in (min, max))
    updates = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    number = ", ".join(
        f"{e['num_sequences']:,} {summary['unit']}s of {split}"
        for split, e in result.evaluations.items()
    )
    others = "" if summary["comparable_with_published"] else " These are not the paper's data."
    small = (
        ""
        if config["preset"] == "paper"
        else ", much smaller than the paper's model and trained for far fewer updates"
    )
    return (
        f"Data: {summary['data']}; {number}.{others} Ours: LSTM {config['options']['hidden_size']}, hidden layers "
        f"{config['options']['mlp_size']}, {updates} updates of {config['batch_size']} sequences"
        f"{small}. {_marginal(result)}"
    )


def _marginal(result: Result) -> str:
    """Score of a marginal model, which ignores the past."""
    found = result.evaluations[list(result.evaluations)[-1]]
    dataset = result.training.dataset
    if dataset in SYMBOLS:
        value = f"{found[f'marginal_{SYMBOLS[dataset]}']:.2f}"
    else:
        sign = -1 if dataset == "mnist" else 1
        value = f"{sign * found['marginal_nats_per_sequence']:,.0f}"
    return f"For scale, {found['marginal']}: {value}."


def verdicts(table: Table, results: Results) -> list[str]:
    """Compare the runs with the papers' claims, seed by seed."""
    lines = []
    if table.kind == "latents-curves":
        lines += [_of_sources(found) for found in results.values()]
    for section in table.sections:
        by_system: dict[str, dict[int, Result]] = {}
        for result in results.get(section.dataset, []):
            by_system.setdefault(result.training.system, {})[result.training.seed] = result
        for with_it, without, what in _PAIRS.get(table.kind, ()):
            pairs = [
                (by_system[with_it][seed], by_system[without][seed])
                for seed in sorted(by_system.get(with_it, {}))
                if seed in by_system.get(without, {})
            ]
            if pairs:
                lines.append(_verdict(section, what, pairs))
    return lines


def _of_sources(found: list[Result]) -> str:
    """Bits per character with z from the posterior, from the prior, and at the prior's mean."""
    last = [[e for e in r.events if e["event"] == "valid"][-1] for r in found]
    shown = [
        f"{name} {', '.join(f'{e[key]:.3f}' for e in last)}"
        for name, key in (
            ("posterior", "elbo_bits_per_character"),
            ("prior", "prior_elbo_bits_per_character"),
            ("mean of the prior", "prior_mean_elbo_bits_per_character"),
        )
    ]
    return (
        f"Bits per character of the last validation, by seed, by source of z: {'; '.join(shown)}."
    )


def _verdict(section: Section, what: str, pairs: list[tuple[Result, Result]]) -> str:
    split = section.splits[-1]
    kl = [a.kl(split) - b.kl(split) for a, b in pairs]
    # Higher is better for sign * bound, whatever the unit.
    sign = 1.0 if section.dataset in ("timit", "blizzard") else -1.0
    bound = [a.bound("elbo", split)[0] - b.bound("elbo", split)[0] for a, b in pairs]
    higher, better = sum(d > 0 for d in kl), sum(sign * d > 0 for d in bound)
    number = len(pairs)
    digits = 3 if section.dataset == "ptb" else 2
    return (
        f"{section.dataset}, {split}: with {what} the KL is higher in {higher} of {number} seeds "
        f"({_differences(kl, 2)} nats) and the ELBO is better in {better} of {number} "
        f"({_differences(bound, digits)} in the units above): "
        f"{_in_words(higher, number, 'the KL')}, {_in_words(better, number, 'the bound')}."
    )


def _differences(values: list[float], digits: int) -> str:
    return ", ".join(f"{v:+,.{digits}f}" for v in values)


def _in_words(count: int, number: int, what: str) -> str:
    if number < 3:
        return f"{what}: too few seeds to conclude"
    if count == number:
        return (
            f"{what} is higher in every seed"
            if what == "the KL"
            else f"{what} is better in every seed"
        )
    if count == 0:
        return (
            f"{what} is lower in every seed"
            if what == "the KL"
            else f"{what} is worse in every seed"
        )
    return f"{what} shows no consistent effect"

"""Train, evaluate and write one table or figure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_zf.analysis import (
    argmax_and_sampling,
    as_texts,
    bound_in_training,
    interpolate,
    interpolation_table,
    kl_in_training,
    lengths_along,
    sampling_against_mean,
)
from pyro_zf.analysis.figures import Curve
from pyro_zf.reproduce.jobs import Launcher, run_all
from pyro_zf.reproduce.published import TABLES, Section, Table
from pyro_zf.reproduce.results import SYMBOLS, Result, Results, evaluated, markdown, verdicts
from pyro_zf.reproduce.runs import trained
from pyro_zf.reproduce.systems import Scale
from pyro_zf.training import UsageError, load_run, resolve_device
from pyro_zf.training.record import json_text, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reproduce"]

log = logging.getLogger(__name__)

#: End points of the interpolations. The sentences were made up for this purpose.
SENTENCES = (
    ("this is the worst film i have seen .", "i loved it and will watch it again !"),
    ("the plot makes no sense .", "a great cast and a very good story ."),
    ("do not waste your time .", "one of the best movies of the year , by far ."),
)
POINTS = 11
_UNITS = {
    "mnist": "-ELBO, nats per image", "imdb": "perplexity", "ptb": "bits per character",
    "timit": "ELBO, nats per frame", "blizzard": "ELBO, nats per half second",
}  # fmt: skip


def reproduce(
    name: str,
    scale: Scale,
    folder: Path,
    *,
    dataset: str | None = None,
    seeds: int | None = None,
    num_samples: int | None = None,
    max_minutes: float | None = None,
    max_sequences: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    jobs: int = 1,
    launcher: Launcher = "none",
    collect: bool = False,
) -> list[Path]:
    """Train and evaluate the runs of a table or figure, and write it as Markdown, JSON and a picture.

    Runs are stored in ``folder/runs/SCALE`` and shared by all tables. Existing runs and evaluations are
    reused, and an interrupted run is resumed.

    Args:
        name: a key of :data:`~pyro_zf.reproduce.TABLES`.
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        folder: folder of the results.
        dataset: restrict the table to this data set.
        seeds: number of runs of each system. By default, three for a figure and one for a table.
        num_samples: number of samples k of the IWAE. By default, 25, or 2 at scale ``"smoke"``.
        max_minutes: minutes after which the training of each run ends, for models of the papers' sizes on a
            machine on which their trainings would take days.
        max_sequences: number of sequences of each split for validation and evaluation. By default, that of the
            scale.
        data_dir: folder of the data.
        device: device for training and evaluation.
        precision: precision of the training, as in :class:`~pyro_zf.training.TrainConfig`: ``"fp32"`` or
            ``"bf16"``. Evaluations are in single precision.
        jobs: number of runs that are trained side by side.
        launcher: how they are started, see :func:`~pyro_zf.reproduce.jobs.run_all`.
        collect: whether to make the table from the runs that have finished, without training any.

    Returns:
        list[Path]: paths of the Markdown file, the JSON file and the picture.

    Raises:
        UsageError: with ``collect``, if no run has finished.
    """
    table = TABLES[name]
    device = resolve_device(device)
    k = num_samples or (2 if scale == "smoke" else 25)
    where: dict[str, Any] = {"data_dir": data_dir} if data_dir else {}
    settings = {**where, "precision": precision}
    if max_minutes is not None:
        settings["max_minutes"] = max_minutes
    if max_sequences is not None:
        settings |= {"valid_sequences": max_sequences, "test_sequences": max_sequences}
    results: Results = {}
    sections = [s for s in table.sections if dataset in (None, s.dataset)]
    every = [t for section in sections for t in section.trainings(seeds or table.seeds)]
    if not collect and (jobs > 1 or launcher != "none"):
        options = {"device": device, **settings}
        run_all(list(dict.fromkeys(every)), scale, folder / "runs", jobs, launcher, options)
    for section in sections:
        for training in section.trainings(seeds or table.seeds):
            if collect:
                run = folder / "runs" / scale / training.name
                if not (run / "summary.json").is_file():
                    log.warning("%s has not finished and is left out", run)
                    continue
            else:
                log.info("%s: %s", name, training.name)
                run = trained(training, scale, folder / "runs", device=device, **settings)
            result = evaluated(training, run, section.splits, k, device, **where)
            results.setdefault(section.dataset, []).append(result)
    if not results:
        raise UsageError(
            f"none of the {len(every)} runs of {name} in {folder / 'runs' / scale} has finished"
        )
    command, stem = f"python scripts/reproduce.py {name} --scale {scale}", f"{name}-{scale}"
    minutes = None if max_minutes is None else f"{max_minutes:g}"
    for flag, value, short in (
        ("dataset", dataset, "{}"),
        ("seeds", seeds, "seeds{}"),
        ("num-samples", num_samples, "k{}"),
        ("max-minutes", minutes, "{}min"),
        ("max-sequences", max_sequences, "n{}"),
        ("precision", None if precision == "fp32" else precision, "{}"),
    ):
        if value is not None:
            command += f" --{flag} {value}"
            stem += "-" + short.format(value)
    text = markdown(stem, table, results, k, command)
    content: dict[str, Any] = {
        "table": name, "title": table.title, "scale": scale, "command": command,
        "num_samples": k, "verdicts": verdicts(table, results),
        "runs": [_plain(r) for found in results.values() for r in found],
        "published": {
            s.dataset: {row.label: dict(row.published) for row in s.rows} for s in table.sections
        },
    }  # fmt: skip
    if table.kind == "interpolation":
        figure, more, content["interpolations"] = _interpolated(table, results, device, where)
        text = text.replace("\n![", f"\n{more}\n![")
    else:
        figure = _figure(table, results)
    paths = [folder / f"{stem}{suffix}" for suffix in (".md", ".json", ".png")]
    write_text(paths[0], text)
    write_text(paths[1], json_text(content, indent=2) + "\n")
    figure.savefig(paths[2], dpi=130)
    return paths


def _plain(result: Result) -> dict[str, Any]:
    kept = ("verdict", "active_units", "latent_units", "num_sequences", "num_samples")
    return {
        "system": result.training.system,
        "dataset": result.training.dataset,
        "seed": result.training.seed,
        "data": result.summary["data"],
        "comparable_with_published": result.summary["comparable_with_published"],
        "parameters": result.summary["num_parameters"],
        "updates": result.summary["updates"],
        "best_update": result.summary["best_update"],
        "training_seconds": result.summary["training_seconds"],
        "evaluations": {
            split: {
                key: value
                for key, value in found.items()
                if key in kept or (isinstance(value, float) and "nats" in key)
                or key.endswith(("perplexity", "bits_per_character"))
            }
            for split, found in result.evaluations.items()
        },
    }  # fmt: skip


def _figure(table: Table, results: Results) -> Figure:
    sections = {s.dataset: s for s in table.sections if s.dataset in results}
    if table.kind == "latents-curves":
        (found,) = results.values()
        ways = {
            "z from the posterior": "elbo", "z from the prior": "prior_elbo",
            "z at the prior's mean": "prior_mean_elbo",
        }  # fmt: skip
        curves = {
            label: [_curve(r, f"{key}_bits_per_character") for r in found]
            for label, key in ways.items()
        }
        return sampling_against_mean(curves, "bits per character, validation")
    panels: dict[str, dict[str, list[Curve]]] = {}
    for dataset, section in sections.items():
        for label, of_system in _by_label(section, results[dataset]).items():
            if table.kind == "kl-curves":
                # Training batches are logged more often. Their lengths differ, so use nats per step.
                made = [_curve(r, "kl_nats_per_step", "train") for r in of_system]
            else:
                made = [_bound_curve(r) for r in of_system]
            panels.setdefault(_title(dataset, table), {})[label] = made
    if table.kind == "kl-curves":
        return kl_in_training(panels, "KL of a training batch, nats per step")
    return bound_in_training(panels, "on validation data")


def _title(dataset: str, table: Table) -> str:
    return dataset if table.kind == "kl-curves" else f"{dataset}: {_UNITS[dataset]}"


def _by_label(section: Section, found: list[Result]) -> dict[str, list[Result]]:
    return {
        row.label: [r for r in found if r.training.system == row.system]
        for row in section.rows
        if row.system is not None
    }


def _bound_curve(result: Result) -> Curve:
    dataset = result.training.dataset
    if dataset in SYMBOLS:
        return _curve(result, f"elbo_{SYMBOLS[dataset]}")
    if dataset == "timit":
        return _curve(result, "elbo_nats_per_step")
    return _curve(result, "elbo_nats_per_sequence", sign=-1.0 if dataset == "mnist" else 1.0)


def _curve(result: Result, key: str, event: str = "valid", sign: float = 1.0) -> Curve:
    events = [e for e in result.events if e["event"] == event and e.get(key) is not None]
    return [e["update"] for e in events], [sign * e[key] for e in events]


def _interpolated(
    table: Table, results: Results, device: str, where: dict[str, Any]
) -> tuple[Figure, str, list[dict[str, Any]]]:
    """Interpolations between sentences as in the paper's table, by each model, and a figure of their lengths."""
    ((section, found),) = ((s, results[s.dataset]) for s in table.sections)
    weights = torch.linspace(0, 1, POINTS)
    lines: list[str] = []
    content: list[dict[str, Any]] = []
    lengths: dict[str, list[list[int]]] = {}
    for label, of_system in _by_label(section, found).items():
        if not of_system:
            continue
        result = of_system[0]
        lines += [
            "",
            f"**{label}**. The latents of this model: {result.evaluations['test']['verdict']}.",
        ]
        _, splits, model, _ = load_run(result.run, device=device, **where)
        torch.manual_seed(0)
        for ends in SENTENCES:
            batch = splits.batch_of_texts(ends).to(device)
            columns = {}
            for name, decoding in argmax_and_sampling().items():
                decoded = interpolate(model, batch, weights, decoding, splits.num_steps)
                columns[name] = as_texts(decoded, splits)
                lengths.setdefault(name, []).append([len(text.split()) for text in columns[name]])
            rows = interpolation_table(weights.tolist(), columns)
            lines += ["", f"*{ends[0]}*", "", *rows, "", f"*{ends[1]}*"]
            content.append({"system": result.training.system, "ends": ends, **columns})
    figure = lengths_along(weights.tolist(), lengths)
    return figure, "\n".join(lines[1:]) + "\n", content

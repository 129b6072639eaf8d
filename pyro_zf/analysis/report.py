"""Reports of training runs as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyro_zf.analysis.figures import (
    bound_in_training,
    curves,
    kl_by_unit,
    kl_in_training,
    kl_per_step,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunContent", "best_evaluations", "report_page", "summary_diagnostics", "with_error"]

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { border-top: 2px solid #3b6ea8; padding-top: .8rem; }
h3 { margin-bottom: .3rem; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0 1rem; }
th, td { text-align: left; padding: .2rem .7rem; border-bottom: 1px solid #ddd;
         vertical-align: top; }
.verdict { background: #eef3f9; border-left: 4px solid #3b6ea8; padding: .5rem .8rem; }
.note { background: #fdf3e4; border-left: 4px solid #d9822b; padding: .5rem .8rem; }
figure { margin: .5rem 0 1rem; } figcaption { font-size: .85rem; color: #555; }
.sounds { display: flex; flex-wrap: wrap; gap: .5rem 1rem; }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .7rem; font-size: .85rem; }
details { margin: .5rem 0; }
"""
#: The page must not fetch anything, whatever the names and texts in it contain.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_BOUNDS = (("elbo", "ELBO"), ("iwae", "IWAE"), ("fivo", "FIVO"), ("log_likelihood", "log p(y | z)"),
           ("kl", "KL(q || p)"))  # fmt: skip
_SYMBOLS = {"perplexity": "perplexity", "bits_per_character": "bits per character"}
_DIAGNOSTICS = {
    "diagnosed_sequences": "diagnosed sequences",
    "active_units": "active units",
    "latent_units": "units of z",
    "mutual_information_nats": "mutual information of sequences and deviations of z from the prior, nats",
    "mutual_information_nats_at_most": "upper bound of this estimate, nats",
    "shuffled_loss_nats_per_sequence": "log-likelihood lost with another sequence's z, nats per sequence",
    "posterior_prior_overlap": "overlap of posterior and prior (1: identical)",
    "b_given_z_nats_per_step": "-log p(b | z), nats per step",
    "b_marginal_nats_per_step": "-log of the marginal density of b, nats per step",
    "h_given_z_nats_per_step": "-log p(h | z), nats per step",
    "h_marginal_nats_per_step": "-log of the marginal density of h, nats per step",
    "teacher_forced_log_likelihood_nats_per_sequence": "log p(y | true past, z), nats per sequence",
    "from_posterior_log_likelihood_nats_per_sequence": "log p(y | generated past, z from the posterior)",
    "from_prior_log_likelihood_nats_per_sequence": "log p(y | generated past, z from the prior)",
}


@dataclass(frozen=True)
class RunContent:
    """Contents of a run folder.

    Args:
        name: name of the run.
        config: settings of the run.
        events: entries of ``metrics.jsonl``.
        summary: final results; empty if the run has not finished.
        evaluations: results of ``evaluate``.
        files: pictures, sounds and texts.
    """

    name: str
    config: Mapping[str, Any]
    events: Sequence[dict[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    files: Sequence[Path] = ()

    @property
    def unit(self) -> str:
        """Name of a sequence, such as "image"."""
        return str(self.summary.get("unit", "sequence"))


def report_page(runs: Sequence[RunContent], title: str = "pyro_zf report") -> str:
    """Render runs as an HTML page with settings, curves, bounds, diagnostics and samples.

    The page compares the runs if there are several. Pictures and sounds are embedded, so that it can be
    opened from disk and fetches nothing.

    Raises:
        ValueError: if there are no runs.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    parts = [f"<h1>{_text(title)}</h1>"]
    if len(runs) > 1:
        parts.append(_comparison(runs))
    parts += [_run(run) for run in runs]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _run(run: RunContent) -> str:
    config, summary = run.config, run.summary
    parts = [f"<h2>{_text(run.name)}</h2>"]
    facts = {
        "system": config.get("model"),
        "data": f"{summary['data']} ({summary['data_detail']})" if summary else _data_of(run),
        "parameters": f"{summary['num_parameters']:,}" if summary else None,
        "updates": summary.get("updates"),
        "best update on validation data": summary.get("best_update"),
        "training time in minutes": round(summary["training_seconds"] / 60, 1) if summary else None,
    }
    parts.append(_table(("", ""), [(k, v) for k, v in facts.items() if v is not None]))
    if not summary:
        parts.append('<p class="note">This run has not finished.</p>')
    elif not summary.get("comparable_with_published"):
        parts.append(
            '<p class="note">The data are not those of the papers, so these results are not comparable '
            "with published ones.</p>"
        )
    best = _richest(run)
    if verdict := (best or {}).get("verdict") or summary.get("verdict"):
        parts.append(f'<p class="verdict">{_text(verdict)}</p>')
    given = {k: v for k, v in config.items() if v is not None}
    parts.append(
        f"<details><summary>All settings</summary>{_table(('setting', ''), given.items())}</details>"
    )
    if any(event["event"] in ("train", "valid") for event in run.events):
        parts.append("<h3>Training</h3>")
        parts.append(
            _figure(
                curves(run.events, *_measure(run)), "Training and validation metrics by update."
            )
        )
    if summary or run.evaluations:
        parts += ["<h3>Bounds</h3>", _bounds(run)]
    found = {**summary_diagnostics(summary), **(best or {})}
    if any(key in found for key in _DIAGNOSTICS):
        parts += ["<h3>Is z used?</h3>", _diagnostics(found, run)]
    parts += _files(run.files)
    return "\n".join(parts)


def summary_diagnostics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Results of the test at the end of training, under the names that an evaluation uses."""
    return {k.removeprefix("test_"): v for k, v in summary.items() if k.startswith("test_")}


def _richest(run: RunContent) -> Mapping[str, Any] | None:
    """Test evaluation of the best checkpoint with the most sequences and then the most samples."""
    usual = best_evaluations(run.summary, run.evaluations)
    return max(usual, key=lambda e: (e["num_sequences"], e["num_samples"]), default=None)


def best_evaluations(
    summary: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], split: str = "test"
) -> list[Mapping[str, Any]]:
    """The evaluations of the best checkpoint on one split with z from the posterior."""
    return [
        e
        for e in evaluations
        if e["split"] == split
        and e["latents"] == "posterior"
        and e.get("update") == summary.get("best_update")
    ]


def _measure(run: RunContent) -> tuple[str, Literal["sequence", "step"]]:
    """Unit of the curves: steps if training and validation sequences differ much in length."""
    lengths = []
    for event in ("train", "valid"):
        of_event = [e for e in run.events if e["event"] == event and e.get("elbo_nats_per_step")]
        ratios = [e["elbo_nats_per_sequence"] / e["elbo_nats_per_step"] for e in of_event]
        lengths.append(statistics.median(ratios) if ratios else math.nan)
    if max(lengths) > 1.2 * min(lengths):
        return str(run.summary.get("step_unit", "step")), "step"
    return run.unit, "sequence"


def _tested(run: RunContent) -> list[Mapping[str, Any]]:
    """The test at the end of training as an evaluation, if there was one."""
    if run.summary.get("test_num_sequences") is None:
        return []
    found = summary_diagnostics(run.summary)
    return [{"split": "test (end of training)", "latents": "posterior", **found}]


def _bounds(run: RunContent) -> str:
    lines = []
    for e in [*_tested(run), *run.evaluations]:
        what = f"{e['split']}, z from the {e['latents']}, k = {e['num_samples']}, {e['num_sequences']} sequences"
        if (best := run.summary.get("best_update")) is not None and e.get("update", best) != best:
            what += f" (of update {e['update']:,}, before the run was resumed)"
        for key, name in _BOUNDS:
            shown = with_error(e, f"{key}_nats_per_sequence")
            if not shown:
                continue
            symbols = "".join(
                f", {words} {e[f'{key}_{symbol}']:.3f}"
                for symbol, words in _SYMBOLS.items()
                if f"{key}_{symbol}" in e
            )
            step = e.get(f"{key}_nats_per_step")
            per_step = "" if step is None else f"{step:.4f}"
            lines.append((what, name, shown, per_step, symbols.removeprefix(", ")))
    heads = (
        "evaluation",
        "",
        f"nats per {run.unit}",
        f"per {run.summary.get('step_unit', 'step')}",
        "",
    )
    note = (
        "<p>Log-likelihoods in nats, higher is better; ± is the standard error over sequences. ELBO, "
        "IWAE and FIVO are lower bounds, except with z at the mean of the prior, which is a different "
        "model. They include no auxiliary costs and no KL weight.</p>"
    )
    return note + _table(heads, lines)


def with_error(found: Mapping[str, Any], key: str, sign: int = 1) -> str:
    """Format a number, times a sign, with its standard error if it is known; empty without a number."""
    value, error = found.get(key), found.get(f"{key}_stderr")
    if value is None:
        return ""
    return f"{sign * value:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def _diagnostics(found: Mapping[str, Any], run: RunContent) -> str:
    lines = [
        (words, f"{found[key]:.4g}" if isinstance(found[key], float) else found[key])
        for key, words in _DIAGNOSTICS.items()
        if found.get(key) is not None
    ]
    parts = [_table(("", ""), lines)]
    if found.get("kl_nats_by_unit"):
        parts.append(
            _figure(kl_by_unit(found["kl_nats_by_unit"], run.unit), "KL of each latent unit.")
        )
    if found.get("kl_nats_at_steps") and any(found["kl_nats_at_steps"]):
        step = str(run.summary.get("step_unit", "step"))
        parts.append(_figure(kl_per_step(found["kl_nats_at_steps"], step), "KL at each step."))
    return "".join(parts)


def _test_bounds(run: RunContent) -> dict[tuple[int, int, int], str]:
    """Bounds on test data by index in ``_BOUNDS`` and numbers of samples and sequences."""
    found: dict[tuple[int, int, int], str] = {}
    for e in [*_tested(run), *best_evaluations(run.summary, run.evaluations)]:
        for i, (key, _) in enumerate(_BOUNDS):
            if key != "log_likelihood" and (shown := with_error(e, f"{key}_nats_per_sequence")):
                found.setdefault((i, e["num_samples"], e["num_sequences"]), shown)
    return found


def _data_of(run: RunContent) -> str:
    """Name of the data of a run."""
    if "data" in run.summary:
        return str(run.summary["data"])
    return "data given in Python" if run.config.get("own_data") else str(run.config.get("dataset"))


def _comparison(runs: Sequence[RunContent]) -> str:
    groups: dict[str, list[RunContent]] = {}
    for run in runs:
        groups.setdefault(f"{_data_of(run)}, per {run.unit}", []).append(run)
    parts = ["<h2>Comparison</h2>"]
    for data, group in groups.items():
        parts += [f"<h3>{_text(data)}</h3>", _compared(group)]
    parts.append(
        "<p>Bounds on test data in nats; higher is better. A column holds bounds of one kind, with k samples "
        "on N sequences.</p>"
    )
    elbos: dict[str, dict[str, list[Any]]] = {}
    kls: dict[str, dict[str, list[Any]]] = {}
    for data, group in groups.items():
        for run in group:
            valid = [
                e
                for e in run.events
                if e["event"] == "valid" and e.get("elbo_nats_per_sequence") is not None
            ]
            steps = [e["update"] for e in valid]
            for panels, key in ((elbos, "elbo"), (kls, "kl")):
                values = [e[f"{key}_nats_per_sequence"] for e in valid]
                panels.setdefault(data, {}).setdefault(run.name, []).append((steps, values))
    if any(event["event"] == "valid" for run in runs for event in run.events):
        parts.append(_figure(bound_in_training(elbos, "validation ELBO, nats"), "Validation ELBO."))
        parts.append(_figure(kl_in_training(kls, "KL, nats"), "KL on the validation data."))
    return "\n".join(parts)


def _compared(runs: Sequence[RunContent]) -> str:
    """Table of runs on the same data."""
    bounds = [_test_bounds(run) for run in runs]
    columns = sorted({key for of_run in bounds for key in of_run})
    heads = [
        "run", "system", "parameters", "updates",
        *(f"{_BOUNDS[i][1]} (k = {k}, N = {n:,})" for i, k, n in columns),
        "active units", "loss by shuffling z",
    ]  # fmt: skip
    lines = []
    for run, of_run in zip(runs, bounds, strict=True):
        s = run.summary
        found = {**summary_diagnostics(s), **(_richest(run) or {})}
        active, number = found.get("active_units"), found.get("diagnosed_sequences")
        shuffled = with_error(found, "shuffled_loss_nats_per_sequence")
        lines.append((
            run.name, run.config.get("model"), f"{s['num_parameters']:,}" if s else "", s.get("updates", ""),
            *(of_run.get(key, "") for key in columns),
            "" if active is None else f"{active} of {found.get('latent_units')} (N = {number})",
            f"{shuffled} (N = {number})" if shuffled else "",
        ))  # fmt: skip
    return _table(heads, lines)


def _files(files: Sequence[Path]) -> list[str]:
    """Pictures, sounds and texts by folder, without the figures that the report draws itself."""
    drawn_anew = {"curves.png", "kl_per_step.png"}
    parts: list[str] = []
    folders: dict[str, list[Path]] = {}
    for path in files:
        if path.name not in drawn_anew:
            folders.setdefault(path.parent.name, []).append(path)
    for folder, paths in folders.items():
        parts.append(f"<h3>{_text(folder.capitalize())}</h3>")
        sounds = []
        for path in paths:
            if path.suffix == ".png":
                parts.append(
                    _image(path.read_bytes(), path.stem.replace("_", " ").replace("-", " "))
                )
            elif path.suffix == ".wav":
                data = base64.b64encode(path.read_bytes()).decode()
                sounds.append(
                    f"<figure><figcaption>{_text(path.stem)}</figcaption>"
                    f'<audio controls src="data:audio/wav;base64,{data}"></audio></figure>'
                )
            elif path.suffix in (".txt", ".md"):
                text = path.read_text(encoding="utf-8", errors="replace")
                parts.append(
                    f"<figure><figcaption>{_text(path.stem)}</figcaption><pre>{_text(text)}</pre></figure>"
                )
        if sounds:
            parts.append(f'<div class="sounds">{"".join(sounds)}</div>')
    return parts


def _figure(figure: Figure, caption: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return _image(file.getvalue(), caption)


def _image(data: bytes, caption: str) -> str:
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _table(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_text(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(str(value))

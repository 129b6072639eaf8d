"""Formatting of bounds as numbers with units, and as one-line summaries."""

from __future__ import annotations

import math
from typing import Any

from pyro_zf.data import Splits, TextStream
from pyro_zf.infer import Bounds

__all__ = [
    "baseline_line",
    "brief",
    "far_worse",
    "headline",
    "marginal_numbers",
    "text_numbers",
    "training_numbers",
]


def text_numbers(name: str, nats_per_step: float, step_unit: str) -> dict[str, float]:
    """Perplexity per word or bits per character from a bound in nats per step; empty for other data.

    Every predicted symbol counts once. This includes the ends of sentences but not their beginnings. If the
    bound is a lower bound of the log-likelihood, both numbers are upper bounds.
    """
    if step_unit == "word":
        return {f"{name}_perplexity": math.exp(min(-nats_per_step, 700.0))}
    if step_unit == "character":
        return {f"{name}_bits_per_character": -nats_per_step / math.log(2)}
    return {}


def training_numbers(bounds: Bounds, splits: Splits) -> dict[str, float]:
    """The metrics that are logged for a validation or a test."""
    numbers = {}
    for name in ("elbo", "kl"):
        estimate = bounds.per_sequence(name)
        numbers[f"{name}_nats_per_sequence"] = estimate.mean
        numbers[f"{name}_nats_per_sequence_stderr"] = estimate.stderr
        numbers[f"{name}_nats_per_step"] = bounds.per_step(name).mean
    numbers |= text_numbers("elbo", numbers["elbo_nats_per_step"], splits.step_unit)
    numbers["aux_nats_per_sequence"] = bounds.per_sequence("aux").mean
    numbers["aux_nats_per_step"] = bounds.per_step("aux").mean
    return numbers


def marginal_numbers(splits: Splits, split: str, bounds: Bounds | None = None) -> dict[str, Any]:
    """The log-likelihood of a baseline without memory on the whole split, in the same units.

    For a stream, the number of segments is taken from ``bounds``, since it depends on how the stream was
    batched.
    """
    nats = -splits.marginal_nats(split)
    statistics = splits.statistics(split)
    per_step = nats * statistics.num_sequences / max(statistics.num_steps, 1)
    if bounds is not None and isinstance(splits[split], TextStream):
        nats = per_step * bounds.num_steps / bounds.num_sequences
    return {
        "marginal": splits.marginal_name,
        "marginal_nats_per_sequence": nats,
        "marginal_nats_per_step": per_step,
        **text_numbers("marginal", per_step, splits.step_unit),
    }


def brief(numbers: dict[str, Any], splits: Splits) -> str:
    """Summary of a validation in one line."""
    for name, unit in _SYMBOLS.items():
        if f"elbo_{name}" in numbers:
            return f"{unit} <= {numbers[f'elbo_{name}']:.3f}"
    if splits.kind == "real":
        return f"ELBO {numbers['elbo_nats_per_sequence']:.1f} nats per {splits.unit}"
    return f"-ELBO {-numbers['elbo_nats_per_sequence']:.2f} nats per {splits.unit}"


_SYMBOLS = {"perplexity": "perplexity", "bits_per_character": "bits per character"}


def baseline_line(splits: Splits) -> str:
    """Score of the baseline without memory on the test split, in one line."""
    numbers = marginal_numbers(splits, "test")
    symbols = "".join(
        f", {words} {numbers[f'marginal_{name}']:.3f}"
        for name, words in _SYMBOLS.items()
        if f"marginal_{name}" in numbers
    )
    return (
        f"{splits.marginal_name}, test: {numbers['marginal_nats_per_sequence']:.2f} nats of "
        f"log-likelihood per {splits.unit}, {numbers['marginal_nats_per_step']:.4f} per "
        f"{splits.step_unit}{symbols}"
    )


def far_worse(summary: dict[str, Any]) -> bool:
    """Whether the test bound is not finite, or below that of the baseline by ten times its size."""
    nats = summary.get("test_elbo_nats_per_sequence")
    marginal = summary["marginal_nats_per_sequence"]
    return nats is not None and not nats > marginal - 10 * abs(marginal)


def headline(summary: dict[str, Any]) -> str:
    """Test result of a run in one line: the bound with its unit, and the score of the baseline."""
    if "test_elbo_nats_per_sequence" not in summary:
        return f"no test result on {summary['data']}: the test failed, see the warning above"
    unit, step_unit = summary["unit"], summary["step_unit"]
    nats, error = (
        summary["test_elbo_nats_per_sequence"], summary["test_elbo_nats_per_sequence_stderr"]
    )  # fmt: skip
    real = summary["kind"] == "real"
    latents = summary["has_latents"]
    sign = 1 if real else -1
    side = (
        "a lower bound of the log-likelihood"
        if real
        else "an upper bound of the negative log-likelihood"
    )
    exact = "the exact log-likelihood" if real else "the exact negative log-likelihood"
    what = (
        f"one posterior sample each, KL {summary['test_kl_nats_per_sequence']:.2f}; {side}"
        if latents
        else exact
    )
    baseline = f"{sign * summary['marginal_nats_per_sequence']:.2f}"
    spread = "" if error is None or not math.isfinite(error) else f" +- {error:.2f}"
    main = f"{sign * nats:.2f}{spread} nats per {unit}"
    if summary["kind"] != "binary":
        main += f", {sign * summary['test_elbo_nats_per_step']:.4f} per {step_unit}"
    lead = "test ELBO" if real else "test -ELBO"
    for name, words in _SYMBOLS.items():
        if f"test_elbo_{name}" in summary:
            bound = "<= " if latents else ""
            lead = f"test {words} {bound}{summary[f'test_elbo_{name}']:.3f}, {lead[5:]}"
            baseline = f"{words} {summary[f'marginal_{name}']:.3f}"
    better = "higher is better" if real else "lower is better"
    normalised = ""
    if real:
        normalised = f", of normalised {'samples' if summary['sample_rate'] else 'values'}"
    return (
        f"{lead}: {main}{normalised} on {summary['data']} ({summary['test_num_sequences']} test {unit}s, "
        f"{what}; {better}; {summary['marginal']}: {baseline})"
    )

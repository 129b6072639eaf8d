"""``evaluate.py``: compute bounds and diagnostics of a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyro_zf.cli.common import RunOptions, at_least_one, load, run_command
from pyro_zf.cli.parsing import parsed
from pyro_zf.trained import Evaluation
from pyro_zf.training import UsageError, json_text, resolve_device, started
from pyro_zf.training.evaluation import EvaluationConfig, evaluate_model, save_evaluation

__all__ = ["EvaluateConfig", "evaluate_main"]

EXAMPLES = (
    "python scripts/evaluate.py RUN",
    "python scripts/evaluate.py RUN --num-samples 1000 --max-sequences 1000 --samples-per-pass 20",
    "python scripts/evaluate.py RUN --latents prior-mean",
)


@dataclass(frozen=True)
class EvaluateConfig(EvaluationConfig, RunOptions):
    """Compute bounds and diagnostics of a trained model.

    The output is a table and, as its last line, a JSON object, which is also saved in the run folder (for
    --checkpoint best).
    """


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """``evaluate.py``: see :class:`EvaluateConfig` for the options."""
    return run_command(lambda: _evaluate(parsed(EvaluateConfig, argv, "evaluate.py", EXAMPLES)))


def _evaluate(config: EvaluateConfig) -> None:
    at_least_one(config, "num_samples", "max_sequences", "batch_size", "samples_per_pass")
    if config.diagnosed_sequences < 0:
        raise UsageError(
            f"--diagnosed-sequences must not be negative, got {config.diagnosed_sequences}"
        )
    processes = started(resolve_device(config.device))
    if processes.size > 1:
        config = replace(config, device=processes.device)
    settings, splits, model, update, device = load(config)
    found = evaluate_model(model, splits, config, device, processes)
    if not processes.first:
        return
    result = {
        "dataset": settings.dataset,
        "data": splits.source.name,
        "comparable_with_published": splits.source.comparable,
        "checkpoint": config.checkpoint,
        "update": update,
        **found,
    }
    print(f"{splits.source.name}, checkpoint {config.checkpoint} (update {update:,})")
    print(Evaluation(result))
    print(json_text(result))
    if config.checkpoint == "best":
        save_evaluation(config.run, result)

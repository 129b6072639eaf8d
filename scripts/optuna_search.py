"""Search over options of a training with Optuna, as an example to copy and change.

    pip install -e ".[search]"
    python scripts/optuna_search.py --dataset mnist --trials 20 --minutes 5 --output-dir runs/search

Each trial is a training in a folder of its own. It is judged by the validation ELBO in nats per sequence, so the test
data play no part in the choice. The study is stored in ``study.db`` in the output folder; the same command continues
an interrupted search, and several processes may share one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
import tyro

from pyro_zf.training import TrainConfig, TrainingError, train
from pyro_zf.training.data import Dataset


@dataclass(frozen=True)
class Search:
    """Search over learning rate, weight decay, dropout and the weight of the auxiliary cost."""

    dataset: Dataset = "mnist"
    """Data set to train on."""
    model: str = "zforcing"
    """Model to train."""
    trials: int = 20
    """Number of trainings."""
    minutes: float = 5.0
    """Minutes of each training."""
    max_updates: int | None = None
    """Number of updates of each training, in place of minutes."""
    output_dir: Path = Path("runs/search")
    """Folder of the study and of its runs."""
    valid_sequences: int = 1000
    """Number of sequences to validate on."""


def main(search: Search) -> None:
    def objective(trial: optuna.Trial) -> float:
        options = {
            "learning_rate": trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-4, 0.1, log=True),
            "dropout": trial.suggest_float("dropout", 0.0, 0.4),
            "decay_start": trial.suggest_float("decay_start", 0.0, 0.8),
        }
        if search.model == "zforcing":
            options["alpha"] = trial.suggest_float("alpha", 1e-5, 1e-2, log=True)
        config = TrainConfig.of(
            dataset=search.dataset, model=search.model, learning_rate_decay="linear",
            output_dir=search.output_dir / f"trial{trial.number}", num_figures=0,
            valid_sequences=search.valid_sequences, test_sequences=1, max_updates=search.max_updates,
            max_minutes=None if search.max_updates else search.minutes, **options,
        )  # fmt: skip
        try:
            summary = train(config)
        except TrainingError as error:  # it has diverged
            raise optuna.TrialPruned(str(error)) from error
        return float(summary["valid_elbo_nats_per_sequence"])

    search.output_dir.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        direction="maximize", study_name="search", load_if_exists=True,
        storage=f"sqlite:///{search.output_dir / 'study.db'}", sampler=optuna.samplers.TPESampler(seed=0),
    )  # fmt: skip
    study.optimize(objective, n_trials=search.trials)
    best = study.best_trial
    print(f"best: trial {best.number}, validation ELBO {best.value:.2f} nats per sequence")
    print(" ".join(f"--{k.replace('_', '-')} {v:.4g}" for k, v in best.params.items()))


if __name__ == "__main__":
    main(tyro.cli(Search))

"""Trained models from Python: load them, evaluate and diagnose them, and generate from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_zf import analysis
from pyro_zf.analysis import Decoding, Diagnostics, covariates_like
from pyro_zf.analysis.run_figures import steps_of
from pyro_zf.data import Batches, DataError, Splits, Values, splits_of
from pyro_zf.data.covariates import one_hot
from pyro_zf.data.datasets import text_of
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.names import there_are
from pyro_zf.training.checkpoint import load_checkpoint, load_weights
from pyro_zf.training.checks import UsageError
from pyro_zf.training.config import TrainConfig, resolve_device
from pyro_zf.training.data import build_data, check_data, check_same_data, data_record
from pyro_zf.training.evaluation import EvaluationConfig, evaluate_model
from pyro_zf.training.export import WEIGHTS, read_export
from pyro_zf.training.setup import build_model, prepare_model
from pyro_zf.training.validation import evaluating

__all__ = ["Evaluation", "Generated", "TrainedRun", "diagnose", "evaluate", "generate", "load"]


@dataclass
class TrainedRun:
    """Where a loaded model comes from: :attr:`SequenceModel.trained`.

    Args:
        path: the checkpoint.
        config: settings of the run.
        update: number of updates after which the checkpoint was saved.
        record: properties of the training data.
        data: data that the run was trained on, if they were given in Python.
    """

    path: Path
    config: TrainConfig = field(repr=False)
    update: int
    record: Mapping[str, Any] = field(repr=False)
    data: Any = field(default=None, repr=False)

    @cached_property
    def splits(self) -> Splits:
        """The data of the run, which are read when they are first needed.

        Raises:
            DataError: if they are not found, or are not those of the run.
        """
        if self.config.own_data and self.data is None:
            raise DataError(
                f"{self.path} was trained on data given in Python: give them as load(..., data=...)"
            )
        splits = (
            build_data(self.config, evaluated=True) if self.data is None else splits_of(self.data)
        )
        check_same_data(self.path, self.record, data_record(splits))
        return splits

    @property
    def values(self) -> Values:
        """Description of the values of a step."""
        r = self.record
        mean, std = (
            np.asarray(r[name]) if isinstance(r[name], list) else r[name]
            for name in ("mean", "std")
        )
        return Values(r["kind"], r["size"], mean, std, r["start"], r.get("high", 0))


def load(
    path: Path | str,
    checkpoint: Literal["best", "last"] = "best",
    device: str = "cpu",
    model: SequenceModel | None = None,
    data: Any = None,
    data_dir: Path | str | None = None,
) -> SequenceModel:
    """Load a trained model, ready to evaluate and to generate.

    The data are not needed to load a model or to generate from it, unless they were given to ``train()`` in
    Python; :func:`evaluate` and :func:`diagnose` read them when they are called.

    Args:
        path: a run folder, a checkpoint file, or what :func:`~pyro_zf.training.export` has written: the file or
            its folder.
        checkpoint: which checkpoint of a run folder to load: that with the best validation, or the last.
        device: device of the model: auto, cpu, cuda or cuda:N.
        model: a model object like the one that was trained, if it was given to
            :func:`~pyro_zf.training.train` as an object.
        data: the data of the run, if they were given to ``train()`` or have moved: a path, or what ``train()``
            accepts.
        data_dir: folder with the data sets, if they have moved.

    Returns:
        SequenceModel: the model in evaluation mode. Its attribute ``trained`` is a :class:`TrainedRun`.

    Raises:
        DataError: if there is no such checkpoint, or it is damaged.
        UsageError: if the run was trained on a model object and none is given.
    """
    path = Path(path).expanduser()
    file = path / "checkpoints" / f"{checkpoint}.pt" if path.is_dir() else path
    if (path / WEIGHTS).is_file():
        file = path / WEIGHTS
    if not file.is_file():
        what = f"{path} does not exist"
        if path.is_dir():
            what = (
                f"{path} is not a run folder with a checkpoint {checkpoint!r} (looked for {file})"
            )
        hint = "; there is checkpoint='last'" if (file.parent / "last.pt").is_file() else ""
        raise DataError(f"{what}{hint}")
    name = resolve_device(device)
    exported = file.suffix == ".safetensors"
    if exported and checkpoint != "best":
        raise UsageError(f"{file} holds the best checkpoint alone, not the {checkpoint} one")
    content = (read_export if exported else load_checkpoint)(file, torch.device(name))
    if not {"config", "data", "model", "update"} <= set(content):
        raise DataError(f"{file} is not a checkpoint of a training run")
    config = TrainConfig.from_json(content["config"], f"the settings in {file}")
    if isinstance(data, (str, Path)) and config.own_data:
        raise UsageError(
            f"{path} was trained on data given in Python, so data must be like these, not the path {data}"
        )
    if isinstance(data, (str, Path)):
        config, data = dataclasses.replace(config, data=Path(data)), None
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=Path(data_dir))
        check_data(config)
    if config.own_model and model is None:
        raise UsageError(
            f"{path} was trained on a model object of the class {config.model}: give one like it as "
            "load(..., model=...)"
        )
    if model is None:
        model = build_model(config, content["data"])
    else:
        prepare_model(config, model, content["data"])
    load_weights(model.to(name), content, file)
    model.trained = TrainedRun(file, config, int(content["update"]), content["data"], data)
    return model.eval()


@dataclass(frozen=True, repr=False)
class Evaluation(Mapping[str, Any]):
    """Result of :func:`evaluate`: numbers by name, as the command ``evaluate`` prints them.

    Its ``repr`` is a table of the bounds.
    """

    numbers: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        n = self.numbers
        unit, step = n["unit"], n["step_unit"]
        names = {"elbo": "ELBO", "iwae": "IWAE", "fivo": "FIVO", "log_likelihood": "log p(y | z)", "kl": "KL",
                 "marginal": n["marginal"]}  # fmt: skip
        width = max(map(len, names.values()))
        lines = [
            f"{n['num_sequences']:,} {unit}s of {n['split']}, k = {n['num_samples']}, z from the {n['latents']}",
            f"{'':{width}}{f'nats per {unit}':>24}{f'per {step}':>14}",
        ]
        for name, shown in names.items():
            if (value := n.get(f"{name}_nats_per_sequence")) is None:
                continue
            error = n.get(f"{name}_nats_per_sequence_stderr")
            spread = "" if error is None or error != error else f" ± {error:.2f}"
            per_step = n[f"{name}_nats_per_step"]
            lines.append(f"{shown:{width}}{f'{value:.2f}{spread}':>24}{per_step:>14.4f}")
        if "verdict" in n:
            lines.append(f"latents: {n['verdict']}")
        return "\n".join(lines)


def evaluate(model: SequenceModel, data: Any = None, **options: Any) -> Evaluation:
    """Compute bounds, diagnostics of the latents and the free-running score.

    Args:
        model: a model that :func:`load` has returned, or any other model with ``data``.
        data: the data, as for :func:`~pyro_zf.training.train`. Default: those of the run.
        **options: of :class:`~pyro_zf.training.evaluation.EvaluationConfig`, such as ``split``,
            ``num_samples``, ``fivo``, ``max_sequences`` and ``seed``.

    Raises:
        UsageError: if the model or the data do not support what is asked for.
    """
    known = [f.name for f in dataclasses.fields(EvaluationConfig)]
    for name in options:
        if name not in known:
            raise UsageError(f"evaluate has no option {there_are(name, known)}")
    config = EvaluationConfig(**options)
    for name in ("num_samples", "max_sequences", "batch_size", "samples_per_pass"):
        value = getattr(config, name)
        if not (value is None and name == "max_sequences") and not (
            isinstance(value, int) and value >= 1
        ):
            raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")
    splits = _splits(model, data)
    chunk = model.time_chunk
    try:
        with evaluating(model), torch.random.fork_rng(_devices(model)):
            numbers = evaluate_model(model, splits, config, _device(model))
    finally:
        model.time_chunk = chunk
    return Evaluation(numbers)


def diagnose(
    model: SequenceModel,
    data: Any = None,
    split: Literal["train", "valid", "test"] = "test",
    max_sequences: int = 200,
    seed: int = 0,
) -> Diagnostics:
    """Diagnose whether a model uses its latents; see :class:`~pyro_zf.analysis.Diagnostics`.

    Args:
        model: a model that :func:`load` has returned, or any other model with ``data``.
        data: the data, as for :func:`~pyro_zf.training.train`. Default: those of the run.
        split: split that the sequences are taken from.
        max_sequences: maximum number of sequences, a fixed random subset of at least two.
        seed: random seed of the latents.

    Raises:
        UsageError: if the model has no latents, or there are fewer than two sequences.
    """
    if not isinstance(model, LatentSequenceModel):
        name = type(model).__name__
        if model.has_latents:
            raise UsageError(f"the diagnostics require a LatentSequenceModel, which {name} is not")
        raise UsageError(f"{name} has no latents to diagnose")
    dataset = _splits(model, data)[split]
    number = min(max_sequences, len(dataset))
    if number < 2:
        raise UsageError(
            f"a diagnosis needs two sequences, and there is {number} in the {split} split"
        )
    batches = Batches(dataset, -(-number // -(-number // 100)), limit=number)
    with evaluating(model), torch.random.fork_rng(_devices(model)):
        torch.manual_seed(seed)
        return analysis.diagnose(model, batches.epoch(0, 0, _device(model)))


@dataclass(frozen=True, repr=False)
class Generated:
    """Result of :func:`generate`.

    Args:
        sequences: what the model has drawn, (number, steps, values), or (number, steps) for symbols.
        values: the same in the units of the data, without normalisation.
        kind: kind of the values.
        step_unit: name of a step.
        texts: the sequences as texts, for texts.
        sample_rate: sampling rate in Hz, for sounds; a sound is ``values[i].reshape(-1)``.
    """

    sequences: Shaped[Tensor, "number steps *values"]
    values: Shaped[np.ndarray, "number steps *values"]
    kind: str
    step_unit: str
    texts: tuple[str, ...] | None = None
    sample_rate: int | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        number, steps, *size = self.sequences.shape
        each = f" of {size[0]} values" if size else ""
        lines = [f"{number} generated sequences of {steps} {self.step_unit}s{each}, {self.kind}"]
        lines += [f"  {text[:80]}" for text in (self.texts or ())[:8]]
        return "\n".join(lines)


def generate(
    model: SequenceModel,
    number: int = 16,
    *,
    steps: int | None = None,
    temperature: float = 1.0,
    argmax: bool = False,
    latent_temperature: float = 1.0,
    condition: str | None = None,
    covariates: Tensor | None = None,
    data: Any = None,
    seed: int | None = None,
) -> Generated:
    """Generate sequences.

    Args:
        model: a model that :func:`load` has returned, or any other model with ``data``.
        number: number of sequences.
        steps: number of steps. Default: two seconds of sound, and otherwise as many as the longest training
            sequence has, at most 200.
        temperature, argmax, latent_temperature: see :class:`~pyro_zf.analysis.Decoding`.
        condition: name of the class of all sequences, if the model is conditioned on classes.
        covariates: covariates of the sequences, (number, size) or (number, steps, size). Default, for a model
            with covariates: those of sequences of the test split.
        data: the data, as for :func:`~pyro_zf.training.train`. Default: those of the run.
        seed: random seed, or None to continue with the state of PyTorch's generator.

    Raises:
        ValueError: if a number is out of range.
        UsageError: if the condition is not known, or nothing tells what the data are.
    """
    for name, value in (("number", number), ("steps", 1 if steps is None else steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    _check_model(model)
    if data is None and model.trained is not None:
        record, values = model.trained.record, model.trained.values
    else:
        splits = _splits(model, data)
        record, values = data_record(splits), splits.values
    if steps is None:
        steps = steps_of(
            record["num_steps"], record["unit"] == "image", record["sample_rate"], record["size"]
        )
    device = _device(model)
    if condition is not None:
        if covariates is not None:
            raise UsageError("condition and covariates exclude each other: give one of them")
        names = record.get("covariate_names")
        if names is None:
            raise UsageError("condition names a class, but the model is not conditioned on classes")
        if condition not in names:
            raise UsageError(f"condition {there_are(condition, names)}")
        classes = one_hot([condition] * number, names)
        covariates = torch.tensor(classes, dtype=torch.get_default_dtype())
    elif covariates is None and model.covariate_size:
        covariates = covariates_like(_splits(model, data), "test", number, steps, device)
    decoding = Decoding(temperature, argmax, latent_temperature)
    if covariates is not None:
        covariates = covariates.to(device)
    with evaluating(model), torch.random.fork_rng(_devices(model), enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        sequences = analysis.sample(model, values, number, steps, decoding, covariates)
    texts = None
    if record["vocabulary"] is not None:
        ends = record["unit"] != "segment"
        texts = tuple(
            text_of(row, record["vocabulary"], record["joiner"], ends)
            for row in sequences.cpu().numpy()
        )
    return Generated(
        sequences, values.restored(sequences), record["kind"], record["step_unit"], texts,
        record["sample_rate"],
    )  # fmt: skip


def _check_model(model: object) -> None:
    if not isinstance(model, SequenceModel):
        raise TypeError(
            f"model must be a SequenceModel, as load() returns, not a {type(model).__name__}"
        )


def _splits(model: SequenceModel, data: Any) -> Splits:
    _check_model(model)
    if data is not None:
        splits = splits_of(data)
        prepare_model(TrainConfig(), model, data_record(splits))
        return splits
    if model.trained is None:
        raise UsageError(
            f"this {type(model).__name__} was not loaded from a run, so give the data, as data=..."
        )
    return model.trained.splits


def _device(model: SequenceModel) -> torch.device:
    return next(model.parameters()).device


def _devices(model: SequenceModel) -> list[torch.device]:
    """GPUs whose random state is to be kept."""
    device = _device(model)
    return [device] if device.type == "cuda" else []

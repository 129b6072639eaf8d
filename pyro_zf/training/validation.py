"""Bounds for validation and test, computed with a separate random state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from pyro_zf.analysis import Diagnostics, diagnose
from pyro_zf.data import Batches, SequenceDataset, Splits, StreamBatches
from pyro_zf.data.progress import counted
from pyro_zf.infer import Bounds, evaluate
from pyro_zf.models import LatentSequenceModel, SequenceModel
from pyro_zf.models.latent import LatentSource
from pyro_zf.training.distributed import Processes
from pyro_zf.training.numbers import text_numbers

__all__ = [
    "bounds_with_own_noise",
    "evaluating",
    "latent_diagnostics",
    "own_noise",
    "shared_evaluation",
    "without_posterior",
]

#: Number of sequences for the diagnostics of the latents at each validation.
DIAGNOSED = 64


@contextmanager
def evaluating(model: SequenceModel) -> Iterator[None]:
    """Put a model in evaluation mode, and afterwards back in its mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def own_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Use noise from a given seed, and restore the random state of training afterwards."""
    with (
        pyro.validation_enabled(False),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        yield


def bounds_with_own_noise(
    model: SequenceModel,
    batches: Batches | StreamBatches,
    seed: int,
    device: torch.device,
    processes: Processes | None = None,
) -> Bounds:
    """ELBO, KL and auxiliary costs, estimated with one sample per sequence."""
    with evaluating(model), own_noise(seed, device):
        return shared_evaluation(model, batches, device, processes)


def shared_evaluation(
    model: SequenceModel,
    batches: Batches | StreamBatches,
    device: torch.device,
    processes: Processes | None,
    shown: str | None = None,
    **options: Any,
) -> Bounds:
    """Bounds over all batches, which the processes share; the result is that of one process.

    The batches of a stream depend on each other, so every process computes all of them. With ``shown``, the
    title of a progress bar, a terminal shows the progress.
    """
    part = (0, 1)
    if processes is not None and not isinstance(batches, StreamBatches):
        part = (processes.rank, processes.size)
    epoch = batches.epoch(0, 0, device)
    if shown is not None and (processes is None or processes.first):
        epoch = counted(epoch, shown, "batch", len(batches))
    if processes is None or part[1] == 1:
        return evaluate(model.model, model.guide, epoch, **options)
    return Bounds.joined(
        processes.results(lambda: evaluate(model.model, model.guide, epoch, part=part, **options))
    )


def latent_diagnostics(
    model: SequenceModel, dataset: SequenceDataset, seed: int, device: torch.device
) -> Diagnostics | None:
    """Diagnostics on a few sequences of a split; None if there are no latents or fewer than two sequences."""
    if not isinstance(model, LatentSequenceModel) or len(dataset) < 2:
        return None
    batch = next(iter(Batches(dataset, DIAGNOSED, limit=DIAGNOSED))).to(device)
    with evaluating(model), own_noise(seed, device):
        return diagnose(model, [batch])


def without_posterior(
    model: SequenceModel,
    batches: Batches | StreamBatches,
    seed: int,
    device: torch.device,
    sources: Sequence[LatentSource],
    splits: Splits,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """The bound with z drawn as at test time: from the prior, or set to its mean.

    See :meth:`~pyro_zf.models.LatentSequenceModel.drawing_latents_from`.
    """
    numbers: dict[str, Any] = {}
    for source in sources:
        assert isinstance(model, LatentSequenceModel)
        with model.drawing_latents_from(source):
            bounds = bounds_with_own_noise(model, batches, seed, device, processes)
        name = f"{source.replace('-', '_')}_elbo"
        numbers[f"{name}_nats_per_sequence"] = bounds.per_sequence("elbo").mean
        numbers[f"{name}_nats_per_step"] = bounds.per_step("elbo").mean
        numbers |= text_numbers(name, numbers[f"{name}_nats_per_step"], splits.step_unit)
    return numbers
